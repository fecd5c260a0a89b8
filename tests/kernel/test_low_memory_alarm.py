"""The alarms on real FIFOs, a real event loop and the kernel's own pressure file."""

import asyncio
import contextlib
import fcntl
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.events import SourceTrouble
from balloon_daemon.host import memory_alarm
from balloon_daemon.host.low_memory import PRESSURE_FILE, ChromeosLowMemory, MeminfoLowMemory
from balloon_daemon.host.memory_alarm import DeviceAlarm, PressureAlarm
from balloon_daemon.host.zoneinfo import ZONEINFO
from balloon_daemon.linux import figures
from balloon_daemon.linux.memory import F_GET_SEALS
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading
from tests.harness.faults import fault
from tests.harness.needs import needs_pressure
from tests.harness.waiting import HANG_S

ROOT = Path(__file__).parents[2]


class Host:
    """A low-memory directory with a FIFO as its device: a byte in it means "low"."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.device = directory / "device"
        self.set_available(1000)
        (directory / "margin").write_text("400\n")
        os.mkfifo(self.device)
        # Read and write: the device stays whole whoever else opens and closes it.
        self.far_end = os.open(self.device, os.O_RDWR | os.O_NONBLOCK)

    def set_available(self, mib: int) -> None:
        (self.directory / "new").write_text(f"{mib}\n")
        (self.directory / "new").rename(self.directory / "available")

    def raise_alarm(self) -> None:
        os.write(self.far_end, b"!")

    def end_alarm(self) -> None:
        os.read(self.far_end, 16)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    os.close(host.far_end)


@pytest.fixture
def source(host: Host) -> Iterator[ChromeosLowMemory]:
    source = ChromeosLowMemory(host.directory, device=host.device)
    yield source
    source.close()


def wakes(source: ChromeosLowMemory | MeminfoLowMemory, wait_s: float = 0.0) -> bool:
    """Whether a loop that waits for the source would be woken."""
    fd = source.wait_fd()
    assert fd is not None
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(wait_s * 1000))


def test_device_that_becomes_readable_wakes_an_asyncio_loop(
    host: Host, source: ChromeosLowMemory
) -> None:
    async def scenario() -> Reading | NeverLow | None:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[Reading | NeverLow | None] = loop.create_future()
        fd = source.wait_fd()
        assert fd is not None

        def woken() -> None:
            source.acknowledge()
            seen.set_result(source.read())  # a second call would raise

        loop.add_reader(fd, woken)
        host.set_available(399)
        loop.call_soon(host.raise_alarm)
        try:
            return await asyncio.wait_for(seen, HANG_S)
        finally:
            loop.remove_reader(fd)

    assert not source.needs_poll
    assert asyncio.run(scenario()) == Reading(399, 400)
    assert source.statistics().wakeups == 1


@fault("`/dev/chromeos-low-mem` says low and the files do not")
def test_device_that_disagrees_with_the_files_does_not_spin_the_loop(
    host: Host, source: ChromeosLowMemory
) -> None:
    readings: list[Reading | NeverLow | None] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        fd = source.wait_fd()
        assert fd is not None

        def woken() -> None:
            source.acknowledge()
            readings.append(source.read())

        loop.add_reader(fd, woken)
        host.raise_alarm()
        for _ in range(100):  # each one a turn of the loop, with a select of its own
            await asyncio.sleep(0)
        loop.remove_reader(fd)

    asyncio.run(scenario())

    assert readings == [Reading(1000, 400)]
    assert source.needs_poll  # since the device cannot tell us anything new


def test_muted_device_that_falls_quiet_is_armed_by_the_next_reading(
    host: Host, source: ChromeosLowMemory
) -> None:
    host.raise_alarm()
    source.acknowledge()
    source.read()
    still_muted = source.needs_poll

    host.end_alarm()
    source.read()

    assert still_muted
    assert not source.needs_poll
    assert not wakes(source)
    host.raise_alarm()
    assert wakes(source)
    source.acknowledge()
    assert not wakes(source)  # muted again, as the first time


def test_wakeup_that_nobody_acknowledges_stays(host: Host, source: ChromeosLowMemory) -> None:
    host.raise_alarm()

    assert wakes(source)
    assert wakes(source)


def test_device_that_fell_quiet_before_it_was_acknowledged_stays_armed(
    host: Host, source: ChromeosLowMemory
) -> None:
    host.raise_alarm()
    assert wakes(source)
    host.end_alarm()

    source.acknowledge()

    assert not source.needs_poll
    assert source.statistics().wakeups == 0


def test_fifo_whose_writers_come_and_go_wakes_once_each_and_never_spins(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "device")
    alarm = DeviceAlarm(tmp_path / "device")
    poll = select.poll()
    poll.register(alarm.fileno(), select.POLLIN)

    for _ in range(3):
        os.close(os.open(tmp_path / "device", os.O_WRONLY))  # end of file: EPOLLHUP
        assert poll.poll(0)
        assert alarm.acknowledge()
        assert poll.poll(0) == []
        alarm.refresh()
        assert poll.poll(0) == []
        assert alarm.armed
    alarm.close()


@fault("`/dev/chromeos-low-mem` gone, replaced, of another kind")
def test_device_that_vanishes_leaves_polling_and_wakes_again_when_it_is_back(
    host: Host, source: ChromeosLowMemory
) -> None:
    fd = source.wait_fd()
    host.device.rename(host.directory / "away")
    source.read()
    gone = (source.needs_poll, source.take_notice(), source.read())

    (host.directory / "away").rename(host.device)
    source.read()

    trouble = SourceTrouble(f"{host.device}: No such file or directory")
    assert gone == (True, trouble, Reading(1000, 400))
    assert source.take_notice() == SourceTrouble(
        f"{host.device}: it is back, waiting for it again"
    )
    assert source.take_notice() is None
    assert source.wait_fd() == fd
    assert not source.needs_poll
    host.raise_alarm()
    assert wakes(source)


@fault("`/dev/chromeos-low-mem` gone, replaced, of another kind")
def test_device_that_is_replaced_is_waited_for_in_its_new_shape(
    host: Host, source: ChromeosLowMemory
) -> None:
    host.device.unlink()
    os.mkfifo(host.device)
    source.read()
    far_end = os.open(host.device, os.O_RDWR)

    host.raise_alarm()  # the old one
    assert not wakes(source)
    os.write(far_end, b"!")
    assert wakes(source)
    os.close(far_end)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that an alarm opens from now on, whether they are there or not."""
    paths: list[str] = []
    open_at_once = memory_alarm._open_at_once

    def noted(path: str, flags: int) -> int:
        paths.append(path)
        return open_at_once(path, flags)

    monkeypatch.setattr(memory_alarm, "_open_at_once", noted)
    return paths


