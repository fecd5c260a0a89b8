"""A device's supervisor alone: what it takes for a device's end, and what it does then."""

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from types import FrameType

import psutil
import pytest

from balloon_daemon.device.process import NotYetError
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.errors import StateFileError
from balloon_daemon.events import (
    DeviceDied,
    DeviceDoesNotStop,
    DeviceNotForked,
    DeviceStarted,
    Event,
    Publish,
    RingsUnknown,
)
from balloon_daemon.guests.jailed import supervisor as supervisor_module
from balloon_daemon.guests.jailed.forks import Forks
from balloon_daemon.guests.jailed.life import MAX_DEATHS, WAIT_S, Wait
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor, Jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.tube.connection import DeviceEnd
from balloon_daemon.tube.messages import Stopped
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from tests.fakes.asked_template import AskedTemplate, asks
from tests.fakes.hearing import Hearing
from tests.fakes.told_backend import fresh, set_up
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

VM = VmId(1, "vm1")
QUIET_S = WAIT_S[Wait.QUIET]


@pytest.fixture
def in_time() -> Iterator[None]:
    """Ends a test whose event loop never comes back."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("the supervisor does not come back")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(int(HANG_S))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


class NoForks:
    """Counts forks, and has none succeed."""

    def __init__(self, error: OSError | None = None) -> None:
        self.asked = 0
        self._error = error or OSError(11, "not here")

    def __call__(self, spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        self.asked += 1
        raise self._error


class Programs:
    """Starts programs in the place of devices, and holds their ends of the tubes itself."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self.pids: list[int] = []
        self.tubes: list[DeviceEnd] = []

    def __call__(self, spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        self.tubes.append(DeviceEnd(socket.socket(fileno=os.dup(tube_fd))))
        path = shutil.which(self._command[0])
        assert path is not None
        self.pids.append(os.posix_spawn(path, self._command, os.environ))
        return self.pids[-1]

    def close(self) -> None:
        for tube in self.tubes:
            tube.close()


@pytest.fixture
def programs() -> Iterator[Programs]:
    with closing(Programs("sleep", "60")) as programs:
        yield programs


def supervise(
    backend: Backend,
    fork: Callable[[DeviceSpec, int, int, int], int],
    publish: Publish = lambda event: None,
) -> DeviceSupervisor:
    jail = Jail(None, asks(fork))
    return DeviceSupervisor(backend, jail, publish, VM, lambda: None, Hearing())


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.001)


def is_reaped(pid: int) -> bool:
    return not psutil.pid_exists(pid)


async def runs(supervisor: DeviceSupervisor) -> None:
    """Has a device run."""
    supervisor.settle()
    await until(lambda: supervisor.running)


def predecessor() -> tuple[OwnedFd, OwnedFd]:
    """A device's standard error: what its next controller holds of it, and its own end."""
    reading, writing = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    return reading, writing


@fault("template hangs between fork and answer, and the device dies")
@pytest.mark.usefixtures("in_time")
def test_device_that_ended_is_reaped_though_another_process_holds_its_tube(
    programs: Programs,
) -> None:
    async def reap() -> None:
        supervisor = supervise(set_up([0]), programs)
        await runs(supervisor)
        os.kill(programs.pids[0], signal.SIGKILL)
        await supervisor.stop()
        assert not supervisor.running

    asyncio.run(reap())
    # Whether told to stop before its death was noticed or not: reaped is the one that was killed.
    with pytest.raises(ProcessLookupError):
        os.kill(programs.pids[0], 0)


def test_device_that_dies_over_and_over_is_forked_six_times_and_its_deaths_are_said() -> None:
    published: list[Event] = []

    async def die(programs: Programs) -> bool:
        supervisor = supervise(set_up([0]), programs, published.append)
        supervisor.settle()
        await until(lambda: len(published) == 2 * (MAX_DEATHS + 1))
        supervisor.settle()
        await asyncio.sleep(10 * QUIET_S)
        await supervisor.stop()
        return supervisor.to_run

    with closing(Programs("true")) as programs:
        assert not asyncio.run(die(programs))
    assert len(programs.pids) == MAX_DEATHS + 1
    deaths = [event.deaths for event in published if isinstance(event, DeviceDied)]
    assert deaths == [0] * MAX_DEATHS + [MAX_DEATHS + 1]


