"""Keeps one guest's device running: forks it, hears its reports, ends it, and forks it anew.

Runs in the controller. The device may be taken over by its guest at any moment, so its reports are
numbers that are logged and added up, and nothing that it says is obeyed.
"""

import asyncio
import math
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from balloon_daemon.device.process import (
    MAX_DEATH_RECORD_BYTES,
    DeviceProcess,
    Fork,
    NotYetError,
    spawn,
)
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.errors import DeviceHangsError, StateFileError
from balloon_daemon.guests.jailed.device_words import cause, fault_words, stat_name
from balloon_daemon.guests.jailed.hearing import OrderWatch, ReportReader
from balloon_daemon.guests.jailed.waiting import is_done_within, is_set_within
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.jail import Identity
from balloon_daemon.linux.kernel_log import find_seccomp_kill
from balloon_daemon.records.log import EventLog, RateLimit
from balloon_daemon.tube.messages import (
    Command,
    Down,
    Fault,
    FaultKind,
    Progress,
    Ready,
    Stats,
    Stopped,
    Target,
    Up,
)
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ReadyVring
from balloon_daemon.vhost_user.messages import CONFIG_CHANGE_MSG
from balloon_daemon.virtio.balloon import BalloonFeature

SETTLE_S = 0.005
"""A front-end sends a burst of messages; a device is forked once it has been quiet this long."""

NOT_YET_S = 0.05
"""When to ask again for a device that cannot be forked just yet."""

PREDECESSOR_WITHIN_S = 5.0
"""How long the device of a controller that is gone may take to be gone too."""

STOP_WITHIN_S = 1.0
"""A device that is told to stop and does not is killed after this."""

KILLED_WITHIN_S = 5.0
"""One that was killed and is not gone by then hangs in the kernel, and its VM is let go."""

FREED_WITHIN_S = 120.0
"""The same for one that had said where its rings stand, and may have memory to free: 5 GiB a
second."""

LOOKS_AFTER_S = (0.0, 0.3, 0.3)
"""Waits before each fork of a device that only looks where the rings stand."""

STARTS_A_SECOND = 2
"""Starts that are logged but for debugging: a guest may reset its device in a loop."""

FAULTS_A_SECOND = 10
"""Faults of one guest that are logged; the others are counted."""

STATS_A_SECOND = 4
"""Statistics of one guest that are logged (--verbose)."""

MAX_DEATHS = 5
DEATHS_WITHIN_S = 60.0
"""More deaths than this in so many seconds, and no new device is forked for that guest."""

EARNED_AFTER_S = 60.0
"""A guest whose last device began so long ago has all of its next one's allowances, and a part of
them before: it can have its device made anew as often as it likes."""

NAME_WITHIN_S = 0.2
"""The kernel writes its record of a seccomp kill from a thread of its own, a little later."""


@dataclass(frozen=True, slots=True)
class Jail:
    """What every device's jail is made of.

    Attributes:
        identity: whom a device becomes; None: nobody else.
        fork: how a device is forked.
    """

    identity: Identity | None
    fork: Fork


class Hears(Protocol):
    """Whoever wants to know what devices report of their guest."""

    def progressed(self, done: Progress) -> None:
        """All devices of this guest together have done so much."""

    def stats_came(self, stats: dict[int, int], *, first: bool) -> None:
        """The guest's statistics, by tag; the first ones of a device may be old."""


