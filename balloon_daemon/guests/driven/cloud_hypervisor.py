"""Drives the balloon of a Cloud Hypervisor VM through its API socket.

What the API lacks, and what follows:

- A balloon's size shows only in ``memory_actual_size``, which is all memory less the balloon.
- **Statistics** come with ``vm.balloon-stats``, a call that no version up to 53.0 has. Without
  this call nothing shows whether a driver listens; with it, a guest that has sent no statistics
  and whose balloon is empty counts as a guest without driver.
- Statistics carry the host's wall-clock time at which they came. That clock may be set at any
  moment, so this time only serves to tell new statistics from old ones.

A VM whose memory is in huge pages is refused, and so is a VM with an assigned device (VFIO, vDPA),
which pins its memory.

Source: vmm/src/api/openapi/cloud-hypervisor.yaml, API 0.3.0, of 2026-08 (after release 53.0).
"""

import time

from balloon_daemon.guests.driven.answers import (
    Renewal,
    elements,
    flag,
    member,
    named_stats,
    nonsense,
    whole_number,
)
from balloon_daemon.guests.driven.control import ControlError, Fault, Found, Noticed, Sample
from balloon_daemon.guests.driven.http import HttpConnection, refused
from balloon_daemon.guests.seam import Ability, GuestState, Stats
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import MOST_MEMORY_BYTES

_STATES = {
    "Created": GuestState.NO_DRIVER,
    "Shutdown": GuestState.NO_DRIVER,
    "Running": GuestState.RUNNING,
    "Paused": GuestState.PAUSED,
    "BreakPoint": GuestState.PAUSED,
}


class _Info(NamedTuple):
    """The figures that are read from the answer of ``vm.info``.

    Attributes:
        vm_mem_bytes: the VM's memory, its balloon included.
        balloon_bytes: its balloon.
        state: its state.
        deflates_on_oom: whether its driver deflates the balloon on OOM.
        is_pinned: whether a host device is assigned to the VM, which pins the VM's memory.
    """

    vm_mem_bytes: int
    balloon_bytes: int
    state: GuestState
    deflates_on_oom: bool
    is_pinned: bool


_API = "/api/v1/"
_NOT_FOUND = 404


class CloudHypervisorControl:
    """One VM, by its VMM's API socket.

    Args:
        path: the socket's path (``--api-socket``).
    """

    def __init__(self, path: str) -> None:
        self._http = HttpConnection(path)
        self._has_stats = True
        self._renewal = Renewal()

    async def open(self, noticed: Noticed) -> Found:
        await self._http.open()
        info = await self._info()
        sample = await self._sample_of(info)
        has = {
            Ability.STATS: self._has_stats,
            Ability.DEFLATE_ON_OOM: info.deflates_on_oom,
        }
        can = frozenset(ability for ability in has if has[ability])
        return Found(
            sample.vm_mem_bytes,
            sample.balloon_bytes,
            sample.state,
            can,
            self._http.pid,
            against=ControlError(Fault.PINNED) if info.is_pinned else None,
        )

    async def set_balloon(self, balloon_bytes: int) -> None:
        await self._http.change("PUT", f"{_API}vm.resize", {"desired_balloon": balloon_bytes})

    async def sample(self) -> Sample:
        info = await self._info()
        if info.is_pinned:
            raise ControlError(Fault.PINNED)
        return await self._sample_of(info)

    async def watch(self, every_s: float | None) -> None:
        """Does nothing: the API has no period to set."""

    async def gone(self) -> ControlError:
        return await self._http.gone()

    def close(self) -> None:
        self._http.close()

    async def _info(self) -> _Info:
        status, info = await self._http.ask("GET", f"{_API}vm.info")
        if status == _NOT_FOUND:  # The VMM runs, but its VM has not been created yet.
            raise ControlError(Fault.NO_VM, refused(status, info).detail)
        if status != 200:
            raise refused(status, info)
        return _read(info)

    async def _sample_of(self, info: _Info) -> Sample:
        vm_mem_bytes, balloon_bytes, state, *_ = info
        stats = None
        if state is not GuestState.NO_DRIVER and self._has_stats:
            sent, stats = await self._stats()
            if self._has_stats and not (sent or balloon_bytes):
                state = GuestState.NO_DRIVER
        return Sample(
            vm_mem_bytes,
            None if state is GuestState.NO_DRIVER else balloon_bytes,
            state,
            stats,
            time.monotonic(),
        )

    async def _stats(self) -> tuple[bool, Stats | None]:
        """Whether the guest has ever sent statistics; and its statistics, if they are new."""
        status, answer = await self._http.ask("GET", f"{_API}vm.balloon-stats")
        if status == _NOT_FOUND:
            self._has_stats = False
        if status != 200:  # The driver has not acknowledged statistics, or there is no driver.
            return False, None
        updated_ms = whole_number(answer, "last_update")
        stats = named_stats(member(answer, "stats"), time.monotonic())
        renewed = self._renewal.seen(updated_ms)
        return updated_ms > 0, stats if renewed and updated_ms else None


def _read(info: object) -> _Info:
    """Reads the answer of ``vm.info``. While the caller waits for another call it keeps only this
    result, not the parsed answer: CPython takes up to 30 bytes for each byte of JSON.

    Raises:
        ControlError: the VM has no balloon, or may not be driven, or the answer makes no sense.
    """
    config = member(info, "config")
    vm_mem_bytes = _memory_bytes(member(config, "memory"))
    balloon = member(config, "balloon")
    if balloon is None:
        raise ControlError(Fault.NO_BALLOON)
    is_pinned = bool(elements(config, "devices") or elements(config, "vdpa"))
    left_bytes = whole_number(info, "memory_actual_size", vm_mem_bytes)
    said = member(info, "state")
    if not isinstance(said, str) or said not in _STATES:
        raise nonsense("state", said)
    deflates = flag(balloon, "deflate_on_oom")
    return _Info(vm_mem_bytes, vm_mem_bytes - left_bytes, _STATES[said], deflates, is_pinned)


def _memory_bytes(memory: object) -> int:
    """All memory of a VM: its boot memory or that of its zones, and all memory plugged in."""
    total_bytes = 0
    for part in (memory, *elements(memory, "zones")):
        if flag(part, "hugepages"):
            raise ControlError(Fault.HUGETLB)
        total_bytes += whole_number(part, "size")
        if member(part, "hotplugged_size") is not None:
            total_bytes += whole_number(part, "hotplugged_size")
    if not 0 < total_bytes <= MOST_MEMORY_BYTES:
        raise nonsense("memory", total_bytes)
    return total_bytes
