"""The users who run VMMs, and each user's share of the controller's resources.

The kernel tells a VMM's user (SO_PEERCRED, unix(7)), once for each connection. The users share
descriptors, the event loop's time, the template process's time, and the log (whose shares are in
``records/budget.py``). One user gets at most three quarters of the descriptors, and new
connections are refused before existing connections run out of descriptors.
"""

import resource
from collections.abc import Callable
from itertools import islice
from time import monotonic as now_s

from balloon_daemon.events import ConnectionRefused, Publish, Share, StoreShareUsed
from balloon_daemon.guests.jailed.turns import (
    ACCEPTING,
    OF_THE_LOOP,
    SAVING,
    TURN_S,
    Allowance,
    Allowances,
    Turns,
)
from balloon_daemon.handover.room import Room
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import MAX_DEBT, FdAccount, ForeignFds

EACH = 40
"""Descriptors counted for each connection at least: those of a VM with five queues and three
regions of memory, stored for another balloond too."""

OURS = 12
"""The part of ``EACH`` that does not come from the VMM: connection, journal, and the descriptors
by which the device is watched."""

MODEST = 64
"""A VMM with at most so many descriptors in use may send more even if its user's total is reached.
QEMU has fewer: two for each of five queues, and one for each of some 25 memory regions at most."""

MAX_CONNECTIONS = 1024
"""The most connections of all users. Each costs some 10 KiB, and with running rings a process."""

OF_ONE_USER = 3 / 4
OF_ALL = 7 / 8
"""The part of all descriptors and connections that one user may have, and that all users may have
together; the rest is for existing connections, and for balloond itself."""

OF_THE_TEMPLATE = 1 / 2
"""The part of the template's time that one user's devices may take for long, some 200 forks a
second. Unused time is saved up, ``SAVED_S`` at most, for VMs that start at the same moment."""

MOST_HANGING = 64
"""While so many of one user's devices are to end and have not, no further device is forked for
that user. A VMM can have the kernel keep a device for ever, although it was killed: a page is
removed under the lock of its file, and whoever writes to the file from memory of FUSE holds that
lock while FUSE's server does not answer."""

MEASURING, MEASURING_AT_ONCE_S = 1 / 16, 0.02
"""The part of the event loop's time that may go into asking the kernel how much memory one user's
VMs occupy, and seconds of it at once: all VMs are asked in one turn of the loop when memory
becomes low. Asking takes 7 µs a file, and a user may have 24,000 files."""

FORGOTTEN_AFTER_S = 60.0
"""A user who has had nothing here for so long is forgotten: all of its shares are saved up again
by then. Whoever has subordinate users (subuid(5)) may connect as 65,536 users, one after another.
"""

LOOKED_AT = 2
"""At how many users each new connection looks whether they are to be forgotten: at more than one,
so that their number does not grow."""

ENDS_A_SECOND = 10
"""How many ends of one user's connections are published in a second; any user may connect
thousands of times a second."""