@fault("an earlier controller's device speaks last words before it ends")
def test_predecessor_that_says_something_is_not_gone_until_it_hangs_up() -> None:
    async def watch() -> list[bool]:
        forks = NoForks()
        supervisor = supervise(set_up([0]), forks)
        reading, writing = predecessor()
        supervisor.wait_out(reading)
        supervisor.take_over()
        os.write(writing.fileno(), b"balloon-vm1: what it said last\n")
        await asyncio.sleep(10 * QUIET_S)
        assert forks.asked == 0
        watched = [supervisor.stderr_pipe is reading]
        writing.close()
        await until(lambda: forks.asked == 1)
        await supervisor.stop()
        return [*watched, supervisor.stderr_pipe is None]

    assert asyncio.run(watch()) == [True, True]


@fault("an earlier controller's device speaks last words before it ends")
def test_stopped_supervisor_forks_nothing_though_its_predecessor_went_while_it_was_to() -> None:
    async def forks() -> int:
        asked = NoForks()
        supervisor = supervise(set_up([0]), asked)
        reading, writing = predecessor()
        supervisor.wait_out(reading)
        supervisor.take_over()
        stopping = asyncio.ensure_future(supervisor.stop())
        await asyncio.sleep(0)
        writing.close()
        await stopping
        await asyncio.sleep(10 * QUIET_S)
        return asked.asked

    assert asyncio.run(forks()) == 0


def test_predecessor_that_does_not_end_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(WAIT_S, Wait.PREDECESSOR, 0.01)

    async def stop() -> int:
        forks = NoForks()
        supervisor = supervise(set_up([0]), forks)
        reading, _writing = predecessor()
        supervisor.wait_out(reading)
        for _ in range(2):
            with pytest.raises(StateFileError, match="of an earlier balloond does not end"):
                await supervisor.stop()
        supervisor.close()
        assert reading.fileno() == -1
        return forks.asked

    assert asyncio.run(stop()) == 0


@fault("SIGUSR1 arrives as a device ends")
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("what", ["device", "predecessor"])
def test_told_to_stop_and_cancelled_as_the_device_ends_is_cancelled(
    what: str, turns: int, programs: Programs
) -> None:
    # A guest's task is, when its controller ends in the same turn of the loop.
    async def end() -> tuple[bool, bool]:
        supervisor = supervise(set_up([0]), programs)
        reading, writing = predecessor()
        if what == "predecessor":
            supervisor.wait_out(reading)
        else:
            await runs(supervisor)
        stopping = asyncio.ensure_future(supervisor.stop())
        await asyncio.sleep(0)
        if what == "predecessor":
            writing.close()
        else:
            os.kill(programs.pids[0], signal.SIGKILL)
            os.waitid(os.P_PID, programs.pids[0], os.WEXITED | os.WNOWAIT)
        for _ in range(turns):
            await asyncio.sleep(0)
        late = stopping.done()
        stopping.cancel()
        await asyncio.wait([stopping])
        await supervisor.stop()
        return late, stopping.cancelled()

    late, cancelled = asyncio.run(end())
    assert cancelled is not late
    assert turns > 1 or cancelled


@fault("dies, and gigabytes of its memory are to be freed")
@pytest.mark.parametrize(("stands_known", "lines"), [(True, 0), (False, 1)])
def test_device_that_said_where_its_rings_stand_is_given_time_without_a_word(
    stands_known: bool, lines: int, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Event] = []
    backend = set_up([0])

    async def end() -> None:
        supervisor = supervise(backend, programs, published.append)
        await runs(supervisor)
        if stands_known:
            assert programs.tubes[0].send(Stopped(((0, 7),)))
        await supervisor.stop()

    monkeypatch.setitem(WAIT_S, Wait.STOPPED, 0.05)
    asyncio.run(end())

    assert [type(event) for event in published].count(DeviceDoesNotStop) == lines
    assert backend.vrings[0].base == (7 if stands_known else 0)


def test_device_that_only_looks_says_where_the_rings_stand(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Event] = []
    backend = set_up([0])

    async def learn() -> None:
        supervisor = supervise(backend, programs, published.append)
        await runs(supervisor)
        await supervisor.stop()
        learning = asyncio.ensure_future(supervisor.learn_indices())
        await until(lambda: supervisor.running)
        assert programs.tubes[1].send(Stopped(((0, 7),)))
        await learning
        assert not supervisor.running

    monkeypatch.setitem(WAIT_S, Wait.STOPPED, 0.05)
    asyncio.run(learn())

    assert len(programs.pids) == 2
    assert backend.vrings[0].base == 7
    assert RingsUnknown not in map(type, published)


