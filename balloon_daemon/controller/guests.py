"""One guest: its VMM's connection, its balloon policy, its timers and its device's keeper."""

import asyncio
from dataclasses import dataclass
from random import random

from balloon_daemon.balloon_policy import (
    ArmTimer,
    AvailableMemoryTimer,
    BalloonPolicy,
    DisarmTimer,
    Event,
    LowMemory,
    LowMemoryTimer,
    PauseLowMemory,
    Reading,
    Reason,
    ResumeLowMemory,
    SetTarget,
    Timer,
    max_balloon_bytes,
)
from balloon_daemon.config import Config
from balloon_daemon.controller.keeper import DeviceKeeper, Jail
from balloon_daemon.controller.watch import MemoryWatch
from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.memory import inspect_memory_file
from balloon_daemon.log import EventLog
from balloon_daemon.units import PAGE_SIZE, format_size
from balloon_daemon.vhost_user.backend import (
    ActualWritten,
    AnswerVringBase,
    Backend,
    Effect,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.memory_table import Fd, MemoryTable
from balloon_daemon.virtio.balloon import pages_of

_QUIET = {Reason.AT_MAXIMUM, Reason.NO_BALLOON}

MESSAGES_A_TURN = 64
"""Messages taken from one front-end before the others get their turn."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all guests of a controller share."""

    config: Config
    watch: MemoryWatch
    jail: Jail


class Guest:
    """One VM, from its VMM's connection to its hang-up.

    Args:
        name: for the log.
        connection: the VMM's; the guest closes it.
        shared: what it shares with the others.
        log: the controller's.
    """

    def __init__(
        self, name: str, connection: Connection, shared: Surroundings, log: EventLog
    ) -> None:
        self.name = name
        self._connection = connection
        self._shared = shared
        self._log = log.bind(vm=name)
        self._loop = asyncio.get_running_loop()
        self._backend = Backend(MemoryTable(_inspect))
        self._policy: BalloonPolicy | None = None
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._last_reason: Reason | None = None
        self._empty = asyncio.Event()
        self.keeper = DeviceKeeper(
            self._backend, shared.jail, lambda: self.target_bytes, self._log, name
        )

    @property
    def target_bytes(self) -> int:
        """The balloon's wanted size."""
        return self._backend.config.num_pages * PAGE_SIZE

    @property
    def actual_bytes(self) -> int:
        """The balloon's size, as the driver says."""
        return self._backend.config.actual * PAGE_SIZE

    async def serve(self) -> None:
        """Answers the VMM until it hangs up or breaks the protocol; then lets go of everything."""
        spoke = False
        try:
            while True:
                for _ in range(MESSAGES_A_TURN):
                    received = self._connection.receive()
                    if received is None:
                        await self._readable()
                        continue
                    spoke = True
                    for effect in self._backend.handle(*received):
                        await self._perform(effect)
                await asyncio.sleep(0)
        except EOFError:
            if spoke:
                self._log.info(
                    "vmm", "the VMM has closed its connection; its balloon is forgotten"
                )
        except FrontendError as err:
            self._log.error("vmm", f"{err}; closing this connection")
        except OSError as err:
            self._log.error("vmm", f"the VMM's connection failed: {err.strerror}")
        finally:
            await self._close()

    async def give_back(self) -> None:
        """Lets the balloon shrink to nothing, and waits until the driver says that it has."""
        self._halt_policy()
        if self.actual_bytes == 0 or not self.keeper.running:
            return
        self._log.info("stop", f"giving {format_size(self.actual_bytes)} back to the guest")
        self._set_target(0)
        await self._empty.wait()

    async def _readable(self) -> None:
        fd, waiter = self._connection.fileno(), self._loop.create_future()
        self._loop.add_reader(fd, waiter.set_result, None)
        try:
            await waiter
        finally:
            self._loop.remove_reader(fd)

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(reply):
                self._send(reply)
            case StopDevice():
                await self.keeper.stop()
            case AnswerVringBase(index):
                self._send(self._backend.vring_base_reply(index))
            case RingsChanged():
                self._start_policy()
                self.keeper.settle()
            case ActualWritten(actual):
                if actual == 0:
                    self._empty.set()
                else:
                    self._empty.clear()
                if actual == self._backend.config.num_pages:
                    size = format_size(self.actual_bytes)
                    self._log.info("reached", f"balloon is {size}", actual_bytes=self.actual_bytes)

    def _send(self, reply: bytes) -> None:
        self._connection.send(reply)
        if not self._connection.flush():
            self._loop.add_writer(self._connection.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            done = self._connection.flush()
        except OSError:
            done = True  # Reading will say so too, and ends the connection.
        if done:
            self._loop.remove_writer(self._connection.fileno())

    # --- policy -------------------------------------------------------------------------------

    def _start_policy(self) -> None:
        """Starts the balloon policy once the VM's size is known and its rings run."""
        if self._policy is not None or not self._backend.ready_vrings():
            return
        table_bytes = self._backend.memory.size_bytes
        vm_mem_bytes = self._shared.config.vm_mem_bytes or table_bytes
        if vm_mem_bytes != table_bytes:
            self._log.warning(
                "size",
                f"--vm-mem says {format_size(vm_mem_bytes)}, the VMM's memory table "
                f"{format_size(table_bytes)}; going by --vm-mem",
            )
        if self._backend.channel is None:
            self._log.warning("vmm", "the VMM gives no back-end channel: no target can reach it")
        max_bytes = max_balloon_bytes(vm_mem_bytes)
        self._policy = BalloonPolicy(max_bytes, self._shared.config.policy, random)
        self._log.info(
            "attached",
            f"VM of {format_size(vm_mem_bytes)}, balloon of at most {format_size(max_bytes)} "
            f"in {self._shared.config.policy.steps} steps",
            vm_mem_bytes=vm_mem_bytes,
            max_balloon_bytes=max_bytes,
        )
        self._shared.watch.listen(self._memory_is_low)

    def _halt_policy(self) -> None:
        self._shared.watch.ignore(self._memory_is_low)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _memory_is_low(self, reading: Reading) -> None:
        self._step(LowMemory(reading))

    def _fired(self, timer: Timer) -> None:
        del self._timers[timer]
        if timer is Timer.LOW_MEMORY:
            self._step(LowMemoryTimer())
        else:
            self._step(AvailableMemoryTimer(self._shared.watch.read()))

    def _step(self, event: Event) -> None:
        assert self._policy is not None
        step = self._policy.step(event, self._loop.time())
        decision = step.decision
        # Under lasting pressure at the maximum the same decision falls every second: said once.
        repeated = decision.reason in _QUIET and decision.reason is self._last_reason
        quiet = repeated or decision.reason is Reason.RECHECK
        if decision.reason is not Reason.RECHECK:
            self._last_reason = decision.reason
        log = self._log.debug if quiet else self._log.info
        fields: dict[str, object] = {
            "reason": decision.reason.value,
            "balloon_level": decision.level,
            "target_bytes": decision.target_bytes,
            "actual_bytes": self.actual_bytes,
        }
        if decision.reading is not None:
            fields["available_mib"] = decision.reading.available_mib
            fields["margin_mib"] = decision.reading.margin_mib
        log("decision", decision.describe(), **fields)
        if not quiet:
            # What the guest makes of it is worth knowing beside the next decision.
            self.keeper.request_stats()
        for action in step.actions:
            match action:
                case SetTarget(target_bytes, _):
                    self._set_target(target_bytes)
                case ArmTimer(timer, delay_s):
                    self._disarm(timer)
                    self._timers[timer] = self._loop.call_later(delay_s, self._fired, timer)
                case DisarmTimer(timer):
                    self._disarm(timer)
                case PauseLowMemory():
                    self._shared.watch.ignore(self._memory_is_low)
                case ResumeLowMemory():
                    self._shared.watch.listen(self._memory_is_low)

    def _disarm(self, timer: Timer) -> None:
        armed = self._timers.pop(timer, None)
        if armed is not None:
            armed.cancel()

    def _set_target(self, target_bytes: int) -> None:
        # The config space first: the driver reads it as soon as it hears of a change.
        self._backend.config.num_pages = pages_of(target_bytes)
        self.keeper.send_target()

    async def _close(self) -> None:
        self._halt_policy()
        await self.keeper.stop()
        self._loop.remove_writer(self._connection.fileno())
        self._connection.close()
        self._backend.close()
        self._empty.set()


def _inspect(fd: Fd) -> tuple[int, int]:
    file = inspect_memory_file(fd.fileno())
    return file.size_bytes, file.page_bytes
