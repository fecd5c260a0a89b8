"""Whatever descriptor a VMM calls memory: its kind is said, without waiting, without fail."""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from balloon_daemon.linux import memory_file_kind
from balloon_daemon.linux.figures import read_figures
from balloon_daemon.linux.memory import memory_file_use
from balloon_daemon.linux.memory_file_kind import MemoryFile, inspect_memory_file
from balloon_daemon.units import MIB
from tests.fakes import memory_files
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds
from tests.harness.slow_close import MuteFile

NO_MEMORY = "is no file of shared memory"


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """Ends a test that waits for a file: it would wait for ever."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it waits")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def one_end_of(ends: tuple[int, int]) -> int:
    kept, other = ends
    os.close(other)
    return kept


def socket_of(family: socket.AddressFamily, kind: socket.SocketKind) -> Callable[[], int]:
    return lambda: socket.socket(family, kind).detach()


def fifo() -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/fifo")
        return os.open(f"{folder}/fifo", os.O_RDWR | os.O_NONBLOCK)


def epoll() -> int:
    poller = select.epoll()
    try:
        return os.dup(poller.fileno())
    finally:
        poller.close()


def terminal() -> int:
    return one_end_of(pty.openpty())


def of_memory(path: str) -> Callable[[], int]:
    """A look at this process: reading it may do anything, asking what it is must not."""
    return lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC)


NO_FILES: dict[str, Callable[[], int]] = {
    "pipe": lambda: one_end_of(os.pipe()),
    "pipe-to-write": lambda: one_end_of(os.pipe()[::-1]),
    "fifo": fifo,
    "unix-stream": socket_of(socket.AF_UNIX, socket.SOCK_STREAM),
    "unix-datagram": socket_of(socket.AF_UNIX, socket.SOCK_DGRAM),
    "tcp": socket_of(socket.AF_INET, socket.SOCK_STREAM),
    "eventfd": lambda: os.eventfd(0),
    "epoll": epoll,
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "terminal": terminal,
    "zero": lambda: os.open("/dev/zero", os.O_RDWR),
    "null": lambda: os.open("/dev/null", os.O_RDWR),
    "random": lambda: os.open("/dev/urandom", os.O_RDONLY),
    "procfs": of_memory("/proc/self/mem"),
    "namespace": of_memory("/proc/self/ns/mnt"),
    "sysfs": of_memory("/sys/kernel/mm"),
    "folder": lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY),
    "folder-of-shmem": lambda: os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY),
    "path": lambda: os.open(__file__, os.O_PATH),
    "path-of-a-folder": lambda: os.open("/", os.O_PATH),
    "closed": lambda: 1 << 20,
}


@fault("memory region that cannot be freed")
@pytest.mark.parametrize("make", NO_FILES.values(), ids=NO_FILES)
def test_descriptor_of_no_memory_is_never_freed_never_mapped_and_not_waited_for(
    make: Callable[[], int],
) -> None:
    fd = make()
    read_figures("/proc/self/mountinfo")  # It stays open.
    before = open_fds()

    found = inspect_memory_file(fd)

    assert (found.size_bytes, found.page_bytes, found.mappable) == (None, 4096, False)
    assert found.never_freed == NO_MEMORY or found.never_freed.startswith("is a file on ")
    assert open_fds() == before
    if fd < 1 << 20:
        os.close(fd)


NAMED_BY_ITS_OWNER = """
import ctypes, os, sys
from balloon_daemon.linux.memory_file_kind import inspect_memory_file

device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
kind = b"fuse.\\x1b[31m" + 100 * b"x"
if ctypes.CDLL(None).mount(b"none", os.fsencode(sys.argv[1]), kind, 0, options):
    sys.exit("mount(2) refuses it")
