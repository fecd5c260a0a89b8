"""Which files may be guest memory: looked at as the front-end's memory table will."""

import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.errors import MemoryFileError
from balloon_daemon.linux.memory import MemoryFile, inspect_memory_file, map_shared

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


@pytest.mark.parametrize("seal", [F_SEAL_WRITE, F_SEAL_FUTURE_WRITE])
def test_memfd_sealed_against_writing_is_refused(memfd: int, seal: int) -> None:
    # It can neither be mapped writable nor freed: every device would die of it.
    fcntl.fcntl(memfd, F_ADD_SEALS, seal)
    with pytest.raises(ValueError, match="sealed against writing"):
        inspect_memory_file(memfd)


def test_file_on_tmpfs_is_guest_memory() -> None:
    # What memory-backend-file with mem-path=/dev/shm gives.
    path = Path(f"/dev/shm/balloond-test-{os.getpid()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    path.unlink()
    os.ftruncate(fd, 8192)
    file = inspect_memory_file(fd)
    os.close(fd)
    assert file == MemoryFile(8192, 4096)


def test_memfd_open_for_reading_only_is_refused(memfd: int) -> None:
    fd = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(ValueError, match="not open for reading and writing"):
        inspect_memory_file(fd)
    os.close(fd)


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


@pytest.mark.parametrize("make", [pipe_end, socket_end, eventfd, directory, device_file])
def test_descriptor_of_no_file_is_refused(make: Callable[[], int]) -> None:
    fd = make()
    with pytest.raises(ValueError, match="is not shared memory"):
        inspect_memory_file(fd)
    os.close(fd)


def test_descriptor_of_no_shared_memory_is_not_asked_for_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of a file of FUSE fstat(2) asks whoever serves it: the VMM, perhaps, who need not answer.
    fd = pipe_end()
    asked: list[int] = []
    monkeypatch.setattr(os, "fstat", asked.append)

    with pytest.raises(ValueError, match="is not shared memory"):
        inspect_memory_file(fd)

    assert asked == []
    monkeypatch.undo()
    os.close(fd)


def test_file_on_a_disk_is_refused() -> None:
    # Of the repository, wherever that lies; where it lies on a tmpfs there is nothing to test.
    fd = os.open(__file__, os.O_RDONLY)
    try:
        if os.fstatvfs(fd).f_bsize and _is_shmem(fd):
            pytest.skip("the repository itself is on a tmpfs")
        with pytest.raises(ValueError, match="not shared memory"):
            inspect_memory_file(fd)
    finally:
        os.close(fd)


def _is_shmem(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, 1034)  # F_GET_SEALS
    except OSError:
        return False
    return True


def test_closed_descriptor_is_the_kernels_refusal() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        inspect_memory_file(1 << 20)


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
