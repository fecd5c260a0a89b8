"""Reads another user's files as that user, where root lacks some of root's capabilities.

Runs in children of the controller's, which look names up and read files, and in processes that
serve no VMs. The shipped unit leaves balloond root without CAP_DAC_READ_SEARCH and
CAP_SYS_PTRACE. The files in /proc/PID that say what a process has open and has read (fd, io) may
then be read by that process's user alone: of others the kernel demands the first capability at
open(2), and the second at each reading, in ptrace_may_access(). Each of the two amounts to all
rights on the host: with CAP_SYS_PTRACE, for example, root may write to /proc/1/mem.

So balloond becomes that user for the moment of the reading, which takes CAP_SETUID and CAP_SETGID
alone: setfsuid(2) changes as whom the kernel opens files in this thread, and nothing else. A
process that has capabilities, that is not dumpable or that is in a user namespace of its own stays
closed all the same (kernel/ptrace.c, security/commoncap.c).
"""

import contextlib
import functools
import os
from collections.abc import Iterator

from balloon_daemon.linux import capabilities
from balloon_daemon.linux.libc import LIBC

_ALL = capabilities.DAC_READ_SEARCH | capabilities.SYS_PTRACE

Identity = tuple[int, int]
"""A user and a group."""


@contextlib.contextmanager
def as_user(identity: Identity | None) -> Iterator[None]:
    """Has the kernel open files as this user during the block; None: as this process's own user.

    Keep the block short: all that this thread opens is opened as that user. Linux makes a process
    that has done this not dumpable (prctl(2)), and clears its parent-death signal at the beginning
    of the block and at its end.
    """
    if identity is None:
        yield
        return
    uid, gid = identity
    try:
        # setfsuid(2) drops the capabilities for files and restores them with the user; CAP_SETGID,
        # which ``as_oneself`` needs, stays.
        LIBC.setfsgid(gid)
        LIBC.setfsuid(uid)
        yield
    finally:
        as_oneself()


def as_oneself() -> None:
    """Has the kernel open files as this process's own user from now on (setfsuid(2))."""
    LIBC.setfsuid(os.geteuid())
    LIBC.setfsgid(os.getegid())


@functools.cache
def lacks_rights() -> bool:
    """Whether this process is root, but without the capabilities to read every process's files."""
    if os.geteuid() != 0:
        return False
    effective = capabilities.effective()
    return effective is not None and effective & _ALL != _ALL
