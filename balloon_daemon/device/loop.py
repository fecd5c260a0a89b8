"""The device's loop: one epoll instance for the tube, the kicks and the back-end channel.

Runs in the jail, and never returns to the controller's code. The loop opens no file, forks no
process, and waits in epoll_wait(2) alone.
"""

import os
import select
from collections.abc import Callable
from time import monotonic
from typing import assert_never

from balloon_daemon.device.balloon import BalloonDevice, RunningQueue
from balloon_daemon.device.pace import Account
from balloon_daemon.errors import NO_HEAD, GuestError, Rule
from balloon_daemon.linux.events import drain_event
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.tube.connection import DeviceEnd
from balloon_daemon.tube.messages import (
    Command,
    Fault,
    FaultKind,
    Ready,
    Stats,
    Stopped,
    Target,
)
from balloon_daemon.units import PAGE_SIZE

REPORT_EVERY_S = 0.1
"""``Progress`` is sent to the controller at most once in this time, and once more when work ends.
"""

FAULTS_A_SECOND = 4
"""Faults of one device that are reported in a second; further faults are only counted."""


HOST_PAGES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE") // PAGE_SIZE
"""The host's memory, in 4 KiB pages, read when the template imports this module."""


class Reporter:
    """Sends faults to the controller at a limited rate; each sent fault has the number of those
    that were left out before it."""

    def __init__(self, tube: DeviceEnd, clock: Callable[[], float] = monotonic) -> None:
        self._tube = tube
        self._clock = clock
        self._limit = RateLimit(FAULTS_A_SECOND)
        self._unsent = 0

    def fault(self, kind: FaultKind, queue: int, code: int, head: int, detail: int) -> None:
        """Reports a fault, or counts it."""
        # A RING fault bypasses the rate limit. A ring breaks at most once in a device's life, and
        # its report must be sent even where other faults have used the limit up.
        left_out = 0 if kind is FaultKind.RING else self._limit.admit(self._clock())
        if left_out is None:
            return
        suppressed = left_out + self._unsent
        fault = Fault(kind, queue, code, head, detail & (1 << 64) - 1, suppressed)
        self._unsent = 0 if self._tube.send(fault) else suppressed + 1


class BackendChannel:
    """The back-end channel, which tells the VMM that the config space changed.

    Args:
        fd: the channel's socket, non-blocking; None where the VMM gave none.
        message: CONFIG_CHANGE_MSG, encoded.
        epoll: waits until the channel takes more bytes.
    """

    def __init__(self, fd: int | None, message: bytes, epoll: select.epoll) -> None:
        self.fd = fd
        self._message = message
        self._epoll = epoll
        self._unsent = b""
        if fd is not None:
            try:
                epoll.register(fd, 0)
            except OSError:
                # epoll(7) refuses regular files. A VMM that sent a regular file as the channel
                # reads no messages from it, so the device goes on without a channel.
                self.fd = None

    def announce(self) -> None:
        """Tells the VMM that the config space changed.

        If an earlier CONFIG_CHANGE_MSG is half sent, its rest suffices: the VMM reads the config
        space only after a whole message, and a second message begun inside the first would be
        garbage.
        """
        if not self._unsent:
            self._unsent = self._message
        self.send(0)

    def send(self, event: int) -> None:
        """Sends the unsent rest of the message.

        Args:
            event: epoll's event mask for the channel; 0: there was no event.
        """
        if self.fd is None:
            return
        if event & (select.EPOLLHUP | select.EPOLLERR):
            self._epoll.unregister(self.fd)
            self.fd = None
            return
        if self._unsent:
            try:
                sent = os.write(self.fd, self._unsent)
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = len(self._unsent)
            self._unsent = self._unsent[sent:]
        self._epoll.modify(self.fd, select.EPOLLOUT if self._unsent else 0)


