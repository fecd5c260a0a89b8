"""One VM's balloon: what is known of it, what its driver is told, and what is reported of it."""

import asyncio
from dataclasses import dataclass

from balloon_daemon.events import (
    BalloonFound,
    BalloonSought,
    GivingBack,
    MemoryNotShared,
    Publish,
    TargetReached,
    VmNotServed,
)
from balloon_daemon.guests.jailed.limits import BalloonLimits
from balloon_daemon.guests.jailed.sounding import Sounding
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    Refused,
    ReportTo,
    Resized,
    Stats,
    VmRow,
)
from balloon_daemon.rate_limit import OnceEach, RateLimit
from balloon_daemon.units import PAGE_SIZE, VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.virtio.balloon import BalloonFeature

REACHED_A_SECOND = 4
"""Times that are more than ``quiet``; a guest may write ``actual`` as often as it likes."""

REFUSALS = 32
"""Reasons why a VM gets no balloon that are published, each once."""

SHARED_WITHIN_POLLS = 60
"""How long a VMM may take to give its guest's memory before it is named, in times of the policy's
poll, which is 1 s. It does so when the guest's driver starts."""


@dataclass(frozen=True, slots=True)
class BalloonSettings:
    """What is set for a VM's balloon.

    Attributes:
        vm_mem_bytes: the VM's size; None: what its memory table says.
        poll_s: the policy's poll, in seconds.
    """

    vm_mem_bytes: int | None
    poll_s: float


class Balloon:
    """The balloon of one VM.

    Args:
        vm: which VM.
        backend: knows the config space, the rings and the memory.
        device: signals the driver.
        settings: what is set for it.
        publish: takes what happens.
        report: takes what the controller needs to know.
    """

    def __init__(
        self,
        vm: VmId,
        backend: Backend,
        device: DeviceSupervisor,
        settings: BalloonSettings,
        publish: Publish,
        report: ReportTo,
    ) -> None:
        self._vm = vm
        self._backend = backend
        self._device = device
        self._publish = publish
        self._report = report
        self.limits = BalloonLimits(vm, backend, settings.vm_mem_bytes, publish)
        self._sounding = Sounding(self.set_target, settings.poll_s)
        self._empty = asyncio.Event()
        self._attached = False
        self._reached = RateLimit(REACHED_A_SECOND)
        self._refusals = OnceEach(REFUSALS)
        self._not_shared = asyncio.get_running_loop().call_later(
            SHARED_WITHIN_POLLS * settings.poll_s, self._say_not_shared
        )

    def close(self) -> None:
        """Asks the driver for nothing more."""
        self._sounding.end()
        self._not_shared.cancel()
        # It knows this balloon: both would wait for the garbage collector.
        del self._sounding

    def set_target(self, target_bytes: int) -> None:
        """Tells the driver how large the balloon is to be."""
        # The config space first: the driver reads it as soon as it hears of a change.
        self._backend.set_target(target_bytes)
        self._device.send_target()

    async def give_back(self) -> None:
        """Lets the balloon shrink to nothing, and waits until the driver says that it has."""
        self._sounding.end()
        self._attached = True  # What it holds is sought no more.
        # A driver that has a target and gave nothing so far inflates all the same, unless it is
        # told another.
        unknown = self._backend.driver.balloon_unknown
        asked = self._actual_bytes or self._backend.target_bytes or unknown
        if not asked or not self._device.to_run:
            return
        self._publish(GivingBack(self._vm, None if unknown else self._actual_bytes))
        self._empty.clear()
        self.set_target(0)
        await self._empty.wait()

    def wait_no_more(self) -> None:
        """Ends a ``give_back``: the VM is gone."""
        self._empty.set()

    # --- what the driver says -----------------------------------------------------------------

    @property
    def _actual_bytes(self) -> int:
        return self._backend.config.actual * PAGE_SIZE

    def actual_written(self) -> None:
        """The driver has written ``actual``."""
        self._report_actual()
        if self._sounding.under_way:
            found_bytes = self._actual_bytes
            self._publish(BalloonFound(self._vm, found_bytes))
            self._attach(found_bytes)
        elif self._backend.config.actual == self._backend.config.num_pages:
            self._target_reached()

    def _report_actual(self) -> None:
        actual_bytes = self._actual_bytes
        if actual_bytes == 0:
            self._empty.set()
        else:
            self._empty.clear()
        self._report(self._vm, Actual(actual_bytes, asyncio.get_running_loop().time()))

    def _target_reached(self) -> None:
        quiet = self._reached.admit(asyncio.get_running_loop().time()) is None
        missing_bytes = 0 if quiet else self.limits.judge()
        self._publish(TargetReached(self._vm, self._actual_bytes, missing_bytes, quiet))

    def take_stats(self, stats: Stats, *, first: bool) -> None:
        """Takes the guest's statistics.

        A device takes the buffer that its predecessor held, too: after a change of the memory
        table its first statistics may be from before. So new ones are asked for.
        """
        if first:
            self._device.request_stats()
        if not first or self.limits.knows_no_total:
            self._report(self._vm, stats)
            self.limits.take_stats(stats)
            self._report_size()

    # --- its size -----------------------------------------------------------------------------

    def rings_changed(self) -> None:
        """Reports the VM once its size is known and its rings run."""
        refusal = self._backend.refusal
        if refusal and self._refusals.admit(refusal):
            self._publish(VmNotServed(self._vm, refusal))
            self._report(self._vm, Refused(refusal))
        if self._attached or not self._backend.ready_vrings():
            return
        self.limits.look_at_memory()
        if not self._backend.driver.balloon_unknown:
            self._attach(0)
        elif not self._sounding.under_way:
            self._publish(BalloonSought(self._vm))
            self._sounding.begin()

    def device_changed(self) -> None:
        """Another device runs: the front-end has finished what it had to say of its memory."""
        if self._attached:
            self.limits.look_at_memory()
            self._report_size()

    def restore(self, row: VmRow | None) -> None:
        """Goes on from what another controller kept, once the back-end does.

        Raises:
            StateError: no policy can be in that row.
        """
        self._report_actual()
        if row is not None:
            self.limits.assume(row.vm_mem_bytes)
            self._attached = True
            self._report(self._vm, Attached(row.vm_mem_bytes, self._can, row=row))

    def _attach(self, balloon_bytes: int) -> None:
        """Reports the VM, with so much in its balloon that nobody has asked for."""
        self._sounding.end()
        self._attached = True
        size_bytes = self.limits.size_bytes
        self._report(self._vm, Attached(size_bytes, self._can, balloon_bytes))

    @property
    def _can(self) -> frozenset[Ability]:
        sends_stats = self._backend.acknowledged & BalloonFeature.STATS_VQ
        return frozenset((Ability.STATS,)) if sends_stats else frozenset()

    def _report_size(self) -> None:
        self._report(self._vm, Resized(self.limits.size_bytes))

    def _say_not_shared(self) -> None:
        if self._backend.memory.regions or self._backend.refusal:
            return
        self._publish(MemoryNotShared(self._vm, self._backend.driver_runs))
