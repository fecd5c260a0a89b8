"""The descriptors that front-ends send: counted for their user, and closed by another process.

close(2) of a front-end's descriptor may take for ever, so the controller closes none itself
(``guests/jailed/closing.py``).
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

from balloon_daemon.linux.events import OwnedFd

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
        self.parked = 0
        """Descriptors that wait for their close without a number of ours."""

    @property
    def debt(self) -> int:
        """Descriptors that wait for their close, with numbers and without."""
        return self.waiting + self.parked


class Closes(Protocol):
    """Closes what front-ends sent."""

    def close(self, fds: Sequence[int], owner: "ForeignFds | None" = None) -> None:
        """Closes one peer's descriptors, soon; returns at once.

        Args:
            fds: the descriptors, the caller's no more.
            owner: the peer who sent them; None: another one.
        """


class ForeignFds:
    """The descriptors that one peer sent: those that are dropped are closed together.

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
        """Has descriptors that are dropped meanwhile closed at once, in this very process.

        Only for descriptors whose files a store has too, and which devices are forked with: no
        close of them is the last one, and of files of those kinds only the last close waits
        (``_PARKED`` in ``guests/jailed/closing.py``).
        """
        self._here = True
        try:
            yield
        finally:
            self._here = False

    def let_go(self) -> None:
        """Has everything closed that was dropped since the last time."""
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self.wait(-len(dropped))
            self._closer.close(dropped, self)


class _ForeignFd(OwnedFd):
    """A descriptor that a peer sent: its owner's close drops it."""

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
    """A duplicate of a peer's descriptor: its close may be the last one, so it is dropped too."""

    __slots__ = ("_peer",)

    def __init__(self, fd: int, peer: ForeignFds) -> None:
        super().__init__(fd)
        self._peer = peer

    def close(self) -> None:
        if self._fd >= 0:
            self._peer.drop(self.detach())
