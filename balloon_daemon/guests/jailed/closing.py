"""Closing what others opened: close(2) of it may take for ever, so a child does it.

The last close of a TCP socket may linger for as long as its owner likes (socket(7), SO_LINGER),
any close of a file of FUSE asks whoever serves it (FUSE_FLUSH), the last one of a memory file
frees it, a second for some 5 GiB, and that of a Unix socket does all of this to the descriptors
that wait in its queue. A process that serves others must not do any of it itself. A child that
shares our descriptors (clone(2), CLONE_FILES) can: a number is free as soon as its close has
begun, and only the child waits for the close's end.
"""

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balloon_daemon.guests.jailed.closing_child import ClosingChild
from balloon_daemon.linux.fd_kind import FdKind, fd_kind
from balloon_daemon.vhost_user.foreign_fds import FdAccount, ForeignFds

MAX_HANGING = 16
"""Children at a time that close for one user what may never end. An enemy can make one hang with
each of its connections; what it sends beyond that waits: sockets without a number of ours (see
``_Queue.park``), all else with one, and ``ForeignFds.waiting`` says how many."""

MAX_HANGING_IN_ALL = 128
"""Of all users: each child costs a process."""

PARKED_TOGETHER = 250
"""SCM_MAX_FD of the kernel is 253."""

MAX_TABLE = 65_536
"""Descriptors for which a table is made, half a MiB; the shipped unit allows as many."""

IDLE_S = 1.0
"""A child that is done is kept for more: a fork costs 1 to 2 ms. It is ended where nothing came
for so long, as it keeps an old copy of each page that its parent writes."""

FIRST_RETRY_S, LAST_RETRY_S = 0.01, 1.0
"""Where no process is to be had: soon at first, then less and less often."""

BLIND_LOOK_S = 0.1
"""When to look for the end of a child for which there was no descriptor to be told by."""

_PARKED = (FdKind.UNIX_SOCKET, FdKind.INET_SOCKET, FdKind.EVENTFD, FdKind.PIPE)
"""Files of which a close that is not the last one waits for nobody: they have no flush operation.
The last close of any file may wait, an eventfd's too: for each epoll instance that watches it. Its
lock is held while events are written to memory that its process may keep from being there."""


