"""One VM's balloon: its size, the targets for its driver, and the reports about it."""

import asyncio
from collections.abc import Callable

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
from balloon_daemon.guests.jailed.watching import Watching
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    CanDo,
    GuestState,
    Held,
    Refused,
    ReportTo,
    Resized,
    StateChanged,
    Stats,
    VmRow,
)
from balloon_daemon.guests.vmm_files import Ask, FiguresToCome
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.rate_limit import OnceEach
from balloon_daemon.units import PAGE_SIZE, VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.virtio.balloon import BalloonFeature

REFUSALS = 32
"""How many different reasons why a VM gets no balloon are published, each of them once."""

SHARED_WITHIN_POLLS = 60
"""How long a VMM may take to send its guest's memory table before a warning, in polls of the
policy (1 s each). A VMM sends the table when the guest's driver starts."""


class BalloonSettings(NamedTuple):
    """The settings for a VM's balloon.

    Attributes:
        vm_mem_bytes: the VM's size; None: the size of its memory table.
        poll_s: the balloon policy's poll interval, in seconds.
        vmm_pid: its VMM's process; 0: unknown.
        dry_run: never ask the driver for the balloon's size, as that changes the size.
        charge: charges the seconds that measuring the VM takes to its user; returns whether it may
            be measured now.
        ask: has a child look at the VMM's process; None: nobody looks.
    """

    vm_mem_bytes: int | None
    poll_s: float
    vmm_pid: int = 0
    dry_run: bool = False
    charge: Callable[[float], bool] = lambda _spent_s: True
    ask: Ask | None = None


def _ask_nobody(_target_bytes: int) -> None:
    """The ``set_target`` of a dry run's ``Sounding``: sends nothing to the driver."""


