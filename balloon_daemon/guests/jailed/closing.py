"""Closes descriptors that VMMs sent, in child processes, because close(2) may block for ever.

The last close of a TCP socket may linger for any time (socket(7), SO_LINGER), any close of a file
of FUSE waits for its server (FUSE_FLUSH), the last close of a memory file frees the memory, which
takes a second for some 5 GiB, and the last close of a Unix socket also closes the descriptors in
its queue. The controller serves all VMs and must not block there. So child processes that share
its descriptor table (clone(2), CLONE_FILES) call close(2): a descriptor's number becomes free as
soon as the close has begun, and only the child waits for the end of the close.
"""

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
from collections import deque
from collections.abc import Sequence

from balloon_daemon.linux.closing_child import ClosingChild
from balloon_daemon.linux.fd_kind import FdKind, fd_kind, is_memory
from balloon_daemon.linux.figures import lockable
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.vhost_user.foreign_fds import FdAccount, ForeignFds

MAX_HANGING = 16
"""How many children may close descriptors of one user at a time; a hostile user can make a child
hang with each connection. Further descriptors of that user wait for a child: those of the
``_PARKED`` kinds in a socket's queue, without a number of this process (``_Queue.park``); all
others keep their numbers, which ``ForeignFds.waiting`` counts."""

MAX_HANGING_IN_ALL = 128
"""How many children may close descriptors at a time, for all users together: each child is a
process."""

PARKED_TOGETHER = 250
"""Descriptors in one message; the kernel's limit, SCM_MAX_FD, is 253."""

MAX_TABLE = 65_536
"""For how many descriptors ``_make_table`` has the kernel allocate the table, which then takes
half a MiB. The shipped systemd unit allows as many (LimitNOFILE)."""

IDLE_S = 3.0
"""How long idle children are kept if none of them is used. A fork stops the event loop for 2 to 4
ms, and a user may have 16 closes hang every few seconds. But while a child lives, each page that
the controller has written since the fork exists twice (copy-on-write)."""

FIRST_RETRY_S, LAST_RETRY_S = 0.01, 1.0
"""Seconds until the next try after a failed fork: the first number, doubled with each further
failure up to the second."""

BLIND_LOOK_S = 0.1
"""How often to check whether a child has ended, if there was no descriptor to watch the child
by."""

_PARKED = (FdKind.UNIX_SOCKET, FdKind.INET_SOCKET, FdKind.EVENTFD, FdKind.PIPE)
"""Kinds of files for which only the last close can block, because they have no flush operation.
The last close of any file may block, even an eventfd's: it takes the lock of each epoll instance
that watches the eventfd. epoll_wait(2) holds that lock while it writes events to user memory, and
the instance's owner may delay the page fault of that write for ever."""


