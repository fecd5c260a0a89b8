"""A device as its controller sees it: ``spawn`` starts one."""

import contextlib
import errno
import gc
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.device.start import become_device
from balloon_daemon.linux import cpython, jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.tube.connection import ControllerEnd, open_tube
from balloon_daemon.tube.messages import Command

MAX_LAST_WORDS_BYTES = 64 * 1024
"""All that a pipe holds (pipe(7))."""
MAX_LAST_WORDS = 1500
"""Characters: a traceback's end fits."""


class NotYetError(OSError):
    """What forks devices is just being started: to be asked again in a moment."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "the process that forks devices is being started")


Fork = Callable[[DeviceSpec, int, int, int], int]
"""Forks a device of a spec, with the descriptors of its end of the tube and of its standard error
and its parent's process id; returns its process id, or raises OSError, or NotYetError where that
is no failure."""


class DeviceProcess:
    """A forked device, as the controller sees it.

    Args:
        pid: its process id.
        tube: the controller's end.
        last_words: read end of the pipe that is its standard error. It hangs up when the device
            is gone, however it went, which is how another controller can tell.
    """

    def __init__(self, pid: int, tube: ControllerEnd, last_words: OwnedFd) -> None:
        self.pid = pid
        self.tube = tube
        self.last_words = last_words
        self.pidfd = OwnedFd(os.pidfd_open(pid))
        """Readable once the device has ended."""

    def kill(self) -> None:
        """Ends it at once; no harm where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)

    def reap(self) -> int | None:
        """Collects its exit code, negative for a signal; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def read_last_words(self) -> str:
        """The end of what it wrote to standard error, in one line of printable text.

        A guest that took the device over may have written it.
        """
        try:
            words = os.read(self.last_words.fileno(), MAX_LAST_WORDS_BYTES)
        except OSError:
            return ""
        lines = words.decode("ascii", "backslashreplace").split("\n")
        text = " | ".join("".join(c for c in line if c.isprintable()) for line in lines if line)
        return text[-MAX_LAST_WORDS:]

    def close(self) -> None:
        """Closes what the controller holds of it."""
        self.last_words.close()
        self.tube.close()
        self.pidfd.close()


def fork_here(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
    """Forks a device from this very process, with all that it has in memory."""

    def child() -> NoReturn:
        jail.reset_signals()
        cpython.run_without_new_arenas(lambda: become_device(spec, tube_fd, words_fd, parent))

    return fork(child)


def spawn(spec: DeviceSpec, *, look: bool = False, fork: Fork = fork_here) -> DeviceProcess:
    """Starts a device.

    Args:
        look: its first order is to stop: it serves nothing, and says where its rings are.
        fork: how it is forked.

    Raises:
        OSError: no process or no descriptor to be had.
    """
    with contextlib.ExitStack() as undo:
        upper, lower = open_tube()
        undo.callback(upper.close)
        with contextlib.closing(lower):
            words_out, words_in = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            undo.callback(words_out.close)
            with contextlib.closing(words_in):
                pid = fork(spec, lower.fileno(), words_in.fileno(), os.getpid())
        undo.callback(_end_child, pid)
        device = DeviceProcess(pid, upper, words_out)
        undo.pop_all()
    # Before any order it does nothing; a new device has no statistics to be asked for, so this
    # one only says: go.
    upper.send(Command.STOP if look else Command.REQUEST_STATS)
    return device


def fork(child: Callable[[], NoReturn]) -> int:
    """Forks a process that runs ``child``, with a copy of our table of descriptors.

    Returns:
        Its process id.

    Raises:
        OSError: no process to be had.
    """
    # A signal that arrived between fork and reset would run the controller's handler in the child.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            child()
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _end_child(pid: int) -> None:
    """Ends and reaps a child that nobody can watch: two devices must never serve one guest."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def prepare_fork() -> None:
    """Runs once in the controller before its first fork, when all is imported.

    Everything that exists now is taken out of the garbage collector's sight: a collection in a
    child would otherwise write to, and so copy, every page of the heap that both share.
    """
    gc.collect()
    gc.freeze()
