"""A host that fails a whole balloond: no descriptors, processes, memory, disk; odd clocks."""

import contextlib
import fcntl
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

import balloon_daemon
from balloon_daemon.controller.ending import GIVE_BACK_WITHIN_S
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.styles import STYLES
from balloon_daemon.linux.memory import F_ADD_SEALS, F_SEAL_FUTURE_WRITE
from balloon_daemon.units import MIB
from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.fakes.wall_clocks import wall_clocks
from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.jail_watch import template_of
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SPEED, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.other_user import OtherUserConfig, limit_processes
from tests.harness.short_host import (
    at_rest,
    fds_but_figures,
    limit_for_room,
    limited,
    status_kib,
)
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import (
    LOST,
    OF_VMM,
    attach,
    events,
    facts,
    run_until_event,
    run_until_logged,
    wait_for_device,
)

NO_ROOM = "its descriptors found no room here (too many open files)"
TOUCHED = Population(touched_bytes=64 * MIB, pinned_bytes=16 * MIB)
SETTINGS = GuestSettings(VM_MEM_MIB * MIB, population=TOUCHED)


def full(guest: FakeGuest) -> Callable[[], bool]:
    return lambda: guest.driver.actual * 4096 == MAXIMUM


# --- no file descriptors ----------------------------------------------------------------------


@fault("no descriptor left for a connection")
def test_no_descriptors_left_a_vmm_waits_and_is_served_once_there_are(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attach(make_guest(), daemon)
    wait_for_device([neighbour], daemon, "vm1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), 0)):
            vmm.connect(str(daemon.config.socket))
            vmm.send(encode_request(FrontendRequest.GET_FEATURES))
            run_until_event([neighbour], daemon, "not-accepted")
            # The files of the host's figures are open already.
            low_mem.set_low()
            run([neighbour], full(neighbour))
        vmm.settimeout(HANG_S)
        assert len(vmm.recv(64)) == 20
    assert facts(daemon, "source-unknown") == []


@fault("no descriptor left for a message's own")
@pytest.mark.parametrize("style", STYLES)
def test_no_descriptors_for_a_message_that_vm_has_no_balloon_and_the_neighbour_goes_on(
    style: str, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # A VMM that were let go here would end, and its guest with it.
    neighbour = attach(make_guest(), daemon)
    victim = make_guest(GuestSettings(VM_MEM_MIB * MIB, style=STYLES[style]))
    wait_for_device([neighbour], daemon, "vm1")
    victim.connect(str(daemon.config.socket))

    with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), 0)):
        victim.bind()
        run_until_logged([victim], daemon, f"its memory is unknown: {NO_ROOM}: this VM gets no")
    low_mem.set_low()
    run([neighbour, victim], full(neighbour))

    lines = [(r["vm"], r["message"]) for r in daemon.records() if r["event"] in OF_VMM]
    assert lines[0] == ("vm2", f"its memory is unknown: {NO_ROOM}: this VM gets no balloon")
    assert {vm for vm, _ in lines} == {"vm2"}
    assert any(f"SET_VRING_KICK: {NO_ROOM}" in line for _, line in lines)
    assert victim.driver.actual == 0
    assert victim.frontend is not None
    assert {r["vm"] for r in daemon.records() if r["event"] == "device-started"} == {"vm1"}


@fault("no descriptor left for a message's own")
def test_no_descriptors_for_a_message_once_there_are_its_next_connection_has_a_balloon(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    victim = make_guest()
    victim.connect(str(daemon.config.socket))
    with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), 0)):
        victim.bind()
        run_until_logged([victim], daemon, NO_ROOM)
    victim.hang_up()
    victim.connect(str(daemon.config.socket))
    victim.bind()
    low_mem.set_low()

    run([victim], full(victim))
    assert victim.ram.check().pages_corrupt == 0


@fault("no descriptor or no process left for a device")
def test_device_killed_with_no_descriptors_is_forked_once_there_are_just_enough(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    device = wait_for_device([guest], daemon, "vm1")

    with limited(daemon.pid, resource.RLIMIT_NOFILE, 3):
        os.kill(device, signal.SIGKILL)
        run_until_event([guest], daemon, "device-not-forked")
    # Two for the tube and two for the pipe, no more: the device must find its own room.
    with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), 4)):
        wait_for_device([guest], daemon, "vm1")
    low_mem.set_low()
    run([guest], full(guest))

    assert len(events(daemon, "device-died")) == 1


# --- no processes, no memory ------------------------------------------------------------------


