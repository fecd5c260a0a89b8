"""The controller's side of the template: a process that forks devices, and loads nothing else.

A device shares its memory with the process that it was forked from until either writes to it. The
controller writes all the time, and each page that it writes would leave the device with an old
copy of its own; what a device does need would lie scattered among what only the controller does.
The template is a program of its own (``device/forker_start.py``) that rests between two devices.
It is started before the controller loads anything else, and loads what a device needs meanwhile.

Where it has ended another is started, which takes some 0.1 s. Nobody waits for it: a device that
is wanted meanwhile is asked for again (``NotYetError``).
"""

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from balloon_daemon.device.process import NotYetError
from balloon_daemon.device.request import ANSWER, HELLO, send_request
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.events import OwnedFd

PROGRAM: tuple[str, ...] = (os.path.join(os.path.dirname(__file__), "forker_start.py"),)
"""What the interpreter runs as the template."""

ANSWER_WITHIN_S = 2.0
"""Longer than a fork takes on a host that is out of memory; then the template is given up."""

STARTED_WITHIN_S = 10.0
"""Some 100 times as long as a start takes on an idle host; then it is given up."""

KILLED_WITHIN_S = 0.1
"""What a template that was killed may take to be gone before it is reaped some other time."""

STARTING_RETRY_S = 0.02
"""When a device is asked for again while a template is being started."""

LONG_LIFE_S = 60.0
"""One that has ended sooner than this is not started again at once, but after 1, 2, 4, 5 s."""

MAX_WAIT_S = 5.0
"""The longest wait before another start: no device can be forked meanwhile."""

_PASSED_ON = ("LD_LIBRARY_PATH",)
"""All of our environment that another interpreter may need: where its own libraries are."""

_NO_DEVICE = "no device can be started"


class _Process:
    """A template's process, as the controller sees it.

    Args:
        pid: its process id.
        sock: leads to it.
    """

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self._pidfd = OwnedFd(os.pidfd_open(pid))
        self.began_s = time.monotonic()

    def end(self) -> None:
        """Ends it; the devices live on. One that the kernel holds is not waited for."""
        self.sock.close()
        if not self.is_gone():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd.fileno(), signal.SIGKILL)
            self.is_gone(within_s=KILLED_WITHIN_S)

    def is_gone(self, within_s: float = 0.0) -> bool:
        """Whether it has ended; reaps it."""
        if self._pidfd.fileno() >= 0:
            if not _wait_readable([self._pidfd.fileno()], within_s):
                return False
            os.waitpid(self.pid, os.WNOHANG)
            self._pidfd.close()
        return True

    def wait(self, within_s: float) -> None:
        """Waits until it has said something or has ended, or for so many seconds."""
        _wait_readable([self.sock.fileno(), self._pidfd.fileno()], within_s)


