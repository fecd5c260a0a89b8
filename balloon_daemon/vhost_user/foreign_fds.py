"""The descriptors that front-ends send: counted for their user, and closed by another process.

close(2) of a front-end's descriptor may take for ever, so the controller closes none itself
(``guests/jailed/closing.py``).
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from balloon_daemon.linux.events import OwnedFd

MAX_DEBT = 1024
"""The most descriptors of one user that may wait for their close. Each may occupy some 200 KiB of
the kernel's memory (a socket whose queue is full), beyond the memory that the user's own limits
allow."""


CLOSED_HERE_S, REGAINED = 0.1, 1 / 100
"""How many seconds this process itself may spend on closing one user's descriptors, before it
leaves them to a child; and how much of that allowance, in seconds, comes back in each second. All
descriptors that a user may send take far less, at some 2 µs each."""


class FdAccount:
    """The descriptors that one user has sent, over all of its connections."""

    def __init__(self) -> None:
        self.held = 0
        """Descriptors in use."""
        self.waiting = 0
        """How many of this process's descriptor numbers, at most, wait for their close."""
        self.parked = 0
        """Descriptors that wait for their close in the queue of a socket (SCM_RIGHTS), and so
        occupy no number of this process."""
        self.closed_here_s, self._at_s = 0.0, 0.0
        """Seconds that this process itself has spent on closing descriptors (``close_here``), less
        what has come back of them, and when that number was last computed."""

    @property
    def debt(self) -> int:
        """Descriptors that wait for their close, with numbers and without."""
        return self.waiting + self.parked

    @property
    def closes_here(self) -> bool:
        """Whether ``close_here`` closes a descriptor now."""
        now_s = time.monotonic()
        self.closed_here_s = max(0.0, self.closed_here_s - (now_s - self._at_s) * REGAINED)
        self._at_s = now_s
        return self.closed_here_s < CLOSED_HERE_S

    def close_here(self, fd: int) -> bool:
        """Closes a descriptor in this process; False: this user's closes have taken
        ``CLOSED_HERE_S``, and the descriptor stays open.

        Only for a descriptor whose close is not its file's last one, and whose file has no flush
        operation: the close then waits for nobody. But any close looks at all locks of its file,
        of which there may be millions (fcntl(2)).
        """
        if not self.closes_here:
            return False
        os.close(fd)
        self.closed_here_s += time.monotonic() - self._at_s
        return True


class Closes(Protocol):
    """Closes descriptors that front-ends sent."""

    def close(self, fds: Sequence[int], owner: "ForeignFds | None" = None) -> None:
        """Closes one peer's descriptors soon; returns at once.

        Args:
            fds: the descriptors, which the caller owns no more.
            owner: the peer that sent them; None: they are counted as a new peer's.
        """


class ForeignFds:
    """The descriptors that one peer sent; dropped ones are closed together.

    Args:
        closer: closes them.
    """

    def __init__(self, closer: Closes) -> None:
        self._closer = closer
        self.account = FdAccount()
        self._dropped: list[int] = []
        self._here = False
        self.held = 0
        """Descriptors that are in use."""
        self.waiting = 0
        """How many descriptor numbers of this peer's, at most, wait for their close."""

    def charge_to(self, account: FdAccount) -> None:
        """Counts all descriptors of this peer, now and later, as that user's."""
        self.account.held -= self.held
        self.account.waiting -= self.waiting
        account.held += self.held
        account.waiting += self.waiting
        self.account = account

    def own(self, fd: int) -> OwnedFd:
        """Makes an object that owns one of the peer's descriptors."""
        self.hold(1)
        return _ForeignFd(fd, self)

    def hold(self, change: int) -> None:
        """Adds ``change`` to the number of descriptors in use."""
        self.held += change
        self.account.held += change

    def wait(self, change: int) -> None:
        """Adds ``change`` to the count of descriptor numbers that wait for their close."""
        self.waiting += change
        self.account.waiting += change

    def drop(self, fd: int) -> None:
        """Has a descriptor closed: at once inside ``closed_here``, else by ``close_dropped``."""
        if self._here and self.account.close_here(fd):
            return
        self._dropped.append(fd)
        self.wait(1)

    @contextlib.contextmanager
    def closed_here(self) -> Iterator[None]:
        """Until the end of the block, this process itself closes dropped descriptors, at once.

        Only for descriptors whose files a store holds too: then no close is a file's last one. And
        only for what a device is forked with, the files of guest memory, eventfds, sockets and a
        pipe: of these only the last close can block (``_PARKED`` in ``guests/jailed/closing.py``
        says why). What ``close_here`` leaves open is for ``close_dropped``.
        """
        self._here = True
        try:
            yield
        finally:
            self._here = False

    def close_dropped(self) -> None:
        """Passes to the closer all descriptors that were dropped since the last call."""
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self.wait(-len(dropped))
            self._closer.close(dropped, self)


class _ForeignFd(OwnedFd):
    """A descriptor that a peer sent; ``close`` passes it to ``ForeignFds.drop``."""

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
    """A duplicate of a peer's descriptor. ``close`` passes it to ``ForeignFds.drop`` too, as its
    close may be the file's last; it is not counted as held."""

    __slots__ = ("_peer",)

    def __init__(self, fd: int, peer: ForeignFds) -> None:
        super().__init__(fd)
        self._peer = peer

    def close(self) -> None:
        if self._fd >= 0:
            self._peer.drop(self.detach())
