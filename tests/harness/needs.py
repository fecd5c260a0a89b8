"""Marks of tests that need of the kernel what not every one has."""

import pytest

from balloon_daemon.host.low_memory import PRESSURE_FILE

needs_pressure = pytest.mark.skipif(
    not PRESSURE_FILE.exists(), reason=f"this kernel has no {PRESSURE_FILE}"
)