@fault("`/dev/chromeos-low-mem` gone, replaced, of another kind")
def test_device_that_is_not_there_is_looked_for_only_when_its_directory_changes(
    host: Host, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(memory_alarm, "monotonic", lambda: now)
    host.device.unlink()
    alarm = DeviceAlarm(host.device)
    now += memory_alarm.FRESH_S
    alarm.refresh()
    opened.clear()

    for _ in range(100):
        now += memory_alarm.LOOK_AGAIN_S
        alarm.refresh()
    without_change = list(opened)
    # As a device that comes within the tick of the kernel's clock in which another name did.
    (host.directory / "other").touch()
    alarm.refresh()
    changed_at = host.directory.stat()
    os.mkfifo(host.device)
    os.utime(host.directory, ns=(changed_at.st_atime_ns, changed_at.st_mtime_ns))
    now += 5 * memory_alarm.FRESH_S
    alarm.refresh()

    assert without_change == []
    assert alarm.armed
    alarm.close()


@fault("`/dev/chromeos-low-mem` gone, replaced, of another kind")
def test_device_of_another_kind_is_opened_again_seldom(
    host: Host, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(memory_alarm, "monotonic", lambda: now)
    host.device.unlink()
    host.device.write_text("")
    alarm = DeviceAlarm(host.device)
    now += memory_alarm.FRESH_S
    alarm.refresh()
    opened.clear()

    for _ in range(100):
        now += memory_alarm.LOOK_AGAIN_S / 50
        alarm.refresh()

    assert len(opened) == 2
    alarm.close()


def fd_is(fd: int, device: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), device)
    except OSError:  # the listing's own, closed by now
        return False


@fault("low-memory notifier switched off (`off` in `margin`), and on again")
def test_margin_that_was_given_is_polled_as_the_device_does_not_know_it(host: Host) -> None:
    # The kernel's device speaks of the file's margin; where that is off, it never does.
    (host.directory / "margin").write_text("off\n")
    source = ChromeosLowMemory(host.directory, device=host.device, margin_bytes=2000 << 20)

    try:
        assert source.needs_poll
        assert source.read() == Reading(1000, 2000)
        host.raise_alarm()
        assert wakes(source)
        assert f"polled, and woken by {host.device} at the margin of its own" in source.describe()
    finally:
        source.close()


def test_device_that_went_while_a_child_holds_it_no_longer_wakes(
    host: Host, source: ChromeosLowMemory
) -> None:
    # A forked child holds every open file of ours; dup() makes the same thing without a fork.
    device = os.stat(host.device)
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    (ours,) = [fd for fd in fds if fd != host.far_end and fd_is(fd, device)]
    held = os.dup(ours)
    host.device.unlink()
    source.read()

    host.raise_alarm()

    assert not wakes(source)
    os.close(held)


@fault("`/dev/chromeos-low-mem` gone, replaced, of another kind")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.write_text(""), "not a file that can be waited for"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
    ids=["absent", "regular", "directory"],
)
def test_device_that_cannot_wake_us_leaves_polling_and_is_described(
    host: Host, make: Callable[[Path], object], problem: str
) -> None:
    host.device.unlink()
    make(host.device)

    source = ChromeosLowMemory(host.directory, device=host.device)

    assert source.needs_poll
    assert f"polled, as nothing wakes us ({host.device}: {problem})" in source.describe()
    source.read()
    assert source.take_notice() is None  # nothing has changed since the start
    assert not wakes(source)
    source.close()
    assert source.wait_fd() is None


