"""Who is behind the VMMs, and what each of them may take of what all of them share.

A VMM's user is the kernel's word (SO_PEERCRED, unix(7)), asked once for each connection. Shared
are descriptors, the event loop's time and the log. One user gets three quarters of the descriptors
at most, and new connections are refused before those that are there can feel it.
"""

import resource
from time import monotonic as now_s

from balloon_daemon.controller.turns import Allowances, Turns
from balloon_daemon.device.process import DeviceSpec, Fork
from balloon_daemon.handover.room import SHARE, STATES
from balloon_daemon.linux.closing import MAX_DEBT, FdAccount, ForeignFds
from balloon_daemon.log import EventLog, LineBudget, RateLimit
from balloon_daemon.vhost_user.connection import Connection

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

LINES, LINES_A_SECOND = 10_000, 200
"""Of one user's VMs: as many at once, and so many for a long time. systemd-journald takes 10,000
in 30 s of a whole service by default. Sixteen decisions for each of 200 VMs fit."""

FIRST_LINES, FIRST_LINES_A_SECOND = 1_000, 20
"""Of those, what is said of connections younger than ``YOUNG_S``: those cost nothing to make."""

YOUNG_S = 10.0


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
        self._lines = LineBudget(LINES, LINES_A_SECOND)
        self._first_lines = LineBudget(FIRST_LINES, FIRST_LINES_A_SECOND)
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
        # A VM that was there before and takes no more than most can still be reset. What it gives
        # up for that waits a moment for its close, too.
        may_wait = MODEST if debt < MAX_DEBT else 0
        modest = foreign.held <= MODEST and foreign.waiting <= may_wait and debt < 2 * MAX_DEBT
        return modest and self._peers.descriptors < self._peers.of_all

    def log(self, log: EventLog) -> EventLog:
        """A log for one connection that is new, within what this user may say."""
        old_at_s = now_s() + YOUNG_S

        def admit() -> int | None:
            at_s = now_s()
            if at_s < old_at_s and not self._first_lines.has_one(at_s):
                self._lines.left_out += 1
                return None
            return self._lines.admit(at_s)

        return log.within(admit)


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

    def refuses(self, peer: Peer, log: EventLog) -> bool:
        """Whether a new connection of this user's must not be served; says why."""
        if why := self._why_not(peer):
            message = f"a connection of user {peer.uid} is refused: {why}"
            log.limited_error(peer.refusals, now_s(), "accept", message)
        return bool(why)

    def keeps_no_more_of(self, peer: Peer, capacity: int, log: EventLog) -> bool:
        """Whether a new connection must leave its place in the store to other users' VMs; says so.

        Args:
            peer: its user.
            capacity: descriptors that the store keeps at most.
            log: bound to the VM.
        """
        most = max(1, int(capacity * OF_ONE_USER) // (SHARE + STATES))
        if peer.connections < most:
            return False
        message = f"is not kept for a later balloond: user {peer.uid} has {most} VMs, its share"
        log.limited_error(peer.unkept, now_s(), "store", message)
        return True

    def _why_not(self, peer: Peer) -> str:
        connections = sum(each.connections for each in self._peers.values())
        if peer.connections >= MAX_CONNECTIONS * OF_ONE_USER:
            return f"it has {peer.connections}, as many as one user may have"
        if connections >= MAX_CONNECTIONS:
            return f"there are {connections}, as many as there may be"
        if (debt := peer.account.debt) >= MAX_DEBT:
            return f"{debt} descriptors wait for a close that does not end, {MAX_DEBT} may"
        if (taken := peer.descriptors) + EACH > self.of_one_user:
            of_them = f" ({debt} of them wait for a close that does not end)" if debt else ""
            return f"it takes {taken} descriptors{of_them}, {_of_share(self.of_one_user)}"
        if (taken := self.descriptors) + EACH > self.of_all:
            return f"all VMs together take {taken} descriptors, {_of_share(self.of_all)}"
        return ""


def _of_share(share: int) -> str:
    return f"of {share} at most; allow more (ulimit -n, LimitNOFILE=)"
