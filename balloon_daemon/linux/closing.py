"""Closing what others opened: close(2) of it may take for ever, so a child does it.

The last close of a TCP socket may linger for as long as its owner likes (socket(7), SO_LINGER),
any close of a file of FUSE asks whoever serves it (FUSE_FLUSH), the last one of a memory file
frees it, a second for some 5 GiB, and that of a Unix socket does all of this to the descriptors
that wait in its queue. A process that serves others must not do any of it itself. A child that
shares our descriptors (clone(2), CLONE_FILES) can: a number is free as soon as its close has
begun, and only the child waits for the close's end.
"""

import contextlib
import fcntl
import os
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from balloon_daemon.linux.closing_child import ClosingChild
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import socket_domain
from balloon_daemon.linux.memory import F_GET_SEALS

MAX_HANGING = 16
"""Children at a time that close for one user what may never end. An enemy can make one hang with
each of its connections; what it sends beyond that waits: sockets without a number of ours (see
``_park``), all else with one, and ``ForeignFds.waiting`` says how many."""

MAX_HANGING_IN_ALL = 128
"""Of all users: each child costs a process."""

PARKED_TOGETHER = 250
"""SCM_MAX_FD of the kernel is 253."""

MAX_TABLE = 65_536
"""Descriptors for which a table is made, half a MiB; the shipped unit allows as many."""

FIRST_LOOK_S = 0.01
LAST_LOOK_S = 1.0
"""When to look for the end of a child: soon at first, then less and less often."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds."""


class FdKind(Enum):
    """What a descriptor is of, as far as it matters; the words are for the log."""

    EVENTFD = "eventfd"
    UNIX_SOCKET = "Unix socket"
    INET_SOCKET = "Internet socket"
    MEMORY = "memory file"
    PIPE = "pipe"
    OTHER = "other"


def fd_kind(fd: int) -> FdKind:
    """Tells what a descriptor is of without asking its file, which may never answer.

    Its name (proc(5), /proc/PID/fd) is the kernel's own, and no file of a file system can have one
    without a slash.
    """
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return FdKind.OTHER
    if name == "anon_inode:[eventfd]":
        return FdKind.EVENTFD
    if name.startswith("pipe:["):
        return FdKind.PIPE
    if name.startswith("socket:["):
        return _SOCKETS.get(socket_domain(fd), FdKind.OTHER)
    try:
        # Answered by shmem and hugetlbfs alone, and by the kernel itself.
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return FdKind.OTHER
    return FdKind.MEMORY


_SOCKETS: dict[int | None, FdKind] = {
    socket.AF_UNIX: FdKind.UNIX_SOCKET,
    socket.AF_INET: FdKind.INET_SOCKET,
    socket.AF_INET6: FdKind.INET_SOCKET,
}
_PARKED = (FdKind.UNIX_SOCKET, FdKind.INET_SOCKET, FdKind.EVENTFD, FdKind.PIPE)
"""Files of which a close that is not the last one waits for nobody: they have no flush operation.
The last close of any file may wait, an eventfd's too: for each epoll instance that watches it. Its
lock is held while events are written to memory that its process may keep from being there."""

MAX_DEBT = 1024
"""Descriptors of one user that wait for their close. Each may hold some 200 KiB of the kernel's
memory (a socket whose queue is full), beyond what that user may have itself."""


class FdAccount:
    """The descriptors that one user has sent, over all of its connections."""

    def __init__(self) -> None:
        self.held = 0
        """Those in use."""
        self.waiting = 0
        """Numbers of ours that wait for their close, at most."""
        self.children = 0
        """Children that close for this user now."""
        self.left: deque[tuple[list[int], ForeignFds | None]] = deque()
        """What no child closes yet, and whose it is. Numbers: as objects, what is left at our end
        would be closed by its finalizer after all."""
        self.lot: _Lot | None = None
        """Takes what waits and needs no number meanwhile, until a child closes it."""
        self.lots: dict[int, int] = {}
        """How many lie in each lot that no child closes yet, by its number."""
        self.parked = 0
        """How many lie in all lots."""

    @property
    def debt(self) -> int:
        """Descriptors that wait for their close, with numbers and without."""
        return self.waiting + self.parked


