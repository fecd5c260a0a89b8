"""Descriptors whose close(2) takes long, or for ever; and VMMs that send them."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tests.harness.waiting import wait_until

LINGERS_S = 600
"""Longer than any test waits."""

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x00020000, 0x4000, 0x40000  # linux/sched.h, linux/mount.h


@contextlib.contextmanager
def lingering_socket() -> Iterator[socket.socket]:
    """A TCP socket whose last close waits for a peer that never reads (socket(7), SO_LINGER)."""
    ours, theirs = lingering_pair()
    with ours, theirs:
        yield ours


def lingering_pair() -> tuple[socket.socket, socket.socket]:
    """A socket as ``lingering_socket`` and its peer, whose end ends the wait; with the smallest
    buffers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            ours.send(bytes(65536))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGERS_S))
    return ours, theirs


F_OFD_SETLK = 37  # linux/fcntl.h


def lock_many(fd: int, count: int) -> None:
    """Puts so many locks on a file: each close(2) of it looks at all of them (fs/locks.c).

    One lock of everything is split from its end on, so that the kernel finds each place at once.
    With 100,000 locks, 20 MiB of the kernel's, a close took some 10 ms.
    """

    def lock(kind: int, start: int, length: int) -> None:
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, start, length, 0))

    lock(fcntl.F_RDLCK, 0, 0)
    for number in range(count, 0, -1):
        lock(fcntl.F_UNLCK, 2 * number, 1)


class MuteFile:
    """A file of FUSE whose every close and every reading wait for an answer, which comes only
    after ``answer``.

    Raises:
        PermissionError: only root may mount one.
    """

    mute = frozenset({15, 25})
    """What is never answered: FUSE_READ and FUSE_FLUSH."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._flushed = directory.with_suffix(".flushed")
        told, tell = os.pipe()
        self._server = os.fork()
        if self._server == 0:
            _serve(directory, tell, self._flushed, self.mute)
        os.close(tell)
        with open(told, "rb") as answer:
            if answer.read() != b"mounted":
                os.waitpid(self._server, 0)
                raise PermissionError("FUSE cannot be mounted here")
        # By way of its server's root directory: the file is mounted in the server's namespace
        # only.
        self.path = f"/proc/{self._server}/root{directory}/file"
        self.fd = self._open()

    @property
    def is_being_closed(self) -> bool:
        """Whether a process waits in close(2)."""
        return self._flushed.exists()

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR)

    def answer(self) -> None:
        """Ends the server, which makes the kernel end all waits."""
        if self._server:
            os.kill(self._server, signal.SIGKILL)
            os.waitpid(self._server, 0)
            self._server = 0

    def close(self) -> None:
        """Closes it, unless a test has, and ends the server."""
        self.answer()
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # close(2) reports that the server is gone
                os.close(self.fd)


class MuteDirectory(MuteFile):
    """A directory of FUSE: whoever looks up the file in there waits until ``answer``."""

    mute = frozenset({1})
    """FUSE_LOOKUP."""

    def _open(self) -> int:
        return -1


# include/uapi/linux/fuse.h
_IN, _OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_LOOKUP, _GETATTR, _OPEN, _FLUSH, _INIT = 1, 3, 14, 25, 26
_NO_ANSWER = {2, 36, 42}  # FORGET, INTERRUPT and BATCH_FORGET
_ENOSYS = -38
_SIZE = 4096


def _attributes(node: int, mode: int) -> bytes:
    return struct.pack("<QQQQQQIIIIIIIIII", node, _SIZE, *[0] * 7, mode, 1, 0, 0, 0, 4096, 0)


def _answers(operation: int, node: int) -> bytes | None:
    if operation == _INIT:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 65536, 0, 12, 9, 65536, *[0] * 11)[:64]
    if operation == _LOOKUP:
        return struct.pack("<QQQQII", 2, 0, 60, 60, 0, 0) + _attributes(2, 0o100666)
    if operation == _GETATTR:
        mode = 0o100666 if node == 2 else 0o40755
        return struct.pack("<QII", 60, 0, 0) + _attributes(node, mode)
    if operation == _OPEN:
        return struct.pack("<QII", 1, 0, 0)
    return None


def _serve(directory: Path, tell: int, flushed: Path, mute: frozenset[int]) -> NoReturn:
    """Runs the server, in a mount namespace of its own."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        if (
            _libc.unshare(CLONE_NEWNS)
            or _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
            or _libc.mount(b"fuse", os.fsencode(directory), b"fuse", 0, options)
        ):
            os._exit(1)
        os.write(tell, b"mounted")
        os.close(tell)
        while True:
            request = os.read(device, 1 << 20)
            _, operation, unique, node, *_ = _IN.unpack_from(request)
            if operation == _FLUSH:
                flushed.touch()
            if operation in mute | _NO_ANSWER:
                continue
            said = _answers(operation, node)
            error = _ENOSYS if said is None else 0
            os.write(
                device, _OUT.pack(_OUT.size + len(said or b""), error, unique) + (said or b"")
            )
    finally:
        os._exit(0)


