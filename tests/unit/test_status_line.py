"""The line for `systemctl status`: figures, and the last trouble."""

import time

import pytest

from balloon_daemon.events import Death, DeviceDied, Fault, VmLost
from balloon_daemon.records.status_line import MOST_CHARACTERS, StatusLine
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.units import GIB, MIB, VmId


@pytest.mark.parametrize(
    ("vms", "balloon_bytes", "seen", "said"),
    [
        (0, 0, None, "0 VMs, balloons 0 B; available memory unknown"),
        (
            1,
            3 * GIB,
            Reading(2314, 500),
            "1 VM, balloons 3 GiB; 2,300 MiB available, margin 500 MiB",
        ),
        (
            2,
            256 * MIB,
            Reading(499, 500),
            "2 VMs, balloons 256 MiB; 490 MiB available, margin 500 MiB, low",
        ),
        (
            2,
            7 * MIB,
            NeverLow("margin is\noff"),
            "2 VMs, balloons 7 MiB; low memory is switched off (margin is\\x0aoff)",
        ),
    ],
)
def test_line_tells_vms_balloons_and_memory(
    vms: int, balloon_bytes: int, seen: Reading | NeverLow | None, said: str
) -> None:
    assert StatusLine().line(vms, balloon_bytes, seen) == said


def test_line_changes_only_when_a_figure_does_noticeably() -> None:
    status = StatusLine()

    assert status.line(1, GIB, Reading(2314, 500)) == status.line(1, GIB, Reading(2340, 500))
    assert status.line(1, GIB, Reading(2314, 500)) != status.line(1, GIB, Reading(2440, 500))


def test_line_ends_with_the_last_trouble_and_a_vm_that_ends_is_none() -> None:
    status, vm, at_s = StatusLine(), VmId(1, "web"), 1_700_000_000.0
    status(DeviceDied(vm, 12, -9, Death.SIGNAL, "SIGKILL", "", 0, 0.0), at_s)
    status(VmLost(vm, Fault.GONE, "its VMM has ended"), at_s + 60)
    clock = time.strftime("%b %d %H:%M:%S", time.localtime(at_s))

    line = status.line(1, 0, Reading(2314, 500))

    assert f"; last trouble {clock}: web: device 12 was killed by SIGKILL" in line
    assert status.line(1, 0, Reading(2314, 500)) == line


def test_account_of_a_trouble_is_cut() -> None:
    status = StatusLine()
    status(VmLost(VmId(1, "web"), Fault.HANGS, "x" * 1000), 0.0)

    account = status.line(1, 0, None).partition("last trouble")[2]

    assert MOST_CHARACTERS < len(account) < MOST_CHARACTERS + 40
    assert account.endswith("…")
