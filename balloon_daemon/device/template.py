"""The controller's side of the template: a process that forks devices, and loads nothing else.

A device shares its memory with the process that it was forked from until either writes to it. The
controller writes all the time, and each page that it writes leaves the device with an old copy of
its own; what a device does need lies scattered among what only the controller does. The template
is forked before the controller loads anything of its own, and rests between two devices.

Where it is gone another is started by exec, in an interpreter of its own: the controller has grown
by then, knows all guests' addresses and holds what VMMs have sent. That takes some 0.2 s, in which
nobody waits for it: a device that is wanted meanwhile is asked for again. Should none come up, the
controller forks its devices itself until one does: larger, and just as jailed.
"""

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from balloon_daemon.device import forker_start
from balloon_daemon.device.forker import ANSWER, HELLO, become, live
from balloon_daemon.device.process import NotYetError, fork
from balloon_daemon.device.request import (
    MAX_DATAGRAM_BYTES,
    fds_of,
    receive_request,
    send_request,
)
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.linux import cpython, jail, libc
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.seccomp import Program

ANSWER_WITHIN_S = 2.0
"""Longer than a fork takes on a host that is out of memory; then the template is given up."""

STARTED_WITHIN_S = 10.0
"""Some 50 times as long as a start takes on an idle host; then it is given up."""

KILLED_WITHIN_S = 0.1
"""What one that was killed may take to be gone before it is reaped some other time."""

LONG_LIFE_S = 60.0
"""One that is gone sooner than this is not started again at once, but after 1, 2, 4 ... 60 s."""

_PASSED_ON = ("LD_LIBRARY_PATH",)
"""All of our environment that another interpreter may need: where its own libraries are."""


_FORKS_ITSELF = "balloond forks them itself, each larger by some 2 MiB"


