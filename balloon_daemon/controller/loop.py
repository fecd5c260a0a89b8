"""The controller: one asyncio loop that watches the host and serves every guest."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from balloon_daemon.commands import Service
from balloon_daemon.config.model import Config
from balloon_daemon.controller.dismissal import Dismissals
from balloon_daemon.controller.dry_run import DryGovernor, DryRun
from balloon_daemon.controller.ending import end_tasks, give_back, leave_at_once
from balloon_daemon.controller.governor import Governor
from balloon_daemon.controller.heartbeat import Figures, Heartbeat
from balloon_daemon.controller.reload import Files, Reloads
from balloon_daemon.controller.survey import POLLS, Survey
from balloon_daemon.controller.traced import Traced
from balloon_daemon.controller.vm import Vm
from balloon_daemon.events import (
    CallbackFailed,
    DrivesOthers,
    DryRunBegins,
    Publish,
    SourceTrouble,
    Stopping,
    StoppingAtOnce,
    VmFailed,
)
from balloon_daemon.guests.seam import Attached, Gone, Guest, GuestDriver, Report
from balloon_daemon.host.low_memory import LowMemorySource
from balloon_daemon.host.margin import beyond_host
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.linux.libc import return_freed_memory
from balloon_daemon.linux.reading_child import APART
from balloon_daemon.linux.signals import END_SIGNALS, hold_end_signals, release_end_signals
from balloon_daemon.linux.systemd import notify
from balloon_daemon.linux.terminal import has_terminal
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.status import VmStatus
from balloon_daemon.units import VmId

GC_THRESHOLDS = 700, 2, 500
"""When the garbage collector runs (gc.set_threshold), which stops the service of all VMs. With
Python's own 700, 10, 10 two hundred connections a second made it scan 18,000 objects twice a
second, for 7 ms each time. So the middle generation is collected more often, while it is small,
and the oldest, with all connections in it, seldom: few cycles live that long."""


class Registry:
    """All VMs, and the numbers that VMs get. Drivers add VMs and report about them by the methods
    of ``VmRegistry`` (``guests/seam.py``).

    Args:
        governor: sizes the VMs' balloons.
        publish: called with each event to be published.
        dry_run: True: guests get no targets.
    """

    def __init__(self, governor: Governor, publish: Publish, *, dry_run: bool = False) -> None:
        self._governor = governor
        self._publish = publish
        self._dry_run = DryRun(governor.report, publish) if dry_run else None
        self._last = 0
        self.tasks: dict[VmId, asyncio.Task[None]] = {}
        self.drivers: dict[VmId, GuestDriver] = {}
        """The driver that has found each VM; without the VMs that are gone, or are let go."""
        self.dismissals = Dismissals(governor, self.tasks, publish)

    def of(self, driver: GuestDriver) -> "DriversRegistry":
        """The registry for one driver."""
        return DriversRegistry(self, driver)

    def next_vm(self, name: str = "") -> VmId:
        return VmId(self._last + 1, name or f"vm{self._last + 1}")

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        # A VM taken over from another balloond brings its number along. Note the highest number so
        # far, so that no new VM gets a number that was used before.
        self._last = max(self._last, guest.vm.number)
        self._governor.add(self._dry_run.guest(guest) if self._dry_run else guest, settings, kind)

    def report(self, vm: VmId, report: Report) -> None:
        if isinstance(report, Attached) and vm in self.dismissals:
            return  # The VM is being let go: the sizing policy must not begin to govern it.
        (self._dry_run or self._governor).report(vm, report)

    def serve(self, guest: Guest) -> None:
        task = asyncio.get_running_loop().create_task(guest.serve())
        self.tasks[guest.vm] = task
        task.add_done_callback(lambda task: self._ended(guest.vm, task))

    def change(self, vm: VmId, settings: VmSettings) -> None:
        self._governor.change(vm, settings)

    def dismiss(self, vm: VmId) -> None:
        self.drivers.pop(vm, None)
        self.dismissals.begin(vm)

    def _ended(self, vm: VmId, task: "asyncio.Task[None]") -> None:
        del self.tasks[vm]
        self.drivers.pop(vm, None)
        self._governor.report(vm, Gone("its task has ended"))
        if not task.cancelled() and (err := task.exception()) is not None:
            # Publish the error and do not raise it: a bug in one guest's task must not end the
            # tasks of the other VMs.
            self._publish(VmFailed(vm, f"{type(err).__name__}: {err}"))


class DriversRegistry:
    """Passes one driver's calls of ``VmRegistry`` on to ``Registry``, and notes which VMs this
    driver has found.

    Args:
        registry: all VMs.
        driver: finds VMs.
    """

    def __init__(self, registry: Registry, driver: GuestDriver) -> None:
        self._registry = registry
        self._driver = driver
        self.next_vm = registry.next_vm
        self.report = registry.report
        self.serve = registry.serve
        self.change, self.dismiss = registry.change, registry.dismiss

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        self._registry.drivers[guest.vm] = self._driver
        self._registry.add(guest, settings, kind)


class Controller:
    """The daemon from its start to its end.

    Args:
        config: the settings.
        source: the low-memory source.
        drivers: find and serve the VMs; each driver is for one kind of VMs.
        publish: called with each event to be published.
        drain: delivers all published events, before this process ends without the interpreter's
            exit.
        service: runs beside the guests, from their start to their end; None: nothing does.
        files: reads the configuration anew at SIGHUP; None: SIGHUP ends balloond.
    """

    def __init__(
        self,
        config: Config,
        source: LowMemorySource,
        drivers: Sequence[GuestDriver],
        publish: Publish,
        drain: Callable[[], None],
        service: Service | None = None,
        files: Files | None = None,
    ) -> None:
        self._config = config
        self._source = source
        self._drivers = list(drivers)
        self._files = files
        self._publish = publish
        self._drain = drain
        self._service = service
        self._governor: Governor
        self._registry: Registry
        self._watch: MemoryWatch
        self._hurry: asyncio.Future[None] | None = None
        self.listening = False
        """Whether the controller has begun to serve. If it fails after that, the VMs' descriptors
        stay in the store for the next balloond."""

    async def run(self, heartbeat: Heartbeat | None = None) -> None:
        """Serves until SIGTERM or SIGINT; then gives the guests' memory back and ends.

        SIGHUP has the configuration read anew; from a terminal that hangs up it ends balloond as
        SIGTERM does. SIGUSR1 ends balloond too, but leaves to the next balloond all VMs whose
        driver can do so.
        The signals are blocked when this method begins, and again when it ends.

        Args:
            heartbeat: sends watchdog messages and the status line to the service manager; None:
                there is no watchdog.
        """
        loop = asyncio.get_running_loop()
        watch = self._watch = MemoryWatch(self._source, self._config.poll_s, self._publish, loop)
        recorded = self._config.record is not None
        tracing = Traced(self._publish, loop.time, watch, always=recorded)
        make = tracing.make if recorded or self._service is not None else HostPolicy
        dry_run = self._config.dry_run
        governor = DryGovernor if dry_run else Governor
        self._governor = governor(self._config.policy, watch, self._publish, loop, make)
        self._registry = Registry(self._governor, self._publish, dry_run=dry_run)
        loop.set_exception_handler(self._failed)
        APART.later = loop.call_later
        stopping = loop.create_future()
        reloads = None
        if self._files is not None:
            reloads = Reloads(self._files, self._config, self._apply, self._publish)
        had_terminal = has_terminal()

        def hung_up() -> None:
            lost = had_terminal and not has_terminal()
            if reloads is None or lost or stopping.done():
                self._stop(stopping, signal.SIGHUP)
            else:
                reloads.reload()

        for number in END_SIGNALS:
            # Handle SIGHUP and SIGINT only where they are not ignored: nohup(1), or a script's
            # "&", has a program ignore them on purpose.
            meant = number in (signal.SIGHUP, signal.SIGINT)
            if not meant or signal.getsignal(number) is not signal.SIG_IGN:
                stop = partial(self._stop, stopping, number)
                loop.add_signal_handler(number, hung_up if number is signal.SIGHUP else stop)
        # Freeze all objects loaded so far: no later garbage collection has to scan them. Without a
        # collection first: it takes 7 ms and finds some 200 objects.
        gc.freeze()
        gc.enable()
        # The start has freed buffers and code that ran once: have malloc return 0.2 to 0.5 MiB of
        # it.
        return_freed_memory()
        if sys.version_info < (3, 14):  # Later versions collect the old objects in increments.
            gc.set_threshold(*GC_THRESHOLDS)
        if dry_run:
            self._publish(DryRunBegins())
        for driver in self._drivers:
            driver.start(self._registry.of(driver))
        every_s = POLLS * self._config.poll_s
        survey = Survey(watch, every_s, self._vm_statuses, self._publish, loop)
        surveyed = recorded or self._config.history is not None
        if self._service is not None:
            tracing.serve(lambda: self._governor.vms, None if surveyed else survey)
            self._service.start(self._governor, tracing, reloads)
        socket, others = self._config.socket, self._config.others
        notify("READY=1", f"STATUS={'driving' if socket is None else f'listening on {socket}'}")
        if heartbeat is not None:
            heartbeat.begin(self._figures)
        places = self._config.discover.places
        if others or places:
            self._publish(DrivesOthers(len(others), places))
        self.listening = True
        # Read the low-memory source once even if no VM is attached: the log then says at the start
        # what is wrong with its figures. Read in a callback: an error there is published and does
        # not end the start.
        loop.call_soon(watch.read)
        if surveyed:
            survey.begin()
        release_end_signals()
        leaving, ended = False, True
        try:
            leaving = await stopping
        finally:
            if reloads is not None:
                reloads.close()
            notify("STOPPING=1")
            ended = await self._end(leaving=leaving)
            if heartbeat is not None:
                heartbeat.close()
            survey.close()
            watch.close()
            for driver in self._drivers:
                await driver.close(leaving=leaving and driver.keeps)
            APART.close()
            if self._service is not None:
                self._service.close()
            # Block the end signals, as the event loop's handlers are removed next: the default
            # action of a second signal would then kill this process before it has cleaned up.
            hold_end_signals()
            if not ended:
                # Exit at once: some tasks do not end, and asyncio.run(), to which this method
                # would return, waits for all of them.
                self._drain()
                leave_at_once(0)

    def _apply(self, config: Config) -> None:
        """Applies new settings, which differ from the present ones in ``changes.LIVE`` only."""
        margins = config.margin_bytes, self._config.margin_bytes
        self._config = config
        if margins[0] != margins[1]:
            if too_much := beyond_host(config.margin_bytes):
                self._publish(SourceTrouble(too_much))
            self._watch.set_margin(config.margin_bytes)
        assert self._files is not None
        for driver in self._files.apply(config):
            self._drivers.append(driver)
            driver.start(self._registry.of(driver))

    def _vm_statuses(self) -> Iterator[VmStatus]:
        for vm in self._governor.vm_ids():
            if (status := self._governor.vm_status(vm)) is not None:
                yield status

    def _figures(self) -> Figures:
        vms = list(self._governor.vms)
        return Figures(len(vms), sum(vm.balloon_bytes for vm in vms), self._watch.look())

    def _stop(self, stopping: "asyncio.Future[bool]", number: signal.Signals) -> None:
        if stopping.done():
            # A second SIGTERM or SIGINT ends balloond without waiting for guests. A second SIGHUP
            # does not: a terminal session that ends sends SIGHUP right after SIGTERM.
            asked_again = number in (signal.SIGTERM, signal.SIGINT)
            if asked_again and self._hurry is not None and not self._hurry.done():
                self._publish(StoppingAtOnce(number.name))
                self._hurry.set_result(None)
        else:
            leaving = number is signal.SIGUSR1
            stay = leaving and all(driver.keeps for driver in self._drivers)
            self._publish(Stopping(number.name, stay))
            stopping.set_result(leaving)

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # asyncio calls this method when a callback has raised an error, which is a bug. asyncio's
        # own handler would print a traceback into the log.
        err = context.get("exception")
        what = context["message"] if err is None else f"{type(err).__name__}: {err}"
        self._publish(CallbackFailed(what))

    async def _end(self, *, leaving: bool) -> bool:
        """Gives guests' memory back, or leaves VMs to the next balloond, and ends all tasks; False
        where some tasks do not end."""
        self._registry.dismissals.close()
        keeping = [driver for driver in self._drivers if leaving and driver.keeps]
        for driver in self._drivers:
            driver.stop(leaving=driver in keeping)
        left: list[Vm] = []
        given_back: list[Vm] = []
        for vm in list(self._governor.vms):
            is_kept = self._registry.drivers.get(vm.guest.vm) in keeping
            stays = is_kept and vm.guest.stays
            (left if stays else given_back).append(vm)
        if given_back or not leaving:
            self._governor.halt()
            self._hurry = asyncio.get_running_loop().create_future()
            await give_back(given_back, self._hurry, self._publish)
        # Leave these VMs only after all others have got their memory back, which may take seconds:
        # the state of a VM that was left is not saved any more, but its VMM may still change
        # memory and vrings.
        for vm in left:
            try:
                vm.guest.leave()
            except Exception as err:
                # Go on after a bug in one guest: the other VMs must still be left in the store
                # for the next balloond.
                self._publish(VmFailed(vm.guest.vm, f"{type(err).__name__}: {err}"))
        return await end_tasks(dict(self._registry.tasks), self._publish)
