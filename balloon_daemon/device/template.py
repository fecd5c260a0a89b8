"""The controller's side of the template, a process that does nothing but fork devices.

A device shares memory pages with its parent until either of them writes to a page, which copies
it. The controller writes all the time, so a device forked from it would soon own old copies of
those pages. The template is a program of its own (``device/forker_start.py``) that rests between
two forks and loads only the modules of a device. It starts before the controller imports anything
else, and loads while the controller does.

A request and its answer are two calls, ``ask`` and ``answer``, so that an event loop need not wait
in between; ``fork`` waits.

If the template ends, another one is started, which takes some 0.1 s. The controller does not block
on that: ``NotYetError`` tells the caller to ask for the device again.
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
from balloon_daemon.device.request import ANSWER, HELLO, MAX_DATAGRAM_BYTES, send_request
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.figures import lockable

PROGRAM: tuple[str, ...] = (os.path.join(os.path.dirname(__file__), "forker_start.py"),)
"""The program file that the interpreter runs as the template."""

ANSWER_WITHIN_S = 2.0
"""A fork takes less even on a host that is out of memory; after this time the template is killed.
"""

STARTED_WITHIN_S = 10.0
"""Some 100 times as long as a start takes on an idle host; after this time the start has failed.
"""

KILLED_WITHIN_S = 0.1
"""How long a caller without an event loop waits for a killed template, before ``reap`` reaps it
later."""

STARTING_RETRY_S = 0.02
"""When to ask for a device again while a template is being started."""

LONG_LIFE_S = 60.0
"""After a template that lived so long, the next is started at once. After templates that ended
sooner, one after the other, the next starts wait 0, 1, 2, 4, 5 s."""

MAX_WAIT_S = 5.0
"""The longest wait before another start: no device can be forked meanwhile."""

_PASSED_ON = ("LD_LIBRARY_PATH",)
"""The only environment variables that the template's interpreter may need: where its libraries
are."""

_NO_DEVICE = "no device can be started"


class _Process:
    """A template's process, as the controller sees it.

    Args:
        pid: its process id.
        sock: the socket to it.
    """

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self.sock = sock
        self._pidfd = lockable(os.pidfd_open(pid))
        self.began_s = time.monotonic()

    def end(self) -> None:
        """Kills the template, not the devices; does not wait for its death."""
        self.sock.close()
        if not self.is_gone():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd.fileno(), signal.SIGKILL)

    def is_gone(self, within_s: float = 0.0) -> bool:
        """Whether the process has ended; reaps it then."""
        if self._pidfd.fileno() >= 0:
            if not _wait_readable([self._pidfd.fileno()], within_s):
                return False
            os.waitpid(self.pid, os.WNOHANG)
            self._pidfd.close()
        return True

    def wait(self, within_s: float) -> None:
        """Waits until the process has sent something or has ended, or for so many seconds."""
        _wait_readable([self.sock.fileno(), self._pidfd.fileno()], within_s)


def _wait_readable(fds: list[int], within_s: float) -> bool:
    # Use poll(2): select(2) takes no descriptor number above 1023, and the controller has such.
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _received(sock: socket.socket, most: int) -> bytes | None:
    """What the template has sent; empty: it has ended; None: it has sent nothing."""
    try:
        return sock.recv(most, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Template:
    """Forks devices by way of the template process, of which at most one runs at a time.

    The template is started at once; if the kernel allows no process just now, the template is
    started when the first device is asked for.
    """

    def __init__(self) -> None:
        self._running: _Process | None = None
        self._starting: _Process | None = None
        self._ended: list[_Process] = []
        """Killed templates that the kernel may not have ended yet, to be reaped."""
        self._low = LowNumbers()
        self._bpf = b""
        self._warn: Callable[[str], None] = lambda what: None
        self._tell: Callable[[str], None] = lambda what: None
        self._wait_s = self._next_s = 0.0
        self._failure = ""
        """How the last template ended, or why its start failed; "" once another one is ready."""
        with contextlib.suppress(OSError):
            self._starting = self._start()

    @property
    def pid(self) -> int | None:
        """The template's process id; None where no template can fork just now."""
        return None if self._running is None else self._running.pid

    def prepare(
        self, bpf: bytes, warn: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        """Sets the filter and the callbacks, which are not known yet when the template starts.

        Args:
            bpf: the seccomp program that the devices load, an array of struct sock_filter.
            warn: called with one line when the template has ended or does not start.
            tell: called with one line when another template is ready.
        """
        self._bpf, self._warn, self._tell = bpf, warn, tell

    def fork(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> int:
        """Asks the template for a device, and waits for its answer (a ``Fork`` of ``process.py``).

        Raises:
            NotYetError: no template is ready just now.
            OSError: no process or descriptor is free, or the template ended during the request.
        """
        try:
            self.ask(spec, tube_fd, stderr_fd, parent)
            _wait_readable([self.fileno()], ANSWER_WITHIN_S)
            if (pid := self.answer()) is None:
                raise self.give_up()
            return pid
        finally:
            self.reap(within_s=KILLED_WITHIN_S)

    def ask(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> None:
        """Sends a request, and does not wait: ``answer`` tells the outcome. One request at a time.

        Raises:
            NotYetError: no template is ready just now.
        """
        self.tend()
        if (running := self._running) is None:
            raise self._not_yet()
        try:
            send_request(running.sock, spec, tube_fd, stderr_fd, parent, self._bpf)
        except OSError:
            # No device was forked, as the template forks none before it has a whole request.
            self._lose(running, "is gone")
            self._look_after_start()
            raise self._not_yet() from None

    def fileno(self) -> int:
        """The descriptor that becomes readable when the template has answered or has ended; only
        after ``ask``."""
        assert self._running is not None
        return self._running.sock.fileno()

    def answer(self) -> int | None:
        """The process id of the device that was asked for; None: there is no answer yet.

        Raises:
            OSError: no process or descriptor is free, or the template ended during the request.
        """
        assert self._running is not None
        answer = _received(self._running.sock, ANSWER.size)
        if answer is None:
            return None
        if len(answer) != ANSWER.size:
            raise self.give_up()
        pid: int
        pid, number = ANSWER.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return pid

    def give_up(self) -> OSError:
        """Kills a template that does not answer; returns the error of its request.

        The template may have forked a device without telling its process id. That device ends by
        itself, as the caller closes its tube before it sends any order.
        """
        assert self._running is not None
        self._lose(self._running, "does not answer")
        return OSError(errno.EAGAIN, "the process that forks devices does not answer")

    def tend(self) -> None:
        """Replaces a template that has ended. Not to be called between ``ask`` and its answer."""
        self.reap()
        self.reserve_low_numbers()
        if self._running is not None and self._running.is_gone():
            self._lose(self._running, "is gone")
        if self._running is None:
            self._look_after_start()

    def reap(self, within_s: float = 0.0) -> bool:
        """Reaps templates that were killed; False where one has not ended within this time."""
        self._ended = [process for process in self._ended if not process.is_gone(within_s)]
        return not self._ended

    def _not_yet(self) -> NotYetError:
        put_off_s = 0.0 if self._starting is not None else self._next_s - time.monotonic()
        return NotYetError(max(STARTING_RETRY_S, put_off_s))

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
        """Delays the template's next start: not at all the first time, then ever longer. Returns
        the delay in seconds."""
        wait_s = self._wait_s
        self._next_s = time.monotonic() + wait_s
        self._wait_s = min(MAX_WAIT_S, max(1.0, 2 * wait_s))
        return wait_s

    def reserve_low_numbers(self) -> None:
        """Occupies all low descriptor numbers before a VMM's descriptor gets one of them.

        The template is cloned with a copy of the low numbers only (``linux/apart.py``), so that it
        inherits no VMM's file.
        """
        self._low.fill()

    def share_low_numbers(self) -> LowNumbers:
        """Gives two of the low numbers to another object that starts programs."""
        return self._low.share()

    def _end(self, process: _Process) -> None:
        process.end()
        self.reserve_low_numbers()
        self._ended.append(process)

    # --- starting it ----------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        """Waits until a device can be forked; for a process that has no event loop to block.

        Raises:
            OSError: no template could be started; says why.
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
        """Starts a template when its time has come, and takes into use one that is ready."""
        if self._starting is not None:
            self._look_at(self._starting)
        elif time.monotonic() >= self._next_s:
            try:
                self._starting = self._start()
            except OSError as err:
                self._failed(err.strerror or str(err))

    def _start(self) -> _Process:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # Room for the longest request: the kernel doubles the number, up to twice
        # net.core.wmem_max (socket(7)).
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_DATAGRAM_BYTES)
        try:
            with contextlib.closing(theirs):
                fd = self._low.duplicate(theirs.fileno())
                # Start Python isolated (-I) and without site-packages (-S). Otherwise it would
                # import other code at its start, such as that in .pth files, and the template is
                # not jailed.
                command = [sys.executable, "-I", "-S", *_bytecode_options(), *PROGRAM]
                pid = self._low.exec(
                    [*command, str(fd), str(os.getpid()), *_directories()],
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
        """Ends the template, but not the devices."""
        for process in (self._running, self._starting):
            if process is not None:
                process.end()
                process.is_gone(within_s=KILLED_WITHIN_S)
        self._running = self._starting = None
        self._low.close()


def _directories() -> list[str]:
    """Where the template finds python-prctl, without the rest of site-packages."""
    file = getattr(sys.modules.get("_prctl"), "__file__", None)
    return [os.path.dirname(os.path.abspath(file))] if file else []


def _bytecode_options() -> list[str]:
    """Options that make another interpreter find and write compiled modules where ours does.

    An isolated interpreter (-I) ignores PYTHONDONTWRITEBYTECODE and PYTHONPYCACHEPREFIX.
    """
    options = ["-B"] if sys.dont_write_bytecode else []
    if sys.pycache_prefix is not None:
        options += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    return options
