"""Marks for tests that need what some hosts or users lack; ``-rs`` names what they skip."""

import os

import pytest

from balloon_daemon.host.low_memory import PRESSURE_FILE

needs_pressure = pytest.mark.skipif(
    not PRESSURE_FILE.exists(), reason=f"this kernel has no {PRESSURE_FILE}"
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, who alone gives files to other users"
)
