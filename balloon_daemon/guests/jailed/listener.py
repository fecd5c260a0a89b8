"""Accepts VMs at the vhost-user sockets, and restores VMs that another controller left."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from weakref import WeakSet

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind
from balloon_daemon.events import (
    AlreadyConnected,
    Listening,
    NotAccepted,
    Publish,
    StoreLost,
    TakenOver,
)
from balloon_daemon.guests.jailed.acceptor import ACCEPT_AGAIN_S, Acceptor, OwnSocket, Place
from balloon_daemon.guests.jailed.closing import Closer
from balloon_daemon.guests.jailed.forks import Forks
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.guests.jailed.recovery import recover
from balloon_daemon.guests.jailed.saver import NullSaver, Saver, new_saver
from balloon_daemon.guests.jailed.session import Session, Shared
from balloon_daemon.guests.seam import ReportTo, VmRegistry
from balloon_daemon.guests.vmm_files import Ask
from balloon_daemon.handover.keys import is_listener
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.fd_kind import keep_own_directory
from balloon_daemon.linux.jail import Identity
from balloon_daemon.linux.page_kind import keep_page_kinds
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import ForeignFds

ENDS_SOON_S = 0.02
"""A VM has connected again, but the session of its last VMM, which has hung up, is still being
closed: the new connection is looked at again after so many seconds."""


class VhostUserGuests:
    """All VMs with balloond's own device, at any number of vhost-user sockets. Implements
    ``GuestDriver``.

    Args:
        config: the settings.
        identity: the user that devices become; None: they keep balloond's user.
        forks: forks the devices.
        sockets: the sockets.
        store: keeps VMs for another controller.
        publish: takes events.
        ask: has a child look at VMMs' processes.
    """

    def __init__(
        self,
        config: Config,
        identity: Identity | None,
        forks: Forks,
        sockets: Sequence[OwnSocket],
        store: Store,
        publish: Publish,
        ask: Ask | None = None,
    ) -> None:
        self._config = config
        self._new_shared: Callable[[ReportTo], Shared] = lambda report: Shared(
            config, identity, forks, publish, report, ask
        )
        self._forks = forks
        self._sockets = sockets
        self._store = store
        self._publish = publish
        self._peers = Peers(queued_for_store=store.queued_fds_of)
        self._registry: VmRegistry
        self._shared: Shared
        self._closer: Closer
        self._acceptors: dict[str, Acceptor] = {}
        self._sessions = WeakSet[Session]()

    def has_vm_of(self, pid: int) -> bool:
        """Whether the VM of this VMM's process is attached here."""
        return any(session.is_of(pid) for session in self._sessions)

    @property
    def keeps(self) -> bool:
        """Whether its VMs can be left to another controller."""
        return self._store.keeps

    def tend(self) -> None:
        """Replaces the template process, which forks the devices, if it has ended."""
        self._forks.tend()

    def start(self, registry: VmRegistry) -> None:
        """Restores the VMs that another controller left, and accepts new connections."""
        keep_own_directory()
        keep_page_kinds()
        self._registry = registry
        self._shared = self._new_shared(registry.report)
        self._closer = Closer(asyncio.get_running_loop())
        for own in self._sockets:
            config = replace(self._config, vm_mem_bytes=own.vm.vm_mem_bytes)
            self._acceptors[own.vm.address] = Acceptor(own, self._shared._replace(config=config))
        self._take_over()
        for acceptor in self._acceptors.values():
            acceptor.begin(self._accept)
            self._publish(Listening(acceptor.vm.address))

    def change(self, config: Config) -> None:
        """Sizes VMs' balloons by other settings from now on; sockets and rings stay.

        Args:
            config: has the same vhost-user sockets, for the same VMs.
        """
        self._config = config
        for vm in config.own_sockets:
            if (acceptor := self._acceptors.get(vm.address)) is not None:
                acceptor.vm = vm
        for session in self._sessions:
            if not session.has_ended:
                self._registry.change(session.vm, self._settings_of(session))

    def stop(self, *, leaving: bool) -> None:
        """Accepts no more connections.

        Args:
            leaving: True: another controller goes on with the sockets and VMs, so no more devices
                are forked here.
        """
        if leaving:
            self._forks.close()
        for acceptor in self._acceptors.values():
            acceptor.stop(self._closer, leaving=leaving)

    async def close(self, *, leaving: bool) -> None:
        """Disconnects from the store; call it after all sessions have ended.

        Args:
            leaving: True: the VMs in the store stay there; False: everything in it is removed.
        """
        if not leaving:
            for acceptor in self._acceptors.values():
                self._store.remove(acceptor.key)
            self._store.forget()
        with contextlib.suppress(TimeoutError):
            await self._store.drained()
        self._store.close()

    def _take_over(self) -> None:
        """Restores the VMs that another controller left, and stores the listening sockets too."""
        self._store.watch(lambda: self._publish(StoreLost()))
        self._store.close_late_by(self._closer.close)
        # First remove the listening sockets that are not served any more. The loop below may store
        # another socket under one of their names.
        for name in filter(is_listener, list(self._store.kept)):
            self._store.remove(name)
            self._closer.close([self._store.kept.pop(name).detach()])
        for acceptor in self._acceptors.values():
            # Remove a listening socket's old entry from the store before the new one is put in.
            # systemd keeps several descriptors under one name, and would otherwise collect every
            # listening socket that was ever replaced.
            for name in {acceptor.key, acceptor.listener.kept_as or acceptor.key}:
                self._store.remove(name)
            if not acceptor.listener.handed_over:
                self._store.put(acceptor.key, acceptor.listener.sock)
        for session in recover(self._store, self._make, self._closer, self._publish):
            self._registry.serve(session)
            self._publish(TakenOver(session.vm))

    def _make(self, vm: VmId, connection: Connection, saver: Saver) -> Session:
        peer = self._peers.of(connection)
        saver.set_user(peer.uid, peer.charge_saving)
        # The kernel knows at which socket a connection was accepted, also after a handover. If the
        # configuration has changed since, that socket may not be served any more.
        acceptor = self._acceptors.get(connection.local_path)
        shared = self._shared if acceptor is None else acceptor.shared
        session = Session(vm, connection, peer, shared, saver)
        self._sessions.add(session)
        if acceptor is not None:
            acceptor.take(session)
        self._registry.add(session, self._settings_of(session), Kind.VHOST_USER.value)
        return session

    def _settings_of(self, session: Session) -> VmSettings:
        acceptor = self._acceptors.get(session.socket_path)
        return (
            VmSettings(profile=self._config.profile) if acceptor is None else acceptor.vm.settings
        )

    def _accept(self, acceptor: Acceptor) -> float:
        """Accepts the connection that waits at a socket; returns how many seconds the next
        connection has to wait at least."""
        place = acceptor.place
        if place is Place.ENDING:
            # The VM was started again before this process has closed the VM's earlier session.
            return ENDS_SOON_S
        began_s = asyncio.get_running_loop().time()
        saver: Saver = NullSaver()
        vm = self._registry.next_vm(acceptor.vm.name)
        try:
            # Create the VM's journal, which takes a descriptor, before accept(). If no descriptor
            # is free (EMFILE), the VMM's connection is not accepted and waits in the listening
            # socket's backlog.
            saver = new_saver(self._store, vm)
            sock, _ = acceptor.listener.sock.accept()
        except OSError as err:
            saver.close()
            if isinstance(err, (BlockingIOError, ConnectionAbortedError)):
                return 0.0
            self._publish(NotAccepted(err.strerror or str(err)))
            return ACCEPT_AGAIN_S
        connection = Connection(sock, ForeignFds(self._closer))
        peer = self._peers.of(connection)
        if place is Place.TAKEN:
            self._say_taken(acceptor.refusals, vm, peer.uid)
        if place is Place.TAKEN or self._peers.refuses(peer, self._publish):
            connection.close()
            saver.close()
        else:
            self._serve(connection, peer, vm, saver)
        spent_s = asyncio.get_running_loop().time() - began_s
        # The socket for VMs of no name is every user's: if it rested because one user has used its
        # share, the others' connections would wait. Only ``ACCEPT_PART`` limits it.
        return peer.rest_after_accept(spent_s) if acceptor.vm.name else 0.0

    def _serve(self, connection: Connection, peer: Peer, vm: VmId, saver: Saver) -> None:
        room = self._store.room
        if self._store.keeps and self._peers.keeps_no_more_of(peer, room, vm, self._publish):
            saver.close()
            saver = NullSaver()
        self._registry.serve(self._make(vm, connection, saver))

    def _say_taken(self, refusals: RateLimit, vm: VmId, uid: int) -> None:
        suppressed = refusals.admit(asyncio.get_running_loop().time())
        if suppressed is not None:
            self._publish(AlreadyConnected(vm, uid, suppressed))
