"""Accepts the VMs that connect to the vhost-user socket, and restores another controller's."""

import asyncio
import contextlib

from balloon_daemon.config.model import Config
from balloon_daemon.events import NotAccepted, Publish, StoreLost, TakenOver
from balloon_daemon.guests.jailed.closing import Closer
from balloon_daemon.guests.jailed.listening import Listener
from balloon_daemon.guests.jailed.peers import Peers
from balloon_daemon.guests.jailed.recovery import recover
from balloon_daemon.guests.jailed.saver import NullSaver, Saver, new_saver
from balloon_daemon.guests.jailed.session import Session, Shared
from balloon_daemon.guests.jailed.supervisor import Jail
from balloon_daemon.guests.seam import VmRegistry
from balloon_daemon.handover.keys import LISTENER
from balloon_daemon.handover.store import Store
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import ForeignFds

ACCEPT_AGAIN_S = 1.0
"""How long the next connection waits when no descriptor is free."""

ACCEPT_PART = 1 / 32
"""The part of the event loop's time that may go into accepting connections, some 100 a second:
without a limit, a user who connects in a loop would occupy a core."""


class VhostUserGuests:
    """All VMs of one vhost-user socket: a ``GuestDriver``.

    Args:
        config: the settings.
        jail: the jail for devices.
        listener: the socket.
        store: keeps VMs for another controller.
        publish: takes events.
    """

    def __init__(
        self, config: Config, jail: Jail, listener: Listener, store: Store, publish: Publish
    ) -> None:
        self._config = config
        self._jail = jail
        self._listener = listener
        self._store = store
        self._publish = publish
        self._peers = Peers()
        self._registry: VmRegistry
        self._shared: Shared
        self._closer: Closer
        self._accept_later: asyncio.TimerHandle | None = None

    @property
    def keeps(self) -> bool:
        """Whether its VMs can be left to another controller."""
        return self._store.keeps

    def start(self, registry: VmRegistry) -> None:
        """Restores the VMs that another controller left, and accepts new connections."""
        self._registry = registry
        self._shared = Shared(self._config, self._jail, self._publish, registry.report)
        self._closer = Closer(asyncio.get_running_loop())
        self._take_over()
        self._listen()

    def stop(self, *, leaving: bool) -> None:
        """Accepts no more connections.

        Args:
            leaving: True: another controller goes on with this socket.
        """
        asyncio.get_running_loop().remove_reader(self._listener.sock)
        if self._accept_later is not None:
            self._accept_later.cancel()
        if leaving:
            self._listener.sock.close()
        else:
            # Closing the listening socket also closes connections not accepted yet, and the
            # descriptors in their queues, whose last close may block: let a child process close
            # the socket.
            self._closer.close([self._listener.sock.detach()])
            self._listener.remove_file()

    async def close(self, *, leaving: bool) -> None:
        """Disconnects from the store, once all sessions have ended.

        Args:
            leaving: True: the VMs in the store stay there.
        """
        if not leaving:
            self._store.remove(LISTENER)
            self._store.forget()
        with contextlib.suppress(TimeoutError):
            await self._store.drained()
        self._store.close()

    def _take_over(self) -> None:
        """Restores the VMs that another controller left, and stores the listening socket too."""
        self._store.watch(lambda: self._publish(StoreLost()))
        self._store.close_late_by(self._closer.close)
        # Remove the listening socket's old entry from the store before the new one is put in.
        # systemd keeps several descriptors under one name, and would otherwise collect every
        # listening socket that was ever replaced.
        self._store.remove(LISTENER)
        self._store.put(LISTENER, self._listener.sock)
        for session in recover(self._store, self._make, self._closer, self._publish):
            self._registry.serve(session)
            self._publish(TakenOver(session.vm))

    def _make(self, vm: VmId, connection: Connection, saver: Saver) -> Session:
        peer = self._peers.of(connection)
        saver.set_user(peer.uid)
        session = Session(vm, connection, peer, self._shared, saver)
        self._registry.add(session)
        return session

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.sock, self._accept)

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.sock)
        again_s, began_s = ACCEPT_AGAIN_S, loop.time()
        try:
            if self._accept_one():
                again_s = (loop.time() - began_s) / ACCEPT_PART
        finally:
            self._accept_later = loop.call_later(again_s, self._listen)

    def _accept_one(self) -> bool:
        """Accepts one connection. Returns False if no descriptor or memory is free for it."""
        saver: Saver = NullSaver()
        vm = self._registry.next_vm()
        try:
            # Create the VM's journal, which takes a descriptor, before accept(). If no descriptor
            # is free (EMFILE), the VMM's connection is not accepted and waits in the listening
            # socket's backlog.
            saver = new_saver(self._store, vm)
            sock, _ = self._listener.sock.accept()
        except OSError as err:
            saver.close()
            if isinstance(err, (BlockingIOError, ConnectionAbortedError)):
                return True
            self._publish(NotAccepted(err.strerror or str(err)))
            return False
        connection = Connection(sock, ForeignFds(self._closer))
        peer = self._peers.of(connection)
        if self._peers.refuses(peer, self._publish):
            connection.close()
            saver.close()
            return True
        if self._store.keeps:
            capacity = self._store.room.capacity
            if self._peers.keeps_no_more_of(peer, capacity, vm, self._publish):
                saver.close()
                saver = NullSaver()
        self._registry.serve(self._make(vm, connection, saver))
        return True
