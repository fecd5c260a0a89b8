"""Messages to a store: sent at once, or queued while the store's socket is full."""

import array
import asyncio
import errno
import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.named_tuple import NamedTuple

_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}
"""Errors that mean that the socket is full at the moment; any other error means that the store is
gone."""

RETRY_S = 0.002
WORK_S = 0.0005
"""How long queued messages are sent in one turn of the event loop. A full socket ends a turn
earlier; but the socket of a store that reads fast is never full, and thousands of messages may be
queued."""

Counted = TypeVar("Counted", str, int | None)


class _Message(NamedTuple):
    content: bytes
    fds: tuple[OwnedFd, ...]
    guest: str


class Outbox:
    """Sends messages to a store: in order within one user's guests, and in turns between users.

    With a single queue, one user whose guests' states change all the time would delay the messages
    of all others.

    Args:
        sock: the socket to the store, non-blocking.
        lost: called when the store is gone.

    Attributes:
        stalled: a wait for the store has timed out; until the store accepts a message again nobody
            waits for it.
        close_late: closes descriptors that were queued here. All other descriptors of the same
            file may have been closed meanwhile, and the last close of a VMM's file may block for
            ever.
    """

    def __init__(self, sock: socket.socket, lost: Callable[[], None]) -> None:
        self._sock = sock
        self._lost = lost
        self._waiting: dict[int | None, deque[_Message]] = {}
        """Queues by user; the first user's turn is next. Under None: messages about no guest, or
        about a guest whose user is not set."""
        self._users: dict[str, int] = {}
        self._of = Counter[str]()
        self._fds_of = Counter[int | None]()
        """How many duplicates of descriptors are queued, by user as in ``_waiting``."""
        self._retry: asyncio.TimerHandle | None = None
        self.stalled = False
        self.close_late: Callable[[Sequence[int]], None] = _close

    def __len__(self) -> int:
        return self._of.total()

    def set_user(self, guest: str, user: int | None) -> None:
        """Sets the user who runs a guest's VMM: queued messages are sent in turns between users.
        None: the guest is gone."""
        self._users.pop(guest, None)
        if user is not None:
            self._users[guest] = user

    def waiting_with(self, guest: str) -> int:
        """How many messages are queued about this guest and all other guests of its user."""
        return len(self._waiting.get(self._users.get(guest), ()))

    def waiting_of(self, guest: str) -> int:
        """How many messages of a guest are queued."""
        return self._of[guest]

    def fds_of(self, user: int) -> int:
        """How many duplicates of descriptors are queued with messages about a user's guests, also
        about guests that are gone."""
        return self._fds_of[user]

    def send(self, content: bytes, fds: tuple[int, ...], guest: str) -> None:
        """Sends a message, at once or a little later.

        Args:
            content: the message.
            fds: descriptors sent with it, which stay the caller's.
            guest: the guest that the message is about, by the part before the dot in the names of
                its descriptors; "": none.

        Raises:
            OSError: the message has to wait, and no descriptor is free for a duplicate.
        """
        if not self._waiting and self._transmit(content, fds):
            return
        # The caller may close its descriptors while the message waits, so queue duplicates. A
        # message that is sent at once needs none: closing a duplicate may take long, because any
        # close looks at all locks of the file (fcntl(2)).
        message = _Message(content, tuple(OwnedFd(os.dup(fd)) for fd in fds), guest)
        user = self._users.get(guest)
        self._waiting.setdefault(user, deque()).append(message)
        self._of[guest] += 1
        self._fds_of[user] += len(fds)
        if self._retry is None:
            self._retry_later()

    def flush(self) -> None:
        """Sends queued messages until the socket is full, and schedules no retry."""
        self._send_until(math.inf)
        self._retry_no_more()

    def _work(self) -> None:
        self._send_until(time.monotonic() + WORK_S)

    def _send_until(self, ends_at_s: float) -> None:
        self._retry_no_more()
        while self._waiting:
            user, line = next(iter(self._waiting.items()))
            content, fds, guest = line[0]
            if not self._transmit(content, [fd.fileno() for fd in fds]):
                self._retry_later()
                return
            if not self._waiting:
                return  # The store is gone, and ``_transmit`` has dropped all queued messages.
            line.popleft()
            del self._waiting[user]
            if line:
                self._waiting[user] = line
            _count_down(self._of, guest, 1)
            _count_down(self._fds_of, user, len(fds))
            self.close_late([fd.detach() for fd in fds])
            if self._waiting and time.monotonic() >= ends_at_s:
                self._retry_later()
                return

    def _transmit(self, content: bytes, fds: Sequence[int]) -> bool:
        """Sends a message now; False where the socket is full."""
        rights = array.array("i", fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        try:
            self._sock.sendmsg([content], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as err:
            if err.errno in _FULL:
                return False
            # The process that stores the descriptors has ended. balloond goes on without a store,
            # so a balloond that starts later will find no VM in it.
            self._drop_all()
            self._lost()
            return True
        self.stalled = False
        return True

    def _retry_later(self) -> None:
        self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._work)

    def _retry_no_more(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _drop_all(self) -> None:
        for message in chain.from_iterable(self._waiting.values()):
            self.close_late([fd.detach() for fd in message.fds])
        self._waiting.clear()
        self._of.clear()
        self._fds_of.clear()


def _count_down(counts: Counter[Counted], key: Counted, number: int) -> None:
    """Subtracts from a count, and deletes it once it is 0."""
    counts[key] -= number
    if not counts[key]:
        del counts[key]


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