class Closer:
    """Closes descriptors that VMMs sent, in child processes. Implements ``Closes``.

    Args:
        loop: watches the children.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        _make_table()
        self._working: dict[ClosingChild, _Work] = {}
        self._idle: list[ClosingChild] = []
        self._ending = set[ClosingChild]()
        """Children that were killed and are not reaped yet."""
        self._idle_was_used = False
        """Whether an idle child was used since the last ``_end_idle``."""
        self._idle_look: asyncio.TimerHandle | None = None
        self._queues: dict[FdAccount, _Queue] = {}
        """By user: queues with descriptors that a child closes now, or that wait for a child."""
        self._retry: asyncio.TimerHandle | None = None
        self._retry_s = FIRST_RETRY_S

    def close(self, fds: Sequence[int], owner: ForeignFds | None = None) -> None:
        """Closes one peer's descriptors soon; returns at once.

        One child closes all of them, memory first: if one close hangs, it delays that peer's
        descriptors only.

        Args:
            fds: the descriptors.
            owner: the peer that sent them; None: they count as those of a new peer.
        """
        if not fds:
            return
        memory, others = list[int](), list[int]()
        for fd in fds:
            (memory if is_memory(fd) else others).append(fd)
        owner = ForeignFds(self) if owner is None else owner
        queue = self._queues.setdefault(owner.account, _Queue(owner.account))
        if self._may_start(queue) and self._start(queue, [*memory, *others], owner):
            memory = others = []
        elif memory and self._start(queue, memory, owner):
            # ``_may_start`` limits the children, because a close may hang. Memory files get a
            # child beyond that limit: the last close of a memory file always ends, so this child
            # cannot hang.
            memory = []
        if left := [*memory, *queue.park(others)]:
            owner.wait(len(left))
            queue.left.append((left, owner))

    def _may_start(self, queue: "_Queue") -> bool:
        return queue.children < MAX_HANGING and len(self._working) < MAX_HANGING_IN_ALL

    def _start(
        self, queue: "_Queue", fds: list[int], owner: ForeignFds | None, parked: int = 0
    ) -> bool:
        """Lets a child close ``fds``; False where the kernel allows no process."""
        child = self._close_by_idle(fds)
        if child is None:
            try:
                child = ClosingChild(fds, lockable)
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
            # Before forking a child, ask the working children whether they are done: one may be
            # done although its message has not been read yet, and asking costs less than a fork.
            for child in [child for child in self._working if child.is_done()]:
                self._finish(child)
                self._loop.call_soon(self._go_on)
        while self._idle:
            child = self._idle.pop()
            try:
                child.close(fds)
            except OSError:
                # The order could not be sent: the child was killed, or the kernel had no memory
                # for the message. Try the next idle child; if there is none, a child is forked,
                # which gets ``fds`` without a message.
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
        if child not in self._working:
            return  # ``_close_by_idle`` has found that the child is done.
        if child.is_done():
            self._done(child)
        else:
            self._loop.call_later(BLIND_LOOK_S, self._look_blindly, child)

    def _told(self, child: ClosingChild) -> None:
        if not child.is_done():
            return
        if child in self._working:
            self._done(child)
        elif not child.takes_more and child in self._idle:
            # This idle child has ended, which happens only if somebody has killed it.
            self._idle.remove(child)
            self._end(child)
        elif child in self._ending:
            self._ending.remove(child)
            self._end(child)

    def _done(self, child: ClosingChild) -> None:
        self._finish(child)
        self._go_on()

    def _finish(self, child: ClosingChild) -> None:
        work = self._working.pop(child)
        work.queue.children -= 1
        work.queue.account.parked -= work.parked
        _charge(work.queue.account, work.owner, -work.numbers)
        if child.takes_more:
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
        # Do not wait here for the killed children (``_told`` reaps them): each ends only when the
        # scheduler runs it, which took 24 ms for 16 children.
        idle, self._idle = self._idle, []
        for child in idle:
            if child.kill():
                self._ending.add(child)
            else:
                self._end(child)

    # --- waiting descriptors ------------------------------------------------------------------

    def _retry_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(self._retry_s, self._try_again)
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)

    def _try_again(self) -> None:
        self._retry = None
        self._go_on()

    def _go_on(self) -> None:
        """Starts children for waiting descriptors, as far as the limits allow."""
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


class _Work(NamedTuple):
    """The descriptors that a child closes.

    Attributes:
        queue: the queue of their user.
        owner: the peer that sent them; None: they are a socket with parked descriptors (``_Lot``).
        numbers: how many numbers of this process they occupied.
        parked: how many parked descriptors wait in that socket's queue.
    """

    queue: "_Queue"
    owner: ForeignFds | None
    numbers: int
    parked: int


class _Queue:
    """One user's descriptors that wait for a child.

    Args:
        account: the user's account.
    """

    def __init__(self, account: FdAccount) -> None:
        self.account = account
        self.children = 0
        """Children that close descriptors of this user now."""
        self.left: deque[tuple[list[int], ForeignFds | None]] = deque()
        """Descriptors that no child closes yet, with the peer that sent them; None in place of the
        peer: the descriptor is a socket in whose queue parked ones wait (``_Lot.outlet``). They
        are kept as integers: the finalizers of objects would close their descriptors in this
        process when it ends."""
        self.lots: dict[int, int] = {}
        """How many parked descriptors wait in the queue of each such socket, by the socket's
        number."""
        self._lot: _Lot | None = None
        """The lot into which ``park`` puts descriptors, until a child is to close the lot."""

    def take(self) -> tuple[list[int], ForeignFds | None]:
        """Removes and returns the descriptors that have waited longest, and their peer."""
        fds, owner = self.left.popleft()
        if owner is None and self._lot is not None:
            # ``owner`` None: ``fds`` is a lot, a socket in whose queue descriptors wait. It may be
            # the lot that ``park`` fills now. Fill that lot no more, because a child closes it
            # next.
            self._close_lot()
        return fds, owner

    def park(self, fds: Sequence[int]) -> list[int]:
        """Puts descriptors of the ``_PARKED`` kinds into a lot (the queue of a socket, ``_Lot``),
        without numbers; returns the others, which keep their numbers.

        This process then closes the numbers, which takes long where a file has many locks
        (fcntl(2)). Once such closes have used up the user's allowance (``FdAccount.close_here``),
        nothing is parked, and all descriptors keep their numbers.
        """
        if not self.account.closes_here:
            return list(fds)
        left: list[int] = []
        sockets: list[int] = []
        for fd in fds:
            (sockets if fd_kind(fd) in _PARKED else left).append(fd)
        for start in range(0, len(sockets), PARKED_TOGETHER):
            together = sockets[start : start + PARKED_TOGETHER]
            # Try twice: a lot is a socket whose queue holds the parked descriptors, and the queue
            # may be full. Then the first ``_put`` fails and ends that lot; the second begins one.
            parked = self._put(together) or self._put(together)
            left += [fd for fd in together if not (parked and self.account.close_here(fd))]
        return left

    def _put(self, fds: list[int]) -> bool:
        """Puts descriptors into the lot, where they stay until a child closes the lot; their
        numbers stay open."""
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
    """Makes the kernel enlarge this process's descriptor table to its final size, at once.

    A table that a child shares grows, by doubling, only after no processor uses the old table any
    more (synchronize_rcu() in fs/file.c): 12 to 150 ms were seen, in the middle of a recvmsg(2)
    that brought descriptors. The table takes 8 bytes for each descriptor.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A duplicate with the highest allowed number makes the kernel enlarge the table of descriptors
    # up to that number. EMFILE: that number is in use already, so the table is as large as it can
    # be.
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(limit, MAX_TABLE) - 1))


