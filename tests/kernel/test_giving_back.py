"""Giving the guests their memory back at the end: as long as it takes, and no longer."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.controller.ending import GIVE_BACK_WITHIN_S, SAY_S
from balloon_daemon.fake_guest.machine import run
from balloon_daemon.units import MIB, PAGE_SIZE
from benchmarks.guest_file import GuestFile
from benchmarks.ring_guest import RingGuest, area_bytes
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, MakeGuest, StartDaemon
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, facts, ready_device

QUEUE_SIZE = 16
ACTUAL_AT = 4
"""Where ``actual`` lies in the config space (virtio 1.3, 5.5.4)."""

BUFFER_PAGES = 256
DEADLINE_S = 60.0
"""Only a hang takes so long."""

PACE_S = GIVE_BACK_WITHIN_S / 3


class Balloon:
    """A guest whose driver says what a test has it say."""

    def __init__(self, daemon: Daemon, pages: int) -> None:
        file = GuestFile.in_memory(256 * MIB + area_bytes(QUEUE_SIZE))
        self._guest = RingGuest(str(daemon.config.socket), file, QUEUE_SIZE)
        self.pages = 0
        self.say(pages)

    def say(self, pages: int) -> None:
        """Writes ``actual``."""
        self.pages = pages
        self._guest.frontend.write_config(ACTUAL_AT, pages.to_bytes(4, "little"))

    def deflate(self, pages: int = BUFFER_PAGES) -> None:
        """Takes memory back."""
        self.say(max(0, self.pages - pages))

    def target_pages(self) -> int:
        return int.from_bytes(self._guest.frontend.read_config(0, 4), "little")

    def close(self) -> None:
        self._guest.close()
        self._guest.file.close()


MakeBalloon = Callable[[Daemon, int], Balloon]


@pytest.fixture
def make_balloon() -> Iterator[MakeBalloon]:
    balloons: list[Balloon] = []

    def make(daemon: Daemon, pages: int) -> Balloon:
        balloons.append(Balloon(daemon, pages))
        name = f"vm{len(balloons)}"
        wait_until(
            lambda: ready_device(daemon, name), deadline_s=DEADLINE_S, what="the device is ready"
        )
        return balloons[-1]

    yield make
    for balloon in balloons:
        balloon.close()


def end(daemon: Daemon, number: signal.Signals = signal.SIGTERM) -> None:
    """Tells it to end, and waits until it gives back."""
    os.kill(daemon.pid, number)
    wait_until(
        lambda: facts(daemon, "giving-back") != [],
        deadline_s=DEADLINE_S,
        what="it gives memory back",
    )


def wait_pace() -> None:
    until = time.monotonic() + PACE_S
    wait_until(lambda: time.monotonic() > until, deadline_s=DEADLINE_S, what="the next step")


def ended(daemon: Daemon) -> bool:
    return daemon._process.poll() is not None


def left(daemon: Daemon) -> list[tuple[str, int]]:
    """(VM, bytes) of each guest that has not taken all back, as said at the end."""
    return [(record["vm"], record["left_bytes"]) for record in facts(daemon, "not-given-back")]


@fault("`systemctl stop`, SIGTERM, SIGINT")
def test_guest_that_goes_on_taking_its_memory_back_is_waited_for_and_its_progress_said(
    start_daemon: StartDaemon, make_balloon: MakeBalloon
) -> None:
    daemon = start_daemon()
    steps = int((SAY_S + 1) / PACE_S) + 1
    slow = make_balloon(daemon, steps * BUFFER_PAGES)
    end(daemon)
    began = time.monotonic()

    for _ in range(steps):
        wait_pace()
        assert slow.target_pages() == 0
        slow.deflate()
    daemon.wait_end()

    assert slow.pages == 0
    assert time.monotonic() - began > 2 * GIVE_BACK_WITHIN_S
    said = facts(daemon, "still-to-give-back")
    assert [record["vm"] for record in said] == ["vm1"]
    assert 0 < said[0]["left_bytes"] < steps * BUFFER_PAGES * PAGE_SIZE
    assert left(daemon) == []


@fault("hangs or is stopped while balloond is to end")
@pytest.mark.parametrize("stalls", ["never_begins", "goes_to_and_fro", "takes_single_pages"])
def test_guest_that_gets_nowhere_is_given_up_and_its_neighbour_is_not(
    stalls: str, start_daemon: StartDaemon, make_balloon: MakeBalloon
) -> None:
    daemon = start_daemon()
    steps = 6
    neighbour = make_balloon(daemon, steps * BUFFER_PAGES)
    stuck = make_balloon(daemon, 64 * BUFFER_PAGES)
    end(daemon)

    for step in range(steps):
        wait_pace()
        match stalls:
            case "goes_to_and_fro":
                stuck.say((63 + step % 2) * BUFFER_PAGES)
            case "takes_single_pages":
                stuck.deflate(1)
        neighbour.deflate()
    assert neighbour.pages == 0
    last = stuck.pages
    # Now nothing holds up the end, whatever it goes on with.
    deadline = time.monotonic() + DEADLINE_S
    while not ended(daemon):
        assert time.monotonic() < deadline, "it waits for a guest that gets nowhere"
        wait_pace()
        try:
            match stalls:
                case "goes_to_and_fro":
                    stuck.say(last)
                case "takes_single_pages":
                    stuck.deflate(1)
        except OSError:
            break  # It has ended meanwhile.
    daemon.wait_end()

    assert [vm for vm, _ in left(daemon)] == ["vm2"]
    assert [record["vms"] for record in facts(daemon, "memory-not-given-back")] == [1]


def test_small_balloon_may_shrink_by_single_pages(
    start_daemon: StartDaemon, make_balloon: MakeBalloon
) -> None:
    daemon = start_daemon()
    small = make_balloon(daemon, 6)
    end(daemon)
    while small.pages:
        wait_pace()
        small.deflate(1)
    daemon.wait_end()
    assert left(daemon) == []


@fault("told a second time (SIGTERM, SIGINT) while it gives back")
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_second_signal_while_memory_is_given_back_ends_at_once(
    first: signal.Signals,
    second: signal.Signals,
    start_daemon: StartDaemon,
    make_balloon: MakeBalloon,
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        daemon = start_daemon("--keep-fds")
    finally:
        signal.signal(signal.SIGINT, before)
    balloon = make_balloon(daemon, 1000 * BUFFER_PAGES)
    end(daemon, first)
    balloon.deflate()

    os.kill(daemon.pid, second)
    began = time.monotonic()
    daemon.wait_end()

    assert [record["signal"] for record in facts(daemon, "stopping-at-once")] == [second.name]
    assert left(daemon) == [("vm1", 999 * BUFFER_PAGES * PAGE_SIZE)]
    # It would have waited longer for a guest that has just moved.
    assert time.monotonic() - began < GIVE_BACK_WITHIN_S
    assert list(daemon.config.socket.parent.glob("*.sock*")) == []


@fault("told a second time (SIGTERM, SIGINT) while it gives back")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=lambda n: n.name)
def test_other_signals_while_memory_is_given_back_change_nothing(
    number: signal.Signals, start_daemon: StartDaemon, make_balloon: MakeBalloon
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        daemon = start_daemon("--keep-fds")
    finally:
        signal.signal(signal.SIGHUP, before)
    balloon = make_balloon(daemon, 4 * BUFFER_PAGES)
    # A session that ends sends SIGHUP right behind SIGTERM.
    end(daemon)
    os.kill(daemon.pid, number)
    while balloon.pages:
        wait_pace()
        balloon.deflate()
    daemon.wait_end()
    assert left(daemon) == []


@fault("has paused its VM while balloond is to end")
def test_paused_vm_is_not_waited_for_and_what_it_lacks_is_said(
    start_daemon: StartDaemon, make_guest: MakeGuest, low_mem: LowMemDir
) -> None:
    daemon = start_daemon()
    guest = attach(make_guest(SETTINGS), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * PAGE_SIZE == MAXIMUM, deadline_s=DEADLINE_S)
    guest.pause()

    os.kill(daemon.pid, signal.SIGTERM)
    daemon.wait_end()

    assert left(daemon) == [("vm1", MAXIMUM)]


@fault("stopped just after a device died")
def test_device_that_has_just_died_does_not_cost_its_guest_the_memory(
    start_daemon: StartDaemon, make_guest: MakeGuest, low_mem: LowMemDir
) -> None:
    daemon = start_daemon()
    guest = attach(make_guest(SETTINGS), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * PAGE_SIZE == MAXIMUM, deadline_s=DEADLINE_S)
    device = ready_device(daemon, "vm1")
    assert device is not None

    os.kill(daemon.pid, signal.SIGSTOP)
    os.kill(device, signal.SIGKILL)
    os.kill(daemon.pid, signal.SIGTERM)
    os.kill(daemon.pid, signal.SIGCONT)
    run([guest], lambda: bool(guest.disconnected), deadline_s=DEADLINE_S)

    assert guest.driver.actual == 0


# --- the service manager ------------------------------------------------------------------------


class Manager:
    """Stands for the service manager: takes all that it is told, and keeps the descriptors."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self.told: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            content, fds, _, _ = socket.recv_fds(self._sock, 4096, 16)
            for fd in fds:
                os.close(fd)
            if content == b"enough":
                return
            self.told.append((time.monotonic(), content.decode()))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"enough", self._sock.getsockname())
        self._thread.join()
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.close()