class Closer:
    """Closes what others opened, in children.

    Args:
        later: of the event loop.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        _make_table()
        self._working: list[_Work] = []
        self._idle: list[ClosingChild] = []
        self._used = False
        """Whether an idle child was given something since the last look."""
        self._debtors: set[FdAccount] = set()
        """Those with something that no child closes yet."""
        self._look_s = 0.0

    def close(self, fds: Sequence[int], owner: "ForeignFds | None" = None) -> None:
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
        account = owner.account
        self._free_children()
        if self._may_start(account) and self._start([*memory, *others], account, owner):
            memory = others = []
        elif memory and self._start(memory, account, owner):
            # Freed it must be, and frees in the end: it waits for no other child's.
            memory = []
        if left := [*memory, *_park(others, kinds, account)]:
            owner.wait(len(left))
            account.left.append((left, owner))
        if account.left:
            self._debtors.add(account)
        if self._look_s == 0.0:
            self._look_s = FIRST_LOOK_S
            self._later(self._look_s, self._look)

    def _may_start(self, account: FdAccount) -> bool:
        return account.children < MAX_HANGING and len(self._working) < MAX_HANGING_IN_ALL

    def _start(
        self, fds: list[int], account: FdAccount, owner: "ForeignFds | None", parked: int = 0
    ) -> bool:
        try:
            child = self._close_by_idle(fds) or ClosingChild(fds)
        except OSError:
            return False  # No process to be had: rather later than here.
        self._working.append(_Work(child, account, owner, len(fds), parked))
        account.children += 1
        _charge(account, owner, len(fds))
        return True

    def _close_by_idle(self, fds: list[int]) -> ClosingChild | None:
        while self._idle:
            child = self._idle.pop()
            # Done with nothing to do: somebody has killed it.
            if not child.is_done():
                try:
                    child.close(fds)
                except OSError:
                    # Its order found no memory; a new child has its first one without.
                    child.end()
                    continue
                self._used = True
                return child
        return None

    def _free_children(self) -> bool:
        """Sees who has done its work; False where nobody has."""
        done = [work for work in self._working if work.child.is_done()]
        for work in done:
            self._working.remove(work)
            work.account.children -= 1
            work.account.parked -= work.parked
            _charge(work.account, work.owner, -work.numbers)
            if work.child.lives_on:
                self._idle.append(work.child)
        return bool(done)

    def _look(self) -> None:
        """Has what waits closed; comes again while there is anything left to do."""
        hangs = not self._free_children()
        for account in list(self._debtors):
            while account.left and self._may_start(account):
                fds, owner = account.left[0]
                if owner is None and account.lot is not None:
                    # The newest lot is the last to come: nothing is put there any more.
                    account.lot.close()
                    account.lot = None
                parked = account.lots.get(fds[0], 0)
                if not self._start(fds, account, owner, parked):
                    break
                account.lots.pop(fds[0], None)
                _charge(account, owner, -len(fds))
                account.left.popleft()
            if not account.left:
                self._debtors.discard(account)
        if self._look_s >= LAST_LOOK_S and not self._used:
            # A child that rests keeps an old copy of each page that its parent writes.
            for child in self._idle:
                child.end()
            self._idle = []
        self._used = False
        if self._working or self._debtors or self._idle:
            self._look_s = min(2 * self._look_s, LAST_LOOK_S) if hangs else FIRST_LOOK_S
            self._later(self._look_s, self._look)
        else:
            self._look_s = 0.0


@dataclass(frozen=True, slots=True)
class _Work:
    """What a child has to close: whose it is, how many numbers, and how many lie behind them."""

    child: ClosingChild
    account: FdAccount
    owner: "ForeignFds | None"
    numbers: int
    parked: int


def _make_table() -> None:
    """Has the kernel make our table of descriptors as large as it can become, at once.

    A table that a child shares grows, by doubling, only once no processor looks at the old one any
    more (synchronize_rcu() in fs/file.c): seen to take 12 to 150 ms, in the middle of a recvmsg(2)
    that brought descriptors. It takes 8 bytes for each of them.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):  # Somebody has one open there: it is large already.
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(limit, MAX_TABLE) - 1))