@fault("`/dev/chromeos-low-mem` says low and the files do not")
@needs_pressure
def test_device_that_hangs_up_as_soon_as_it_is_opened_never_wakes() -> None:
    # A pressure file that was given no trigger reports EPOLLERR for ever.
    alarm = DeviceAlarm(PRESSURE_FILE)
    poll = select.poll()
    poll.register(alarm.fileno(), select.POLLIN)

    alarm.refresh()

    assert poll.poll(0) == []
    assert not alarm.armed
    assert alarm.problem == "it hangs up at once"
    alarm.close()


@needs_pressure
def test_pressure_trigger_is_accepted_and_does_not_wake_by_itself() -> None:
    alarm = PressureAlarm(PRESSURE_FILE)
    poll = select.poll()
    poll.register(alarm.fileno(), select.POLLIN)

    assert alarm.problem == ""
    assert alarm.armed
    # The file itself is always readable: without the nesting this would be a busy loop.
    assert poll.poll(0) == []
    alarm.close()


@fault("PSI missing, or it refuses a trigger")
@needs_pressure
def test_pressure_trigger_refused_falls_back_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    # 100 ms is below the kernel's shortest window of 500 ms, whoever asks.
    good = memory_alarm.PSI_TRIGGERS[-1]
    monkeypatch.setattr(memory_alarm, "PSI_TRIGGERS", (b"some 50000 100000\0", good))

    alarm = PressureAlarm(PRESSURE_FILE)

    assert alarm.armed
    alarm.close()


@fault("PSI missing, or it refuses a trigger")
@needs_pressure
def test_pressure_trigger_without_nul_is_refused_and_leaves_polling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The kernel overwrites the last byte: 2 s became 0.2 s, below the shortest window.
    monkeypatch.setattr(memory_alarm, "PSI_TRIGGERS", (b"some 150000 2000000",))

    source = MeminfoLowMemory()

    assert source.wait_fd() is None
    assert f"nothing wakes us ({PRESSURE_FILE}: Invalid argument)" in source.describe()
    source.close()


