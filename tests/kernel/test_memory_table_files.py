"""Which files can be guest memory: looked at as the front-end's memory table will.

None is refused: what cannot be freed, or not even be mapped, is told from what can.
"""

import fcntl
import mmap
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.errors import MemoryFileError
from balloon_daemon.linux import figures, mountinfo
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import map_shared, memory_file_use
from balloon_daemon.linux.memory_file_kind import (
    LOCAL_FILE_SYSTEMS,
    FileSystems,
    MemoryFile,
    inspect_memory_file,
)
from balloon_daemon.linux.mountinfo import MOST_BYTES, read_lines
from balloon_daemon.vhost_user.connection import inspect_memory
from balloon_daemon.vhost_user.messages import MAX_FDS
from tests.harness.faults import fault
from tests.harness.slow_close import MuteFile

# linux/fcntl.h
F_ADD_SEALS = 1033
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 1 << 20)
    yield fd
    os.close(fd)


def test_memfd_is_guest_memory_of_small_pages(memfd: int) -> None:
    assert inspect_memory_file(memfd) == MemoryFile(1 << 20, 4096)


def test_memfd_sealed_as_qemu_does_is_guest_memory(memfd: int) -> None:
    fcntl.fcntl(memfd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW)
    assert inspect_memory_file(memfd) == MemoryFile(1 << 20, 4096)


@fault("memory region that cannot be freed")
@pytest.mark.parametrize("seal", [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE])
def test_memfd_sealed_against_writing_is_neither_freed_nor_mapped(memfd: int, seal: int) -> None:
    # It can neither be mapped writable nor freed: every device would die of it.
    fcntl.fcntl(memfd, F_ADD_SEALS, seal)
    why = "is sealed against writing, and so against giving memory back"
    assert inspect_memory_file(memfd) == MemoryFile(1 << 20, 4096, why, mappable=False)


def test_file_on_tmpfs_is_guest_memory() -> None:
    # What memory-backend-file with mem-path=/dev/shm gives.
    path = Path(f"/dev/shm/balloond-test-{os.getpid()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    path.unlink()
    os.ftruncate(fd, 8192)
    file = inspect_memory_file(fd)
    os.close(fd)
    assert file == MemoryFile(8192, 4096)


@fault("memory region that cannot be freed")
@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY])
def test_memfd_not_open_for_reading_and_writing_is_neither_freed_nor_mapped(
    memfd: int, mode: int
) -> None:
    fd = os.open(f"/proc/self/fd/{memfd}", mode | os.O_CLOEXEC)
    file = inspect_memory_file(fd)
    os.close(fd)
    why = "is not open for reading and writing"
    assert file == MemoryFile(1 << 20, 4096, why, mappable=False)


def pipe_end() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def socket_end() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


def eventfd() -> int:
    return os.eventfd(0)


def directory() -> int:
    return os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY)


def device_file() -> int:
    return os.open("/dev/zero", os.O_RDWR)


def proc_file() -> int:
    return os.open("/proc/self/status", os.O_RDONLY)


OF_NO_FILE = "is no file of shared memory"