class DeviceKeeper:
    """The device of one guest, or the absence of one.

    Args:
        backend: knows the memory, the vrings and the descriptors.
        jail: for each fork.
        target: the balloon's present target in bytes, whenever a device asks for it.
        log: bound to the guest.
        name: the guest's, for ``ps``.
        changed: called when another device runs than before, so that it can be kept in mind.
        hears: takes what devices report of their guest.
    """

    def __init__(
        self,
        backend: Backend,
        jail: Jail,
        target: Callable[[], int],
        log: EventLog,
        name: str,
        changed: Callable[[], None],
        hears: "Hears",
    ) -> None:
        self._backend = backend
        self._jail = jail
        self._target = target
        self._log = log
        self._name = name
        self._changed = changed
        self._hears = hears
        self._loop = asyncio.get_running_loop()
        self._device: DeviceProcess | None = None
        self._reader: ReportReader | None = None
        self._orders: OrderWatch | None = None
        self._left_at_s = math.inf
        self._gone = self._loop.create_future()
        self._stopping = self._gave_up = False
        self._settling: asyncio.TimerHandle | None = None
        self._began_at = -EARNED_AFTER_S
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._fault_limit = RateLimit(FAULTS_A_SECOND)
        self._start_limit = RateLimit(STARTS_A_SECOND)
        self._stats_limit = RateLimit(STATS_A_SECOND)
        self._unforked, self._unlearned = RateLimit(1), RateLimit(1)  # Tried at any reset too.
        self._indices_known = True
        self._predecessor: OwnedFd | None = None
        self._alone = asyncio.Event()
        self._alone.set()
        self._before, self._now = Progress(), Progress()
        self._had_stats = False
        self.started = 0
        """Devices forked so far."""

    def close(self) -> None:
        """Lets go of what ``stop`` leaves."""
        if self._predecessor is not None:
            self._loop.remove_reader(self._predecessor.fileno())
            self._predecessor.close()
            self._predecessor = None

    @property
    def running(self) -> bool:
        return self._device is not None

    @property
    def to_run(self) -> bool:
        """Whether a device runs, or is going to: its vrings are ready."""
        return self.running or (not self._gave_up and bool(self._backend.ready_vrings()))

    @property
    def pid(self) -> int | None:
        """The device's process id; None where none runs."""
        return None if self._device is None else self._device.pid

    def statistics(self) -> Progress:
        """What all devices of this guest have done."""
        return self._before.plus(self._now)

    def settle(self) -> None:
        """Forks a device once the front-end has been quiet for a moment, if one can run."""
        self._call_off()
        self._settling = self._loop.call_later(SETTLE_S, self._start)

    def _call_off(self) -> None:
        """Forks none for now after all."""
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None

    def send_target(self) -> None:
        """Sends the present target, absolute, if a device runs; else it waits for the next."""
        self._order(Target(self._target()))

    def request_stats(self) -> None:
        """Asks the guest for new statistics."""
        self._order(Command.REQUEST_STATS)

    def _order(self, order: Down) -> None:
        if self._device is None or not self._device.tube.send(order):
            return
        if self._orders is not None:
            self._orders.sent()

    @property
    def life(self) -> OwnedFd | None:
        """Hangs up when the present device is gone; None where none runs."""
        return self._predecessor if self._device is None else self._device.stderr_pipe

    def take_over(self) -> None:
        """Goes on with vrings that another controller's device may have served."""
        # It may have died, with what it did last in no state, before the next was forked.
        self._indices_known = not self._backend.ready_vrings(disabled=True)
        self.settle()

    def wait_out(self, predecessor: OwnedFd) -> None:
        """Forks nothing until another controller's device is gone: two would answer twice."""
        self._predecessor = predecessor
        self._indices_known = False
        self._alone.clear()
        self._loop.add_reader(predecessor.fileno(), self._predecessor_gone)

    def _predecessor_gone(self) -> None:
        if self._predecessor is None:
            return
        try:
            # What it says last wakes us too; that it is gone only the pipe's end says.
            if os.read(self._predecessor.fileno(), MAX_DEATH_RECORD_BYTES):
                return
        except BlockingIOError:
            return
        self.close()
        self._alone.set()
        self._start()

    async def stop(self) -> None:
        """Ends the device; on return nobody touches the guest's memory or rings any more.

        Raises:
            StateFileError: that of an earlier balloond does not end.
            DeviceHangsError: ours does not, though it was killed. Whether it still touches them
                only the kernel knows, so nobody must be told where they stand, nor fork another.
        """
        self._call_off()
        # Its controller is gone, so it is going too: nothing that it does takes long.
        if not await is_set_within(self._alone, PREDECESSOR_WITHIN_S):
            raise StateFileError("the device of an earlier balloond does not end")
        await self._end()

    async def learn_indices(self) -> None:
        """Makes every vring's ``base`` its ``used.idx``, after ``stop``.

        A device that stopped in order has said so. After one that was killed another is forked
        just to look: the controller maps no guest memory.
        """
        for wait_s in LOOKS_AFTER_S:
            if not self._indices_known:
                await asyncio.sleep(wait_s)
                while not self._start(look=True):
                    await asyncio.sleep(NOT_YET_S)
                await self.stop()
        if not self._indices_known:
            message = "where the rings stand now cannot be learned"
            self._log.limited_error(self._unlearned, self._loop.time(), "device", message)

    async def _end(self) -> None:
        if self._device is None:
            return
        # Stays set should this task be cancelled on the way: what was told to end did not die.
        self._stopping = True
        device = self._device
        if self._left_at_s < math.inf:
            # Killed before, and waited for in vain or until something else had to be done.
            await self._wait_for_the_killed(device)
            return
        if not device.tube.send(Command.STOP):
            device.kill()
        if not await is_done_within(self._gone, STOP_WITHIN_S):
            # One that has said where its rings stand is about to end, and may have memory to free.
            if not self._indices_known:
                self._log.warning("device", "device does not stop, killing it", pid=device.pid)
            device.kill()
            await self._wait_for_the_killed(device)

    async def _wait_for_the_killed(self, device: DeviceProcess) -> None:
        now = self._loop.time()
        full_s = FREED_WITHIN_S if self._indices_known else KILLED_WITHIN_S
        # Not anew where this guest has been let go for it, or its controller ends.
        self._left_at_s = min(self._left_at_s, now + full_s)
        within_s = max(0.0, self._left_at_s - now)
        if not await is_done_within(self._gone, within_s):
            if within_s:
                message = f"device {device.pid} was killed and does not end: the kernel holds it"
                self._log.error("device", message, pid=device.pid)
            raise DeviceHangsError("its device hangs, and no other may serve it")

    def _start(self, *, look: bool = False) -> bool:
        """Forks a device if one can run; False where it is to be asked for again in a moment."""
        self._call_off()
        # A front-end disables its vrings before it asks where they stand.
        vrings = self._backend.ready_vrings(disabled=look)
        busy = self._device is not None or self._predecessor is not None
        if busy or (self._gave_up and not look) or not vrings:
            return True
        try:
            device = spawn(self._spec(vrings), self._jail.fork, look=look)
        except NotYetError as err:
            if not look:
                self._settling = self._loop.call_later(err.retry_s, self._start)
            return False
        except OSError as err:
            message = f"cannot fork a device: {err.strerror}; trying again"
            self._log.limited_error(self._unforked, self._loop.time(), "device", message)
            self._settling = self._loop.call_later(1.0, self._start)
            return True
        self._device = device
        self._left_at_s = math.inf
        self._gone = self._loop.create_future()
        self._stopping = self._indices_known = self._had_stats = False
        self.started += 1
        if not look:
            self._began_at = self._loop.time()
        self._reader = ReportReader(
            device.tube, self._take, partial(self._take_over_shown, device)
        )
        self._orders = OrderWatch(device.pid, device.tube, self._log)
        self._orders.sent()
        self._loop.add_reader(device.pidfd.fileno(), self._reap, device)
        names = ", ".join(vring.queue.value for vring in vrings)
        many = self._start_limit.admit(self._loop.time()) is None
        log = self._log.debug if many else self._log.info
        does = "looks at" if look else "serves"
        log("device", f"device {device.pid} {does} {names}", pid=device.pid)
        if self._backend.config.num_pages != self._backend.config.actual:
            self.send_target()
        self._changed()
        return True

    def _spec(self, served: list[ReadyVring]) -> DeviceSpec:
        regions = tuple(
            RegionSpec(
                region.description.guest_addr,
                region.description.frontend_addr,
                region.description.size_bytes,
                region.description.mmap_offset_bytes,
                region.page_bytes,
                None if region.fd is None else region.fd.fileno(),
                not region.never_freed,
            )
            for region in self._backend.memory.regions
        )
        vrings = tuple(
            VringSpec(
                vring.index,
                vring.queue,
                vring.size,
                vring.addr.descriptors,
                vring.addr.available,
                vring.addr.used,
                vring.kick.fileno(),
                None if vring.call is None else vring.call.fileno(),
            )
            for vring in served
        )
        channel = self._backend.channel
        return DeviceSpec(
            name=f"balloon-{self._name}",
            regions=regions,
            vrings=vrings,
            channel_fd=None if channel is None else channel.fileno(),
            config_change=CONFIG_CHANGE_MSG,
            identity=self._jail.identity,
            must_tell_host=bool(self._backend.acknowledged & BalloonFeature.MUST_TELL_HOST),
            earned=min(1.0, (self._loop.time() - self._began_at) / EARNED_AFTER_S),
            pfns_name_pages=not self._backend.memory.has_unnameable,
        )

    def _take_over_shown(self, device: DeviceProcess, what: str) -> None:
        """A device sends what no device sends: it was taken over, or has a bug of ours."""
        message = f"device {device.pid} sends what no device sends: {what}; killing it"
        self._log.error("device", message, pid=device.pid)
        device.kill()

    def _take(self, report: Up) -> None:
        match report:
            case Ready():
                self._log.debug("device", "device is jailed and ready")
            case Progress():
                self._now = report
                self._hears.progressed(self.statistics())
            case Stats(entries):
                # Before anything comes of it: figures that contradict each other would have the
                # VM's size reckoned anew, and its state kept, with each report.
                if self._stats_limit.admit(self._loop.time()) is None:
                    return
                first, self._had_stats = not self._had_stats, True
                self._hears.stats_came(dict(entries), first=first)
                named = {stat_name(tag): value for tag, value in entries}
                self._log.debug("stats", "the guest's statistics", **named)
            case Fault():
                self._log_fault(report)
            case Stopped(indices):
                self._indices_known = True
                for index, used_index in indices:
                    self._backend.vrings[index].base = used_index

    def _log_fault(self, fault: Fault) -> None:
        # The device limits itself too, unless its guest has taken it over.
        suppressed = self._fault_limit.admit(self._loop.time())
        if suppressed is None:
            return
        suppressed += fault.suppressed
        more = f" ({suppressed} more like it)" if suppressed else ""
        queue = next(
            (v.queue.value for v in self._backend.ready_vrings() if v.index == fault.queue),
            f"vring {fault.queue}",
        )
        event = "host-fault" if fault.kind is FaultKind.HOST else "guest-fault"
        log = self._log.warning if fault.kind is FaultKind.CHAIN else self._log.error
        log(event, f"{fault_words(fault, queue)}{more}")

    def _reap(self, device: DeviceProcess) -> None:
        code = device.reap()
        if code is None:
            return
        if self._reader is not None and self._orders is not None:
            self._reader.end()
            self._orders.end()
        self._loop.remove_reader(device.pidfd.fileno())
        last_words = device.read_death_record()
        device.close()
        self._device = None
        self._before, self._now = self.statistics(), Progress()
        self._gone.set_result(None)
        if not self._stopping:
            self._died(device.pid, code, last_words)

    def _died(self, pid: int, code: int, last_words: str) -> None:
        """Nobody told it to: says so, and forks another unless that happens too often."""
        now = self._loop.time()
        self._deaths.append(now)
        if len(self._deaths) > MAX_DEATHS and now - self._deaths[0] < DEATHS_WITHIN_S:
            self._gave_up = True
            deaths = f"the {len(self._deaths)}th death within {DEATHS_WITHIN_S:.0f} s"
            then = f"{deaths}: this VM's balloon stops until its VMM reconnects"
        else:
            then = "forking another"
            self._start()
        self._mourn(pid, code, f"{last_words}; {then}" if last_words else then, NAME_WITHIN_S)

    def _mourn(self, pid: int, code: int, then: str, patience_s: float) -> None:
        """Logs a death, once the kernel's log names the call or will not any more."""
        number = find_seccomp_kill(pid) if code == -signal.SIGSYS else None
        if code == -signal.SIGSYS and number is None and patience_s > 0:
            again_s = NAME_WITHIN_S / 10
            self._loop.call_later(again_s, self._mourn, pid, code, then, patience_s - again_s)
            return
        message = f"device {pid} {cause(code, number)}; {then}"
        self._log.error("device", message, pid=pid, exit_code=code)