class _Refusals(NamedTuple):
    """How often a user's refusals are published: those of connections, and of places in the
    store."""

    of_connections: RateLimit
    of_places: RateLimit


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
        self.hanging = 0
        """Devices that nobody wants any more and that have not ended: each is still a process, and
        counts as one more connection (``MOST_HANGING``)."""
        self.account = FdAccount()
        self.ends = RateLimit(ENDS_A_SECOND)
        self.refusals = _Refusals(RateLimit(1), RateLimit(1))
        self._allowances = Allowances()
        self._forks = Allowance(OF_THE_TEMPLATE)
        self._measuring = Allowance(MEASURING, MEASURING_AT_ONCE_S)
        self._turns: Turns | None = None
        self._seen_s = now_s()

    def seen(self) -> None:
        """Notes that the user has something here."""
        self._seen_s = now_s()

    def is_past(self) -> bool:
        """Whether the user has had nothing here for ``FORGOTTEN_AFTER_S``."""
        held = self.account.held or self._peers.queued_for_store(self.uid)
        if self.places or held or self.account.debt:
            self.seen()
            return False
        return now_s() - self._seen_s >= FORGOTTEN_AFTER_S

    @property
    def turns(self) -> Turns:
        """The turns in which its connections are served."""
        assert self._turns is not None
        return self._turns

    @property
    def descriptors(self) -> int:
        """How many descriptors the user's connections use or are granted, whichever is more."""
        return self.numbers + self.account.parked

    @property
    def numbers(self) -> int:
        """How many of ``descriptors`` occupy descriptor numbers of this process, or may do so."""
        # ``account.held`` counts the VMMs' descriptors that are in use. They count twice here,
        # because ``KeptFds`` keeps a duplicate of each where there is a store.
        taken = OURS * self.places + 2 * self.account.held
        queued = self._peers.queued_for_store(self.uid)
        return max(EACH * self.places, taken) + self.account.waiting + queued

    @property
    def places(self) -> int:
        """How many connections the user has, with those that only a device is left of."""
        return self.connections + self.hanging

    def hold_hanging(self, change: int) -> None:
        """Adds ``change`` to the number of devices that are to end and have not yet."""
        self.hanging += change

    def join(self) -> None:
        """Adds a connection of this user."""
        if not self.connections:
            self._turns = Turns(self._allowances)
            self._turns.charge(0.0)
        self.connections += 1

    def leave(self) -> None:
        """Removes a connection of this user."""
        self.connections -= 1
        self.seen()
        if not self.connections:
            self.turns.close()
            self._turns = None

    def forks_again_in_s(self) -> float:
        """Seconds until another device of this user may be forked; 0: now."""
        return max(0.0, -self._forks.charge(0.0, now_s()) / OF_THE_TEMPLATE)

    def charge_fork(self, spent_s: float) -> None:
        """Charges the seconds that a fork has taken to the user's shares of the template's and of
        the event loop's time.

        The event loop's share is charged because a new device occupies a processor while it
        starts, so that this process waits longer for a processor at each wake-up. A user whose
        connections have all ended is charged too: its VMM may connect, have a device forked and
        hang up, in a loop.
        """
        self._forks.charge(spent_s, now_s())
        if self._turns is None:
            self._allowances.in_turns.charge(spent_s, now_s())
        else:
            self._turns.charge(spent_s)

    def charge_reports(self, spent_s: float) -> float:
        """Charges seconds of the event loop that reports of the user's devices have taken.

        The allowance is one of its own: a flood of reports delays no other access of this user's
        VMs to their config space.

        Returns:
            For how many seconds no report of this user's devices is to be read.
        """
        left_s = self._allowances.reports.charge(spent_s, now_s())
        return 0.0 if left_s > 0 else (TURN_S - left_s) / OF_THE_LOOP

    def rest_after_accept(self, spent_s: float) -> float:
        """Charges seconds of the event loop that went into accepting one of the user's
        connections, or refusing it (``ACCEPTING``).

        Returns:
            For how many seconds nothing is to be accepted at that socket: 3.2 at most.
        """
        return max(0.0, -self._allowances.accepting.charge(spent_s, now_s()) / ACCEPTING)

    def charge_measuring(self, spent_s: float) -> bool:
        """Charges seconds that went into measuring the user's VMs (``MEASURING``); returns whether
        one may be measured now."""
        return self._measuring.charge(spent_s, now_s()) > 0

    def charge_saving(self, spent_s: float) -> float:
        """Charges seconds that went into saving what the user's guests have written to ``actual``
        (``SAVING``).

        Returns:
            For how many seconds no guest of the user's is to be saved because of ``actual``.
        """
        left_s = self._allowances.saving.charge(spent_s, now_s())
        return 0.0 if left_s > 0 else (TURN_S - left_s) / SAVING

    def may_receive(self, foreign: ForeignFds) -> bool:
        """Whether one of the user's connections may bring descriptors now."""
        sent, debt = self.account.held + self.account.debt, self.account.debt
        # Test the usual case first, by two comparisons: this method runs for each message, and
        # most messages are a guest's accesses to its config space, which are to be answered fast.
        if sent < self._peers.plenty and debt < MAX_DEBT:
            return True
        if debt < MAX_DEBT and self.descriptors < self._peers.of_one_user:
            return True
        # Beyond the limits, still let a VMM with few descriptors (``MODEST``) send more, as it
        # must when its VM is reset. It sends the new descriptors while those that they replace
        # still wait some ms to be closed.
        may_wait = MODEST if debt < MAX_DEBT else 0
        modest = foreign.held <= MODEST and foreign.waiting <= may_wait and debt < 2 * MAX_DEBT
        return modest and self._peers.numbers < self._peers.of_all