@fault("memory region that cannot be freed")
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (pipe_end, OF_NO_FILE),
        (socket_end, OF_NO_FILE),
        (eventfd, OF_NO_FILE),
        (directory, r"is a file on \w+"),
        (device_file, r"is a file on \w+"),
        (proc_file, "is a file on proc"),
    ],
)
def test_descriptor_of_no_memory_is_neither_freed_nor_mapped_nor_asked_for_its_size(
    make: Callable[[], int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a file of FUSE fstat(2) asks whoever serves it: the VMM, perhaps, who need not answer.
    fd = make()
    asked: list[int] = []
    monkeypatch.setattr(os, "fstat", asked.append)
    monkeypatch.setattr(os, "fstatvfs", asked.append)

    file = inspect_memory_file(fd)

    monkeypatch.undo()
    os.close(fd)
    assert asked == []
    assert file == MemoryFile(None, 4096, file.never_freed, mappable=False)
    assert re.fullmatch(why, file.never_freed)


def test_file_of_fuse_is_neither_freed_nor_mapped_nor_asked_anything(tmp_path: Path) -> None:
    try:
        mute = MuteFile(tmp_path / "mounted")
    except PermissionError as err:
        pytest.skip(str(err))
    try:
        file = inspect_memory_file(mute.fd)
    finally:
        mute.close()
    # Its mount is its server's own here, so no list of ours names its file system.
    assert file == MemoryFile(None, 4096, OF_NO_FILE, mappable=False)


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    """A file of 8 KiB on a local disk, wherever there is one."""
    for folder in (tmp_path, Path(__file__).parent):
        path = folder / f"balloond-test-{os.getpid()}"
        path.write_bytes(bytes(8192))
        fd = os.open(path, os.O_RDONLY)
        kind = FileSystems().kind(fd)
        os.close(fd)
        if kind in LOCAL_FILE_SYSTEMS:
            return path
        path.unlink()
    pytest.skip("neither the repository nor pytest's own folder is on a local disk")


@fault("memory region that cannot be freed")
def test_file_on_a_local_disk_is_mapped_for_its_rings_and_never_freed(disk_file: Path) -> None:
    # RAM on such a file (QEMU's memory-backend-file) holds the rings, too.
    fd = os.open(disk_file, os.O_RDWR)
    disk_file.unlink()
    file, kind = inspect_memory_file(fd), FileSystems().kind(fd)
    os.close(fd)
    assert file == MemoryFile(8192, 4096, f"is a file on {kind}", mappable=True)


@pytest.mark.parametrize("mode", [os.O_RDONLY, os.O_WRONLY])
def test_file_on_a_local_disk_not_open_for_both_is_not_mapped(disk_file: Path, mode: int) -> None:
    fd = os.open(disk_file, mode)
    disk_file.unlink()
    file, kind = inspect_memory_file(fd), FileSystems().kind(fd)
    os.close(fd)
    assert file == MemoryFile(None, 4096, f"is a file on {kind}", mappable=False)


def test_directory_on_a_local_disk_is_not_mapped(disk_file: Path) -> None:
    fd = os.open(disk_file.parent, os.O_RDONLY | os.O_DIRECTORY)
    disk_file.unlink()
    file = inspect_memory_file(fd)
    os.close(fd)
    assert file == MemoryFile(None, 4096, file.never_freed, mappable=False)


@fault("one user has much to say, over however many connections")
def test_mounts_are_read_once_for_all_files_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[str]()

    def counted(path: str, **how: figures.Content) -> bytes:
        read.append(path)
        return figures.read_figures(path, **how)

    monkeypatch.setattr(mountinfo, "read_figures", counted)
    fds = [OwnedFd(proc_file()) for _ in range(MAX_FDS)]
    whys = {facts.never_freed for facts in inspect_memory(fds)}
    for fd in fds:
        fd.close()
    assert whys == {"is a file on proc"}
    assert read == ["/proc/self/mountinfo"]


@fault("one user has much to say, over however many connections")
def test_of_mounts_with_long_paths_few_are_read(tmp_path: Path) -> None:
    line = b"7 1 0:7 / /" + 4000 * b"x" + b" rw - ramfs none rw\n"
    path = tmp_path / "mountinfo"
    path.write_bytes(1000 * line)
    assert read_lines(path) == MOST_BYTES // len(line) * [line[:-1]]


def test_closed_descriptor_is_neither_freed_nor_mapped() -> None:
    assert inspect_memory_file(1 << 20) == MemoryFile(None, 4096, OF_NO_FILE, mappable=False)


def test_use_of_a_memory_file_is_what_the_kernel_says(memfd: int) -> None:
    os.pwrite(memfd, b"here", 0)
    os.pwrite(memfd, b"here", 1 << 19)
    again = os.open(f"/proc/self/fd/{memfd}", os.O_RDWR)
    use, same = memory_file_use(memfd), memory_file_use(again)
    os.close(again)
    assert (use.size_bytes, use.held_bytes, use.limit_bytes) == (1 << 20, 8192, None)
    assert same == use


@pytest.mark.parametrize("make", [pipe_end, eventfd, device_file])
def test_use_of_what_is_no_memory_file_is_not_asked(make: Callable[[], int]) -> None:
    fd = make()
    with pytest.raises(OSError, match="Invalid argument"):
        memory_file_use(fd)
    os.close(fd)


def test_map_shared_is_the_files_own_part(memfd: int) -> None:
    os.pwrite(memfd, b"here", 8192)
    mapped = map_shared(memfd, 4096, 8192)
    assert mapped[:4] == b"here"
    mapped[4:8] = b"back"
    assert os.pread(memfd, 8, 8192) == b"hereback"


def test_map_shared_beyond_the_file_is_refused(memfd: int) -> None:
    for offset_bytes in ((1 << 20) - 4096, 1 << 20, 1 << 30):
        with pytest.raises(MemoryFileError, match=f"byte {offset_bytes + 8192} .* has 1048576 "):
            map_shared(memfd, 8192, offset_bytes)


def test_map_shared_of_an_emptied_file_is_refused(memfd: int) -> None:
    os.ftruncate(memfd, 0)
    with pytest.raises(MemoryFileError, match="its file has 0 bytes: the VMM cut it short"):
        map_shared(memfd, 4096, 0)


def test_map_shared_between_two_pages_is_the_kernels_refusal(memfd: int) -> None:
    with pytest.raises(MemoryFileError, match="cannot be mapped: Invalid argument"):
        map_shared(memfd, mmap.PAGESIZE, 100)