class Balloon:
    """The balloon of one VM.

    Args:
        vm: the VM.
        backend: has the config space, the rings and the memory.
        device: signals the driver.
        settings: the balloon's settings.
        publish: takes events.
        report: takes reports to the controller.
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
        self.limits = BalloonLimits(vm, backend, settings.vm_mem_bytes, publish, settings.charge)
        ask = _ask_nobody if settings.dry_run else self.set_target
        self._sounding = Sounding(ask, settings.poll_s)
        self._empty = asyncio.Event()
        self._attached = False
        vmm = FiguresToCome(settings.vmm_pid, settings.ask, self._vmm_was_seen)
        self.watching = Watching(vmm, settings.vmm_pid, self._look)
        self._refusals = OnceEach(REFUSALS)
        self._not_shared = asyncio.get_running_loop().call_later(
            SHARED_WITHIN_POLLS * settings.poll_s, self._say_not_shared
        )

    def close(self) -> None:
        """Asks the driver for nothing more."""
        self._sounding.end()
        self.watching.end()
        self._not_shared.cancel()
        # Break the reference cycles between this object and ``_sounding``, the search for the
        # balloon's size, and ``watching``: only the garbage collector would free a cycle.
        del self._sounding, self.watching

    def set_target(self, target_bytes: int) -> None:
        """Tells the driver the balloon's wanted size."""
        # Write the config space (``num_pages``) first: the driver reads it as soon as the device
        # tells it that the config space has changed.
        self._backend.set_target(target_bytes)
        self._device.send_target()

    async def give_back(self) -> None:
        """Lets the balloon shrink to nothing, and waits until the driver reports that."""
        self._sounding.end()
        self._attached = True  # ``rings_changed`` begins no search for the balloon's size now.
        # Tell target 0 not only to a guest that has given pages. A guest that has given none yet
        # (``actual`` is 0), but was told a target above 0, would otherwise inflate its balloon
        # later.
        unknown = self._backend.driver.balloon_unknown
        asked = self._actual_bytes or self._backend.target_bytes or unknown
        if not asked or not self._device.to_run:
            return
        self._publish(GivingBack(self._vm, None if unknown else self._actual_bytes))
        self._empty.clear()
        self.set_target(0)
        await self._empty.wait()

    def wait_no_more(self) -> None:
        """Ends a ``give_back``, because the VM is gone."""
        self._empty.set()

    # --- the driver's messages ----------------------------------------------------------------

    @property
    def _actual_bytes(self) -> int:
        return self._backend.config.actual * PAGE_SIZE

    def actual_written(self, pages: int) -> None:
        """Handles a size that the driver has written to ``actual``, in 4 KiB pages."""
        self._report_actual(pages * PAGE_SIZE)
        if self._sounding.under_way:
            found_bytes = pages * PAGE_SIZE
            self._publish(BalloonFound(self._vm, found_bytes))
            self._attach(found_bytes)
        elif pages == self._backend.config.num_pages:
            self._target_reached()

    def _report_actual(self, actual_bytes: int) -> None:
        if actual_bytes == 0:
            self._empty.set()
        else:
            self._empty.clear()
        self._report(self._vm, Actual(actual_bytes, asyncio.get_running_loop().time()))

    def _target_reached(self) -> None:
        missing_bytes = self.limits.judge(asyncio.get_running_loop().time())
        quiet = missing_bytes is None
        if not quiet:
            self._report_held()
        self._publish(TargetReached(self._vm, self._actual_bytes, missing_bytes or 0, quiet))

    def take_stats(self, stats: Stats, *, first: bool) -> None:
        """Handles the guest's statistics.

        The first statistics of a new device may be older than the present memory table: the driver
        wrote them into the statsq buffer that the earlier device held. So new statistics are
        requested, and the first are used only if the guest's total is not known yet.
        """
        if first:
            self._device.request_stats()
        if not first or self.limits.knows_no_total:
            self._report(self._vm, self.watching.completed(stats))
            self.limits.take_stats(stats)
            self._report_size()

    def _look(self) -> None:
        """Asks for the guest's statistics, and reports how much host memory the VM occupies."""
        self._device.request_stats()
        self._report_held()

    def _report_held(self) -> None:
        """Reports how much host memory the VM occupies. A VM with the profile seed is not watched
        (``_look``): of such a VM this is reported only when the balloon has reached a target."""
        if self._attached and self.limits.size_bytes:
            now_s = asyncio.get_running_loop().time()
            self._report(self._vm, Held(self.limits.held_bytes(), now_s))

    # --- the VM's size and state --------------------------------------------------------------

    def rings_changed(self) -> None:
        """Reports the VM as attached once its rings run and its balloon's size is known. From then
        on reports whether its rings run: a VMM stops the rings for a pause and for a reset."""
        refusal = self._backend.refusal
        if refusal and self._refusals.admit(refusal):
            self._publish(VmNotServed(self._vm, refusal))
            self._report(self._vm, Refused(refusal))
        runs = bool(self._backend.ready_vrings())
        if self._attached:
            state = GuestState.RUNNING if runs else GuestState.PAUSED
            self._report(self._vm, StateChanged(state))
        if self._attached or not runs:
            return
        self.limits.look_at_memory()
        if not self._backend.driver.balloon_unknown:
            self._attach(0)
        elif not self._sounding.under_way:
            self._publish(BalloonSought(self._vm))
            self._sounding.begin()

    def device_changed(self) -> None:
        """Checks the VM's size again. Another device was forked, which is done only after the VMM
        has sent its whole memory table."""
        if self._attached:
            self.limits.look_at_memory()
            self._report_size()

    def restore(self, row: VmRow | None) -> None:
        """Restores another controller's balloon, after the back-end was restored.

        Raises:
            StateError: the row holds a state that no policy can be in.
        """
        self._report_actual(self._actual_bytes)
        if row is not None:
            self.limits.assume(row.vm_mem_bytes)
            self._attached = True
            self.watching.begin()
            pid = self.watching.vmm_pid
            self._report(self._vm, Attached(row.vm_mem_bytes, self._can, row=row, vmm_pid=pid))

    def _attach(self, balloon_bytes: int) -> None:
        """Reports the VM as attached. Its balloon already holds ``balloon_bytes``, although this
        controller has sent no target for them."""
        self._sounding.end()
        self._attached = True
        self.watching.begin()
        size_bytes = self.limits.size_bytes
        pid = self.watching.vmm_pid
        self._report(self._vm, Attached(size_bytes, self._can, balloon_bytes, vmm_pid=pid))

    @property
    def _can(self) -> frozenset[Ability]:
        features = self._backend.acknowledged
        can = {
            Ability.STATS: features & BalloonFeature.STATS_VQ,
            Ability.DISK_READS: self.watching.knows_disk_reads,
            Ability.DEFLATE_ON_OOM: features & BalloonFeature.DEFLATE_ON_OOM,
        }
        return frozenset(ability for ability, has_it in can.items() if has_it)

    def _vmm_was_seen(self) -> None:
        """Reports what the VM can do, now that the files of its VMM's process have been opened."""
        if self._attached:
            self._report(self._vm, CanDo(self._can))

    def _report_size(self) -> None:
        self._report(self._vm, Resized(self.limits.size_bytes))

    def _say_not_shared(self) -> None:
        if self._backend.memory.regions or self._backend.refusal:
            return
        self._publish(MemoryNotShared(self._vm, self._backend.driver_runs))
