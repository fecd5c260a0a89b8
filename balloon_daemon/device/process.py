"""A device as its controller sees it: ``spawn`` starts one."""

import contextlib
import errno
import os
import signal
from collections.abc import Callable

from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.tube.connection import ControllerEnd, open_tube
from balloon_daemon.tube.messages import Command

MAX_DEATH_RECORD_BYTES = 64 * 1024
"""All that a pipe holds (pipe(7))."""
MAX_DEATH_RECORD = 1500
"""Characters: a traceback's end fits."""


class NotYetError(OSError):
    """There is no process to fork devices from just now, and another is started.

    Args:
        retry_s: the device is to be asked for again after so many seconds.
    """

    def __init__(self, retry_s: float) -> None:
        super().__init__(errno.EAGAIN, "the process that forks devices is being started")
        self.retry_s = retry_s


Fork = Callable[[DeviceSpec, int, int, int], int]
"""Forks a device from a spec, the descriptors of its end of the tube and of its standard error,
and its parent's process id. Returns its process id; raises OSError, or NotYetError where that is
no failure."""


class DeviceProcess:
    """A forked device, as the controller sees it.

    Args:
        pid: its process id.
        tube: the controller's end.
        stderr_pipe: read end of the pipe that is its standard error. It hangs up when the device
            is gone, however it went, which is how another controller can tell.
    """

    def __init__(self, pid: int, tube: ControllerEnd, stderr_pipe: OwnedFd) -> None:
        self.pid = pid
        self.tube = tube
        self.stderr_pipe = stderr_pipe
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

    def read_death_record(self) -> str:
        """The end of what it wrote to standard error, in one line of printable text.

        A guest that took the device over may have written it.
        """
        try:
            words = os.read(self.stderr_pipe.fileno(), MAX_DEATH_RECORD_BYTES)
        except OSError:
            return ""
        lines = words.decode("ascii", "backslashreplace").split("\n")
        text = " | ".join("".join(c for c in line if c.isprintable()) for line in lines if line)
        return text[-MAX_DEATH_RECORD:]

    def close(self) -> None:
        """Closes what the controller holds of it."""
        self.stderr_pipe.close()
        self.tube.close()
        self.pidfd.close()


def spawn(spec: DeviceSpec, fork: Fork, *, look: bool = False) -> DeviceProcess:
    """Starts a device.

    Args:
        spec: the device's, with our numbers for its descriptors, which stay ours.
        fork: how it is forked.
        look: its first order is to stop: it serves nothing, and says where its rings are.

    Raises:
        NotYetError: it is to be asked for again in a moment.
        OSError: no process or no descriptor to be had.
    """
    with contextlib.ExitStack() as undo:
        upper, lower = open_tube()
        undo.callback(upper.close)
        with contextlib.closing(lower):
            stderr_out, stderr_in = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            undo.callback(stderr_out.close)
            with contextlib.closing(stderr_in):
                pid = fork(spec, lower.fileno(), stderr_in.fileno(), os.getpid())
        undo.callback(_end_child, pid)
        device = DeviceProcess(pid, upper, stderr_out)
        undo.pop_all()
    # Before any order it does nothing; a new device has no statistics to be asked for, so this
    # one only says: go.
    upper.send(Command.STOP if look else Command.REQUEST_STATS)
    return device


def _end_child(pid: int) -> None:
    """Ends and reaps a child that nobody can watch: two devices must never serve one guest."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