class Closer:
    """Closes what others opened, in children. A ``Closes``.

    Args:
        loop: tells when a child is done, or has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        _make_table()
        self._working: dict[ClosingChild, _Work] = {}
        self._idle: list[ClosingChild] = []
        self._idle_was_used = False
        """Since the last look at those that are idle."""
        self._idle_look: asyncio.TimerHandle | None = None
        self._queues: dict[FdAccount, _Queue] = {}
        """Of those for whom a child closes, or something waits."""
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = FIRST_RETRY_S

    def close(self, fds: Sequence[int], owner: ForeignFds | None = None) -> None:
        """Closes one peer's descriptors, soon; returns at once.

        One child for all of them, memory first: should one hang, it holds up none but that peer's.

        Args:
            fds: the descriptors.
            owner: the peer who sent them; None: another one.
        """
        if not fds:
            return
        kinds = {fd: fd_kind(fd) for fd in fds}
        memory = [fd for fd, kind in kinds.items() if kind is FdKind.MEMORY]
        others = [fd for fd, kind in kinds.items() if kind is not FdKind.MEMORY]
        owner = ForeignFds(self) if owner is None else owner
        queue = self._queues.setdefault(owner.account, _Queue(owner.account))
        if self._may_start(queue) and self._start(queue, [*memory, *others], owner):
            memory = others = []
        elif memory and self._start(queue, memory, owner):
            # Its last close frees it and ends by itself: it waits for no other child's end.
            memory = []
        if left := [*memory, *queue.park(others, kinds)]:
            owner.wait(len(left))
            queue.left.append((left, owner))

    def _may_start(self, queue: "_Queue") -> bool:
        return queue.children < MAX_HANGING and len(self._working) < MAX_HANGING_IN_ALL

    def _start(
        self, queue: "_Queue", fds: list[int], owner: ForeignFds | None, parked: int = 0
    ) -> bool:
        """Has a child close them; False where no process is to be had."""
        child = self._close_by_idle(fds)
        if child is None:
            try:
                child = ClosingChild(fds)
            except OSError:
                self._retry_later()
                return False
            self._watch(child)
        self._retry_s = FIRST_RETRY_S
        self._working[child] = _Work(queue, owner, len(fds), parked)
        queue.children += 1
        _charge(queue.account, owner, len(fds))
        return True

    def _close_by_idle(self, fds: list[int]) -> ClosingChild | None:
        if not self._idle:
            # One that is done by now has not been heard yet: to ask costs less than a fork.
            for child in [child for child in self._working if child.is_done()]:
                self._finish(child)
                self._loop.call_soon(self._go_on)
        while self._idle:
            child = self._idle.pop()
            try:
                child.close(fds)
            except OSError:
                # Somebody has killed it, or its order found no memory; a new child has its first
                # order without.
                self._end(child)
                continue
            self._idle_was_used = True
            return child
        return None

    # --- children -----------------------------------------------------------------------------

    def _watch(self, child: ClosingChild) -> None:
        for fd in child.fds():
            self._loop.add_reader(fd, self._told, child)
        if not child.fds():
            self._loop.call_later(BLIND_LOOK_S, self._look_blindly, child)

    def _look_blindly(self, child: ClosingChild) -> None:
        if child.is_done():
            self._done(child)
        else:
            self._loop.call_later(BLIND_LOOK_S, self._look_blindly, child)

    def _told(self, child: ClosingChild) -> None:
        if not child.is_done():
            return
        if child in self._working:
            self._done(child)
        elif not child.lives_on and child in self._idle:
            # Somebody has killed it.
            self._idle.remove(child)
            self._end(child)

    def _done(self, child: ClosingChild) -> None:
        self._finish(child)
        self._go_on()

    def _finish(self, child: ClosingChild) -> None:
        work = self._working.pop(child)
        work.queue.children -= 1
        work.queue.account.parked -= work.parked
        _charge(work.queue.account, work.owner, -work.numbers)
        if child.lives_on:
            self._idle.append(child)
            if self._idle_look is None:
                self._idle_look = self._loop.call_later(IDLE_S, self._end_idle)
        else:
            self._end(child)

    def _end(self, child: ClosingChild) -> None:
        for fd in child.fds():
            self._loop.remove_reader(fd)
        child.end()

    def _end_idle(self) -> None:
        self._idle_look = None
        if self._idle_was_used:
            self._idle_was_used = False
            self._idle_look = self._loop.call_later(IDLE_S, self._end_idle)
            return
        for child in self._idle:
            self._end(child)
        self._idle = []

    # --- what waits ---------------------------------------------------------------------------

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(self._retry_s, self._try_again)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _try_again(self) -> None:
        self._retry = None
        self._go_on()

    def _go_on(self) -> None:
        """Has what waits closed, as far as it may be."""
        for queue in list(self._queues.values()):
            while queue.left and self._may_start(queue):
                fds, owner = queue.take()
                if not self._start(queue, fds, owner, queue.lots.get(fds[0], 0)):
                    queue.left.appendleft((fds, owner))
                    break
                queue.lots.pop(fds[0], None)
                _charge(queue.account, owner, -len(fds))
            if not queue.children and not queue.left:
                del self._queues[queue.account]


@dataclass(frozen=True, slots=True)
class _Work:
    """What a child has to close: whose it is, how many numbers, and how many lie behind them."""

    queue: "_Queue"
    owner: ForeignFds | None
    numbers: int
    parked: int


class _Queue:
    """What one user's descriptors wait in for a child that closes them.

    Args:
        account: the user's.
    """

    def __init__(self, account: FdAccount) -> None:
        self.account = account
        self.children = 0
        """Children that close for this user now."""
        self.left: deque[tuple[list[int], ForeignFds | None]] = deque()
        """What no child closes yet, and whose it is; None: a lot. Numbers: as objects, what is
        left at our end would be closed by its finalizer after all."""
        self.lots: dict[int, int] = {}
        """How many lie in each lot that no child closes yet, by its number."""
        self._lot: _Lot | None = None
        """Takes what waits and needs no number meanwhile, until a child closes it."""

    def take(self) -> tuple[list[int], ForeignFds | None]:
        """What has waited longest."""
        fds, owner = self.left.popleft()
        if owner is None and self._lot is not None:
            # The newest lot is the last to come: nothing is put there any more.
            self._close_lot()
        return fds, owner

    def park(self, fds: Sequence[int], kinds: Mapping[int, FdKind]) -> list[int]:
        """Puts sockets that wait for their close where they need no number; returns all else."""
        left: list[int] = []
        sockets: list[int] = []
        for fd in fds:
            (sockets if kinds[fd] in _PARKED else left).append(fd)
        for start in range(0, len(sockets), PARKED_TOGETHER):
            together = sockets[start : start + PARKED_TOGETHER]
            # The present lot may be full: then a new one.
            if not self._put(together) and not self._put(together):
                left += together
        return left

    def _put(self, fds: list[int]) -> bool:
        try:
            if self._lot is None:
                self._lot = _Lot()
                self.left.append(([self._lot.outlet], None))
                self.lots[self._lot.outlet] = 0
                self.account.waiting += 1
            self._lot.put(fds)
        except OSError:
            self._close_lot()
            return False
        self.account.parked += len(fds)
        self.lots[self._lot.outlet] += len(fds)
        return True

    def _close_lot(self) -> None:
        if self._lot is not None:
            self._lot.close()
            self._lot = None


def _make_table() -> None:
    """Has the kernel make our table of descriptors as large as it can become, at once.

    A table that a child shares grows, by doubling, only once no processor looks at the old one any
    more (synchronize_rcu() in fs/file.c): seen to take 12 to 150 ms, in the middle of a recvmsg(2)
    that brought descriptors. It takes 8 bytes for each of them.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):  # Somebody has one open there: it is large already.
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(limit, MAX_TABLE) - 1))


def _charge(account: FdAccount, owner: ForeignFds | None, numbers: int) -> None:
    """So many more numbers wait for their close."""
    if owner is None:
        account.waiting += numbers
    else:
        owner.wait(numbers)


class _Lot:
    """Descriptors in the queue of a socket: there they wait for their close without a number.

    Only for what is in ``_PARKED``: each close of another file may wait, as that of a file of FUSE
    asks its server (FUSE_FLUSH).

    Raises:
        OSError: no descriptor left.
    """

    def __init__(self) -> None:
        outlet, self._inlet = socket.socketpair()
        # Not MSG_DONTWAIT: Python's send_fds() takes flags and passes none on.
        self._inlet.setblocking(False)
        self.outlet = outlet.detach()
        """Whoever closes it closes all that is in here."""

    def put(self, fds: list[int]) -> None:
        """Takes sockets in, whose numbers are free then.

        Raises:
            OSError: there is no room, or their user has too many under way (RLIMIT_NOFILE).
        """
        socket.send_fds(self._inlet, [b"."], fds)
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        """Takes no more in."""
        self._inlet.close()
