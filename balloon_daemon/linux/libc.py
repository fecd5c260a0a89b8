"""glibc through ctypes: one handle for all callers, and calls that no Python module offers."""

import ctypes
import os
import posix
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from typing import NoReturn

from balloon_daemon.named_tuple import NamedTuple

LIBC = ctypes.CDLL(None, use_errno=True)
"""The C library of this process; its calls release the interpreter's lock."""
LIBC.syscall.restype = ctypes.c_long


def oserror(call: str = "") -> OSError:
    """The error of the latest call through ctypes, as an OSError.

    Args:
        call: the call's name, for the message; empty: the message is the kernel's alone.
    """
    number = ctypes.get_errno()
    why = os.strerror(number)
    return OSError(number, f"{call}: {why}" if call else why)


# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

LIBC.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
LIBC.mallopt.restype = ctypes.c_int

_curbrk = ctypes.c_size_t.in_dll(LIBC, "__curbrk")


def keep_heap_off_brk() -> None:
    """Makes malloc grow by mmap(2) alone, for good: neither by brk(2) nor by mremap(2).

    Without this, a process under a seccomp policy that lacks ``brk`` is killed when the
    interpreter's heap first grows. Without trimming and without single mapped blocks, malloc stays
    in its main arena; with the program break set to the end of the address space, ``sbrk`` fails
    in user space and the arena continues in mapped memory.

    Raises:
        OSError: this libc is not glibc, and refuses.
    """
    for option, value in ((_M_TRIM_THRESHOLD, 0x7FFFFFFF), (_M_MMAP_MAX, 0)):
        if not LIBC.mallopt(option, value):
            raise OSError(f"mallopt({option}, {value}) was refused")
    _curbrk.value = 2**64 - 1


LIBC.malloc_trim.argtypes = [ctypes.c_size_t]


def return_freed_memory() -> None:
    """Gives the kernel the pages of this process's heap that hold nothing any more."""
    LIBC.malloc_trim(0)


_ARG_START, _ARG_END = 45, 46
_ENV_START, _ENV_END = 47, 48
"""Indexes of fields in /proc/PID/stat (proc(5)), counted from the first behind the name."""


def show_as(name: str) -> None:
    """Makes ``ps`` show a name instead of the command line that a forked process inherits.

    Does nothing where the kernel does not tell the address of the command line.
    """
    if _command_line is not None:
        room = len(_command_line)
        # End the command line's area in a byte other than NUL. The kernel then shows ps only the
        # text up to the first NUL, instead of the whole area (fs/proc/base.c).
        _command_line.raw = name.encode()[: room - 2].ljust(room - 1, b"\0") + b"."


def _find_area(first: int, last: int) -> "ctypes.Array[ctypes.c_char] | None":
    try:
        stat = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
        fields = os.read(stat, 4096).rpartition(b")")[2].split()
        os.close(stat)
        start, end = int(fields[first]), int(fields[last])
    except (OSError, ValueError, IndexError):
        return None
    return (ctypes.c_char * (end - start)).from_address(start) if end - start > 2 else None


# The command line's area is looked up at import, before any device is forked: a jailed process
# cannot read /proc.
_command_line = _find_area(_ARG_START, _ARG_END)

_environ = ctypes.POINTER(ctypes.c_void_p).in_dll(LIBC, "environ")
LIBC.strlen.argtypes = [ctypes.c_void_p]
LIBC.strlen.restype = ctypes.c_size_t


def forget_environment() -> None:
    """Empties and overwrites this process's environment, which may hold a password.

    It overwrites Python's copy, the C library's strings, and the area that /proc/PID/environ
    shows.
    """
    contents = [content for pair in posix.environ.items() for content in pair]
    posix.environ.clear()
    for content in contents:
        # Skip objects of one byte: CPython has one shared object for each byte value, and
        # overwriting it would change that value everywhere in this process.
        if isinstance(content, bytes) and len(content) > 1:
            ctypes.memset(id(content) + bytes.__basicsize__ - 1, 0, len(content))
    at = 0
    while _environ and (string := _environ[at]):
        ctypes.memset(string, 0, LIBC.strlen(string))
        at += 1
    LIBC.clearenv()
    if (area := _find_area(_ENV_START, _ENV_END)) is not None:
        ctypes.memset(area, 0, len(area))


# clone(2)'s number is from arch/x86/entry/syscalls/syscall_64.tbl, its flags are from
# linux/sched.h. clone(2) is called by number, because glibc's clone() requires a new stack.
_SYS_CLONE = 56
_CLONE_FILES = 0x400
_CLONE_PARENT = 0x8000

