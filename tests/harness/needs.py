"""Marks for tests that need a feature of the kernel which some kernels lack."""

import pytest

from balloon_daemon.host.low_memory import PRESSURE_FILE

needs_pressure = pytest.mark.skipif(
    not PRESSURE_FILE.exists(), reason=f"this kernel has no {PRESSURE_FILE}"
)
