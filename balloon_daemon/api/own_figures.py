"""This process's own figures, as process exporters of Prometheus have them.

Runs in the controller. Its files in /proc stay open from the start on. To open one anew, the
kernel might have to look its name up in /proc/PID (where no dentry is cached), for which it takes
that directory's lock (inode->i_rwsem). getdents64(2) holds the same lock, and anybody may list
/proc/PID, and so keep the lookup waiting for ever.
"""

import os
import resource
import time
from functools import cache

from balloon_daemon.status import OwnFigures

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


_MOST_BYTES = 4096


def keep_own_figures() -> None:
    """Opens what ``own_figures`` reads, so that no later call of it waits for a lookup."""
    own_figures()


def own_figures() -> OwnFigures:
    """The figures at this moment."""
    virtual_bytes, resident_bytes = _sizes()
    most_fds, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OwnFigures(
        resident_bytes, virtual_bytes, time.process_time(), _started_s(), _open_fds(), most_fds
    )


def _sizes() -> tuple[int, int] | tuple[None, None]:
    try:
        virtual, resident = _content("statm").split()[:2]
    except OSError:
        return None, None
    return int(virtual) * _PAGE_BYTES, int(resident) * _PAGE_BYTES


@cache
def _started_s() -> float | None:
    """Computed once: the wall clock is corrected while this process runs, so a second computation
    would give another start."""
    try:
        # proc_pid_stat(5): the process's name, in parentheses, may have spaces; field 22 is the
        # 20th behind it.
        ticks = int(_content("stat").rpartition(b")")[2].split()[19])
    except OSError:
        return None
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS_A_SECOND


def _open_fds() -> int | None:
    try:
        # Since Linux 6.2 the directory's size is the number of descriptors; a list of thousands
        # of them would take milliseconds.
        return os.fstat(_kept("fd", os.O_PATH | os.O_DIRECTORY)).st_size or None
    except OSError:
        return None


def _content(name: str) -> bytes:
    return os.pread(_kept(name, os.O_RDONLY), _MOST_BYTES, 0)


def _kept(name: str, flags: int) -> int:
    """The descriptor of a file in /proc/PID, which stays open until this process ends.

    Raises:
        OSError: it could not be opened at the first call.
    """
    fd = _opened(name, flags)
    if fd < 0:
        raise FileNotFoundError(name)
    return fd


@cache
def _opened(name: str, flags: int) -> int:
    try:
        return os.open(f"/proc/self/{name}", flags | os.O_CLOEXEC)
    except OSError:
        return -1
