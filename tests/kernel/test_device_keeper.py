"""A device's keeper alone: what it takes for a device's end, and what it does then."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from types import FrameType

import pytest

from balloon_daemon.device.process import DeviceProcess
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.guests.jailed import supervisor as keeper_module
from balloon_daemon.guests.jailed.hearing import OrderWatch, ReportReader
from balloon_daemon.guests.jailed.supervisor import SETTLE_S, DeviceKeeper, Jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.records.log import LOGGER, EventLog
from balloon_daemon.tube.connection import open_tube
from balloon_daemon.vhost_user.backend import Backend
from tests.fakes.hearing import Hearing
from tests.fakes.told_backend import fresh, set_up
from tests.harness.waiting import HANG_S


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends a test whose event loop never comes back."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the keeper does not come back")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(int(HANG_S))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


class Forks:
    """Counts forks, and has none succeed."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        self.asked += 1
        raise OSError(11, "not here")


def make_keeper(backend: Backend, forks: Forks) -> DeviceKeeper:
    jail = Jail(None, forks)
    return DeviceKeeper(backend, jail, lambda: 0, EventLog(), "vm1", lambda: None, Hearing())


def predecessor() -> tuple[OwnedFd, OwnedFd]:
    """A device's standard error: what its next controller holds of it, and its own end."""
    reading, writing = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    return reading, writing


@pytest.mark.usefixtures("in_time")
def test_device_that_ended_is_reaped_though_another_process_holds_its_tube() -> None:
    async def reap() -> bool:
        keeper = make_keeper(fresh(), Forks())
        upper, lower = open_tube()
        child = subprocess.Popen(["true"])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        words, nobody = predecessor()
        nobody.close()
        keeper._device = device = DeviceProcess(child.pid, upper, words)
        keeper._gone = asyncio.get_running_loop().create_future()
        keeper._stopping = True
        keeper._reader = ReportReader(upper, keeper._take, lambda what: None)
        keeper._orders = OrderWatch(child.pid, upper, EventLog())
        keeper._reap(device)
        lower.close()
        child.returncode = 0  # Reaped above; Popen would look for it again.
        return keeper.running

    assert not asyncio.run(reap())


def test_predecessor_that_says_something_is_not_gone_until_it_hangs_up() -> None:
    async def watch() -> list[bool]:
        keeper = make_keeper(fresh(), Forks())
        reading, writing = predecessor()
        keeper.wait_out(reading)
        os.write(writing.fileno(), b"balloon-vm1: what it said last\n")
        await asyncio.sleep(0.01)
        alone = [keeper._alone.is_set()]
        writing.close()
        await asyncio.wait_for(keeper._alone.wait(), HANG_S)
        return [*alone, keeper._alone.is_set()]

    assert asyncio.run(watch()) == [False, True]


def test_stopped_keeper_forks_nothing_though_its_predecessor_went_while_it_was_to() -> None:
    async def forks() -> int:
        asked = Forks()
        backend = fresh()
        keeper = make_keeper(backend, asked)
        reading, writing = predecessor()
        keeper.wait_out(reading)
        keeper.settle()
        writing.close()
        keeper._predecessor_gone()
        await keeper.stop()
        ready = set_up([0])
        backend.vrings, backend.acknowledged = ready.vrings, ready.acknowledged
        backend.memory.regions = ready.memory.regions
        await asyncio.sleep(10 * SETTLE_S)
        return asked.asked

    assert keeper_module.SETTLE_S < 0.1
    assert asyncio.run(forks()) == 0


@pytest.mark.parametrize("what", ["device", "predecessor"])
def test_told_to_stop_and_cancelled_as_the_device_ends_is_cancelled(what: str) -> None:
    # A guest's task is, when its controller ends in the same turn of the loop.
    async def end() -> bool:
        keeper = make_keeper(fresh(), Forks())
        reading, writing = predecessor()
        upper, lower = open_tube()
        child = subprocess.Popen(["true"])
        if what == "predecessor":
            keeper.wait_out(reading)
        else:
            keeper._device = DeviceProcess(child.pid, upper, reading)
            keeper._gone = asyncio.get_running_loop().create_future()
        stopping = asyncio.ensure_future(keeper.stop())
        for _ in range(3):
            await asyncio.sleep(0)
        if what == "predecessor":
            writing.close()
            keeper._predecessor_gone()
        else:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            assert keeper._device is not None
            keeper._reap(keeper._device)
            child.returncode = 0
        stopping.cancel()
        await asyncio.wait([stopping])
        upper.close()
        lower.close()
        child.wait()
        return stopping.cancelled()

    assert asyncio.run(end())


@pytest.mark.parametrize(("stands_known", "lines"), [(True, 0), (False, 1)])
def test_device_that_said_where_its_rings_stand_is_given_time_without_a_word(
    stands_known: bool,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def end() -> None:
        keeper = make_keeper(fresh(), Forks())
        upper, lower = open_tube()
        child = subprocess.Popen(["sleep", "60"])
        words, nobody = predecessor()
        nobody.close()
        keeper._device = device = DeviceProcess(child.pid, upper, words)
        keeper._gone = asyncio.get_running_loop().create_future()
        keeper._indices_known = stands_known
        asyncio.get_running_loop().add_reader(device.pidfd.fileno(), keeper._reap, device)
        await keeper._end()
        lower.close()
        child.returncode = -signal.SIGKILL

    monkeypatch.setattr(keeper_module, "STOP_WITHIN_S", 0.05)
    monkeypatch.setattr(LOGGER, "propagate", True)
    asyncio.run(end())

    assert [r.getMessage() for r in caplog.records].count(KILLED) == lines


KILLED = "device does not stop, killing it"


def test_forks_that_fail_over_and_over_do_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> int:
        loop = asyncio.get_running_loop()
        forks = Forks()
        keeper = make_keeper(set_up([0]), forks)
        keeper._indices_known = False
        began = int(loop.time())
        for _ in range(200):
            keeper.settle()
            keeper._start()
            await keeper.learn_indices()
        assert forks.asked == 400
        return int(loop.time()) - began + 1

    monkeypatch.setattr(keeper_module, "LOOKS_AFTER_S", (0.0,))
    monkeypatch.setattr(LOGGER, "propagate", True)
    seconds = asyncio.run(fail())

    said = [record.getMessage().partition(" (")[0] for record in caplog.records]
    assert 1 <= said.count("cannot fork a device: not here; trying again") <= seconds
    assert 1 <= said.count("where the rings stand now cannot be learned") <= seconds
    assert len(said) <= 2 * seconds
