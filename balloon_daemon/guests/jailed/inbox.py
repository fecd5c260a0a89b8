"""What a VMM says: its messages, each taken when it is its user's turn, and written down first."""

import asyncio
from collections.abc import Callable
from functools import partial

from balloon_daemon.errors import FrontendError
from balloon_daemon.guests.jailed.peers import Peer
from balloon_daemon.guests.jailed.turns import ESTABLISHED_S
from balloon_daemon.handover.journal import RequestJournal
from balloon_daemon.vhost_user.connection import Connection, Received
from balloon_daemon.vhost_user.messages import FrontendRequest

CONFIG_ACCESS = frozenset((FrontendRequest.GET_CONFIG, FrontendRequest.SET_CONFIG))
"""Requests that stop and start nothing, and leave nothing behind that would have to be kept."""


LOOK_EACH = 8
"""Messages between two looks whether the VMM is there at all. One that has filled its connection
with requests and is gone has nothing more to be told; taking them all may need a minute."""


class Inbox:
    """The messages of one VMM.

    Args:
        connection: the VMM's.
        peer: its user.
        journal: each message is written down there before it is taken.
        access_config: answers an access to the config space.
    """

    def __init__(
        self,
        connection: Connection,
        peer: Peer,
        journal: RequestJournal,
        access_config: Callable[[Received], None],
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._journal = journal
        self._access_config = access_config
        self._loop = asyncio.get_running_loop()
        self.handled = 0
        """Messages that were taken and not left to another controller."""
        self.taken: Received | None = None
        """A message that whoever waits for it has not seen yet."""
        self._established: asyncio.TimerHandle | None = None

    def join(self) -> None:
        """Takes a place among the connections of its user.

        Raises:
            OSError: there is no descriptor left for that user's turns.
        """
        self._peer.join()
        fd, turns = self._connection.fileno(), self._peer.turns
        self._established = self._loop.call_later(ESTABLISHED_S, turns.establish, fd)

    def leave(self) -> None:
        """Gives up its place among the connections of its user; fine where it has none."""
        if self._established is not None:
            self._established.cancel()
            self._established = None
            self._peer.turns.leave(self._connection.fileno())
            self._peer.leave()

    def receive(self) -> Received | None:
        """The next message; None where none is whole yet.

        Raises:
            EOFError: the VMM has hung up.
            FrontendError: what it says is no message, or its user may send no descriptors now.
            OSError: the connection failed.
        """
        # Written down before it is taken: a VMM waits for its answer for ever.
        self._journal.begin_next(self.handled + 1, self._connection.peek)
        if self.handled % LOOK_EACH == LOOK_EACH - 1 and self._connection.is_hung_up():
            raise EOFError
        foreign = self._connection.foreign
        if not self._peer.may_receive(foreign) and self._connection.brings_fds():
            what = f"user {self._peer.uid} has {self._peer.descriptors} descriptors open here"
            raise FrontendError("message", f"{what}, as many as one user may")
        return self._connection.receive()

    async def next(self) -> Received:
        """Waits for a message that is no access to the config space.

        Raises:
            EOFError, FrontendError, OSError: as ``receive``.
        """
        fd, turns = self._connection.fileno(), self._peer.turns
        waiter: asyncio.Future[Received | Exception] = self._loop.create_future()
        turns.watch(fd, partial(self._arrived, waiter))
        try:
            received = await waiter
        finally:
            turns.unwatch(fd)
        await turns.mine(fd)
        self.taken = None
        if isinstance(received, Exception):
            try:
                raise received
            finally:
                # Its traceback knows this frame: a circle, for the garbage collector to find.
                del received, waiter
        return received

    def _arrived(self, waiter: "asyncio.Future[Received | Exception]") -> None:
        """Takes one message: answers an access to the config space, hands on any other.

        A guest reads and writes its config space once for each MiB that it gives up, and a
        virtual CPU waits for the answer. That must not cost a change of tasks, nor of what the
        loop waits for; together they took twice the time of everything else.
        """
        if waiter.done():
            return
        try:
            received = self.receive()
            if received is None:
                return
            if received.message.request not in CONFIG_ACCESS:
                self.taken = received
                waiter.set_result(received)
                return
            self.access_config(received)
        except Exception as err:
            # Whatever it is, the guest's task knows what becomes of it; the event loop does not.
            waiter.set_result(err.with_traceback(None))

    def next_at_once(self, ends_at_s: float) -> Received | None:
        """The next message that is no access to the config space, if it is there already.

        Args:
            ends_at_s: takes nothing more from then on.

        Raises:
            EOFError, FrontendError, OSError: as ``receive``.
        """
        while self._loop.time() < ends_at_s:
            received = self.receive()
            if received is None or received.message.request not in CONFIG_ACCESS:
                return received
            self.access_config(received)
        return None

    def access_config(self, received: Received) -> None:
        """Answers an access to the config space: all of them come by here."""
        self.handled += 1
        self._access_config(received)
        self._journal.done()

    def drop(self) -> None:
        """Lets go of a message that nobody will see any more."""
        if self.taken is not None:
            for fd in self.taken.fds:
                fd.close()
            self.taken = None

    def done(self) -> None:
        """The message that was taken last is dealt with."""
        self._journal.done()
        self._connection.let_go()
