"""How many log lines the VMs of one user may cause.

Pure. Whoever can cause one line can cause millions. A VM's user is known from its ``Connected`` or
``VmDriven`` event on. Driven VMs whose user the kernel does not tell count as those of one user.
"""

from collections import deque

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


class _User:
    def __init__(self) -> None:
        self.lines = LineBudget(LINES, LINES_A_SECOND)
        self.first_lines = LineBudget(FIRST_LINES, FIRST_LINES_A_SECOND)


class UserBudgets:
    """The budgets of all users that have ever had a VM."""

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
            self._vms[event.vm] = (user, now_s + YOUNG_S)
            return
        self._gone.append(event.vm)
        if len(self._gone) > REMEMBERED:
            self._vms.pop(self._gone.popleft(), None)

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