@fault("giving back takes longer than the service manager's limit")
def test_service_manager_is_asked_for_more_time_while_memory_comes_back(
    manager: Manager, start_daemon: StartDaemon, make_balloon: MakeBalloon
) -> None:
    daemon = start_daemon()
    steps = 8
    slow = make_balloon(daemon, steps * BUFFER_PAGES)
    end(daemon)
    for _ in range(steps):
        wait_pace()
        slow.deflate()
    daemon.wait_end()
    gone = time.monotonic()

    told = [(at, words) for at, words in manager.told if "EXTEND_TIMEOUT_USEC=" in words]
    stopping = next(at for at, words in manager.told if "STOPPING=1" in words)
    assert len(told) >= 4
    assert all("STATUS=giving " in words for _, words in told)
    times = [stopping, *(at for at, _ in told)]
    more_s = {
        int(words.partition("EXTEND_TIMEOUT_USEC=")[2].split("\n")[0]) / 1e6 for _, words in told
    }
    # Each comes well before the time runs out that the one before it asked for.
    longest_s = max(
        after - before for before, after in zip(times, [*times[1:], gone], strict=True)
    )
    assert longest_s < min(more_s) / 2


@fault("says at the end that its balloon is larger than the host's memory")
def test_guest_that_says_it_has_more_than_there_is_is_not_waited_for(
    start_daemon: StartDaemon, make_balloon: MakeBalloon
) -> None:
    daemon = start_daemon()
    boaster = make_balloon(daemon, (1 << 32) - 1)
    end(daemon)

    # It takes back a MiB at a time: 16 TiB of them would last for a year.
    def is_over() -> bool:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            boaster.deflate()
        return ended(daemon)

    wait_until(is_over, what="it ends all the same")
    assert left(daemon)[0][1] > 1 << 43