def _charge(account: FdAccount, owner: "ForeignFds | None", numbers: int) -> None:
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


def _park(fds: Sequence[int], kinds: Mapping[int, FdKind], account: FdAccount) -> list[int]:
    """Puts sockets that wait for their close where they need no number; returns all else."""
    left: list[int] = []
    sockets: list[int] = []
    for fd in fds:
        (sockets if kinds[fd] in _PARKED else left).append(fd)
    for start in range(0, len(sockets), PARKED_TOGETHER):
        together = sockets[start : start + PARKED_TOGETHER]
        for _ in range(2):
            try:
                if account.lot is None:
                    account.lot = _Lot()
                    account.left.append(([account.lot.outlet], None))
                    account.lots[account.lot.outlet] = 0
                    account.waiting += 1
                account.lot.put(together)
                account.parked += len(together)
                account.lots[account.lot.outlet] += len(together)
            except OSError:
                # It is full, most likely.
                if account.lot is not None:
                    account.lot.close()
                    account.lot = None
            else:
                break
        else:
            left += together
    return left


class ForeignFds:
    """The descriptors that one peer sent: they are let go of together.

    Args:
        closer: closes them.
    """

    def __init__(self, closer: Closer) -> None:
        self._closer = closer
        self.account = FdAccount()
        self._dropped: list[int] = []
        self._here = False
        self.held = 0
        """Descriptors that are in use."""
        self.waiting = 0
        """Numbers that wait for their close, at most."""

    def charge_to(self, account: FdAccount) -> None:
        """Counts all that it has, and will have, as this user's."""
        self.account.held -= self.held
        self.account.waiting -= self.waiting
        account.held += self.held
        account.waiting += self.waiting
        self.account = account

    def own(self, fd: int) -> OwnedFd:
        """An owner of one of them."""
        self.hold(1)
        return _ForeignFd(fd, self)

    def hold(self, change: int) -> None:
        """So many more are in use."""
        self.held += change
        self.account.held += change

    def wait(self, change: int) -> None:
        """So many more wait for their close."""
        self.waiting += change
        self.account.waiting += change

    def drop(self, fd: int) -> None:
        """Has one closed with the next ``let_go``."""
        if self._here:
            os.close(fd)
            return
        self._dropped.append(fd)
        self.wait(1)

    @contextlib.contextmanager
    def closed_here(self) -> Iterator[None]:
        """Has what is dropped meanwhile closed at once, in this very process.

        Only for what a store has too, and devices are forked with: no close of it is the last one,
        and of such files no other close waits (see ``_PARKED``).
        """
        self._here = True
        try:
            yield
        finally:
            self._here = False

    def let_go(self) -> None:
        """Has everything closed that its owners have closed since the last time."""
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self.wait(-len(dropped))
            self._closer.close(dropped, self)


class _ForeignFd(OwnedFd):
    """A descriptor that a peer sent."""

    __slots__ = ("_peer",)

    def __init__(self, fd: int, peer: ForeignFds) -> None:
        super().__init__(fd)
        self._peer = peer

    def close(self) -> None:
        if self._fd >= 0:
            self._peer.hold(-1)
            self._peer.drop(self.detach())

    def duplicate(self) -> OwnedFd:
        return _ForeignCopy(os.dup(self._fd), self._peer)


class _ForeignCopy(OwnedFd):
    """A copy of ours of such a descriptor; by the time that it is closed it may be the last."""

    __slots__ = ("_peer",)

    def __init__(self, fd: int, peer: ForeignFds) -> None:
        super().__init__(fd)
        self._peer = peer

    def close(self) -> None:
        if self._fd >= 0:
            self._peer.drop(self.detach())
