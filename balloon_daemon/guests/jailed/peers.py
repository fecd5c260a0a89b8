"""Who is behind the VMMs, and what each of them may take of what all of them share.

A VMM's user is the kernel's word (SO_PEERCRED, unix(7)), asked once for each connection. Shared
are descriptors, the event loop's time and the log (``records/budget.py`` has its shares). One user
gets three quarters of the descriptors at most, and new connections are refused before those that
are there can feel it.
"""

import resource
from dataclasses import replace
from time import monotonic as now_s

from balloon_daemon.device.process import Fork
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.events import ConnectionRefused, Publish, Share, StoreShareUsed
from balloon_daemon.guests.jailed.turns import Allowances, Turns
from balloon_daemon.handover.room import SHARE, STATES
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import MAX_DEBT, FdAccount, ForeignFds

EACH = 40
"""Descriptors that every connection counts for at least: what a VM with five queues and three
regions of memory takes, kept for another balloond too."""

OURS = 12
"""Of those, what is not its VMM's: connection, journal, what the device is watched by."""

MODEST = 64
"""Descriptors in use of one VMM, up to which it is sent more whatever its user takes: two of each
for five queues, and QEMU's memory regions, of which it has some 25 at most."""

MAX_CONNECTIONS = 1024
"""Of all users. Each costs some 10 KiB, and with running rings a process."""

OF_ONE_USER = 3 / 4
OF_ALL = 7 / 8
"""How much of the descriptors and connections one user may take, and all of them together; the
rest is for those that are there already, and for ourselves."""

FAREWELLS_A_SECOND = 10
"""Lines on connections that end; whoever may connect may do so thousands of times a second."""


class Peer:
    """One user with all of its connections.

    Args:
        uid: the user's number.
        peers: all users.
    """

    def __init__(self, uid: int, peers: "Peers") -> None:
        self.uid = uid
        self._peers = peers
        self.connections = 0
        self.account = FdAccount()
        self.farewells = RateLimit(FAREWELLS_A_SECOND)
        self.refusals, self.unkept = RateLimit(1), RateLimit(1)
        self._allowances = Allowances()
        self._turns: Turns | None = None

    @property
    def turns(self) -> Turns:
        """When its connections are heard."""
        assert self._turns is not None
        return self._turns

    @property
    def descriptors(self) -> int:
        """How many it takes up, what is promised to its connections among them."""
        # Twice: whatever a VMM sends is duplicated for the store, where there is one.
        taken = OURS * self.connections + 2 * self.account.held
        return max(EACH * self.connections, taken) + self.account.debt

    def join(self) -> None:
        """Another connection of this user's is there."""
        if not self.connections:
            self._turns = Turns(self._allowances)
            self._turns.charge(0.0)
        self.connections += 1

    def leave(self) -> None:
        """A connection of this user's is gone."""
        self.connections -= 1
        if not self.connections:
            self.turns.close()
            self._turns = None

    def charged(self, fork: Fork) -> Fork:
        """Forks a device as ``fork`` does, in this user's time: the loop waits for it."""

        def timed(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
            began_s = now_s()
            try:
                return fork(spec, tube_fd, words_fd, parent)
            finally:
                if self._turns is not None:
                    self._turns.charge(now_s() - began_s)

        return timed

    def may_receive(self, foreign: ForeignFds) -> bool:
        """Whether one of its connections may be sent descriptors now."""
        sent, debt = self.account.held + self.account.debt, self.account.debt
        # First what is nearly always so, and costs little beside an access to the config space.
        if sent < self._peers.plenty and debt < MAX_DEBT:
            return True
        if debt < MAX_DEBT and self.descriptors < self._peers.of_one_user:
            return True
        # A VM that was there before and takes no more than most can still be reset: the VMM sends
        # new descriptors while those that they replace wait some ms for their close.
        may_wait = MODEST if debt < MAX_DEBT else 0
        modest = foreign.held <= MODEST and foreign.waiting <= may_wait and debt < 2 * MAX_DEBT
        return modest and self._peers.descriptors < self._peers.of_all


class Peers:
    """All users that have ever connected.

    Args:
        limit: descriptors that this process may have open.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.of_one_user = int(limit * OF_ONE_USER)
        self.of_all = int(limit * OF_ALL)
        self.plenty = self.of_one_user // 8
        self._peers: dict[int, Peer] = {}

    def of(self, connection: Connection) -> Peer:
        """The user behind a connection; what it brings counts as that user's."""
        uid = connection.peer_uid()
        peer = self._peers.setdefault(uid, Peer(uid, self))
        connection.foreign.charge_to(peer.account)
        return peer

    @property
    def descriptors(self) -> int:
        """How many all of them take up."""
        return sum(peer.descriptors for peer in self._peers.values())

    def refuses(self, peer: Peer, publish: Publish) -> bool:
        """Whether a new connection of this user's must not be served; publishes why."""
        refusal = self._why_not(peer)
        if refusal is None:
            return False
        suppressed = peer.refusals.admit(now_s())
        if suppressed is not None:
            publish(replace(refusal, suppressed=suppressed))
        return True

    def keeps_no_more_of(self, peer: Peer, capacity: int, vm: VmId, publish: Publish) -> bool:
        """Whether a new VM must leave its place in the store to other users' VMs; publishes that.

        Args:
            peer: its user.
            capacity: descriptors that the store keeps at most.
            vm: the VM.
            publish: takes what happens.
        """
        most = max(1, int(capacity * OF_ONE_USER) // (SHARE + STATES))
        if peer.connections < most:
            return False
        suppressed = peer.unkept.admit(now_s())
        if suppressed is not None:
            publish(StoreShareUsed(vm, peer.uid, most, suppressed))
        return True

    def _why_not(self, peer: Peer) -> ConnectionRefused | None:
        connections = sum(each.connections for each in self._peers.values())
        most = int(MAX_CONNECTIONS * OF_ONE_USER)
        if (taken := peer.connections) >= most:
            return ConnectionRefused(peer.uid, Share.USERS_CONNECTIONS, taken, most)
        if connections >= MAX_CONNECTIONS:
            return ConnectionRefused(peer.uid, Share.CONNECTIONS, connections, MAX_CONNECTIONS)
        if (debt := peer.account.debt) >= MAX_DEBT:
            return ConnectionRefused(peer.uid, Share.CLOSES, debt, MAX_DEBT)
        if (taken := peer.descriptors) + EACH > self.of_one_user:
            share = Share.USERS_DESCRIPTORS
            return ConnectionRefused(peer.uid, share, taken, self.of_one_user, debt)
        if (taken := self.descriptors) + EACH > self.of_all:
            return ConnectionRefused(peer.uid, Share.DESCRIPTORS, taken, self.of_all)
        return None
