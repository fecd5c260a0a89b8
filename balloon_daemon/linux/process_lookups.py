"""Looks up by name, in /proc/PID, what the kernel says of another process.

Runs in a child of the controller's (``guests/driven/lookups.py``), or in a process that serves no
VMs; never in the controller. A name that the kernel has not cached is looked up under the lock of
its directory, and whoever may list the directory, for /proc and /proc/PID anybody, can keep others
waiting for that lock, for ever. What the controller reads again and again it is sent as open files
(``opened``).

A process that is gone or not readable has no figures, which is no error: VMs end at any time, and
the files of another user's process may be closed to us (``file_access.py``).
"""

import contextlib
import os
import re
from itertools import islice

from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_access import Identity, as_user, lacks_rights
from balloon_daemon.linux.libc import blocks_of
from balloon_daemon.linux.process_figures import ProcessFiles
from balloon_daemon.named_tuple import NamedTuple

MOST_FILES = 4096
"""Descriptors of a process that are looked at, which takes some 10 µs each: a VMM may have half a
million. QEMU has a thousand with dozens of virtual CPUs and queues."""

_MOST_BYTES = 4096
_MOST_STATUS_BYTES = 1 << 20
"""A status with all of a process's 65,536 groups has 0.7 MiB."""

_MOST_WORDS_BYTES = 1 << 16
_HUGE = re.compile(rb"^HugetlbPages:\s+([0-9]{1,15}) kB$", re.MULTILINE)
_UID = re.compile(rb"^Uid:\s+([0-9]{1,10})", re.MULTILINE)
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Listed(NamedTuple):
    """A descriptor of a process.

    Attributes:
        path: its path in /proc/PID/fd.
        link: the text of that link.
    """

    path: str
    link: str


def owner_of(pid: int) -> int:
    """The effective user of a process; -1: there is no process of this number.

    stat(2) of /proc/PID tells it, whether the process is dumpable or not (fs/proc/base.c,
    task_dump_owner).
    """
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def real_user_of(pid: int) -> int:
    """The real user of a process: who has started the program, where the program has the
    set-user-ID bit. -1: there is no such process, or its status may not be read."""
    match = _UID.search(_read(pid, "status", _MOST_STATUS_BYTES))
    return int(match[1]) if match else -1


def start_time_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None: it is gone, or may not be read.

    Process id and start time together name one process for good. The process id alone may later be
    another process's.
    """
    # The second field, the program's name in parentheses, may have blanks and parentheses.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None


def huge_page_bytes_of(pid: int) -> int | None:
    """How much memory a process has in pages of hugetlbfs, which its resident set leaves out;
    None: unknown."""
    match = _HUGE.search(_read(pid, "status", _MOST_STATUS_BYTES))
    return int(match[1]) * 1024 if match else None


def words_of(pid: int) -> list[bytes]:
    """The words of a process's command line, the first 64 KiB of it."""
    return _read(pid, "cmdline", _MOST_WORDS_BYTES).split(b"\0")


def files_of(pid: int) -> list[Listed]:
    """A process's open files: the lowest ``MOST_FILES`` numbers only; none where they may not be
    read."""
    found = []
    with contextlib.suppress(OSError), as_user_of(pid), os.scandir(f"/proc/{pid}/fd") as entries:
        # The kernel lists some 1,000 entries at a time, so stopping early costs less.
        for entry in islice(entries, MOST_FILES):
            with contextlib.suppress(OSError):  # Closed meanwhile.
                found.append(Listed(entry.path, os.readlink(entry.path)))
    return found


def blocks_in(pid: int, path: str) -> int | None:
    """How many blocks of 512 bytes a file occupies that a process has open.

    Args:
        pid: the process.
        path: the file's path in /proc/PID/fd.

    Returns:
        The number; None: there is no such file, or it may not be looked at.
    """
    # Do not open the file, not even with O_PATH. Closing it would take long if the VMM has put
    # many locks on it, or if the VMM ends meanwhile: the last close frees all of the memory.
    with as_user_of(pid):
        return blocks_of(path)


def opened(pid: int, user: int) -> ProcessFiles | None:
    """Opens the files in /proc/PID that are read again and again.

    Args:
        pid: the process.
        user: the user to whose allowance the time of reading the files counts.

    Returns:
        The files; None: the process is gone, or may not be looked at.
    """
    # The start time first: the files that are opened then are of this process or of a later one.
    started, identity = start_time_of(pid), identity_of(pid)
    if started is None:
        return None
    try:
        statm = OwnedFd(os.open(f"/proc/{pid}/statm", _FLAGS))
    except OSError:
        return None
    try:
        with as_user(identity):
            io = OwnedFd(os.open(f"/proc/{pid}/io", _FLAGS))
    except OSError:
        io = None
    if start_time_of(pid) != started:
        return None
    return ProcessFiles(pid, user, started, identity, statm, io)


def identity_of(pid: int) -> Identity | None:
    """The user and group for whom a process's files in /proc have to be opened; None: this
    process's own."""
    if not lacks_rights():
        return None
    try:
        # Ask for ``fd``, not for the process's directory: that belongs to the process's user, but
        # the files in it belong to root if the process is not dumpable.
        found = os.stat(f"/proc/{pid}/fd")
    except OSError:
        return None
    user = found.st_uid, found.st_gid
    return None if user == (os.geteuid(), os.getegid()) else user


def as_user_of(pid: int) -> contextlib.AbstractContextManager[None]:
    """Opens files for a process's user during the block, where that is needed and possible.

    Args:
        pid: the process; if there is no such process, files are opened for this process's user.
    """
    return as_user(identity_of(pid))


def _read(pid: int, name: str, most_bytes: int = _MOST_BYTES) -> bytes:
    """The content of a file in /proc/PID; empty where there is none or it cannot be read."""
    try:
        # O_NONBLOCK: open(2) of a file that its owner has a lease on fails, instead of waiting.
        with open(os.open(f"/proc/{pid}/{name}", _FLAGS), "rb") as file:
            return file.read(most_bytes)
    except OSError:
        return b""
