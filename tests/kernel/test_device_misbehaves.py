"""A device that was taken over, hangs or is stopped: who notices, and whom it holds up."""

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from balloon_daemon.device.process import DeviceProcess
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.errors import DeviceHangsError
from balloon_daemon.events import (
    DeviceDied,
    DeviceDoesNotStop,
    DeviceHangs,
    DeviceSendsGarbage,
    DeviceStalled,
    DeviceStarted,
    Event,
)
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.guests.jailed import hearing
from balloon_daemon.guests.jailed.forks import Forks, Wanted
from balloon_daemon.guests.jailed.hearing import STALLED_S, OrderWatch
from balloon_daemon.guests.jailed.life import WAIT_S, Wait
from balloon_daemon.guests.jailed.peers import MOST_HANGING, Peer, Peers
from balloon_daemon.guests.jailed.reports import STATS_A_SECOND
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor, Jail
from balloon_daemon.tube.connection import ControllerEnd, DeviceEnd, open_tube
from balloon_daemon.tube.messages import Command, Target, decode_down
from balloon_daemon.units import VmId
from tests.fakes.asked_template import AskedTemplate, asks
from tests.fakes.hearing import Hearing
from tests.fakes.told_backend import set_up
from tests.harness import taken_over
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.jail_watch import is_alive
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.short_host import cpu_s
from tests.harness.slow_close import MuteFile
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import (
    attach,
    events,
    facts,
    run_until_event,
    wait_for_device,
)

VM = VmId(1, "vm1")


def mute_file(directory: Path) -> MuteFile:
    try:
        return MuteFile(directory / "mute")
    except PermissionError:
        pytest.skip("FUSE cannot be mounted here")


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[MuteFile]:
    with contextlib.closing(mute_file(tmp_path)) as file:
        yield file


# --- what a device says -----------------------------------------------------------------------