def _wait_readable(fds: list[int], within_s: float) -> bool:
    # Not select(2): the controller's numbers go far beyond what it takes.
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _received(sock: socket.socket, most: int) -> bytes | None:
    """What the template says; empty where it has ended, None where it says nothing."""
    try:
        return sock.recv(most, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Template:
    """Forks devices: through the template, of which there is at most one at a time.

    It is started at once. Where no process can be had just now, it is started with the first
    device that is asked for.
    """

    def __init__(self) -> None:
        self._running: _Process | None = None
        self._starting: _Process | None = None
        self._ended: list[_Process] = []
        """Those that the kernel still holds, to be reaped."""
        self._low = LowNumbers()
        self._bpf = b""
        self._warn: Callable[[str], None] = lambda what: None
        self._tell: Callable[[str], None] = lambda what: None
        self._wait_s = self._next_s = 0.0
        self._failure = ""
        """Why there is none, until there is another; empty where that is no failure."""
        with contextlib.suppress(OSError):
            self._starting = self._start()

    @property
    def pid(self) -> int | None:
        """The template's process id; None where none can fork just now."""
        return None if self._running is None else self._running.pid

    def prepare(
        self, bpf: bytes, warn: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        """Sets what is known only later.

        Args:
            bpf: the seccomp program that the devices load, an array of struct sock_filter.
            warn: hears, in one line, that the template has ended or does not start.
            tell: hears that there is another.
        """
        self._bpf, self._warn, self._tell = bpf, warn, tell

    def fork(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> int:
        """Has a device forked. A ``Fork``.

        Raises:
            NotYetError: there is no template just now.
            OSError: no process or no descriptor to be had, or the template ended over it.
        """
        self._ended = [process for process in self._ended if not process.is_gone()]
        self.reserve_low_numbers()
        running = self._current()
        try:
            send_request(running.sock, spec, tube_fd, stderr_fd, parent, self._bpf)
        except OSError:
            # The template forks only what it has received as a whole.
            self._lose(running, "is gone")
            self._look_after_start()
            raise self._not_yet() from None
        return self._answer(running)

    def _current(self) -> _Process:
        """The template; raises NotYetError where there is none."""
        if self._running is None:
            self._look_after_start()
        if self._running is None:
            raise self._not_yet()
        return self._running

    def _not_yet(self) -> NotYetError:
        put_off_s = 0.0 if self._starting is not None else self._next_s - time.monotonic()
        return NotYetError(max(STARTING_RETRY_S, put_off_s))

    def _answer(self, running: _Process) -> int:
        try:
            answer = running.sock.recv(ANSWER.size)
        except OSError:
            answer = b""
        if len(answer) != ANSWER.size:
            # It may have forked a device whose pid nobody knows: with no order, and its tube about
            # to be closed, that device ends. Another one must not be given the same tube.
            self._lose(running, "does not answer")
            raise OSError(errno.EAGAIN, "the process that forks devices does not answer")
        pid: int
        pid, number = ANSWER.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return pid

    def _lose(self, running: _Process, how: str) -> None:
        self._running = None
        if time.monotonic() - running.began_s >= LONG_LIFE_S:
            self._wait_s = 0.0
        wait_s = self._put_off()
        self._end(running)
        self._failure = f"process {running.pid} {how}"
        meanwhile = f" in {wait_s:.0f} s; until then {_NO_DEVICE}" if wait_s else ""
        self._warn(
            f"process {running.pid}, which forks devices, {how}: starting another{meanwhile}"
        )

    def _put_off(self) -> float:
        """Puts the next start off: not at all at first, then longer and longer. In seconds."""
        wait_s = self._wait_s
        self._next_s = time.monotonic() + wait_s
        self._wait_s = min(MAX_WAIT_S, max(1.0, 2 * wait_s))
        return wait_s

    def reserve_low_numbers(self) -> None:
        """Opens all low numbers that are free, before a descriptor of a VMM's gets one of them.

        A template that is started has a copy of them (``linux/apart.py``).
        """
        self._low.fill()

    def _end(self, process: _Process) -> None:
        process.end()
        self.reserve_low_numbers()
        if not process.is_gone():
            self._ended.append(process)

    # --- starting it ----------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        """Waits until a device can be forked; for a process that does nothing else meanwhile.

        Raises:
            OSError: no template comes up, and why.
        """
        while self._running is None:
            self._look_after_start()
            if self._starting is not None:
                self._starting.wait(STARTED_WITHIN_S)
            elif self._running is None:
                raise OSError(
                    errno.EAGAIN,
                    f"no process to fork devices from can be started: {self._failure}",
                )

    def _look_after_start(self) -> None:
        """Starts a template where it is time to, and takes one that has come up."""
        if self._starting is not None:
            self._look_at(self._starting)
        elif time.monotonic() >= self._next_s:
            try:
                self._starting = self._start()
            except OSError as err:
                self._failed(err.strerror or str(err))

    def _start(self) -> _Process:
        directories = {
            os.path.dirname(os.path.abspath(file))
            for name in ("prctl", "_prctl")
            if (file := getattr(sys.modules.get(name), "__file__", None))
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with contextlib.closing(theirs):
                fd = self._low.duplicate(theirs.fileno())
                # By its file, isolated (-I) and without site-packages (-S), whose .pth files may
                # run anything: what else could be found is not ours to run.
                command = [sys.executable, "-I", "-S", *_bytecode_options(), *PROGRAM]
                pid = self._low.exec(
                    [*command, str(fd), str(os.getpid()), *sorted(directories)],
                    {name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    fd,
                )
            return _Process(pid, ours)
        except BaseException:
            ours.close()
            self._low.close_duplicate()
            raise

    def _look_at(self, starting: _Process) -> None:
        said = _received(starting.sock, len(HELLO) + 1)
        late = time.monotonic() - starting.began_s > STARTED_WITHIN_S
        if said is None and not late and not starting.is_gone():
            return
        self._starting = None
        self._low.close_duplicate()
        if said == HELLO:
            starting.sock.settimeout(ANSWER_WITHIN_S)
            self._running = starting
            if self._failure:
                self._failure = ""
                self._tell(f"process {starting.pid} forks devices now")
            return
        self._end(starting)
        if said:
            self._failed("what is installed is another balloond than the one that runs")
        else:
            self._failed("it does not say that it is ready" if late else "it ended at once")

    def _failed(self, why: str) -> None:
        self._wait_s = max(1.0, self._wait_s)
        wait_s = self._put_off()
        self._failure = why
        self._warn(
            f"no process to fork devices from can be started: {why}; trying again in "
            f"{wait_s:.0f} s, and until then {_NO_DEVICE}"
        )

    def close(self) -> None:
        """Ends the template; the devices live on."""
        for process in (self._running, self._starting):
            if process is not None:
                process.end()
        self._running = self._starting = None
        self._low.close()


def _bytecode_options() -> list[str]:
    """Has another interpreter find and keep compiled modules as ours does.

    An isolated one (-I) does not read PYTHONDONTWRITEBYTECODE and PYTHONPYCACHEPREFIX.
    """
    options = ["-B"] if sys.dont_write_bytecode else []
    if sys.pycache_prefix is not None:
        options += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    return options
