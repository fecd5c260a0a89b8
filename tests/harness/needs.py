"""What tests need that some hosts or users lack; ``-rs`` names what is skipped.

Where root runs the tests, as CI does, only the reasons in ``ALLOWED_SKIPS`` may skip one; any
other skip fails, so that somebody notices a test that no longer runs. On a host that lacks more,
``--allow-skips`` allows them all.
"""

import ctypes
import os
import socket

import pytest

from balloon_daemon.host.low_memory import PRESSURE_FILE

needs_pressure = pytest.mark.skipif(
    not PRESSURE_FILE.exists(), reason=f"this kernel has no {PRESSURE_FILE}"
)

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, who alone gives files to other users"
)

_SO_PASSRIGHTS = 83  # asm-generic/socket.h


def _refuses_descriptors() -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            return sock.getsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS) == 1
        except OSError:
            return False


needs_refusal = pytest.mark.skipif(
    not _refuses_descriptors(), reason="before Linux 6.16 no socket refuses descriptors"
)


def _landlock_version() -> int:
    # landlock_create_ruleset(2) by its number, with LANDLOCK_CREATE_RULESET_VERSION.
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1))


needs_landlock = pytest.mark.skipif(_landlock_version() < 1, reason="this kernel has no Landlock")

needs_scoped_signals = pytest.mark.skipif(
    _landlock_version() < 6, reason="before Linux 6.12 Landlock bounds no signals"
)

ALLOWED_SKIPS = (
    "before Linux 6.12 Landlock bounds no signals",
    "before Linux 6.16 no socket refuses descriptors",
    "no /dev/kvm that this user may open",
    "no CAP_SYS_RESOURCE: nobody here can have a score below 0",
    # What a host lacks for the moment, as its memory is in pieces or its disk is fast.
    "the host has no three huge pages free",
    "huge pages that the kernel can make",
    "MiB that the kernel can make huge pages of",
    "of the time only",
    "uses typing's from Python 3.14 on",
    # Containers may have files on file systems that cannot be swapped to, and kernels no zram.
    "needs a directory whose files can be swapped to",
    "needs a kernel with zram",
)
"""Reasons for a skip that are no news, or words in them: what the hosts of CI lack."""


def judge_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Makes a test, or a module, fail that was skipped for another reason than those of
    ``ALLOWED_SKIPS``."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    assert isinstance(report.longrepr, tuple)
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not any(words in reason for words in ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = (
            f"skipped: {reason}\n"
            "This reason is not among ALLOWED_SKIPS in tests/harness/needs.py; "
            "make test ARGS=--allow-skips allows any reason."
        )
