"""A child process that carries out orders which may wait for ever, and answers in parts.

The child has a descriptor table of its own: when it is killed, the kernel closes what it had
opened, and while it waits it keeps no connection of the controller's open.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.figures import forget_kept, lockable
from balloon_daemon.named_tuple import NamedTuple

NAME = "balloond-looks"
"""The process's name in ``ps`` and ``top``."""

MAX_PACKET_BYTES = 160 * 1024
"""The longest order or part of an answer; the kernel takes 200 KiB (net.core.wmem_default)."""

MOST_FILES = 4
"""The most open files that come with one part of an answer."""

_DONE = (0, "")
_FD = struct.Struct("i")

Answers = Callable[[Sequence[object], int, Callable[[int], None]], Iterator[object]]
"""Carries out an order. Takes the order, in JSON's types, a descriptor that came with it, or -1,
and a function to call with a user for whom a lookup may wait from then on. Yields the parts of the
answer, each a value in JSON's types or a ``Passed``, and may raise OSError and ValueError."""


class Passed(NamedTuple):
    """A part of an answer that comes with files that the child has opened.

    Attributes:
        value: the part, in JSON's types.
        files: the files, fewer than were sent where the receiver has no descriptors left.
    """

    value: object
    files: Sequence[OwnedFd]


class AskedChild:
    """A child that carries out one order at a time; it takes the first one after it has sent its
    first message.

    Args:
        answers: carries out an order, in the child.
        low: forks the child, which inherits no descriptor that came from a VMM; must fork no other
            child before ``began`` or ``end`` was called.

    Raises:
        OSError: the kernel allows no process or no descriptor.
    """

    def __init__(self, answers: Answers, low: LowNumbers) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours = ours
        self._low: LowNumbers | None = low
        parent = os.getpid()
        ours.setblocking(False)
        try:
            with theirs:
                fd = low.duplicate(theirs.fileno())
                self._pid = low.fork(lambda: _serve(fd, parent, answers))
        except OSError:
            ours.close()
            low.close_duplicate()
            raise

    def fileno(self) -> int:
        """A descriptor that is readable when an answer is there or the child has ended."""
        return self._ours.fileno()

    def began(self) -> None:
        """Closes this process's copy of the child's end of the socket.

        To be called once the child has sent its first message: before that it may still share this
        process's descriptor table, and this close would close the child's end too.
        """
        if self._low is not None:
            self._low.close_duplicate()
            self._low = None

    def ask(self, order: Sequence[object], fd: int = -1) -> None:
        """Gives an order; the last one must have been answered.

        Raises:
            OSError: the child has ended, or the order is too long.
        """
        fds = [fd] if fd >= 0 else []
        socket.send_fds(self._ours, [json.dumps(order).encode()], fds, socket.MSG_NOSIGNAL)

    def part(self) -> object:
        """The next part of an answer: ``[value]``, or a ``Passed``, or the number of a user for
        whom the child may wait from then on, or, as the last part, ``[errno, why, seconds]`` with
        the processor time that the order took (errno 0: it was carried out). A child's first
        message, before any order, is such a last part.

        Raises:
            BlockingIOError: no part has come yet.
            OSError: the child has ended.
        """
        # Call recvmsg() itself, for MSG_CMSG_CLOEXEC: socket.recv_fds() ignores its ``flags``.
        packet, ancillary, *_ = self._ours.recvmsg(
            MAX_PACKET_BYTES, socket.CMSG_LEN(MOST_FILES * _FD.size), socket.MSG_CMSG_CLOEXEC
        )
        # These are files in /proc that the child has opened. Any user who may read them may put
        # many locks (fcntl(2)) on them, and close(2) looks at all locks of its file: ``lockable``
        # leaves slow closes to another process.
        files = [lockable(fd) for *_, data in ancillary for (fd,) in _FD.iter_unpack(data)]
        if not packet:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        part: object = json.loads(packet)
        match part:
            case {"passed": value}:
                return Passed(value, files)
        return part

    def end(self) -> None:
        """Kills the child; ``is_gone`` reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._ours.close()
        self.began()

    def is_gone(self) -> bool:
        """Reaps the child; False: it has not ended yet, because a lookup in the kernel still
        waits."""
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == self._pid
        except ChildProcessError:
            return True


def _serve(fd: int, parent: int, answers: Answers) -> NoReturn:
    """Runs in the child: carries out orders until the controller is gone."""
    try:
        jail.die_with(parent, NAME)
        # Close all inherited descriptors but that of the orders: a copy of a VMM's connection
        # would keep the connection open while this child waits.
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        forget_kept()
        # SCHED_BATCH, as in ``closing_child``: a child that an order wakes does not preempt the
        # controller.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        orders = socket.socket(fileno=fd)

        def say(part: object) -> None:
            orders.send(json.dumps(part).encode())

        def answer(value: object) -> None:
            if not isinstance(value, Passed):
                say([value])
                return
            fds = [file.fileno() for file in value.files]
            socket.send_fds(orders, [json.dumps({"passed": value.value}).encode()], fds)
            for file in value.files:
                file.close()

        say([*_DONE, 0.0])
        while True:
            packet, fds, *_ = socket.recv_fds(orders, MAX_PACKET_BYTES, 1)
            if not packet:
                break
            end, began_s = _DONE, time.thread_time()
            try:
                for value in answers(json.loads(packet), fds[0] if fds else -1, say):
                    answer(value)
            except OSError as err:
                end = err.errno or errno.EIO, err.strerror or str(err)
            except ValueError as err:
                end = errno.EINVAL, str(err)
            finally:
                for each in fds:
                    os.close(each)
            # Ask for the parent-death signal again: Linux clears it when setfsuid(2) changes as
            # whom a process opens files, and what this child was asked for may have called that.
            jail.end_with(parent)
            say([*end, time.thread_time() - began_s])
    finally:
        os._exit(0)
