"""A controller from its start to its end, with guests that know no protocol: signals and tasks."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from balloon_daemon.units import MIB
from tests.harness.waiting import HANG_S

STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""


class Daemon:
    """A controller's process, and what it says."""

    def __init__(self, count: int, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.plain_daemon", str(count), kind],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def wait_for(self, wanted: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            if wanted in line:
                return
        raise AssertionError(f"no {wanted!r} in {self.lines}")

    def end_by(self, number: signal.Signals) -> list[str]:
        """Ends it. Returns what it says from then on."""
        before = len(self.lines)
        self._process.send_signal(number)
        rest, _ = self._process.communicate(timeout=HANG_S)
        self.lines += rest.splitlines()
        assert self._process.returncode == 0
        return self.lines[before:]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


StartPlain = Callable[[int, str], Daemon]


@pytest.fixture
def start() -> Iterator[StartPlain]:
    daemons: list[Daemon] = []

    def start(count: int, kind: str) -> Daemon:
        daemons.append(Daemon(count, kind))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


def test_guests_get_their_first_target_and_then_their_memory_back(start: StartPlain) -> None:
    daemon = start(2, "plain")
    daemon.wait_for(f"vm2 target {STEP}")

    said = daemon.end_by(signal.SIGTERM)

    assert f"vm1 target {STEP}" in daemon.lines
    wanted = ["stop False", "vm1 target 0", "vm2 target 0", "vm1 ended", "vm2 ended"]
    assert [line for line in said if line in wanted] == wanted
    assert said[-2:] == ["close False", "over"]


def test_guests_that_can_be_left_are_left_at_sigusr1(start: StartPlain) -> None:
    daemon = start(2, "keeps")
    daemon.wait_for(f"vm2 target {STEP}")

    said = daemon.end_by(signal.SIGUSR1)

    wanted = ["stop True", "vm1 left", "vm2 left", "vm1 ended", "vm2 ended", "close True", "over"]
    assert [line for line in said if line in wanted] == wanted
    assert not any("target 0" in line for line in said)


def test_guests_that_cannot_be_left_get_their_memory_back_at_sigusr1(start: StartPlain) -> None:
    daemon = start(1, "plain")
    daemon.wait_for(f"vm1 target {STEP}")
    said = daemon.end_by(signal.SIGUSR1)
    assert "vm1 target 0" in said
    assert "close False" in said


def test_guests_of_two_drivers_are_left_or_give_back_at_sigusr1_as_their_driver_can(
    start: StartPlain,
) -> None:
    daemon = start(1, "keeps,plain")
    daemon.wait_for(f"vm2 target {STEP}")

    said = daemon.end_by(signal.SIGUSR1)

    # A guest that has been left is saved no more: none is left while another one gives back.
    wanted = ["stop True", "stop False", "vm2 target 0", "vm1 left", "close True", "close False"]
    assert [line for line in said if line in wanted] == wanted
    assert "vm1 target 0" not in said
    assert "Stopping(signal='SIGUSR1', vms_stay=False)" in said


def test_guests_of_two_drivers_give_back_at_sigterm(start: StartPlain) -> None:
    daemon = start(1, "keeps,plain")
    daemon.wait_for(f"vm2 target {STEP}")
    said = daemon.end_by(signal.SIGTERM)
    wanted = ["stop False", "vm1 target 0", "vm2 target 0", "close False"]
    assert [line for line in said if line in wanted] == [wanted[0], *wanted, wanted[-1]]


def test_guest_that_fails_to_leave_and_to_end_keeps_no_other_from_it(start: StartPlain) -> None:
    daemon = start(2, "hangs")
    daemon.wait_for(f"vm2 target {STEP}")

    said = daemon.end_by(signal.SIGTERM)

    assert "vm2 ended" in said
    assert any(line.startswith("VmDoesNotEnd") and "vm1" in line for line in said)
    # What was published is written before a process ends that would wait for that task for ever.
    assert said[-1] == "drained"


def test_bug_in_one_guest_is_published_and_takes_no_other_down(start: StartPlain) -> None:
    daemon = start(2, "fails")
    daemon.wait_for("VmFailed(vm=VmId(number=1, name='vm1'), error='ValueError: a bug')")
    daemon.wait_for(f"vm2 target {2 * STEP}")
    daemon.end_by(signal.SIGTERM)
    assert f"vm1 target {2 * STEP}" not in daemon.lines
