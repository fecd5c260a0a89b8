"""Reads the low-memory source at regular times, for traces and the history.

Runs in the controller, with ``--record`` and ``--history``, and while a client records a trace
over the API. Otherwise the low-memory source is read only when the sizing policy needs a reading,
and a trace would not show for how long memory was low.
"""

import asyncio
from collections.abc import Callable, Iterable

from balloon_daemon.events import Publish, Surveyed, VmFigures
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.status import PolicyStatus, VmStatus

POLLS = 5
"""The low-memory source is read each ``POLLS`` times ``Config.poll_s``: each 5 s by default."""


class Survey:
    """Publishes readings of the host's memory, and the VMs' figures, at regular times.

    Args:
        watch: reads the low-memory source.
        every_s: the time between two readings.
        look_at_vms: gives the VMs' present figures.
        publish: called with each event to be published.
        loop: the controller's event loop.
    """

    def __init__(
        self,
        watch: MemoryWatch,
        every_s: float,
        look_at_vms: Callable[[], Iterable[VmStatus]],
        publish: Publish,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._watch = watch
        self._every_s = every_s
        self._look_at_vms = look_at_vms
        self._publish = publish
        self._loop = loop
        self._timer: asyncio.Handle | None = None

    def begin(self) -> None:
        """Publishes a reading at once, and one each ``every_s`` from then on; does nothing if it
        was begun already."""
        if self._timer is None:
            self._timer = self._loop.call_soon(self._look)

    def close(self) -> None:
        """Stops the readings."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        # Set the timer first: an error of the reading, for lack of memory perhaps, is published by
        # the event loop, and the next reading is tried all the same.
        self._timer = self._loop.call_later(self._every_s, self._look)
        seen, vms = self._watch.look(), self._look_at_vms()
        known = (_figures_of(vm, vm.policy) for vm in vms if vm.policy is not None)
        self._publish(Surveyed(self._loop.time(), seen, tuple(known)))


def _figures_of(vm: VmStatus, policy: PolicyStatus) -> VmFigures:
    return VmFigures(
        vm.vm,
        policy.vm_mem_bytes,
        vm.balloon_bytes,
        policy.target_bytes,
        None if vm.stats is None else vm.stats.available_bytes,
        vm.held_bytes,
    )