@fault("device reports without end (taken over)")
def test_device_that_floods_its_tube_takes_little_of_the_controllers_time(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(launcher=taken_over.launcher("flood"))
    guests = [attach(make_guest(), daemon) for _ in range(2)]
    wait_for_device(guests, daemon, "vm2")
    cpu, began = cpu_s(daemon.pid), time.monotonic()
    low_mem.set_low()
    # The neighbour gives all that it can.
    run(guests, lambda: guests[1].driver.actual * 4096 == MAXIMUM and time.monotonic() - began > 3)
    took_s = time.monotonic() - began

    # All of a core without the limit.
    assert cpu_s(daemon.pid) - cpu < 0.25 * took_s
    said = [r for r in daemon.records() if r["event"] == "guest-stats" and r["vm"] == "vm1"]
    assert 0 < len(said) <= STATS_A_SECOND * (took_s + HANG_S / 10)


@fault("device writes what no device sends into its tube")
@pytest.mark.parametrize(
    ("misdeed", "found"),
    [
        ("garbage", "report of kind 4294967295 with 53 bytes"),
        # recv(2) returns the same for it as at the end of the tube.
        ("empty", "report of 0 bytes"),
        ("shut", "it closed its tube and has not ended"),
    ],
)
def test_device_that_sends_what_no_device_sends_is_killed_each_time_and_then_no_more(
    misdeed: str,
    found: str,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    daemon = start_daemon(launcher=taken_over.launcher(misdeed))
    guests = [attach(make_guest(), daemon) for _ in range(2)]
    run(guests, lambda: any(r["deaths"] for r in facts(daemon, "device-died")))

    said = events(daemon, "device-sends-garbage")
    # Each was killed: after the sixth death there is no other. A device that was told to stop just
    # then, as the VMM attaches, is no death.
    assert len(said) >= 6
    assert all(found in message for message in said)
    low_mem.set_low()
    run(guests, lambda: guests[1].driver.actual * 4096 == MAXIMUM)
    assert events(daemon, "device-sends-garbage") == said


def shut_at_stop(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
    """Forks a process that closes its tube when it is told to stop, and lives on; a ``Fork``."""
    pid = os.fork()
    if pid == 0:
        poll = select.poll()
        poll.register(tube_fd, select.POLLIN)
        while poll.poll():
            if decode_down(os.read(tube_fd, 100)) is Command.STOP:
                break
        os.close(tube_fd)
        while True:
            signal.pause()
    return pid


@fault("device does not stop when told")
def test_device_that_was_told_to_stop_may_close_its_tube_long_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(WAIT_S, Wait.STOPPED, 0.5)
    monkeypatch.setattr(hearing, "CLOSED_S", 0.01)
    published: list[Event] = []

    async def stop() -> None:
        jail = Jail(None, asks(shut_at_stop))
        backend = set_up([0])
        supervisor = DeviceSupervisor(backend, jail, published.append, VM, lambda: None, Hearing())
        supervisor.settle()
        await until(lambda: supervisor.running)
        await supervisor.stop()

    asyncio.run(stop())
    assert [type(event) for event in published] == [DeviceStarted, DeviceDoesNotStop]


@fault("device killed (SIGKILL, OOM killer)")
def test_device_whose_end_waits_for_its_turn_is_not_taken_for_one_that_lives_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hearing, "CLOSED_S", 0.1)
    published: list[Event] = []
    turns: list[Callable[[], None]] = []
    open_ends: list[int] = []

    def fork(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        open_ends.append(os.dup(tube_fd))
        return shut_at_stop(spec, tube_fd, words_fd, parent)

    async def end() -> None:
        jail = Jail(None, asks(fork), in_turn=turns.append)
        backend = set_up([0])
        supervisor = DeviceSupervisor(backend, jail, published.append, VM, lambda: None, Hearing())
        supervisor.settle()
        await until(lambda: supervisor.running)
        os.kill(started(published)[0], signal.SIGKILL)
        await until(lambda: bool(turns))
        os.close(open_ends.pop(0))
        await asyncio.sleep(0.05)  # The end of its tube is read before its turn comes.
        turns.pop()()
        await until(lambda: len(started(published)) == 2)
        await asyncio.sleep(0.2)
        os.close(open_ends.pop())
        stops = asyncio.get_running_loop().create_task(supervisor.stop())
        await until(lambda: bool(turns))
        turns.pop()()
        await stops

    asyncio.run(end())
    assert not any(isinstance(event, DeviceSendsGarbage) for event in published)


def started(published: list[Event]) -> list[int]:
    """The process ids of the devices that were started."""
    return [event.pid for event in published if isinstance(event, DeviceStarted)]


# --- whether it listens -----------------------------------------------------------------------


@fault("device stopped and continued")
def test_device_that_is_stopped_is_said_once_and_so_is_that_it_goes_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    device = wait_for_device([guest], daemon, "vm1")
    os.kill(device, signal.SIGSTOP)
    low_mem.set_low()
    run_until_event([guest], daemon, "device-stalled")
    os.kill(device, signal.SIGCONT)
    run_until_event([guest], daemon, "device-takes-orders")
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert len(events(daemon, "device-stalled")) == 1
    assert events(daemon, "device-died") == []


@fault("device stopped and continued")
@pytest.mark.parametrize(("takes", "lines"), [(True, 0), (False, 1)])
def test_device_that_takes_each_order_late_is_not_taken_for_one_that_takes_none(
    takes: bool, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[Event] = []
    monkeypatch.setattr(hearing, "STALLED_S", STALLED_S / 25)
    monkeypatch.setattr(hearing, "LOOK_S", 0.01)

    async def order(upper: ControllerEnd, lower: DeviceEnd) -> None:
        watch = OrderWatch(VM, 1, upper, published.append)
        for number in range(100):
            assert upper.send(Target(number))
            watch.sent()
            # Always one unread, whenever anybody looks.
            if takes and number:
                assert os.read(lower.fileno(), 100)
            await asyncio.sleep(0.01)
        watch.end()

    upper, lower = open_tube()
    asyncio.run(order(upper, lower))
    upper.close()
    lower.close()
    assert published == [DeviceStalled(VM, 1)] * lines


# --- a device that SIGKILL does not end --------------------------------------------------------


class DoNotDie:
    """Forks processes that have the open mute file, and so hang at their end; a ``Fork``."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        self.pids.append(pid)
        return pid

    def close(self) -> None:
        """Ends those that are left."""
        for pid in self.pids:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.001)


@fault("device cannot die (hangs in the kernel)")
def test_device_that_cannot_die_is_waited_for_only_so_long_and_no_other_is_forked(
    mute: MuteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAIT_S, Wait.STOPPED, 0.05)
    monkeypatch.setitem(WAIT_S, Wait.KILLED, 0.3)
    fork, published = DoNotDie(), list[Event]()

    async def stop() -> None:
        supervisor = DeviceSupervisor(
            set_up([0]),
            Jail(None, asks(fork)),
            published.append,
            VM,
            lambda: None,
            Hearing(),
        )
        supervisor.settle()
        await until(lambda: supervisor.running)
        for _ in range(3):
            with pytest.raises(DeviceHangsError, match="its device hangs"):
                await supervisor.stop()
        assert mute.is_being_closed
        supervisor.settle()
        await asyncio.sleep(10 * WAIT_S[Wait.QUIET])
        mute.answer()
        await until(lambda: not supervisor.running)
        await supervisor.stop()

    asyncio.run(stop())
    assert len(fork.pids) == 1
    assert published.count(DeviceHangs(VM, fork.pids[0])) == 1


@fault("device cannot die (hangs in the kernel)")
def test_device_that_outlives_its_session_counts_as_its_users_until_it_has_ended(
    mute: MuteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WAIT_S, Wait.STOPPED, 0.05)
    monkeypatch.setitem(WAIT_S, Wait.KILLED, 0.3)
    peer = Peer(1000, Peers())

    async def stop() -> None:
        jail = Jail(None, asks(DoNotDie()), hold_hanging=peer.hold_hanging)
        backend = set_up([0])
        supervisor = DeviceSupervisor(backend, jail, lambda _: None, VM, lambda: None, Hearing())
        supervisor.settle()
        await until(lambda: supervisor.running)
        with pytest.raises(DeviceHangsError):
            await supervisor.stop()
        assert peer.places == 0
        supervisor.close()
        assert peer.places == 1
        mute.answer()
        await until(lambda: peer.places == 0)

    asyncio.run(stop())


@fault("device cannot die (hangs in the kernel)")
def test_user_whose_devices_do_not_end_gets_no_further_one_and_others_do(mute: MuteFile) -> None:
    """The devices were dropped while they were forked, as by a VMM that stops its rings in a
    loop."""
    fork, failed, came = DoNotDie(), list[OSError](), list[DeviceProcess]()
    template = AskedTemplate(fork, at_once=False)
    forks = Forks(template)
    greedy, other = (Peer(uid, Peers()) for uid in (1000, 1001))

    def wanted() -> Wanted:
        spec = DeviceSpec("device", (), (), None, b"", None, must_tell_host=False)
        return Wanted(lambda: spec, came.append, failed.append)

    def forked(count: int) -> bool:
        return len(fork.pids) == count

    def hang(count: int) -> bool:
        return greedy.hanging == count

    def has_come(count: int) -> bool:
        return len(came) == count

    async def ask() -> None:
        for number in range(MOST_HANGING):
            pending = forks.ask(greedy, wanted())
            await until(partial(forked, number + 1))
            pending.drop()
            template.tell()
            await until(partial(hang, number + 1))
        forks.ask(greedy, wanted())
        await until(lambda: bool(failed))
        for number, peer in enumerate((other, greedy), MOST_HANGING + 1):
            forks.ask(peer, wanted())
            await until(partial(forked, number))
            template.tell()
            await until(partial(has_come, number - MOST_HANGING))
            mute.answer()
            await until(partial(hang, 0))

    try:
        asyncio.run(ask())
    finally:
        mute.answer()
        fork.close()
        for device in came:
            device.close()
    assert [err.strerror for err in failed] == ["64 of its user's do not end"]


@fault("device cannot die (hangs in the kernel)")
def test_device_that_cannot_die_holds_up_neither_the_end_nor_its_neighbour(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    # Whatever is started from here once the file is open would hang as well.
    link = tmp_path / "link"
    daemon = start_daemon(launcher=taken_over.launcher("hang", str(link)))
    with contextlib.closing(mute_file(tmp_path)) as mute:
        link.symlink_to(mute.path)
        first, neighbour = make_guest(), make_guest()
        # On a busy host its device may hang before its VMM has said all, and it is let go.
        with contextlib.suppress(ConnectionResetError):
            attach(first, daemon)
        hang_and_end(daemon, mute, low_mem, attach(neighbour, daemon))


def hang_and_end(daemon: Daemon, mute: MuteFile, low_mem: LowMemDir, neighbour: FakeGuest) -> None:
    wait_for_device([neighbour], daemon, "vm2")
    low_mem.set_low()
    run([neighbour], lambda: neighbour.driver.actual * 4096 == MAXIMUM)
    assert mute.is_being_closed

    os.kill(daemon.pid, signal.SIGTERM)
    run([neighbour], lambda: not is_alive(daemon.pid))

    assert daemon._process.wait(HANG_S) == 0
    assert neighbour.driver.actual == 0
    assert len(events(daemon, "device-hangs")) == 1


# --- many ends at once -------------------------------------------------------------------------


@fault("device killed (SIGKILL, OOM killer)")
def test_end_of_a_device_is_handled_in_one_of_its_users_turns() -> None:
    """Hundreds that end at once would otherwise keep one turn of the loop for all of them."""
    works = list[Callable[[], None]]()
    pids = list[int]()

    def fork(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
        return pid

    async def end() -> None:
        jail = Jail(None, asks(fork), in_turn=works.append)
        backend, published = set_up([0]), list[Event]()
        supervisor = DeviceSupervisor(backend, jail, published.append, VM, lambda: None, Hearing())
        supervisor.settle()
        await until(lambda: supervisor.running)
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: bool(works))
        for _ in range(10):
            await asyncio.sleep(0)
        assert (len(works), supervisor.running) == (1, True)
        works.pop()()
        assert any(isinstance(event, DeviceDied) for event in published)
        await until(lambda: supervisor.running)
        os.kill(pids[1], signal.SIGKILL)
        stopped = asyncio.ensure_future(supervisor.stop())
        await until(lambda: bool(works))
        works.pop()()
        await stopped

    asyncio.run(end())
