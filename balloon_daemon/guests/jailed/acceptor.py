"""Accepts connections to one vhost-user socket, and tells whether a VM may connect there now."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from balloon_daemon.config.vms import VmConfig
from balloon_daemon.guests.in_turn import InTurn
from balloon_daemon.guests.jailed.closing import Closer
from balloon_daemon.guests.jailed.listening import Listener
from balloon_daemon.guests.jailed.session import Session, Shared
from balloon_daemon.handover.keys import listener_key
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.rate_limit import RateLimit

ACCEPT_PART = 1 / 32
"""The part of the event loop's time that may go into accepting connections at one socket, some 100
a second: without a limit, a user who connects in a loop would occupy a core. As there may be
hundreds of sockets, accepting one user's connections at all of them is limited, too
(``Peer.rest_after_accept``), and so is accepting in one turn of the loop (``_IN_TURN``)."""

ACCEPT_AGAIN_S = 1.0
"""Seconds until the next attempt to accept a connection after an attempt has failed, for example
because no descriptor is free."""


_IN_TURN = InTurn()
"""Bounds for how long connections, at all sockets together, are accepted in one turn of the event
loop. This is not ``IN_TURN``, in which users take turns: a connection's user is known only once
the connection is accepted."""


class OwnSocket(NamedTuple):
    """A vhost-user socket that is open.

    Attributes:
        vm: the only VM that may connect, with its settings; a VM named "" stands for any number of
            VMs.
        listener: the socket.
    """

    vm: VmConfig
    listener: Listener


class Place(Enum):
    """Whether a VM may connect."""

    FREE = auto()
    TAKEN = auto()
    """The only VM that may connect is connected already."""
    ENDING = auto()
    """The VMM of the only VM that may connect has hung up; the VM's session is about to end."""


class Acceptor:
    """Watches one socket for connections.

    Args:
        own: the socket.
        shared: the objects shared by all sessions, with this socket's settings.
    """

    def __init__(self, own: OwnSocket, shared: Shared) -> None:
        self.vm, self.listener = own
        self.shared = shared
        self.refusals = RateLimit(1)
        self._session: Session | None = None
        self._accept: Callable[[Acceptor], float]
        self._later: asyncio.TimerHandle | None = None
        self._stopped = False

    @property
    def key(self) -> str:
        """The socket's name in the store of descriptors, systemd's or a keeper's."""
        return listener_key(self.vm.name, self.vm.address)

    @property
    def place(self) -> Place:
        """Whether a VM may connect now."""
        session = self._session
        if session is None or session.has_ended:
            return Place.FREE
        return Place.ENDING if session.is_ending else Place.TAKEN

    def take(self, session: Session) -> None:
        """Notes the session of a VM that has connected to this socket: just now, or while an
        earlier controller served the socket."""
        if self.vm.name:
            self._session = session

    def begin(self, accept: Callable[["Acceptor"], float]) -> None:
        """Watches for connections.

        Args:
            accept: is called while a connection waits; returns how many seconds the next
                connection has to wait at least.
        """
        self._accept = accept
        self._watch()

    def _watch(self) -> None:
        asyncio.get_running_loop().add_reader(self.listener.sock, self._ready)

    def _ready(self) -> None:
        asyncio.get_running_loop().remove_reader(self.listener.sock)
        _IN_TURN.do(0, self._accept_one)

    def _accept_one(self) -> None:
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        wait_s, began_s = ACCEPT_AGAIN_S, loop.time()
        try:
            wait_s = self._accept(self)
        finally:
            spent_s = loop.time() - began_s
            self._later = loop.call_later(max(wait_s, spent_s / ACCEPT_PART), self._watch)

    def stop(self, closer: Closer, *, leaving: bool) -> None:
        """Accepts no more connections.

        Args:
            closer: closes the socket, and with it the descriptors in its queue.
            leaving: True: another controller goes on with this socket.
        """
        self._stopped = True
        asyncio.get_running_loop().remove_reader(self.listener.sock)
        if self._later is not None:
            self._later.cancel()
        if leaving:
            self.listener.sock.close()
        else:
            # Closing the listening socket also closes connections not accepted yet, and the
            # descriptors in their queues, whose last close may block: let a child process close
            # the socket.
            closer.close([self.listener.sock.detach()])
            self.listener.remove_file()