# linux/userfaultfd.h
_USERFAULTFD = 323  # arch/x86/entry/syscalls/syscall_64.tbl
_UFFDIO_API, _UFFDIO_REGISTER, _MISSING, _API = 0xC018AA3F, 0xC020AA00, 1, 0xAA


class WatchedFile:
    """A file whose last close waits for a process that watches it by epoll, until ``end``.

    The watcher hangs in epoll_wait(2), which writes to a page that is never provided.

    Args:
        kind: ``eventfd`` or ``pipe``.

    Raises:
        PermissionError: this user may not use userfaultfd (vm.unprivileged_userfaultfd).
    """

    def __init__(self, kind: str) -> None:
        self.fd, *others = os.pipe() if kind == "pipe" else (os.eventfd(0),)
        fault = _libc.syscall(_USERFAULTFD, os.O_CLOEXEC)
        if fault < 0:
            os.close(self.fd)
            raise PermissionError("no page can be kept from coming here (userfaultfd)")
        self._watcher = os.fork()
        if self._watcher == 0:
            self._watch(others)
        for fd in (fault, *others):
            os.close(fd)
        wchan = Path(f"/proc/{self._watcher}/wchan")
        wait_until(lambda: "userfault" in wchan.read_text(), what="its watcher hangs")

    def leave_the_last_close_to_others(self) -> None:
        """Closes it in this process."""
        os.close(self.fd)

    def end(self) -> None:
        """Ends its watcher, and so all waits for it."""
        os.kill(self._watcher, signal.SIGKILL)
        os.waitpid(self._watcher, 0)

    def _watch(self, others: list[int]) -> NoReturn:
        try:
            epoll, ready = select.epoll(), os.eventfd(1)
            for fd in (ready, self.fd):
                epoll.register(fd, select.EPOLLIN)
            for fd in (self.fd, *others):
                os.close(fd)
            _hold(epoll)
        finally:
            os._exit(1)


class HeldEpoll:
    """An epoll instance whose lock a process holds until ``end``.

    Raises:
        PermissionError: as for ``WatchedFile``.
    """

    def __init__(self) -> None:
        fault = _libc.syscall(_USERFAULTFD, os.O_CLOEXEC)
        if fault < 0:
            raise PermissionError("no page can be kept from coming here (userfaultfd)")
        os.close(fault)
        epoll, ready = select.epoll(), os.eventfd(1)
        epoll.register(ready, select.EPOLLIN)
        self._holder = os.fork()
        if self._holder == 0:
            try:
                _hold(epoll)
            finally:
                os._exit(1)
        self.fd = os.dup(epoll.fileno())
        epoll.close()
        os.close(ready)
        wchan = Path(f"/proc/{self._holder}/wchan")
        wait_until(lambda: "userfault" in wchan.read_text(), what="its holder hangs")

    def end(self) -> None:
        """Ends the holder, and so all waits; closes the instance."""
        os.kill(self._holder, signal.SIGKILL)
        os.waitpid(self._holder, 0)
        os.close(self.fd)


def _hold(epoll: select.epoll) -> None:
    """Waits for ever for a page to which epoll_wait(2) writes."""
    # In this process, because the process that is to wait must own the page.
    fault = _libc.syscall(_USERFAULTFD, os.O_CLOEXEC)
    fcntl.ioctl(fault, _UFFDIO_API, struct.pack("QQQ", _API, 0, 0))
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    addr = ctypes.addressof(ctypes.c_char.from_buffer(page))
    where = struct.pack("QQQQ", addr, mmap.PAGESIZE, _MISSING, 0)
    fcntl.ioctl(fault, _UFFDIO_REGISTER, where)
    _libc.epoll_wait(epoll.fileno(), ctypes.c_void_p(addr), 8, -1)
