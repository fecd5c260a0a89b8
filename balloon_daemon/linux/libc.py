"""glibc through ctypes: the handle that all use, and calls that no module of Python's has."""

import ctypes
import fcntl
import os
import posix
import signal
import socket
from collections.abc import Sequence

from balloon_daemon.linux.memory import F_GET_SEALS

LIBC = ctypes.CDLL(None, use_errno=True)
"""The C library of this process; its calls release the interpreter's lock."""
LIBC.syscall.restype = ctypes.c_long


def oserror(call: str = "") -> OSError:
    """What the latest call through ctypes was refused with.

    Args:
        call: its name, for the message; empty where the message is the kernel's alone.
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
    """Makes malloc grow by mmap(2) alone, for good: neither brk(2) nor mremap(2) any more.

    A process under a seccomp policy without ``brk`` dies at the interpreter's first growth
    otherwise. Never trimming and never mapping single blocks keeps malloc in its main arena;
    with the program break set to the end of the address space, ``sbrk`` fails in user space and
    the arena goes on in mapped memory.

    Raises:
        OSError: this libc refuses; it is not glibc.
    """
    for option, value in ((_M_TRIM_THRESHOLD, 0x7FFFFFFF), (_M_MMAP_MAX, 0)):
        if not LIBC.mallopt(option, value):
            raise OSError(f"mallopt({option}, {value}) was refused")
    _curbrk.value = 2**64 - 1


_ARG_START, _ARG_END = 45, 46
_ENV_START, _ENV_END = 47, 48
"""Fields behind the name in /proc/PID/stat (proc(5))."""


def show_as(name: str) -> None:
    """Has ``ps`` show a name instead of the command line, which a forked process inherits.

    Where the kernel does not tell where that is, it stays.
    """
    if _command_line is not None:
        room = len(_command_line)
        # What ends in another byte than NUL is read up to the first NUL (fs/proc/base.c).
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


# Looked up once, for all that are forked: a jailed process cannot read /proc.
_command_line = _find_area(_ARG_START, _ARG_END)

_environ = ctypes.POINTER(ctypes.c_void_p).in_dll(LIBC, "environ")
LIBC.strlen.argtypes = [ctypes.c_void_p]
LIBC.strlen.restype = ctypes.c_size_t


def forget_environment() -> None:
    """Empties and overwrites this process's environment: a password may have been put there.

    That is: Python's copy, the C library's strings, and the area that /proc/PID/environ shows.
    """
    contents = [content for pair in posix.environ.items() for content in pair]
    posix.environ.clear()
    for content in contents:
        # CPython keeps one object for each byte, which is everybody's.
        if isinstance(content, bytes) and len(content) > 1:
            ctypes.memset(id(content) + bytes.__basicsize__ - 1, 0, len(content))
    at = 0
    while _environ and (string := _environ[at]):
        ctypes.memset(string, 0, LIBC.strlen(string))
        at += 1
    LIBC.clearenv()
    if (area := _find_area(_ENV_START, _ENV_END)) is not None:
        ctypes.memset(area, 0, len(area))


# arch/x86/entry/syscalls/syscall_64.tbl; glibc has no wrapper of this kind. linux/sched.h
_SYS_CLONE = 56
_CLONE_FILES = 0x400
_CLONE_PARENT = 0x8000

# Holds the interpreter's lock over the call: a child that had to take it first might never get it.
_python_libc = ctypes.PyDLL(None, use_errno=True)
_python_libc.syscall.restype = ctypes.c_long
_CLONE_SIBLING = tuple(map(ctypes.c_ulong, (_SYS_CLONE, _CLONE_PARENT, 0, 0, 0, 0)))
_CLONE_SHARING_FDS = tuple(
    map(ctypes.c_ulong, (_SYS_CLONE, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
)


def clone_sibling() -> int:
    """Forks a child of this process's own parent (clone(2), CLONE_PARENT).

    For a process with one thread and nothing registered to run at a fork: none of Python's own
    preparations are made, which would write to, and so copy, some 40 pages of the child's.

    Returns:
        0 in the child, its process id here.

    Raises:
        OSError: no process to be had.
    """
    return _clone(_CLONE_SIBLING)


def clone_sharing_fds() -> int:
    """Forks a child that shares this process's table of descriptors (clone(2), CLONE_FILES).

    What one of them opens or closes, the other has open or closed. Of memory it has a copy, as
    after any fork. For a process with one thread, as above.

    Returns:
        0 in the child, its process id here.

    Raises:
        OSError: no process to be had.
    """
    return _clone(_CLONE_SHARING_FDS)


def _clone(arguments: Sequence[ctypes.c_ulong]) -> int:
    pid = int(_python_libc.syscall(*arguments))
    if pid < 0:
        raise oserror()
    return pid


def socket_domain(fd: int) -> int | None:
    """A socket's family (socket(7), SO_DOMAIN); None for what is no socket.

    Python's socket objects ask for the name first, which waits for whoever holds the socket's
    lock: a sender may hold it for ever.
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
    """Tells whether two descriptors are of the same open file (kcmp(2)).

    Two of the same memory file count too. Where kcmp is not allowed, nothing else does.
    """
    pid = os.getpid()
    if LIBC.syscall(_SYS_KCMP, pid, pid, _KCMP_FILE, one, other) == 0:
        return True
    try:
        # Memory files alone answer this (linux/memory.py). Others must not even be asked what they
        # are: a file of FUSE answers when whoever serves it likes.
        for fd in (one, other):
            fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return False
    return os.path.sameopenfile(one, other)
