"""Reads another process's figures: how much it has read, and how much memory it occupies.

The bytes that a VMM has read are those that its guest reads from its disks. A process that is gone
or not readable has no figures, which is no error: VMs end at any time, and the files of another
user's process may be closed to us (``file_access.py``).
"""

import contextlib
import os
import re
from itertools import islice

from balloon_daemon.linux.figures import Content, FigureFile, content_of, read_once
from balloon_daemon.linux.file_access import as_user_of, identity_of
from balloon_daemon.linux.reading_child import APART

MOST_FILES = 4096
"""Descriptors of a process that are looked at, which takes some 10 µs each: a VMM may have half a
million. QEMU has a thousand with dozens of virtual CPUs and queues."""

_MOST_BYTES = 4096
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_FIELD = re.compile(rb"^(rchar|read_bytes): ([0-9]{1,20})$", re.MULTILINE)
_HUGE = re.compile(rb"^HugetlbPages:\s+([0-9]{1,15}) kB$", re.MULTILINE)
_UID = re.compile(rb"^Uid:\s+([0-9]{1,10})", re.MULTILINE)
_STATM = re.compile(rb"[0-9]{1,20} ([0-9]{1,15}) ")


class ProcessFigures:
    """A process's figures that are read again and again; their files stay open from the first
    reading on, for as long as the process lives.

    Args:
        pid: the process id. SO_PEERCRED gives 0 for a process outside this PID namespace: its
            figures are unknown.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._apart: Content | None = None
        self._io = FigureFile(f"/proc/{pid}/io")
        self._statm = FigureFile(f"/proc/{pid}/statm")

    def read_bytes(self) -> int | None:
        """How many bytes the process has read since it began; None: unknown.

        ``rchar`` counts the bytes that read(2) and its kin have copied, also from the page cache.
        It leaves out native AIO (QEMU's ``aio=native``). ``read_bytes`` counts the bytes that were
        fetched from storage for the process, also by native AIO. The greater of the two is what a
        VMM has read for its guest either way. It may be too much: ``rchar`` also counts packets
        that a VMM reads from a network tap itself (without vhost-net).
        """
        try:
            content = self._read_io()
        except OSError:
            return None
        found = {name: int(digits) for name, digits in _FIELD.findall(content)}
        return max(found.values(), default=None)

    def may_tell_reads(self) -> bool:
        """Whether ``read_bytes`` can be known now or later, because its file can be opened. The
        file is not read here: that would take a child process for each VM that comes."""
        try:
            with as_user_of(self._pid):
                self._io.read(0, lambda fd, most_bytes: b"")
        except OSError:
            return False
        return True

    def resident_bytes(self) -> int | None:
        """How much of the host's memory the process occupies, shared memory included; None:
        unknown.

        The kernel makes /proc/PID/statm from counters. For smaps_rollup it would walk all page
        tables of the VMM, and hold the lock of its address space meanwhile.
        """
        try:
            match = _STATM.match(self._statm.read(_MOST_BYTES))
        except OSError:
            return None
        # 0: the process is ending, and has no memory any more.
        return (int(match[1]) * _PAGE_BYTES or None) if match else None

    def close(self) -> None:
        """Closes its files; the next reading opens them again."""
        self._io.close()
        self._statm.close()

    def _read_io(self) -> bytes:
        if self._apart is None:
            self._apart = apart(self._pid)
        with as_user_of(self._pid):
            return self._io.read(_MOST_BYTES, self._apart)


def huge_page_bytes_of(pid: int) -> int | None:
    """How much memory a process has in pages of hugetlbfs, which its resident set leaves out;
    None: unknown."""
    match = _HUGE.search(_read(pid, "status", apart(pid)))
    return int(match[1]) * 1024 if match else None


def start_time_of(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None: it is gone, or may not be read.

    Process id and start time together name one process for good. The process id alone may later be
    another process's.

    Raises:
        OSError: the start time cannot be read now. None would be wrong then: the caller would take
            this process for another one.
    """
    try:
        # The second field, the program's name in parentheses, may have blanks and parentheses.
        stat = read_once(f"/proc/{pid}/stat", _MOST_BYTES, apart(pid))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = stat.rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None


def files_of(pid: int) -> list[tuple[str, str]]:
    """A process's open files: for each its path in /proc/PID/fd, and the text of that link.

    The lowest ``MOST_FILES`` numbers only; none where they may not be read. Not for a process that
    serves VMs: the process's user can keep a lookup in its directories waiting, and put so many
    locks on them that closing them takes long.
    """
    found = []
    with contextlib.suppress(OSError), as_user_of(pid), os.scandir(f"/proc/{pid}/fd") as entries:
        # The kernel lists some 1,000 entries at a time, so stopping early costs less.
        for entry in islice(entries, MOST_FILES):
            with contextlib.suppress(OSError):  # Closed meanwhile.
                found.append((entry.path, os.readlink(entry.path)))
    return found


def apart(pid: int) -> Content:
    """Reads files of a process whose reading may wait for that process (``reading_child.py``)."""
    user = user_of(pid)

    def content(fd: int, most_bytes: int) -> bytes:
        # The kernel checks the reader's rights at each read(2), not only at open(2).
        return APART.read(fd, most_bytes, pid, user, identity_of(pid))

    return content


def user_of(pid: int) -> int:
    """The user who is charged for the time that reading a process's files takes; -1: the process
    is gone.

    This is the effective user, which stat(2) of /proc/PID tells without waiting, whether the
    process is dumpable or not (fs/proc/base.c, task_dump_owner). But a program with the
    set-user-ID bit has root as its effective user, so where that is root the real user is charged,
    who has started the program. The real user is read from /proc/PID/status, in this process: of a
    process of root's the kernel makes that file quickly. Its line of groups is long only in a user
    namespace in which setgroups(2) was called, and root is not mapped there.
    """
    user = owner_of(pid)
    if user != 0:
        return user
    match = _UID.search(_read(pid, "status"))
    return int(match[1]) if match else -1


def owner_of(pid: int) -> int:
    """The effective user of a process; -1: there is no process of this number."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _read(pid: int, name: str, content: Content = content_of) -> bytes:
    """The content of a file in /proc/PID; empty where there is none or it cannot be read."""
    try:
        return read_once(f"/proc/{pid}/{name}", _MOST_BYTES, content)
    except OSError:
        return b""
