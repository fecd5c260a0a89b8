"""``--dry-run``: the sizing policy decides as always, but no guest gets a target.

Runs in the controller, between the registry and the guests. The policy is told that each balloon
has reached its target at once. If it were told the true size, which never changes, it would find
every guest stalled, and decide nothing after its first step. The balloons free no host memory, so
the host stays low for longer than it would, and a dry run shows the most that would be asked of
guests. The host's figures in its log are the true ones.
"""

import asyncio

from balloon_daemon.controller.governor import Governor
from balloon_daemon.events import Publish, TargetWithheld
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    Gone,
    Guest,
    Held,
    Report,
    ReportTo,
    VmRow,
)
from balloon_daemon.status import HostStatus
from balloon_daemon.units import VmId


class DryGovernor(Governor):
    """The governor of a dry run: its status says that it is one."""

    def host_status(self) -> HostStatus:
        """The host's last memory reading, and the sizing policy's present state, marked as of a
        dry run."""
        return super().host_status()._replace(dry_run=True)


class DryRun:
    """The guests of a dry run.

    Args:
        report: passes a guest's report to the governor.
        publish: called with each event to be published.
    """

    def __init__(self, report: ReportTo, publish: Publish) -> None:
        self._report = report
        self._publish = publish
        self._guests: dict[VmId, DryGuest] = {}

    def guest(self, guest: Guest) -> Guest:
        """A guest that stands for another one and passes no target on."""
        dry = DryGuest(guest, self._report, self._publish)
        self._guests[guest.vm] = dry
        return dry

    def report(self, vm: VmId, report: Report) -> None:
        """Passes a guest's report to the governor, except reports of its balloon's true size."""
        match report:
            case Actual() | Held():
                return
            case Attached() if vm in self._guests:
                self._guests[vm].attached = report
            case Gone():
                self._guests.pop(vm, None)
        self._report(vm, report)


class DryGuest:
    """Stands for a guest of a dry run, and passes no target on to it. Implements ``Guest``.

    Args:
        guest: the guest that it stands for.
        report: passes a guest's report to the governor.
        publish: called with each event to be published.
    """

    def __init__(self, guest: Guest, report: ReportTo, publish: Publish) -> None:
        self.vm = guest.vm
        self.attached = Attached(0)
        """The guest's own report ``Attached``, with its balloon's true size."""
        self.serve, self.leave = guest.serve, guest.leave
        self.request_stats, self.watch = guest.request_stats, guest.watch
        self.against_more = guest.against_more
        self._guest = guest
        self._report = report
        self._publish = publish
        self._target_bytes: int | None = None

    @property
    def stays(self) -> bool:
        """Whether another balloond can take the VM over, with its balloon."""
        return self._guest.stays

    def set_target(self, target_bytes: int) -> None:
        """Publishes the target, in place of sending it."""
        if target_bytes != (self._target_bytes or 0):
            self._publish(TargetWithheld(self.vm, target_bytes))
        self._target_bytes = target_bytes
        # Report the new size in a later turn of the loop: the governor is in the middle of a step.
        asyncio.get_running_loop().call_soon(self._seem_to_have, target_bytes)

    def keep(self, row: VmRow) -> bool:
        """Stores for another balloond the policy's state (``VmRow``) that an earlier balloond had
        stored, if there is one, else that of an empty balloon; not ``row``, which has the size
        that the balloon only seems to have."""
        true = VmRow(row.vm_mem_bytes, 0, None, None)
        return self._guest.keep(self.attached.row or true)

    async def give_back(self) -> None:
        """Empties only the pretended balloon, as the dry run has taken no memory. If the VMM keeps
        targets (``Ability.KEPT_BY_VMM``), also has the driver restore the VMM's settings."""
        self._seem_to_have(0)
        if Ability.KEPT_BY_VMM in self.attached.can:
            await self._guest.give_back()

    def _seem_to_have(self, balloon_bytes: int) -> None:
        self._report(self.vm, Actual(balloon_bytes, asyncio.get_running_loop().time()))
