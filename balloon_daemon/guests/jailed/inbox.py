"""Receives a VMM's messages, and records each in the journal first.

The user who runs the VMM has a share of the event loop's time (``turns.py``), in which its VMMs'
messages are received one after another.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from balloon_daemon.guests.jailed.peers import Peer
from balloon_daemon.guests.jailed.turns import ESTABLISHED_S
from balloon_daemon.handover.journal import NoJournal, RequestJournal
from balloon_daemon.vhost_user.connection import Connection, Received
from balloon_daemon.vhost_user.known_accesses import KnownAccesses
from balloon_daemon.vhost_user.messages import FrontendRequest

CONFIG_ACCESS = frozenset((FrontendRequest.GET_CONFIG, FrontendRequest.SET_CONFIG))
"""Requests that stop and start no device, and are answered without waiting for the store."""


LOOK_EACH = 8
"""How many messages are read at once between two checks for a hang-up. A VMM that has filled its
connection with requests and is gone needs no answers; reading them all could take a minute."""


class ConfigAccesses(Protocol):
    """Answers accesses to the config space."""

    def access_config(self, received: Received) -> None:
        """Answers any access."""

    def flush_later(self) -> None:
        """Sends the rest of an answer, once the socket takes it."""


class Inbox:
    """The messages of one VMM.

    Args:
        connection: the VMM's connection.
        peer: its user.
        journal: records each message before it is read.
        known: answers accesses to the config space that are like earlier ones.
        accesses: answers all others.
        written: called after an answer by ``known``, if the driver has written ``actual``.
    """

    def __init__(
        self,
        connection: Connection,
        peer: Peer,
        journal: RequestJournal,
        known: KnownAccesses,
        accesses: ConfigAccesses,
        written: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._journal = journal
        self._records = None if isinstance(journal, NoJournal) else journal
        self.known = known
        self._accesses = accesses
        self._written = written
        self._loop = asyncio.get_running_loop()
        self.handled = 0
        """How many messages of the VMM were handled so far, also by earlier controllers."""
        self.taken: Received | None = None
        """A message that was received, but that the waiting task has not seen yet."""
        self._established: asyncio.TimerHandle | None = None

    def join(self) -> None:
        """Adds the connection to those of its user.

        Raises:
            OSError: no descriptor is free for the epoll instance of that user's ``Turns``.
        """
        self._peer.join()
        fd, turns = self._connection.fileno(), self._peer.turns
        self._established = self._loop.call_later(ESTABLISHED_S, turns.establish, fd)

    def leave(self) -> None:
        """Removes the connection from those of its user, if it was added."""
        if self._established is not None:
            self._established.cancel()
            self._established = None
            self._peer.turns.leave(self._connection.fileno())
            self._peer.leave()

    def receive(self) -> Received | None:
        """The next message; None where no whole message waits.

        Raises:
            EOFError: the VMM has hung up.
            FrontendError: the message is malformed, or brings descriptors although its user has as
                many as it may have.
            OSError: the connection failed.
        """
        # Record the message in the journal before removing it from the socket: if this controller
        # died right after removing an unrecorded request, the VMM would wait for its answer for
        # ever.
        self._journal.begin_next(self.handled + 1, self._connection.peek)
        if self.handled % LOOK_EACH == LOOK_EACH - 1 and self._connection.is_hung_up():
            raise EOFError
        peer = self._peer
        if peer.may_receive(self._connection.foreign):
            return self._connection.receive()
        what = f"user {peer.uid} has {peer.descriptors} descriptors open here"
        return self._connection.receive(no_fds=f"{what}, as many as one user may")

    async def next(self) -> Received:
        """Waits for a message other than a config access.

        Raises:
            EOFError, FrontendError, OSError: as for ``receive``.
        """
        fd, turns = self._connection.fileno(), self._peer.turns
        waiter: asyncio.Future[Received | Exception] = self._loop.create_future()
        turns.watch(fd, partial(self._arrived, waiter))
        try:
            received = await waiter
        finally:
            turns.unwatch(fd)
        await turns.mine(fd)
        if self.taken is not None and self._connection.is_hung_up():
            # End the session now. Hundreds of messages may still be unread, and reading them all
            # first could take long: each needs a turn, and the user may have used up its turns.
            raise EOFError
        self.taken = None
        if isinstance(received, Exception):
            try:
                raise received
            finally:
                # Break a reference cycle, which only the garbage collector would free: the error's
                # traceback refers to this frame, and the frame's variables refer to the error.
                del received, waiter
        return received

    def _arrived(self, waiter: "asyncio.Future[Received | Exception]") -> None:
        """Receives one message; answers a config access itself, passes any other message on.

        A guest reads and writes its config space once for each MiB that it gives up, and a virtual
        CPU waits for the answer. So a config access is answered without waking the guest's task
        and without changing the watched descriptors: these two took twice the time of all the
        rest. Most accesses are like earlier ones, and are answered by ``answer_known``. That
        leaves out the checks of ``receive``, which are for a message with descriptors, and for a
        VMM that has hung up and left many messages unread.
        """
        if waiter.done():
            return
        began_s: float | None = None
        try:
            connection, records = self._connection, self._records
            written = connection.answer_known(self.known, records, self.handled + 1)
            if written is not None:
                self.handled += 1
                if records is not None:
                    records.done()
                if connection.unsent:
                    self._accesses.flush_later()
                if written:
                    self._written()
                return
            began_s = self._loop.time()
            received = self.receive()
            if received is None:
                return
            if received.message.request not in CONFIG_ACCESS:
                self.taken = received
                waiter.set_result(received)
                self._charge(began_s)
                return
            self.access_config(received)
        except Exception as err:
            if began_s is not None:
                self._charge(began_s)
            # The event loop calls this method, and an error raised here would only be logged. Pass
            # every error to the guest's task, which waits for ``waiter`` and closes the
            # connection.
            waiter.set_result(err.with_traceback(None))

    def _charge(self, began_s: float) -> None:
        """Charges the time of receiving a request to its connection, like the time of handling
        it: receiving a request with 250 descriptors takes 1 ms."""
        spent_s = self._loop.time() - began_s
        self._peer.turns.charge_task(self._connection.fileno(), spent_s)

    def next_at_once(self, ends_at_s: float) -> Received | None:
        """The next message other than a config access, if it waits already.

        Args:
            ends_at_s: reads nothing more from this time on.

        Raises:
            EOFError, FrontendError, OSError: as for ``receive``.
        """
        while self._loop.time() < ends_at_s:
            received = self.receive()
            if received is None or received.message.request not in CONFIG_ACCESS:
                return received
            self.access_config(received)
        return None

    def access_config(self, received: Received) -> None:
        """Answers an access to the config space; every access goes through this method."""
        self.handled += 1
        self._accesses.access_config(received)
        self._journal.done()

    def drop(self) -> None:
        """Drops a message that no task will see any more."""
        if self.taken is not None:
            for fd in self.taken.fds:
                fd.close()
            self.taken = None

    def done(self) -> None:
        """The last message has been handled."""
        self._journal.done()
        self._connection.close_dropped()