class DeviceLoop:
    """Runs a BalloonDevice until the controller sends STOP or closes the tube.

    Args:
        device: serves the queues.
        tube: the device's end.
        reporter: sends faults to the controller.
        channel_fd: the back-end channel to the VMM, non-blocking; None where there is none.
        config_change: CONFIG_CHANGE_MSG, encoded.
        earned: how much of its CPU allowances the guest has at the beginning, from 0 to 1.
        clock: seconds.
    """

    def __init__(
        self,
        device: BalloonDevice,
        tube: DeviceEnd,
        reporter: Reporter,
        channel_fd: int | None,
        config_change: bytes,
        earned: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._device = device
        self._tube = tube
        self._reporter = reporter
        self._clock = clock
        self._epoll = select.epoll()
        self._epoll.register(tube.fileno(), select.EPOLLIN)
        self._queues: dict[int, RunningQueue] = {}
        for running in device.queues:
            try:
                self._epoll.register(running.kick_fd, select.EPOLLIN)
            except OSError:
                self._report_kick(running)
            else:
                self._queues[running.kick_fd] = running
        # Look at every ring once without a kick: an earlier device of this VM may have read the
        # kick from the eventfd and died before it served the ring.
        self._backlog = dict(self._queues)
        self._channel = BackendChannel(channel_fd, config_change, self._epoll)
        self._unreported = False
        self._report_at = 0.0
        # A VMM may claim any size for its guest's memory: tmpfs makes files of 16 TiB of holes.
        # Such a guest's targets would grant its device a core for hours. No host has more pages to
        # move at a time than it has memory.
        self._account = Account(min(device.memory_pages, HOST_PAGES), earned)
        self._resting: dict[int, float] = {}
        """Queues whose kicks are ignored for a while: kick descriptor -> the clock at the end."""

    def fds(self) -> list[int]:
        """Every descriptor that the loop needs; all others may be closed."""
        fds = [self._epoll.fileno(), self._tube.fileno(), *self._queues]
        fds += [q.call_fd for q in self._device.queues if q.call_fd is not None]
        return fds if self._channel.fd is None else [*fds, self._channel.fd]

    def run(self) -> None:
        """Serves until the controller sends STOP, then reports each ring's ``used.idx``."""
        self._tube.send(Ready())
        while self.turn():
            pass
        # Every chain that this device took from a ring is answered by now. Other chains may have
        # come into the rings since. They are left to the next device, which looks at every ring
        # without waiting for a kick.
        indices = tuple((q.index, q.ring.used_index) for q in self._device.queues)
        self._tube.send(self._device.statistics())
        self._tube.send(Stopped(indices))

    def turn(self) -> bool:
        """Waits for something to do and does it; False at the end."""
        if self._resting:
            self._end_rests()
        kicked = []
        for fd, event in self._epoll.poll(self._timeout()):
            if fd in self._queues:
                if self._take_kick(self._queues[fd], event):
                    kicked.append(fd)
            elif fd == self._channel.fd:
                self._channel.send(event)
            elif fd == self._tube.fileno() and not self._obey():
                return False
        if kicked:
            # Serve all queues, not only the kicked ones. Several vrings may share one eventfd for
            # their kicks, and reading it for one queue has reset it for the others.
            self._serve([q for fd, q in self._queues.items() if fd not in self._resting], kicked)
        elif self._backlog:
            self._serve(list(self._backlog.values()), kicked)
        self._report()
        return True

    def _serve(self, queues: list[RunningQueue], kicked: list[int]) -> None:
        self._backlog.clear()
        self._unreported |= bool(queues)
        began = self._clock()
        for running in queues:
            turn = self._device.process(running)
            fd, now = running.kick_fd, began
            if turn.broken is not None:
                err = turn.broken
                self._drop(running)
                self._reporter.fault(FaultKind.RING, running.index, err.rule, err.head, err.found)
            elif turn.more:
                self._backlog[fd] = running
            if turn.chains:
                now = self._clock()
            elif fd not in kicked:
                continue
            rest_s = self._account.charge(now, now - began, turn)
            began = now
            if rest_s and fd in self._queues:
                self._rest(fd, now + rest_s)

    def _rest(self, fd: int, until: float) -> None:
        """Ignores a queue for a while: its kicks stay unread in the eventfd."""
        self._resting[fd] = until
        self._backlog.pop(fd, None)
        self._epoll.modify(fd, 0)

    def _end_rests(self) -> None:
        now = self._clock()
        for fd in [fd for fd, until in self._resting.items() if now >= until]:
            del self._resting[fd]
            self._epoll.modify(fd, select.EPOLLIN)
            # The queue's rest is over: look at its ring without waiting for a kick. Its last turn
            # may have left chains there. And if it shares its eventfd with another queue, its kick
            # may have been read for that other queue.
            self._backlog[fd] = self._queues[fd]

    def _take_kick(self, running: RunningQueue, event: int) -> bool:
        if event & select.EPOLLIN and drain_event(running.kick_fd):
            return True
        # The kick descriptor is no eventfd, or its other end has hung up: drop it, because epoll
        # would report it as readable for ever.
        self._drop(running)
        self._report_kick(running)
        return False

    def _timeout(self) -> float:
        if self._backlog:
            return 0
        due = [self._report_at] if self._unreported else []
        due += self._resting.values()
        return max(0.0, min(due) - self._clock()) if due else -1

    def _drop(self, running: RunningQueue) -> None:
        """Serves this queue no more; the others go on."""
        self._epoll.unregister(running.kick_fd)
        del self._queues[running.kick_fd]
        self._backlog.pop(running.kick_fd, None)
        self._resting.pop(running.kick_fd, None)

    def _report_kick(self, running: RunningQueue) -> None:
        self._reporter.fault(FaultKind.RING, running.index, Rule.KICK, NO_HEAD, 0)

    def _obey(self) -> bool:
        orders = self._tube.receive()
        if orders is None:
            return False
        for order in orders:
            match order:
                case Target(target_bytes):
                    self._account.target(target_bytes // PAGE_SIZE)
                    # Tell the VMM to read the config space, where the controller has put the
                    # target before it sent this order.
                    self._channel.announce()
                case Command.REQUEST_STATS:
                    self._device.request_stats()
                case Command.STOP:
                    return False
                case unreachable:
                    assert_never(unreachable)
        return True

    def _report(self) -> None:
        now = self._clock()
        if self._unreported and now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            self._unreported = not self._tube.send(self._device.statistics())
            stats = self._device.take_stats()
            if stats is not None:
                self._tube.send(Stats(stats))


def report_guest_error(reporter: Reporter, running: RunningQueue, err: GuestError) -> None:
    """Reports a chain that was dropped, at a limited rate."""
    reporter.fault(FaultKind.CHAIN, running.index, err.rule, err.head, err.found)
