"""A device as its controller sees it: ``spawn`` starts one.

``spawn`` waits until the device is forked. Its two halves do not: ``ask_for`` sends the request,
and ``AskedFor.device`` makes a ``DeviceProcess`` once the device's process id is known.
"""

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from typing import TypeVar

from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.figures import lockable
from balloon_daemon.tube.connection import ControllerEnd, open_tube
from balloon_daemon.tube.messages import Command

MAX_DEATH_RECORD_BYTES = 64 * 1024
"""A pipe's default capacity (pipe(7))."""
MAX_DEATH_RECORD = 1500
"""Characters that are kept: enough for a traceback's end."""

_LAST_BYTES = 4096
"""How much of the pipe's end is looked at. Hundreds of devices that were taken over may end at the
same moment, and it took 12 ms to look at all of a full pipe."""

_UNPRINTABLE = bytes(byte for byte in range(0x80) if not chr(byte).isprintable() and byte != 0x0A)

T = TypeVar("T")


class NotYetError(OSError):
    """No process can fork devices just now, and another is being started.

    Args:
        retry_s: seconds after which the caller should ask again.
    """

    def __init__(self, retry_s: float) -> None:
        super().__init__(errno.EAGAIN, "the process that forks devices is being started")
        self.retry_s = retry_s


Fork = Callable[[DeviceSpec, int, int, int], int]
"""Forks a device. Args: its spec, the descriptors of its tube end and of its standard error, and
its parent's process id. Returns its process id. Raises OSError, or NotYetError where the caller
need only ask again."""


class DeviceProcess:
    """A forked device, as the controller sees it. It does nothing before ``begin``.

    Args:
        pid: its process id.
        tube: the controller's end.
        stderr_pipe: read end of the pipe that is the device's standard error. The pipe reaches its
            end of file when the device is gone, in whatever way; another controller, which cannot
            wait for this child, learns of its end by that.
    """

    def __init__(self, pid: int, tube: ControllerEnd, stderr_pipe: OwnedFd) -> None:
        self.pid = pid
        self.tube = tube
        self.stderr_pipe = stderr_pipe
        self.pidfd = lockable(os.pidfd_open(pid))
        """Readable once the device has ended."""

    def begin(self, *, look: bool = False) -> None:
        """Sends the first order, without which a device does not even map its guest's memory.

        Args:
            look: True: the order is STOP, so the device serves nothing and reports its rings'
                ``used.idx``.
        """
        # REQUEST_STATS starts a device and has no other effect: a new device holds no statistics
        # buffer that it could answer.
        self.tube.send(Command.STOP if look else Command.REQUEST_STATS)

    def kill(self) -> None:
        """Sends SIGKILL; does nothing where the device has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)

    def reap(self) -> int | None:
        """Collects the exit code, negative for a signal; None while the device runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def read_death_record(self) -> str:
        """Returns the end of the device's standard error, as one line of printable text.

        Treat this text as hostile: a guest that took the device over may have written it.
        """
        try:
            words = os.read(self.stderr_pipe.fileno(), MAX_DEATH_RECORD_BYTES)
        except OSError:
            return ""
        words = words[-_LAST_BYTES:].translate(None, _UNPRINTABLE)
        lines = words.decode("ascii", "backslashreplace").split("\n")
        text = " | ".join(filter(None, lines))
        return text[-MAX_DEATH_RECORD:]

    def close(self) -> None:
        """Closes the controller's descriptors of the device."""
        self.stderr_pipe.close()
        self.tube.close()
        self.pidfd.close()


class AskedFor:
    """A device that was asked for: the controller's ends of its tube and of its standard error.

    Args:
        tube: the controller's end.
        stderr_pipe: read end of the pipe that is the device's standard error.
    """

    def __init__(self, tube: ControllerEnd, stderr_pipe: OwnedFd) -> None:
        self._tube = tube
        self._stderr_pipe = stderr_pipe

    def device(self, pid: int) -> DeviceProcess:
        """The device, which has this process id and was given no order yet.

        Raises:
            OSError: no descriptor is free for its pidfd. The caller then calls ``close``, which
                makes the device end, and reaps it: two devices must never serve one guest.
        """
        return DeviceProcess(pid, self._tube, self._stderr_pipe)

    def close(self) -> None:
        """Gives the device up, whether it is forked yet or not; it ends without having touched its
        guest.

        A device waits for its first order before it maps guest memory. If its tube is closed
        before any order came, the device ends.
        """
        self._tube.close()
        self._stderr_pipe.close()


def ask_for(spec: DeviceSpec, ask: Callable[[DeviceSpec, int, int, int], T]) -> tuple[T, AskedFor]:
    """Asks for a device.

    Args:
        spec: the device's spec; the descriptors in it stay open and the caller's.
        ask: called with the arguments of a ``Fork``.

    Returns:
        The value that ``ask`` returned, and the device.

    Raises:
        NotYetError: the caller should ask again in a moment.
        OSError: no descriptor is free, or ``ask`` failed.
    """
    with contextlib.ExitStack() as undo:
        upper, lower = open_tube()
        undo.callback(upper.close)
        with contextlib.closing(lower):
            stderr_out, stderr_in = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            undo.callback(stderr_out.close)
            with contextlib.closing(stderr_in):
                answer = ask(spec, lower.fileno(), stderr_in.fileno(), os.getpid())
        undo.pop_all()
    return answer, AskedFor(upper, stderr_out)


def spawn(spec: DeviceSpec, fork: Fork) -> DeviceProcess:
    """Starts a device, and waits until it is forked: not for a process with an event loop.

    Args:
        spec: the device's spec; the descriptors in it stay open and the caller's.
        fork: forks the process.

    Raises:
        NotYetError: the caller should ask again in a moment.
        OSError: no process or descriptor is free.
    """
    pid, asked = ask_for(spec, fork)
    try:
        device = asked.device(pid)
    except BaseException:
        asked.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    device.begin()
    return device