# PyDLL, unlike CDLL, keeps the interpreter's lock (GIL) during the call. With CDLL, the forked
# child would have to take the lock again, and might never get it.
_python_libc = ctypes.PyDLL(None, use_errno=True)
_python_libc.syscall.restype = ctypes.c_long
_CLONE_SIBLING = tuple(map(ctypes.c_ulong, (_SYS_CLONE, _CLONE_PARENT, 0, 0, 0, 0)))
_CLONE_SHARING_FDS = tuple(
    map(ctypes.c_ulong, (_SYS_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
)


def clone_sibling() -> int:
    """Forks a child of this process's own parent (clone(2), CLONE_PARENT).

    Only for a process with one thread and no fork hooks: it skips Python's own preparations for a
    fork, which would write to, and so copy, some 40 pages of the child's.

    Returns:
        0 in the child; in this process the child's process id.

    Raises:
        OSError: the kernel allows no further process.
    """
    return _clone(_CLONE_SIBLING)


def fork_sharing_fds(child: Callable[[], NoReturn]) -> int:
    """Forks a child that shares this process's descriptor table (clone(2), CLONE_FILES).

    A descriptor that either process opens or closes is open or closed in both. Memory is copied as
    by any fork. Only for a process with one thread and no fork hooks, as ``clone_sibling``.

    Args:
        child: runs in the child, with all signals blocked: a signal handler in the child would
            write to the pipe of the parent's event loop, as both have the same descriptors.

    Returns:
        The child's process id.

    Raises:
        OSError: the kernel allows no further process.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = _clone(_CLONE_SHARING_FDS)
        if pid == 0:
            try:
                child()
            finally:
                os._exit(1)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _clone(arguments: Sequence[ctypes.c_ulong]) -> int:
    pid = int(_python_libc.syscall(*arguments))
    if pid < 0:
        raise oserror()
    return pid


def socket_domain(fd: int) -> int | None:
    """A socket's family (socket(7), SO_DOMAIN); None where the descriptor is no socket.

    Python's socket objects call getsockname(2) first, which waits for the socket's lock: a sender
    may hold that lock for ever.
    """
    domain = ctypes.c_int()
    size = ctypes.c_uint(ctypes.sizeof(domain))
    refused = LIBC.getsockopt(
        fd, socket.SOL_SOCKET, socket.SO_DOMAIN, ctypes.byref(domain), ctypes.byref(size)
    )
    return None if refused else domain.value


# linux/kcmp.h
_SYS_KCMP = 312
_KCMP_FILE = 0


def same_open_file(one: int, other: int) -> bool:
    """Whether two descriptors refer to the same open file (kcmp(2)); False where kcmp is not
    allowed."""
    pid = os.getpid()
    return bool(LIBC.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, one, other) == 0)


# arch/x86/entry/syscalls/syscall_64.tbl, linux/fcntl.h, linux/stat.h
_SYS_STATX = 332
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 0x1000, 0x4000
_STATX_INO, _STATX_SIZE, _STATX_BLOCKS, _STATX_MNT_ID = 0x100, 0x200, 0x400, 0x1000
_STATX = struct.Struct("I28xQQQ88xQ104x")  # stx_mask, _ino, _size, _blocks and _mnt_id


class _Statx(NamedTuple):
    """What statx(2) says of a file; ``said`` is the mask of what is known."""

    said: int = 0
    inode: int = 0
    size_bytes: int = 0
    blocks: int = 0
    mount: int = 0


def mount_of(fd: int) -> int | None:
    """The number of the mount that an open file lies on, as in /proc/self/mountinfo (proc(5)).

    The kernel keeps this number with the open file, and statx(2) returns it whatever fields are
    asked for. With an empty mask and AT_STATX_DONT_SYNC, statx(2) waits for no file system's
    server.

    Returns:
        The number; None where the kernel does not say it, as before Linux 5.8.
    """
    found = _statx(fd, 0)
    return found.mount if found.said & _STATX_MNT_ID else None


def blocks_of(path: str) -> int | None:
    """How many blocks of 512 bytes a file occupies; waits for no file system's server.

    Args:
        path: the file, by a link of the kernel's (``/proc/PID/fd/N``).

    Returns:
        The number; None where there is no such file, or the kernel does not say it.
    """
    found = _statx(-1, _STATX_BLOCKS, os.fsencode(path))
    return found.blocks if found.said & _STATX_BLOCKS else None


def inode_of(path: str) -> int | None:
    """A file's inode number; the argument and None mean the same as for ``blocks_of``."""
    found = _statx(-1, _STATX_INO, os.fsencode(path))
    return found.inode if found.said & _STATX_INO else None


def size_of(path: str) -> int | None:
    """A file's length in bytes; the argument and None mean the same as for ``blocks_of``."""
    found = _statx(-1, _STATX_SIZE, os.fsencode(path))
    return found.size_bytes if found.said & _STATX_SIZE else None


def _statx(fd: int, wanted: int, path: bytes = b"") -> _Statx:
    """Asks for these figures of a file, which is an open one, or is at an absolute path."""
    answer = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if LIBC.syscall(_SYS_STATX, fd, path, flags, wanted, answer):
        return _Statx()
    return _Statx(*_STATX.unpack(answer.raw))