def test_process_that_forks_and_is_being_started_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published: list[Event] = []

    async def ask(supervisor: DeviceSupervisor, forks: NoForks) -> None:
        supervisor.take_over()
        await until(lambda: forks.asked == 3)
        await supervisor.stop()
        asked = forks.asked
        learning = asyncio.ensure_future(supervisor.learn_indices())
        await until(lambda: forks.asked == asked + 3)
        learning.cancel()
        await asyncio.wait([learning])
        await supervisor.stop()

    async def play() -> None:
        forks = NoForks(NotYetError(0.001))
        await ask(supervise(set_up([0]), forks, published.append), forks)

    asyncio.run(play())
    assert published == []


def test_device_that_was_asked_for_again_serves_each_vring_once(programs: Programs) -> None:
    published: list[Event] = []
    not_yet = [NotYetError(0.001), NotYetError(0.001)]

    def fork(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        if not_yet:
            raise not_yet.pop()
        return programs(spec, tube_fd, words_fd, parent)

    async def ask() -> None:
        supervisor = supervise(set_up([0]), fork, published.append)
        await runs(supervisor)
        os.kill(programs.pids[0], signal.SIGKILL)
        await supervisor.stop()

    asyncio.run(ask())
    assert [event.queues for event in published if isinstance(event, DeviceStarted)] == [
        ("inflateq",)
    ]


@fault("a VMM stops its rings or hangs up, or balloond is told to end")
@pytest.mark.parametrize("look", [False, True])
def test_stop_waits_for_no_fork_and_the_device_that_comes_gets_no_order(
    look: bool, programs: Programs
) -> None:
    async def stop() -> None:
        template = AskedTemplate(programs, at_once=False)
        jail = Jail(None, partial(Forks(template).ask, Peer(1000, Peers())))
        supervisor = DeviceSupervisor(
            set_up([0]), jail, lambda event: None, VM, lambda: None, Hearing()
        )
        supervisor.take_over()
        await until(lambda: len(programs.pids) == 1)
        if look:
            await supervisor.stop()
            learning = asyncio.ensure_future(supervisor.learn_indices())
            template.tell()
            await until(lambda: len(programs.pids) == 2)
            learning.cancel()
            await asyncio.wait([learning])
        await supervisor.stop()
        assert not supervisor.running
        # Its tube is at an end, and held no order before that.
        assert not programs.tubes[-1].wait_for_order()
        asked = len(programs.pids)
        supervisor.settle()
        template.tell()
        await until(lambda: len(programs.pids) == asked + 1)
        template.tell()
        await until(lambda: supervisor.running)
        assert programs.tubes[-1].receive() != []
        for pid in programs.pids[:asked]:
            await until(lambda pid=pid: not psutil.pid_exists(pid))  # type: ignore[misc]  # bound per turn
        os.kill(programs.pids[-1], signal.SIGKILL)
        await supervisor.stop()

    asyncio.run(stop())


@fault("no descriptor or no process left for a device")
def test_forks_that_fail_over_and_over_do_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published: list[Event] = []

    async def fail() -> int:
        loop = asyncio.get_running_loop()
        forks = NoForks()
        supervisor = supervise(set_up([0]), forks, published.append)
        began = int(loop.time())
        for number in range(200):
            supervisor.take_over()
            while forks.asked == 2 * number:
                await asyncio.sleep(0)
            await supervisor.stop()
            await supervisor.learn_indices()
        assert forks.asked == 400
        return int(loop.time()) - began + 1

    monkeypatch.setattr(supervisor_module, "LOOKS_AFTER_S", (0.0,))
    monkeypatch.setitem(WAIT_S, Wait.QUIET, 0.0)
    seconds = asyncio.run(fail())

    unforked = [event for event in published if isinstance(event, DeviceNotForked)]
    assert 1 <= len(unforked) <= seconds
    assert {event.error for event in unforked} == {"not here"}
    assert 1 <= [type(event) for event in published].count(RingsUnknown) <= seconds
    assert len(published) <= 2 * seconds


def test_nothing_to_serve_forks_nothing_and_is_answered() -> None:
    async def play() -> int:
        forks = NoForks()
        supervisor = supervise(fresh(), forks)
        await runs_nothing(supervisor)
        return forks.asked

    async def runs_nothing(supervisor: DeviceSupervisor) -> None:
        supervisor.settle()
        await asyncio.sleep(10 * QUIET_S)
        assert not supervisor.to_run
        await supervisor.stop()
        await supervisor.learn_indices()

    assert asyncio.run(play()) == 0