class _Life:
    """A template process, as the controller sees it.

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

    def wait(self, within_s: float) -> bool:
        """Waits until it has said something or has ended; False where it does neither."""
        return _wait_readable([self.sock.fileno(), self._pidfd.fileno()], within_s)


def _wait_readable(fds: list[int], within_s: float) -> bool:
    # Not select(2): the controller's numbers go far beyond what it takes.
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _received(sock: socket.socket, most: int) -> bytes | None:
    """What it says; empty where it is gone, None where it says nothing."""
    try:
        return sock.recv(most, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Template:
    """Forks devices: through the template, of which there is at most one at a time.

    Args:
        life: the first one; None: there was no process to be had.
    """

    def __init__(self, life: _Life | None) -> None:
        self._life = life
        self._coming: _Life | None = None
        self._gone: list[_Life] = []
        self._low = LowNumbers()
        self._bpf = b""
        self._warn: Callable[[str], None] = lambda what: None
        self._tell: Callable[[str], None] = lambda what: None
        self._wait_s = self._next_s = 0.0

    @property
    def pid(self) -> int | None:
        """The template's process id; None where there is none just now."""
        return None if self._life is None else self._life.pid

    def prepare(
        self, bpf: bytes, warn: Callable[[str], None], tell: Callable[[str], None]
    ) -> None:
        """Sets what is known only later.

        Args:
            bpf: the seccomp program that the devices load, an array of struct sock_filter.
            warn: hears, in one line, that the template is gone or does not start.
            tell: hears that there is another.
        """
        self._bpf, self._warn, self._tell = bpf, warn, tell

    def fork(self, spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        """Has a device forked. A ``Fork``.

        Raises:
            NotYetError: a template is being started.
            OSError: no process or no descriptor to be had, or the template ended over it.
        """
        self._gone = [life for life in self._gone if not life.is_gone()]
        self.occupy()
        if self._life is None:
            self._look_after_the_next()
        fds = fds_of(spec, tube_fd, words_fd)
        if self._life is not None:
            try:
                send_request(self._life.sock, spec, fds, parent, self._bpf)
            except OSError:
                # What it does not have as a whole it does not fork.
                self._lose("is gone")
                self._look_after_the_next()
            else:
                return self._answer(self._life)
        if self._coming is not None:
            raise NotYetError
        return self._fork_here(spec, fds, parent)

    def _answer(self, life: _Life) -> int:
        try:
            answer = life.sock.recv(ANSWER.size)
        except OSError:
            answer = b""
        if len(answer) != ANSWER.size:
            # Perhaps forked, and nobody knows whom: without an order, and with its tube about to
            # be closed, such a device ends. Another one must not be given the same tube.
            self._lose("does not answer")
            raise OSError(errno.EAGAIN, "the process that forks devices does not answer")
        pid: int
        pid, number = ANSWER.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return pid

    def _lose(self, how: str) -> None:
        life, self._life = self._life, None
        assert life is not None
        if time.monotonic() - life.began_s >= LONG_LIFE_S:
            self._wait_s = 0.0
        self._put_off()
        self._end(life)
        meanwhile = ""
        if wait_s := max(0.0, self._next_s - time.monotonic()):
            meanwhile = f" in {wait_s:.0f} s; until then {_FORKS_ITSELF}"
        self._warn(f"process {life.pid}, which forks devices, {how}: starting another{meanwhile}")

    def _put_off(self) -> None:
        """Has the next start wait: not at all at first, then for longer and longer."""
        self._next_s = time.monotonic() + self._wait_s
        self._wait_s = min(60.0, max(1.0, 2 * self._wait_s))

    def occupy(self) -> None:
        """Takes the lowest numbers that are free, before anything of a VMM's can have them."""
        self._low.fill()

    def _end(self, life: _Life) -> None:
        life.end()
        self.occupy()
        if not life.is_gone():
            self._gone.append(life)

    # --- another one --------------------------------------------------------------------------

    def _look_after_the_next(self) -> None:
        """Starts one where it is time to, and takes one that has come up."""
        if self._coming is not None:
            self._look(self._coming)
        elif time.monotonic() >= self._next_s:
            try:
                self._coming = self._start()
            except OSError as err:
                self._failed(err.strerror or str(err))

    def _start(self) -> _Life:
        directories = {
            os.path.dirname(os.path.abspath(file))
            for name in ("prctl", "_prctl")
            if (file := getattr(sys.modules.get(name), "__file__", None))
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with contextlib.closing(theirs):
                fd = self._low.lend(theirs.fileno())
                file, parent = forker_start.__file__, str(os.getpid())
                pid = self._low.exec(
                    # By its file, and alone (-I): what else could be found is not ours to run.
                    [sys.executable, "-I", file, str(fd), parent, *sorted(directories)],
                    {name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                    fd,
                )
            return _Life(pid, ours)
        except BaseException:
            ours.close()
            self._low.take_back()
            raise

    def _look(self, coming: _Life) -> None:
        said = _received(coming.sock, len(HELLO) + 1)
        late = time.monotonic() - coming.began_s > STARTED_WITHIN_S
        if said is None and not late and not coming.is_gone():
            return
        self._coming = None
        self._low.take_back()
        if said == HELLO:
            coming.sock.settimeout(ANSWER_WITHIN_S)
            self._life = coming
            self._tell(f"process {coming.pid} forks devices now")
            return
        self._end(coming)
        if said:
            self._failed("what is installed is another balloond than the one that runs")
        else:
            self._failed("it does not say that it is ready" if late else "it ended at once")

    def _failed(self, why: str) -> None:
        self._wait_s = max(1.0, self._wait_s)
        wait_s = self._wait_s
        self._put_off()
        self._warn(
            f"no process to fork devices from can be started: {why}; trying again in "
            f"{wait_s:.0f} s, and until then {_FORKS_ITSELF}"
        )

    def _fork_here(self, spec: DeviceSpec, fds: list[int], parent: int) -> int:
        """Forks a device that takes a request as the template would, and becomes it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.closing(ours), contextlib.closing(theirs):
            send_request(ours, spec, fds, parent, self._bpf)
            number = self._low.lend(theirs.fileno())
            try:
                pid = self._low.fork(lambda: _become_one(number, Program(self._bpf)))
                device = _Life(pid, ours)
                # Once it has a table of its own, which takes it some ms, the number is ours again.
                if device.wait(ANSWER_WITHIN_S) and _received(ours, 1):
                    return pid
                self._end(device)
            finally:
                self._low.take_back()
                self.occupy()
        raise OSError(errno.EAGAIN, "a device that was forked does not answer")

    def close(self) -> None:
        """Ends the template; the devices live on."""
        for life in (self._life, self._coming):
            if life is not None:
                life.end()
        self._life = self._coming = None
        self._low.close()


def _become_one(fd: int, program: Program) -> NoReturn:
    """The life of a device that is forked from the controller."""
    gc.enable()
    sock = socket.socket(fileno=fd)
    request = receive_request(sock, bytearray(MAX_DATAGRAM_BYTES))
    if request is None or len(request.fds) != request.sent:
        os._exit(1)
    jail.reset_signals()
    libc.forget_environment()
    sock.send(b"+")
    cpython.run_without_new_arenas(lambda: become(request, program))


def start_template() -> Template:
    """Forks the template: to be called before anything is imported that no device needs."""
    parent = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.closing(theirs):
        try:
            life = _Life(fork(lambda: live(theirs, parent)), ours)
        except OSError:
            ours.close()
            return Template(None)
    ours.settimeout(ANSWER_WITHIN_S)
    return Template(life)
