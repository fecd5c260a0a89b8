"""How many log lines the VMs of one user may cause.

Pure. Whoever can cause one line can cause millions. A VM's user is known from its ``Connected`` or
``VmDriven`` event on. Driven VMs whose user the kernel does not tell count as those of one user.
"""

from collections import deque
from itertools import islice

from balloon_daemon.events import Connected, Disconnected, Event, VmDriven, VmLetGo, VmLost
from balloon_daemon.rate_limit import LineBudget
from balloon_daemon.units import VmId

LINES, LINES_A_SECOND = 10_000, 200
"""A token bucket for all VMs of one user: its size in lines, and how many are added a second.
systemd-journald accepts 10,000 in 30 s from a whole service by default. Sixteen decisions for each
of 200 VMs fit."""

FIRST_LINES, FIRST_LINES_A_SECOND = 1_000, 20
"""A second, smaller bucket for the lines about a user's VMs that are younger than ``YOUNG_S``: a
user can make any number of new connections at no cost."""

YOUNG_S = 10.0

REMEMBERED = 1024
"""How many VMs that are gone are remembered with their user: a device's death may be logged after
its VM's end."""


FORGOTTEN_AFTER_S = 60.0
"""A user of whom no VM has been remembered for so long is forgotten, as both of its buckets are
full again. Whoever has subordinate users (subuid(5)) may connect as 65,536 users."""

LOOKED_AT = 2
"""At how many users each new VM looks whether they are to be forgotten."""


class _User:
    def __init__(self) -> None:
        self.lines = LineBudget(LINES, LINES_A_SECOND)
        self.first_lines = LineBudget(FIRST_LINES, FIRST_LINES_A_SECOND)
        self.vms = 0
        """How many of its VMs are remembered."""
        self.seen_s = 0.0


class UserBudgets:
    """The budgets of all users that have a VM, or have had one a short time ago."""

    def __init__(self) -> None:
        self._users: dict[int, _User] = {}
        self._vms: dict[VmId, tuple[_User, float]] = {}
        self._gone = deque[VmId]()

    def note(
        self, event: Connected | Disconnected | VmDriven | VmLetGo | VmLost, now_s: float
    ) -> None:
        """Notes a VM's user, or that the VM is gone.

        Args:
            event: the event.
            now_s: seconds since any moment, never less than before.
        """
        if isinstance(event, Connected | VmDriven):
            user = self._users.setdefault(event.uid, _User())
            user.vms += 1
            self._drop(event.vm, now_s)
            self._vms[event.vm] = (user, now_s + YOUNG_S)
            self._forget(now_s)
            return
        self._gone.append(event.vm)
        if len(self._gone) > REMEMBERED:
            self._drop(self._gone.popleft(), now_s)

    def _drop(self, vm: VmId, now_s: float) -> None:
        known = self._vms.pop(vm, None)
        if known is not None:
            user, _ = known
            user.vms -= 1
            user.seen_s = now_s

    def _forget(self, now_s: float) -> None:
        """Forgets users of whom nothing is left, a few at each call."""
        for uid, user in list(islice(self._users.items(), LOOKED_AT)):
            # Whoever stays is looked at again after all others.
            del self._users[uid]
            if user.vms or now_s - user.seen_s < FORGOTTEN_AFTER_S:
                self._users[uid] = user

    def admit(self, event: Event, now_s: float) -> int | None:
        """Tells whether an event may have a line.

        Returns:
            How many lines of its user's VMs were left out before this one; None: leave it out.
        """
        vm = getattr(event, "vm", None)
        known = None if vm is None else self._vms.get(vm)
        if known is None:
            return 0
        user, old_at_s = known
        if now_s < old_at_s and not user.first_lines.has_one(now_s):
            user.lines.left_out += 1
            return None
        return user.lines.admit(now_s)