class Peers:
    """All users that have ever connected.

    Args:
        limit: the descriptors that this process may have open.
        queued_for_store: by user id, how many descriptors of this process are duplicates in the
            queue for the store, for VMs of that user. While the store takes nothing, duplicates
            for VMs that are gone stay in the queue: if they counted as nobody's, a VMM that
            connects and hangs up over and over would use up all descriptors.
    """

    def __init__(
        self, limit: int | None = None, queued_for_store: Callable[[int], int] = lambda _user: 0
    ) -> None:
        if limit is None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.of_one_user = int(limit * OF_ONE_USER)
        self.of_all = int(limit * OF_ALL)
        self.plenty = self.of_one_user // 8
        self.queued_for_store = queued_for_store
        self._peers: dict[int, Peer] = {}

    def of(self, connection: Connection) -> Peer:
        """The user of a connection; descriptors that it brings count as that user's."""
        uid = connection.peer_uid()
        peer = self._peers.get(uid)
        if peer is None:
            peer = self._peers[uid] = Peer(uid, self)
        peer.seen()
        connection.foreign.charge_to(peer.account)
        self._forget()
        return peer

    def _forget(self) -> None:
        """Forgets users who have had nothing here for long, a few at each call."""
        for uid, peer in list(islice(self._peers.items(), LOOKED_AT)):
            # Whoever stays is looked at again after all others.
            del self._peers[uid]
            if not peer.is_past():
                self._peers[uid] = peer

    @property
    def numbers(self) -> int:
        """How many descriptor numbers of this process all users' descriptors occupy or may occupy.

        Parked descriptors occupy no number and are not counted. A refused connection may be
        parked too: if it counted, one user could connect and be refused so often that all other
        users' connections would be refused.
        """
        return sum(peer.numbers for peer in self._peers.values())

    def refuses(self, peer: Peer, publish: Publish) -> bool:
        """Whether a new connection of this user must be refused; publishes why."""
        refusal = self._why_not(peer)
        if refusal is None:
            return False
        suppressed = peer.refusals.of_connections.admit(now_s())
        if suppressed is not None:
            publish(refusal._replace(suppressed=suppressed))
        return True

    def keeps_no_more_of(self, peer: Peer, room: Room, vm: VmId, publish: Publish) -> bool:
        """Whether a new VM gets no place in the store, because its user's share is used; publishes
        that.

        Args:
            peer: the VM's user.
            room: the store's room.
            vm: the VM.
            publish: takes events.
        """
        if room.takes_another_of(peer.uid):
            return False
        suppressed = peer.refusals.of_places.admit(now_s())
        if suppressed is not None:
            kept = room.guests_of(peer.uid)
            publish(StoreShareUsed(vm, peer.uid, kept, suppressed))
        return True

    def _why_not(self, peer: Peer) -> ConnectionRefused | None:
        connections = sum(each.places for each in self._peers.values())
        most = int(MAX_CONNECTIONS * OF_ONE_USER)
        if (taken := peer.places) >= most:
            return ConnectionRefused(peer.uid, Share.USERS_CONNECTIONS, taken, most)
        if connections >= MAX_CONNECTIONS:
            return ConnectionRefused(peer.uid, Share.CONNECTIONS, connections, MAX_CONNECTIONS)
        if (debt := peer.account.debt) >= MAX_DEBT:
            return ConnectionRefused(peer.uid, Share.CLOSES, debt, MAX_DEBT)
        if (taken := peer.descriptors) + EACH > self.of_one_user:
            share = Share.USERS_DESCRIPTORS
            return ConnectionRefused(peer.uid, share, taken, self.of_one_user, debt)
        if (taken := self.numbers) + EACH > self.of_all:
            return ConnectionRefused(peer.uid, Share.DESCRIPTORS, taken, self.of_all)
        return None
