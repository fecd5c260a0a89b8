"""How many lines the VMs of each VMM's user may have in the log.

Pure. Whoever can cause a line can cause millions. A VM's user is the kernel's word, and known from
the VM's ``Connected`` on.
"""

from collections import deque

from balloon_daemon.events import Connected, Disconnected, Event
from balloon_daemon.rate_limit import LineBudget
from balloon_daemon.units import VmId

LINES, LINES_A_SECOND = 10_000, 200
"""Of one user's VMs: as many at once, and so many for a long time. systemd-journald takes 10,000
in 30 s of a whole service by default. Sixteen decisions for each of 200 VMs fit."""

FIRST_LINES, FIRST_LINES_A_SECOND = 1_000, 20
"""Of those, what is said of connections younger than ``YOUNG_S``: those cost nothing to make."""

YOUNG_S = 10.0

REMEMBERED = 1024
"""VMs that are gone and whose user is still known: a device's death may be said after its VM."""


class _User:
    def __init__(self) -> None:
        self.lines = LineBudget(LINES, LINES_A_SECOND)
        self.first_lines = LineBudget(FIRST_LINES, FIRST_LINES_A_SECOND)


class UserBudgets:
    """The budgets of all users that have ever connected."""

    def __init__(self) -> None:
        self._users: dict[int, _User] = {}
        self._vms: dict[VmId, tuple[_User, float]] = {}
        self._gone = deque[VmId]()

    def note(self, event: Connected | Disconnected, now_s: float) -> None:
        """Learns whose a VM is, or that it is gone.

        Args:
            event: what happened.
            now_s: seconds since any moment, never less than before.
        """
        if isinstance(event, Connected):
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