print(inspect_memory_file(os.open(sys.argv[1], os.O_PATH)).never_freed)
"""


@fault("memory region that cannot be freed")
def test_kind_of_file_that_its_owner_has_named_is_short_and_printable(tmp_path: Path) -> None:
    command = ["unshare", "--mount", sys.executable, "-c", NAMED_BY_ITS_OWNER, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"FUSE cannot be mounted here: {done.stderr}")
    assert done.stdout == f"is a file on fuse.\\x1b[31m{'x' * 22}\n"


def test_descriptor_of_no_memory_takes_no_memory() -> None:
    reading, writing = os.pipe()
    for fd in (reading, writing, 1 << 20):
        with pytest.raises(OSError, match=r"Invalid argument|Bad file descriptor"):
            memory_file_use(fd)
    os.close(reading)
    os.close(writing)


def test_file_on_a_disk_is_mapped_for_its_rings_and_never_freed() -> None:
    fd = memory_files.on_disk(3 * MIB)
    found = inspect_memory_file(fd)
    os.close(fd)
    kind = found.never_freed.removeprefix("is a file on ")
    assert kind in memory_file_kind.LOCAL_FILE_SYSTEMS
    assert found == MemoryFile(3 * MIB, 4096, f"is a file on {kind}", mappable=True)


def test_file_on_a_disk_open_for_reading_only_is_not_mapped() -> None:
    fd = memory_files.on_disk_read_only(MIB)
    found = inspect_memory_file(fd)
    os.close(fd)
    assert not found.mappable
    assert found.never_freed.startswith("is a file on ")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (memory_files.future_sealed, "is sealed against writing, and so against giving memory "),
        (memory_files.write_sealed, "is sealed against writing, and so against giving memory "),
        (memory_files.read_only, "is not open for reading and writing"),
    ],
)
def test_shared_memory_that_cannot_be_written_is_never_freed_and_has_its_size(
    make: memory_files.MakeFile, why: str
) -> None:
    fd = make(MIB)
    found = inspect_memory_file(fd)
    os.close(fd)
    assert found.never_freed.startswith(why)
    assert (found.size_bytes, found.page_bytes, found.mappable) == (MIB, 4096, False)


def test_memfd_in_the_open_is_freed_and_mapped() -> None:
    fd = memory_files.memfd(MIB)
    assert inspect_memory_file(fd) == MemoryFile(MIB, 4096)
    os.pwrite(fd, bytes(64 << 10), 0)
    use = memory_file_use(fd)
    assert (use.size_bytes, use.held_bytes, use.limit_bytes) == (MIB, 64 << 10, None)
    os.close(fd)


@fault("memory region that cannot be freed")
def test_file_of_fuse_whose_server_does_not_answer_is_not_asked(tmp_path: Path) -> None:
    try:
        mute = MuteFile(tmp_path / "mount")
    except OSError as err:
        pytest.skip(f"needs root, to mount a file system of FUSE: {err}")
    try:
        os.kill(mute._server, signal.SIGSTOP)
        found = inspect_memory_file(mute.fd)
    finally:
        mute.close()
    assert not found.mappable
    assert found.size_bytes is None


FDINFO_IS_READ = """
import os, sys
from balloon_daemon.linux.memory_file_kind import inspect_memory_file
read = []
sys.addaudithook(lambda event, args: read.append(str(args[0])) if event == "open" else None)
device = os.open(os.devnull, os.O_RDWR)
found = inspect_memory_file(device)
print(found.mappable, found.size_bytes, [path for path in read if "fdinfo" in path])
"""


@fault("memory region that cannot be freed")
def test_file_that_is_no_memory_has_its_fdinfo_left_unread() -> None:
    # The kernel writes the fdinfo of some devices under a lock that others may hold for long. An
    # audit hook stays for a process's life: hence a process of its own.
    ran = subprocess.run(
        [sys.executable, "-c", FDINFO_IS_READ], capture_output=True, text=True, check=True
    )

    assert ran.stdout.split(maxsplit=2) == ["False", "None", "[]\n"]


def test_list_of_mounts_that_cannot_be_read_leaves_a_file_of_no_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fd = memory_files.on_disk(MIB)
    closed = threading.Event()

    def refuse(*_: object, **__: object) -> None:
        closed.set()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(memory_file_kind, "read_lines", refuse)
    found = inspect_memory_file(fd)
    monkeypatch.undo()
    os.close(fd)
    assert closed.is_set()
    assert found == MemoryFile(None, 4096, NO_MEMORY, mappable=False)
