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
from balloon_daemon.linux.namespaces import enter_empty_namespaces


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a device becomes where the controller runs as root."""

    uid: int
    gid: int


OOM_SCORE_FILE = "/proc/self/oom_score_adj"

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


def limit_first() -> None:
    """Gives up, for good, what nothing needs that maps a guest's memory: to be called before.

    A VMM that cuts its file while its device reads the ring ends that device by SIGBUS, perhaps
    still as root: not dumpable, it leaves no core with guest memory, not even to a program that
    collects them (core(5): those do not heed RLIMIT_CORE).
    """
    _be_killed_like_others()
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(kind, (0, 0))
    prctl.set_dumpable(0)


def _be_killed_like_others() -> None:
    """Takes no part in a service's OOMScoreAdjust= below 0, which is for the controller.

    A device that was taken over may refill its guest's memory, and the kernel would look for
    another process to kill. Raising the score is always allowed, also again (proc(5)).
    """
    with contextlib.suppress(OSError):  # A host that hides it: the score stays as it is.
        score = os.open(OOM_SCORE_FILE, os.O_RDONLY | os.O_CLOEXEC)
        negative = int(os.read(score, 16)) < 0
        os.close(score)
        if negative:
            score = os.open(OOM_SCORE_FILE, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            os.write(score, b"0")
            os.close(score)


def enter(name: str, parent_pid: int, identity: Identity | None) -> None:
    """Gives up everything that needs no filter to be given up.

    In this order: name, the limits that are left, an empty world where that is allowed, ids and
    capabilities, parent-death signal and not dumpable (changing ids clears both), no_new_privs.

    Raises:
        OSError, PermissionError: the kernel refuses; nobody may run a guest's bytes then.
    """
    _set_name(name)
    # Reads /proc, which is gone behind the next line.
    _limit_resources()
    enter_empty_namespaces()
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
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def write_error(text: str) -> None:
    """Writes to standard error with write(2) alone, and never fails."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode(errors="replace"))