def _charge(account: FdAccount, owner: ForeignFds | None, numbers: int) -> None:
    """Adds to the count of descriptor numbers that wait for their close: to the peer's count, or,
    for the sockets of ``_Lot``s, to the user's."""
    if owner is None:
        account.waiting += numbers
    else:
        owner.wait(numbers)


class _Lot:
    """Descriptors in the queue of a Unix socket, where they wait for their close without a number.

    Only for the kinds in ``_PARKED``: this process closes the numbers itself, and for other kinds
    of files even a close that is not the last may block: a file of FUSE asks its server
    (FUSE_FLUSH).

    Raises:
        OSError: no descriptor is free.
    """

    def __init__(self) -> None:
        outlet, self._inlet = socket.socketpair()
        # Make the socket itself non-blocking: Python's send_fds() ignores its ``flags`` argument,
        # so that MSG_DONTWAIT would have no effect there.
        self._inlet.setblocking(False)
        self.outlet = outlet.detach()
        """Closing this descriptor closes all descriptors in the queue."""

    def put(self, fds: list[int]) -> None:
        """Puts descriptors into the queue, so that closing their numbers is not the last close.

        Raises:
            OSError: the queue is full, or the user has too many descriptors in flight
                (RLIMIT_NOFILE).
        """
        socket.send_fds(self._inlet, [b"."], fds)

    def close(self) -> None:
        """Closes the end through which descriptors come; those in the queue stay there."""
        self._inlet.close()
