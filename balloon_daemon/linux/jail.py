"""Limits, namespaces and privileges that a forked child gives up before it reads a guest's byte.

The only user of python-prctl, and of its C module alone: what its Python module makes of that, an
object for each capability, would be in the memory of each device. The seccomp filter comes last,
and is loaded by the caller.
"""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterable

import _prctl

from balloon_daemon.linux.libc import show_as
from balloon_daemon.linux.namespaces import enter_empty_namespaces
from balloon_daemon.named_tuple import NamedTuple


class Identity(NamedTuple):
    """The user and group that a device becomes where the controller runs as root."""

    uid: int
    gid: int


OOM_SCORE_FILE = "/proc/self/oom_score_adj"

MAX_GROWTH_BYTES = 256 << 20
"""How much a device may add to its own memory, and to its address space, when it is jailed; it
needs a few MiB. Nor may its stack be larger."""

_ALL_CAPABILITIES = list(range(_prctl.CAP_LAST_CAP + 1))

_SIZE, _DATA = 0, 5
"""Fields of /proc/PID/statm (proc(5)), in pages: all that is mapped, and private memory that may
be written, with the stack."""


def reset_signals() -> None:
    """Removes the parent's signal handlers, right after fork.

    A handler must not run in the jail: it returns by rt_sigreturn(2), for which the seccomp policy
    kills. Signals from the terminal and the service manager are ignored: they are meant for the
    controller, which ends its devices itself after they have given the memory back.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    # Remove faulthandler's handlers. In the jail they would make forbidden system calls, for which
    # seccomp would kill the process. The report would then name that call instead of the fault
    # that came first.
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def close_fds_except(keep: Iterable[int]) -> None:
    """Closes all file descriptors but these, which should include standard error."""
    previous = -1
    for fd in sorted(keep):
        if fd > previous + 1:
            # Skip an empty range: CPython turns closerange(0, 0) into a close_range(2) of all
            # numbers.
            os.closerange(previous + 1, fd)
        previous = fd
    os.closerange(previous + 1, 2**31 - 1)


def die_with(parent_pid: int, name: str) -> None:
    """Has the kernel kill this process when its parent dies, and names it for ``ps``.

    For processes that are not jailed; ``enter`` does the same for a device.
    """
    _set_name(name)
    end_with(parent_pid)


def end_with(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent dies. Linux clears the parent-death signal
    whenever the process changes its user, or by setfsuid(2) its user for files (prctl(2))."""
    _prctl.prctl(_prctl.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        # The parent died before prctl(2) asked for a signal at its death, so that signal will
        # never come.
        os._exit(0)


def limit_first() -> None:
    """Gives up for good what a device never needs; to be called before it maps guest memory.

    A VMM that truncates its memory file while the device reads the ring kills the device by
    SIGBUS, perhaps while it is still root. A process that is not dumpable leaves no core with
    guest memory, not even to a program that collects cores (core(5): such programs ignore
    RLIMIT_CORE).
    """
    _be_killed_like_others()
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(kind, (0, 0))
    _prctl.prctl(_prctl.PR_SET_DUMPABLE, 0)


def _be_killed_like_others() -> None:
    """Raises an oom_score_adj below 0, which a device inherits from the service, to 0.

    OOMScoreAdjust= below 0 is for the controller. A device taken over by its guest could
    touch all pages that the balloon has freed, by which the kernel allocates them anew, and the
    kernel would then kill other processes first. Raising the score is
    always allowed (proc(5)).
    """
    with contextlib.suppress(OSError):  # A host that hides the file leaves the score as it is.
        score = os.open(OOM_SCORE_FILE, os.O_RDONLY | os.O_CLOEXEC)
        negative = int(os.read(score, 16)) < 0
        os.close(score)
        if negative:
            score = os.open(OOM_SCORE_FILE, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            os.write(score, b"0")
            os.close(score)


def enter(name: str, parent_pid: int, identity: Identity | None) -> None:
    """Gives up everything that can be given up without a filter.

    The order: name, the remaining limits, empty namespaces where they are allowed, ids and
    capabilities, parent-death signal and not dumpable (a change of ids clears both), no_new_privs.

    Raises:
        OSError, PermissionError: the kernel refuses; then the process must not read a guest's
            bytes.
    """
    _set_name(name)
    # Limit resources before the move into namespaces. The limits are computed from a file in
    # /proc, and the namespaces' empty root has no /proc.
    _limit_resources()
    enter_empty_namespaces()
    # Drop privileges even if the namespaces were refused. A move into a user namespace that failed
    # half-way leaves this process all capabilities inside that namespace. systemd, too, may have
    # given the service some (AmbientCapabilities=).
    _drop_privileges(identity)
    _prctl.prctl(_prctl.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        # The parent died before prctl(2) asked for a signal at its death, so that signal will
        # never come.
        os._exit(0)
    _prctl.prctl(_prctl.PR_SET_DUMPABLE, 0)
    _prctl.prctl(_prctl.PR_SET_NO_NEW_PRIVS, 1)


def _set_name(name: str) -> None:
    """Sets the name for ``top`` (15 bytes of it) and for ``ps -f``."""
    _prctl.prctl(_prctl.PR_SET_NAME, name)
    show_as(name)


def _drop_privileges(identity: Identity | None) -> None:
    with contextlib.suppress(PermissionError):
        # Securebits and the bounding set cannot be changed without CAP_SETPCAP (capabilities(7)).
        # Root may lack CAP_SETPCAP, and other users have it only in a user namespace. Then leave
        # securebits and bounding set as they are: they matter only at an execve(2), which gives no
        # capabilities once `enter` has set no_new_privs.
        bits = _prctl.prctl(_prctl.PR_GET_SECUREBITS)
        bits |= _prctl.SECBIT_NOROOT | _prctl.SECBIT_NOROOT_LOCKED
        _prctl.prctl(_prctl.PR_SET_SECUREBITS, bits)
        for capability in _ALL_CAPABILITIES:
            _prctl.prctl(_prctl.PR_CAPBSET_DROP, capability)
    if identity is not None:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    # The first three lists are what to set in the effective, permitted and inheritable sets, the
    # others what to clear in them.
    _prctl.set_caps([], [], [], *[_ALL_CAPABILITIES] * 3)


def _limit_resources() -> None:
    """Limits memory and descriptors to little more than the present ones.

    A device taken over by its guest could otherwise use up the host's memory and descriptors:
    crosvm's seccomp policy for this device allows eventfd2, dup, epoll_create1, mmap, write and
    clone of threads.
    """
    # Read by os.open() instead of open(), whose buffers and decoders would write to, and so copy,
    # 30 pages of memory that devices share.
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    pages = [int(number) for number in os.read(statm, 200).split()]
    os.close(statm)
    mapped, data = (pages[field] * resource.getpagesize() for field in (_SIZE, _DATA))
    for kind, most in (
        (resource.RLIMIT_AS, mapped + MAX_GROWTH_BYTES),
        # RLIMIT_AS alone is no limit: it includes guest memory, which a device may unmap, and then
        # map as much memory of its own. Memory that RLIMIT_DATA does not count cannot be mapped
        # (``linux/seccomp.py``), and only RLIMIT_STACK limits how far the stack grows.
        (resource.RLIMIT_DATA, data + MAX_GROWTH_BYTES),
        (resource.RLIMIT_STACK, MAX_GROWTH_BYTES),
        (resource.RLIMIT_NOFILE, 0),
    ):
        soft = resource.getrlimit(kind)[0]
        limit = most if soft == resource.RLIM_INFINITY else min(most, soft)
        resource.setrlimit(kind, (limit, limit))


def write_error(text: str) -> None:
    """Writes to standard error by write(2) alone, and raises nothing."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode(errors="replace"))