@pytest.fixture
def counted_daemon(tmp_path: Path, low_mem: LowMemDir) -> Iterator[Daemon]:
    config = OtherUserConfig(tmp_path / "balloond.sock", VM_MEM_MIB, low_mem, SPEED)
    daemon = Daemon(config, tmp_path / "balloond")
    yield daemon
    daemon.kill()


@fault("no descriptor or no process left for a device")
def test_no_process_to_be_had_fork_is_tried_again(
    counted_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = counted_daemon
    before = len(fds_but_figures(daemon))
    forker = template_of(daemon.pid)
    limit_processes(forker, "0")
    guest = attach(make_guest(), daemon)
    run_until_event([guest], daemon, "device-not-forked")
    limit_processes(forker, "1000")
    low_mem.set_low()
    run([guest], full(guest))

    guest.hang_up()
    wait_until(lambda: len(fds_but_figures(daemon)) == before, what="no descriptor is left")


@fault("no address space for a guest's memory")
def test_no_memory_to_map_a_guest_that_vm_stops_the_neighbour_goes_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attach(make_guest(), daemon)
    wait_for_device([neighbour], daemon, "vm1")
    # Enough for a device itself; it maps all of its guest.
    forker = template_of(daemon.pid)
    room = (status_kib(forker, "VmSize") << 10) + VM_MEM_MIB * MIB // 4

    with limited(forker, resource.RLIMIT_AS, room):
        poor = attach(make_guest(), daemon)
        run_until_logged([neighbour, poor], daemon, "this VM's balloon stops")
    low_mem.set_low()
    run([neighbour], full(neighbour))

    refused = f"{VM_MEM_MIB} MiB of guest memory cannot be mapped: Cannot allocate memory; "
    ends = events(daemon, "device-died")
    assert len(ends) == 6
    assert all(f"failed; balloon-vm2: {refused}" in message for message in ends)


# --- the log ----------------------------------------------------------------------------------


@pytest.fixture
def start_with_stderr(
    tmp_path: Path, low_mem: LowMemDir
) -> Iterator[Callable[[int], "subprocess.Popen[bytes]"]]:
    """Starts a balloond with this standard error, and standard output, and waits until it listens.

    The socket is ``tmp_path / "s"``.
    """
    started: list[subprocess.Popen[bytes]] = []
    config = DaemonConfig(tmp_path / "s", VM_MEM_MIB, low_mem, SPEED)

    def start(stderr: int) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(config.command(), stdout=stderr, stderr=stderr))
        wait_until(lambda: listens(config.socket), what="it listens")
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def balloons_and_ends(
    process: "subprocess.Popen[bytes]", low_mem: LowMemDir, guest: FakeGuest, path: Path
) -> None:
    guest.connect(str(path))
    guest.bind()
    low_mem.set_low()
    run([guest], full(guest))
    began = time.monotonic()
    process.terminate()
    run([guest], lambda: process.poll() is not None)
    assert process.returncode == 0
    # It waits so long for a guest; this one may have been held up.
    assert guest.driver.actual == 0 or time.monotonic() - began >= GIVE_BACK_WITHIN_S


@fault("output and log on a full disk")
def test_output_and_log_on_a_full_disk_change_nothing(
    start_with_stderr: Callable[[int], "subprocess.Popen[bytes]"],
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    tmp_path: Path,
) -> None:
    with open("/dev/full", "wb") as full_disk:
        process = start_with_stderr(full_disk.fileno())
    balloons_and_ends(process, low_mem, make_guest(), tmp_path / "s")


