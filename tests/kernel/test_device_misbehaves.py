"""A device that was taken over, hangs or is stopped: who notices, and whom it holds up."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.errors import DeviceHangsError
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.guests.jailed import hearing
from balloon_daemon.guests.jailed import supervisor as keeper_module
from balloon_daemon.guests.jailed.hearing import STALLED_S, OrderWatch
from balloon_daemon.guests.jailed.supervisor import STATS_A_SECOND, DeviceKeeper, Jail
from balloon_daemon.records.log import LOGGER, EventLog
from balloon_daemon.tube.connection import ControllerEnd, DeviceEnd, open_tube
from balloon_daemon.tube.messages import Target
from tests.fakes.hearing import Hearing
from tests.fakes.told_backend import set_up
from tests.harness import taken_over
from tests.harness.daemon import Daemon
from tests.harness.jail_watch import is_alive
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.short_host import cpu_s
from tests.harness.slow_close import MuteFile
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import attach, events, run_until_logged, wait_for_device


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
    said = [r for r in daemon.records() if r["event"] == "stats" and r["vm"] == "vm1"]
    assert 0 < len(said) <= STATS_A_SECOND * (took_s + HANG_S / 10)


def test_device_that_sends_what_no_device_sends_is_killed_each_time_and_then_no_more(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(launcher=taken_over.launcher("garbage"))
    guests = [attach(make_guest(), daemon) for _ in range(2)]
    run_until_logged(guests, daemon, "this VM's balloon stops until its VMM reconnects")

    said = [message for message in events(daemon, "device") if "sends what no device" in message]
    assert len(said) == 6
    assert all("report of kind 4294967295 with 53 bytes" in message for message in said)
    low_mem.set_low()
    run(guests, lambda: guests[1].driver.actual * 4096 == MAXIMUM)


# --- whether it listens -----------------------------------------------------------------------


def test_device_that_is_stopped_is_said_once_and_so_is_that_it_goes_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    device = wait_for_device([guest], daemon, "vm1")
    os.kill(device, signal.SIGSTOP)
    low_mem.set_low()
    run_until_logged([guest], daemon, f"device {device} takes no orders: somebody has stopped it")
    os.kill(device, signal.SIGCONT)
    run_until_logged([guest], daemon, f"device {device} takes orders again")
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    said = [message for message in events(daemon, "device") if "takes no orders" in message]
    assert len(said) == 1
    assert not [message for message in events(daemon, "device") if "forking another" in message]


@pytest.mark.parametrize(("takes", "lines"), [(True, 0), (False, 1)])
def test_device_that_takes_each_order_late_is_not_taken_for_one_that_takes_none(
    takes: bool, lines: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    monkeypatch.setattr(hearing, "STALLED_S", STALLED_S / 25)
    monkeypatch.setattr(hearing, "LOOK_S", 0.01)

    async def order(upper: ControllerEnd, lower: DeviceEnd) -> None:
        watch = OrderWatch(1, upper, EventLog())
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
    assert sum("takes no orders" in record.getMessage() for record in caplog.records) == lines


# --- a device that SIGKILL does not end --------------------------------------------------------


def test_device_that_cannot_die_is_waited_for_only_so_long_and_no_other_is_forked(
    mute: MuteFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LOGGER, "propagate", True)
    monkeypatch.setattr(keeper_module, "STOP_WITHIN_S", 0.05)
    monkeypatch.setattr(keeper_module, "KILLED_WITHIN_S", 0.3)
    forked: list[int] = []

    def fork(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        forked.append(pid)
        return pid

    async def stop() -> None:
        keeper = DeviceKeeper(
            set_up([0]),
            Jail(None, fork),
            lambda: 0,
            EventLog(),
            "vm1",
            lambda: None,
            Hearing(),
        )
        keeper._start()
        for _ in range(3):
            with pytest.raises(DeviceHangsError, match="its device hangs"):
                await keeper.stop()
        assert mute.is_being_closed
        keeper._start()
        mute.answer()
        await asyncio.wait_for(keeper._gone, HANG_S)
        assert not keeper.running
        await keeper.stop()

    asyncio.run(stop())
    assert len(forked) == 1
    held = f"device {forked[0]} was killed and does not end: the kernel holds it"
    assert [record.getMessage() for record in caplog.records].count(held) == 1


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
    assert "was killed and does not end: the kernel holds it" in str(events(daemon, "device"))
