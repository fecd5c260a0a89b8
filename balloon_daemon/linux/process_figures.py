"""Reads another process's figures: how much it has read, and how much memory it occupies.

Runs in the controller, which looks up no name in /proc/PID: a child opens the files and passes
them (``process_lookups.py``), and reading them by their descriptors looks nothing up. The kernel
makes the text anew for each pread(2) at offset 0. Once the process has ended, each reading fails
with ESRCH, also if another process has its number by then: the descriptor names the process
itself. Closing such a descriptor waits for nobody, as procfs has no server and no ``flush``; it
only looks at the locks that somebody may have put on the file (``figures.lockable``).
"""

import os
import re
from dataclasses import dataclass

from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_access import Identity
from balloon_daemon.linux.reading_child import APART

_MOST_BYTES = 4096
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_FIELD = re.compile(rb"^(rchar|read_bytes): ([0-9]{1,20})$", re.MULTILINE)
_STATM = re.compile(rb"[0-9]{1,20} ([0-9]{1,15}) ")


@dataclass(frozen=True, slots=True)
class ProcessFiles:
    """A process, with the files in /proc/PID that are read again and again.

    Attributes:
        pid: the process id.
        user: the user to whose allowance the time of reading counts: the effective user, or where
            that is root the real one, who has started the program. -1: unknown.
        started: when the process started, in clock ticks since boot.
        identity: the user and group as whom io is read; None: this process's own.
        statm: its file statm.
        io: its file io; None: it may not be opened.
    """

    pid: int
    user: int
    started: int
    identity: Identity | None
    statm: OwnedFd
    io: OwnedFd | None


class ProcessFigures:
    """A process's figures that are read again and again.

    Args:
        files: the process's files; None: its figures are unknown.

    Attributes:
        has_failed: whether a reading has failed for another reason than being late.
    """

    def __init__(self, files: ProcessFiles | None) -> None:
        self._files = files
        self.has_failed = False

    @property
    def may_tell_reads(self) -> bool:
        """Whether ``read_bytes`` can be known now or later, because its file could be opened."""
        return self._files is not None and self._files.io is not None

    def read_bytes(self) -> int | None:
        """How many bytes the process has read since it began; None: unknown.

        ``rchar`` counts the bytes that read(2) and its kin have copied, also from the page cache.
        It leaves out native AIO (QEMU's ``aio=native``). ``read_bytes`` counts the bytes that were
        fetched from storage for the process, also by native AIO. The greater of the two is what a
        VMM has read for its guest either way. It may be too much: ``rchar`` also counts packets
        that a VMM reads from a network tap itself (without vhost-net).
        """
        files = self._files
        if files is None or files.io is None:
            return None
        try:
            # Read as ``identity``: the kernel checks the reader's rights at each read(2), too.
            fd, identity = files.io.fileno(), files.identity
            content = APART.read(fd, _MOST_BYTES, files.pid, files.user, identity)
        except TimeoutError:
            return None
        except OSError:
            self.has_failed = True
            return None
        found = {name: int(digits) for name, digits in _FIELD.findall(content)}
        return max(found.values(), default=None)

    def resident_bytes(self) -> int | None:
        """How much of the host's memory the process occupies, shared memory included; None:
        unknown.

        The kernel makes /proc/PID/statm from counters. For smaps_rollup it would walk all page
        tables of the VMM, and hold the lock of its address space meanwhile.
        """
        if self._files is None:
            return None
        try:
            match = _STATM.match(os.pread(self._files.statm.fileno(), _MOST_BYTES, 0))
        except OSError:
            self.has_failed = True
            return None
        # 0: the process is ending, and has no memory any more.
        return (int(match[1]) * _PAGE_BYTES or None) if match else None

    def close(self) -> None:
        """Closes the files: the figures are unknown from now on."""
        files, self._files = self._files, None
        if files is not None:
            files.statm.close()
            if files.io is not None:
                files.io.close()
