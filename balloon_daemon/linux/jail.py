"""The jail's outer walls, entered by a forked child before it touches a guest's byte.

The only user of python-prctl. What comes last, the seccomp filter, is loaded by the caller.
"""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import prctl

from balloon_daemon.linux.libc import show_as
from balloon_daemon.linux.namespaces import leave_the_world


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a device becomes where the controller runs as root."""

    uid: int
    gid: int


MAX_GROWTH_BYTES = 256 << 20
"""Address space that a device may add to what it has when it is jailed; it needs a few MiB."""


def reset_signals() -> None:
    """Forgets the parent's signal handlers, right after fork.

    A handler must not run in the jail: its return is rt_sigreturn(2), which the policy kills. The
    terminal's and the service manager's signals are for the controller, who ends its devices
    itself, after they have given the memory back: they are ignored here.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    # faulthandler's: it would die of its own forbidden calls, and hide what had happened.
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def close_fds_except(keep: Iterable[int]) -> None:
    """Closes every file descriptor but these (standard error is to be named among them)."""
    previous = -1
    for fd in sorted(keep):
        if fd > previous + 1:
            # CPython makes close_range(2) of it: an empty range at 0 would be all there are.
            os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, 2**31 - 1)


def die_with(parent_pid: int, name: str) -> None:
    """Ends this process with its parent, and gives it a name for ``ps``; for one not jailed."""
    _set_name(name)
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent_pid:
        # It died before its death could be signalled.
        os._exit(0)


def leave_no_core() -> None:
    """Has this process and its children leave no core file, which would hold guest memory.

    A device touches its guest's ring before its jail is closed, and a VMM that cuts the file at
    that moment ends it by SIGBUS while it may still be root's.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def enter(name: str, parent_pid: int, identity: Identity | None) -> None:
    """Gives up everything that needs no filter to be given up.

    In this order: name, limits, an empty world where that is allowed, ids and capabilities,
    parent-death signal (changing ids clears it), not dumpable, no_new_privs.

    Raises:
        OSError, PermissionError: the kernel refuses; nobody may run a guest's bytes then.
    """
    _set_name(name)
    # Reads /proc, which is gone behind the next line.
    _limit_resources()
    leave_the_world()
    # Whoever we are: namespaces of our own that were refused half-way leave us all capabilities
    # there, and a service may have been given some (AmbientCapabilities=).
    _drop_privileges(identity)
    prctl.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent_pid:
        # It died before its death could be signalled.
        os._exit(0)
    prctl.set_dumpable(0)
    prctl.set_no_new_privs(1)


def _set_name(name: str) -> None:
    """For ``top`` (15 bytes of it), and for ``ps -f``."""
    prctl.set_name(name)
    show_as(name)


def _drop_privileges(identity: Identity | None) -> None:
    with contextlib.suppress(PermissionError):
        # Not permitted where root itself was started without CAP_SETPCAP: nothing to drop then.
        prctl.securebits.noroot = True
        prctl.securebits.noroot_locked = True
        prctl.capbset.limit()
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    prctl.cap_effective.limit()
    prctl.cap_permitted.limit()
    prctl.cap_inheritable.limit()


def _limit_resources() -> None:
    """What is open and mapped already stays; whoever takes a device over shall not use up more.

    The seed's policy allows eventfd2, dup, epoll_create1, mmap, write and clone of threads.
    """
    # Not open(): Python's own buffers and decoders would copy 30 pages for one number.
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    mapped_bytes = int(os.read(statm, 100).split()[0]) * resource.getpagesize()
    os.close(statm)
    for kind, most in (
        (resource.RLIMIT_AS, mapped_bytes + MAX_GROWTH_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def write_last_words(text: str) -> None:
    """Writes to standard error with write(2) alone, and never fails."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode(errors="replace"))