@fault("PSI missing, or it refuses a trigger")
@needs_pressure
def test_pressure_file_that_refuses_stays_open_and_is_asked_again(
    opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, good = 1000.0, memory_alarm.PSI_TRIGGERS
    monkeypatch.setattr(memory_alarm, "monotonic", lambda: now)
    monkeypatch.setattr(memory_alarm, "PSI_TRIGGERS", (b"some 150000 2000000",))
    alarm = PressureAlarm(PRESSURE_FILE)
    refused = alarm.problem
    now += memory_alarm.TRIGGER_AGAIN_S
    alarm.refresh()

    monkeypatch.setattr(memory_alarm, "PSI_TRIGGERS", good)
    now += memory_alarm.TRIGGER_AGAIN_S
    told = alarm.refresh()

    assert refused == "Invalid argument"
    assert opened == [os.fspath(PRESSURE_FILE)]
    assert alarm.armed
    assert told == f"{PRESSURE_FILE}: it is back, waiting for it again"
    alarm.close()


@fault("PSI missing, or it refuses a trigger")
def test_pressure_file_that_is_not_there_is_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, now = tmp_path / "pressure", 1000.0
    monkeypatch.setattr(memory_alarm, "monotonic", lambda: now)
    alarm = PressureAlarm(path)
    path.write_text("")
    now += 2 * memory_alarm.TRIGGER_AGAIN_S
    alarm.refresh()
    assert alarm.problem == "No such file or directory"
    assert path.read_text() == ""  # It was asked for no trigger.
    alarm.close()


def test_figures_for_low_memory_are_open_before_memory_is_low(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: dict[str, figures.FigureFile] = {}
    monkeypatch.setattr(figures, "_kept", kept)
    MeminfoLowMemory().close()
    assert os.fspath(ZONEINFO) in kept
    for file in kept.values():
        file.close()


TRIGGERS_SHARE = 0.1
"""Of the time: the first of PSI_TRIGGERS asks for more stall than the second."""

THRASH = """
import mmap, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
with open(sys.argv[2], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
while True:
    for offset in range(0, len(pages), mmap.PAGESIZE):
        pages[offset]
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup of 16 MiB, of either version."""
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v2, "memory.max")
    group = parent / f"balloond-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as err:
        pytest.skip(f"cannot make a memory cgroup: {err}")
    try:
        (group / limit).write_text(str(16 << 20))
    except OSError as err:
        group.rmdir()
        pytest.skip(f"cannot limit a memory cgroup: {err}")
    yield group
    group.rmdir()


def stalled_us() -> int:
    """How long tasks of this machine have stalled on memory so far, by the kernel's own count."""
    return int(PRESSURE_FILE.read_text().splitlines()[0].partition("total=")[2])


def is_on_disk(directory: Path) -> bool:
    """Whether we may write there, and who reads has to wait for a disk; not so on a tmpfs."""
    if not os.access(directory, os.W_OK):
        return False
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            fcntl.fcntl(file, F_GET_SEALS)  # Answered by shmem and hugetlbfs alone.
        except OSError:
            return True
    return False


@pytest.fixture
def file_on_disk(tmp_path: Path) -> Iterator[Path]:
    """A file of 64 MiB of which nothing is cached; /tmp is a tmpfs on many a host."""
    candidates = [tmp_path, Path("/var/tmp"), ROOT]
    directory = next(filter(is_on_disk, candidates), None)
    if directory is None:
        pytest.skip("no disk to write to at " + " or ".join(map(str, candidates)))
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".balloond-test-") as file:
        file.write(bytes(64 << 20))
        file.flush()
        os.fsync(file.fileno())
        # Cached pages belong to the cgroup that read them first: that must be the small one.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(file.name)


@needs_pressure
def test_memory_stall_in_a_small_cgroup_wakes_through_the_trigger(
    small_cgroup: Path, file_on_disk: Path
) -> None:
    # Four times the cgroup's memory, read for ever: every page was evicted before it is wanted.
    thrash = [sys.executable, "-c", THRASH, str(small_cgroup), str(file_on_disk)]
    with contextlib.closing(MeminfoLowMemory()) as source:
        began, before_us = time.monotonic(), stalled_us()

        children = [subprocess.Popen(thrash) for _ in range(2)]
        try:
            woken = wakes(source, HANG_S)
            ended = [child.poll() for child in children]
        finally:
            for child in children:
                child.kill()
                child.wait()
        assert ended == [None, None]
        # A stall that is spread evenly may stay just below the trigger's share in every window.
        share = (stalled_us() - before_us) / 1e6 / (time.monotonic() - began)
        if not woken and share < 2 * TRIGGERS_SHARE:
            pytest.skip(f"reading {file_on_disk} stalls for {share:.1%} of the time only")
        source.acknowledge()

        assert woken
        assert source.statistics().wakeups == 1
        assert source.read() is not None