@fault("output and log on a full disk")
def test_output_and_log_to_a_closed_pipe_change_nothing(
    start_with_stderr: Callable[[int], "subprocess.Popen[bytes]"],
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    tmp_path: Path,
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start_with_stderr(writer)
    os.close(writer)
    balloons_and_ends(process, low_mem, make_guest(), tmp_path / "s")


@fault("output and log on a full disk")
def test_log_to_a_pipe_that_nobody_empties_holds_nobody_up(
    start_with_stderr: Callable[[int], "subprocess.Popen[bytes]"],
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    tmp_path: Path,
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = start_with_stderr(writer)
    os.close(writer)
    balloons_and_ends(process, low_mem, make_guest(), tmp_path / "s")
    with open(reader, "rb") as log:
        written = log.read()
    # Whole lines until it was full, and none since: not even that it is ending.
    assert written.startswith(b"Attach a VM to ")
    assert written.endswith(b"\n")
    assert b"SIGTERM" not in written


@fault("output and log on a full disk")
def test_log_that_could_not_be_written_for_a_while_says_how_much_is_lost(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    wait_for_device([guest], daemon, "vm1")
    with limited(daemon.pid, resource.RLIMIT_FSIZE, daemon.log_path.stat().st_size):
        low_mem.set_low()
        run([guest], full(guest))
        low_mem.set_plenty()

    run_until_event([guest], daemon, "lines-lost")
    lost = next(r["lost"] for r in daemon.records() if r["event"] == "lines-lost")
    assert lost >= 16


# --- the guest's memory -----------------------------------------------------------------------


@pytest.fixture
def sealable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets seals be put on a fake guest's memory."""
    create = os.memfd_create
    monkeypatch.setattr(
        os, "memfd_create", lambda name, flags: create(name, flags | os.MFD_ALLOW_SEALING)
    )


@fault("kernel refuses MADV_REMOVE (EPERM, EBUSY, ENOMEM, EINVAL)")
def test_madvise_refused_is_said_at_a_limited_rate_and_only_the_neighbour_is_asked_for_more(
    sealable: None, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attach(make_guest(SETTINGS), daemon)
    sealed = attach(make_guest(SETTINGS), daemon)
    wait_for_device([neighbour, sealed], daemon, "vm2")
    before = sealed.ram.blocks_bytes()
    # From here on the kernel answers each MADV_REMOVE with EPERM (mm/shmem.c, shmem_fallocate).
    fcntl.fcntl(sealed.ram.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    began = time.monotonic()
    low_mem.set_low()
    run_until_event([neighbour, sealed], daemon, "fruitless")
    run([neighbour, sealed], full(neighbour))

    said = [r for r in daemon.records() if r["event"] == "host-fault"]
    seconds = int(time.monotonic() - began) + 2
    assert {r["vm"] for r in said} == {"vm2"}
    assert all("refused to free guest memory" in r["message"] for r in said)
    assert 1 <= len(said) <= 4 * seconds  # Of 256 buffers.
    assert sealed.ram.blocks_bytes() == before
    assert neighbour.ram.blocks_bytes() < before
    assert sealed.ram.check().pages_corrupt == 0
    # Its guest keeps what it has: giving more would cost it and gain nobody anything.
    lost = [r["message"] for r in daemon.records() if r["event"] in LOST]
    assert re.fullmatch(r"[\d.]+ MiB that it gave are not freed: the kernel refused.*", lost[0])
    assert lost[1:] == ["less than half of what it gave last was freed: not asking it for more"]
    decided = [r for r in daemon.records() if r["event"] == "decided" and r["vm"] == "vm2"]
    held = [r["reason"] for r in decided].index("fruitless")
    assert {r["target_bytes"] for r in decided[held:]} == {decided[held]["target_bytes"]}
    assert sealed.driver.actual * 4096 <= decided[held]["target_bytes"] < MAXIMUM


@fault("truncates the guest's memory")
def test_memory_file_cut_short_kills_its_own_device_until_that_balloon_stops(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour, cut = (attach(make_guest(SETTINGS), daemon) for _ in range(2))
    wait_for_device([neighbour, cut], daemon, "vm2")
    os.ftruncate(cut.ram.fd, 0)

    assert cut.frontend is not None
    cut.frontend.kick(0)
    run_until_logged([neighbour], daemon, "this VM's balloon stops")
    low_mem.set_low()
    run([neighbour], full(neighbour))

    deaths = [r for r in daemon.records() if r["event"] == "device-died"]
    assert {r["vm"] for r in deaths} == {"vm2"}
    assert deaths[0]["exit_code"] == -signal.SIGBUS
    assert len(deaths) == 6
    # Those that come after it find out when they map it, and say so in a line of words.
    end = VM_MEM_MIB * MIB
    for death in deaths[1:]:
        assert (
            f"guest memory up to byte {end} is to be mapped, but its file has 0 bytes"
            in (death["message"])
        )
        assert "Traceback" not in death["message"]
    assert neighbour.ram.check().pages_corrupt == 0


# --- time -------------------------------------------------------------------------------------


@fault("wall clock jumps")
def test_no_wall_clock_decides_anything_in_the_daemon() -> None:
    package = Path(balloon_daemon.__file__).parent
    readers = {
        path.relative_to(package)
        for path in package.rglob("*.py")
        if wall_clocks(path.read_text())
    }
    # QEMU and libvirt stamp a guest's statistics with the wall clock, and the kernel changed
    # directories: where it jumps, one sample counts as old, or one directory is read once more.
    stamped = {
        Path("guests/driven/qmp.py"),
        Path("guests/driven/directories.py"),
        Path("guests/libvirt/process.py"),
        # The metrics say when balloond began.
        Path("api/own_figures.py"),
    }
    # Of the daemon's other rooms only that of events' readers: the bus stamps what was published,
    # for a log line's time, and nobody decides by it.
    assert {path.parts[0] for path in readers - stamped} <= {"ctl", "records"}


def moments(daemon: Daemon, reason: str) -> list[float]:
    """When a decision fell for this reason, by the log's own times."""
    return [
        datetime.fromisoformat(record["time"]).timestamp()
        for record in daemon.records()
        if record.get("reason") == reason
    ]


def suspend(daemon: Daemon, seconds: float, reason: str) -> tuple[int, float]:
    """Stops the controller for many of its timers' periods, as suspending the host does.

    Returns:
        How many decisions had fallen for this reason, and when it went on, by the log's clock.
    """
    os.kill(daemon.pid, signal.SIGSTOP)
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, what="it slept enough")
    before, resumed_at = len(moments(daemon, reason)), time.time()
    os.kill(daemon.pid, signal.SIGCONT)
    return before, resumed_at


def assert_step_by_step(moments: list[float], resumed_at: float, period_s: float) -> None:
    """The first may have been due at once, each further one a period after the one before."""
    for number, moment in enumerate(moments):
        # A busy machine only makes it later; the log rounds to milliseconds.
        assert moment - resumed_at >= number * period_s - 0.002


@fault("suspended and resumed")
def test_resumed_under_low_memory_rises_step_by_step(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 5 a step up comes every 200 ms: all of them take 3 s, so that one of them falls
    # into the suspension, however late that begins.
    daemon = start_daemon("--speed", "5")
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: len(moments(daemon, "low-memory")) >= 1)
    before, resumed_at = suspend(daemon, 1.2, "low-memory")
    run([guest], lambda: len(moments(daemon, "low-memory")) >= before + 5)

    assert_step_by_step(moments(daemon, "low-memory")[before:], resumed_at, 0.2)


@fault("suspended and resumed")
def test_resumed_with_memory_back_falls_step_by_step(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 100 a step down comes every 300 ms: those after the second take 4.2 s.
    daemon = start_daemon("--speed", "100")
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], full(guest))
    low_mem.set_plenty()
    run([guest], lambda: len(moments(daemon, "memory-back")) >= 2)
    before, resumed_at = suspend(daemon, 1.2, "memory-back")
    run([guest], lambda: len(moments(daemon, "memory-back")) >= before + 4)

    assert_step_by_step(moments(daemon, "memory-back")[before:], resumed_at, 0.3)


# --- the low-memory figures -------------------------------------------------------------------


def silent_fifo(path: Path, writers: contextlib.ExitStack) -> None:
    """A FIFO with a writer that never writes: a plain read would wait for ever."""
    os.mkfifo(path)
    writers.callback(os.close, os.open(path, os.O_RDWR))


WRONG: dict[str, tuple[Callable[[Path, contextlib.ExitStack], object], str]] = {
    "fifo": (lambda path, _: os.mkfifo(path), "is empty"),
    "silent-fifo": (silent_fifo, "Resource temporarily unavailable"),
    "directory": (lambda path, _: path.mkdir(), "Is a directory"),
    "huge": (lambda path, _: path.write_bytes(b"9" * (1 << 20)), "not a whole number"),
    "endless": (lambda path, _: path.symlink_to("/dev/zero"), "not a whole number"),
    "loop": (lambda path, _: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.fixture
def writers() -> Iterator[contextlib.ExitStack]:
    """Closes what writes to a FIFO, once the test is over."""
    with contextlib.ExitStack() as stack:
        yield stack


@fault("low-memory file or its directory vanishes")
@pytest.mark.parametrize("kind", WRONG)
def test_low_mem_file_of_another_kind_is_unknown_and_recovers(
    kind: str,
    writers: contextlib.ExitStack,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    make, complaint = WRONG[kind]
    guest = attach(make_guest(), daemon)
    wait_for_device([guest], daemon, "vm1")
    make(low_mem.path / "wrong", writers)
    # At once: a file that is missing for a moment would be the error that is said.
    (low_mem.path / "link").symlink_to(low_mem.path / "wrong")
    os.replace(low_mem.path / "link", low_mem.path / "available")
    run_until_logged([guest], daemon, complaint)
    assert daemon.target_bytes() == 0

    low_mem.set_low()
    run([guest], full(guest))

    assert len(facts(daemon, "source-unknown")) == 1
