"""Publishes events about one guest's devices, at limited rates.

A guest may reset its device in a loop, and each reset may fail in the same way.
"""

import asyncio
import signal
from collections.abc import Sequence

from balloon_daemon.events import (
    DeviceDied,
    DeviceDoesNotStop,
    DeviceHangs,
    DeviceLooks,
    DeviceNotForked,
    DeviceSendsGarbage,
    DeviceStarted,
    Publish,
    ReportsNotFreed,
    RingsUnknown,
)
from balloon_daemon.guests.jailed.device_events import cause_of_death
from balloon_daemon.guests.jailed.device_spec import frees_reported
from balloon_daemon.guests.jailed.life import DEATHS_WITHIN_S
from balloon_daemon.guests.jailed.running_device import Ended
from balloon_daemon.linux.kernel_log import KERNEL_LOG
from balloon_daemon.rate_limit import OnceEach, RateLimit
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ReadyVring
from balloon_daemon.virtio.balloon import BalloonQueue

STARTS_A_SECOND = 2
"""How many events of started devices a second are logged at level INFO; the others are ``quiet``
(DEBUG). A guest may reset its device in a loop."""

POISON_VALUES = 4
"""How many different values of ``poison_val`` are published, each of them once: a guest can write
another one at each reset."""

NAME_WITHIN_S = 0.2
"""How long to wait for the kernel's log record of a seccomp kill, which a kernel thread writes
later."""

NAME_LOOKS = 10
"""How many times to look for the record of a seccomp kill within ``NAME_WITHIN_S``."""


class DeviceNotices:
    """Publishes events about the devices of one guest.

    Args:
        vm: the guest's VM.
        publish: takes events.
    """

    def __init__(self, vm: VmId, publish: Publish) -> None:
        self._vm = vm
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._starts = RateLimit(STARTS_A_SECOND)
        self._not_forked, self._rings_unknown = RateLimit(1), RateLimit(1)
        self._poison_values = OnceEach(POISON_VALUES)

    def forked(
        self, pid: int, vrings: Sequence[ReadyVring], backend: Backend, *, look: bool
    ) -> None:
        """A device was forked from this back-end, to serve these vrings or (``look``) only to
        report their ``used.idx``."""
        queues = tuple(vring.queue.value for vring in vrings)
        quiet = self._starts.admit(self._loop.time()) is None
        began = DeviceLooks if look else DeviceStarted
        self._publish(began(self._vm, pid, queues, quiet))
        reports = any(vring.queue is BalloonQueue.REPORTING_VQ for vring in vrings)
        if reports and not look and not frees_reported(backend):
            self._reports_not_freed(backend.config.poison_val)

    def _reports_not_freed(self, poison_val: int | None) -> None:
        if self._poison_values.admit(str(poison_val)):
            self._publish(ReportsNotFreed(self._vm, poison_val))

    def not_forked(self, err: OSError) -> None:
        """The kernel allowed no process or no descriptor for a device."""
        suppressed = self._not_forked.admit(self._loop.time())
        if suppressed is not None:
            self._publish(DeviceNotForked(self._vm, err.strerror or str(err), suppressed))

    def rings_unknown(self) -> None:
        """No device could be forked to report each ring's ``used.idx``."""
        suppressed = self._rings_unknown.admit(self._loop.time())
        if suppressed is not None:
            self._publish(RingsUnknown(self._vm, suppressed))

    def misbehaved(self, pid: int, found: str) -> None:
        """A device sent a message that no device sends, or closed its tube and has not ended; it
        is killed."""
        self._publish(DeviceSendsGarbage(self._vm, pid, found))

    def does_not_stop(self, pid: int) -> None:
        """A device was told to stop and has not; it is killed."""
        self._publish(DeviceDoesNotStop(self._vm, pid))

    def hangs(self, pid: int) -> None:
        """A device was killed and does not end."""
        self._publish(DeviceHangs(self._vm, pid))

    def died(self, ended: Ended, deaths: int, looks: int = NAME_LOOKS) -> None:
        """Publishes that a device has died. If the seccomp filter killed the device, waits at most
        ``NAME_WITHIN_S`` until the kernel's log names the system call.

        Args:
            ended: how the device ended.
            deaths: how many devices died, if that is too many and no other device is forked; 0:
                another device is forked.
            looks: how many more times the kernel's log is searched.
        """
        by_filter, number = ended.exit_code == -signal.SIGSYS, None
        if by_filter:
            if not KERNEL_LOG.read_on():
                self._loop.call_soon(self.died, ended, deaths, looks)
                return
            number = KERNEL_LOG.seccomp_kill(ended.pid)
        if by_filter and number is None and looks:
            again_s = NAME_WITHIN_S / NAME_LOOKS
            self._loop.call_later(again_s, self.died, ended, deaths, looks - 1)
            return
        death, by = cause_of_death(ended.exit_code, number)
        self._publish(
            DeviceDied(
                self._vm,
                ended.pid,
                ended.exit_code,
                death,
                by,
                ended.death_record,
                deaths,
                DEATHS_WITHIN_S,
            )
        )
