"""One guest's policy on a loop that stands still: what the guest is told, and when again."""

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from balloon_daemon.controller.governor import Governor
from balloon_daemon.events import Decided, Event, VmAttached, VmResized
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing.balloon_policy import PolicySettings, Reading, Reason
from balloon_daemon.units import GIB, MIB, VmId

VM = VmId(1, "vm1")
LOW = Reading(available_mib=10, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""


class StillTimer:
    """One timer of a loop that stands still."""

    def __init__(self, at_s: float, fire: Callable[[], object]) -> None:
        self.at_s = at_s
        self.fire = fire
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class StillLoop:
    """A loop whose time a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._timers: list[StillTimer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Callable[..., object], *args: object) -> StillTimer:
        self._timers.append(StillTimer(self.now_s + delay_s, lambda: call(*args)))
        return self._timers[-1]

    def advance(self, seconds: float) -> None:
        """Lets time go by, timer after timer."""
        end_s = self.now_s + seconds
        while due := [t for t in self._timers if not t.cancelled and t.at_s <= end_s]:
            timer = min(due, key=lambda timer: timer.at_s)
            self._timers.remove(timer)
            self.now_s = timer.at_s
            timer.fire()
        self.now_s = end_s


class Host:
    """Tells whoever listens, at once, for as long as memory is low."""

    def __init__(self) -> None:
        self.reading = LOW

    def listen(self, listener: Callable[[Reading], None]) -> None:
        if self.reading.is_low:
            listener(self.reading)

    def ignore(self, listener: Callable[[Reading], None]) -> None:
        return None

    def read(self) -> Reading:
        return self.reading


class Vm:
    """A guest that is told targets, and gets as far as a test says."""

    def __init__(self) -> None:
        self.loop = StillLoop()
        self.host = Host()
        self.targets: list[int] = []
        self.published: list[Event] = []
        self.told_again: list[float] = []
        self.actual_bytes = 0
        self.objection: Reason | None = None
        self.asked_at_levels: list[int] = []

    def against_more(self, level: int) -> Reason | None:
        self.asked_at_levels.append(level)
        return self.objection

    def tell_again(self) -> None:
        self.told_again.append(self.loop.now_s)


@pytest.fixture
def vm() -> Vm:
    return Vm()


@pytest.fixture
def governor(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> Governor:
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: vm.loop)
    settings = PolicySettings(
        recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
    )
    watch = cast(MemoryWatch, vm.host)
    return Governor(settings, watch, vm.targets.append, lambda: None, vm, VM, vm.published.append)


def test_target_that_is_not_reached_is_told_again_each_30_s_at_the_top(
    vm: Vm, governor: Governor
) -> None:
    governor.start(GIB)
    vm.loop.advance(15)
    assert vm.targets[-1] == 512 * MIB
    top_at = vm.loop.now_s

    vm.loop.advance(120)

    assert len(vm.told_again) == 4
    gaps = [b - a for a, b in zip([top_at, *vm.told_again], vm.told_again, strict=False)]
    assert all(30 <= gap <= 31 for gap in gaps)


@pytest.mark.parametrize("objection", [Reason.FRUITLESS, Reason.NO_ROOM])
def test_target_that_is_not_reached_is_told_again_below_the_top(
    objection: Reason, vm: Vm, governor: Governor
) -> None:
    governor.start(GIB)
    vm.loop.advance(3)
    vm.objection = objection
    vm.loop.advance(60)
    assert vm.targets[-1] == 4 * STEP
    assert len(vm.told_again) in (1, 2)


def test_target_that_is_reached_is_not_told_again(vm: Vm, governor: Governor) -> None:
    governor.start(GIB)
    vm.actual_bytes = 512 * MIB
    vm.loop.advance(300)
    assert vm.told_again == []


def test_driver_that_moves_on_slowly_is_not_told_again_until_it_stops(
    vm: Vm, governor: Governor
) -> None:
    governor.start(GIB)
    vm.loop.advance(15)
    for _ in range(5):
        vm.actual_bytes += STEP
        vm.loop.advance(29)
    assert vm.told_again == []
    vm.loop.advance(10)
    assert len(vm.told_again) == 1


def test_guest_that_has_taken_pages_back_is_not_told_to_give_them_again(
    vm: Vm, governor: Governor
) -> None:
    governor.start(GIB)
    vm.loop.advance(15)
    vm.actual_bytes = 400 * MIB  # Short of its target, and then of what it had given.
    vm.loop.advance(10)
    vm.actual_bytes = 300 * MIB
    vm.loop.advance(300)
    assert vm.told_again == []
    vm.actual_bytes = 400 * MIB
    vm.loop.advance(40)
    assert len(vm.told_again) == 1


def test_target_is_not_told_again_while_memory_is_not_low(vm: Vm, governor: Governor) -> None:
    governor.start(GIB)
    vm.loop.advance(15)
    vm.host.reading = Reading(available_mib=410, margin_mib=400)
    vm.loop.advance(300)
    assert vm.told_again == []


def test_target_that_has_just_changed_is_not_told_twice(vm: Vm, governor: Governor) -> None:
    governor.start(GIB)
    vm.loop.advance(14)  # Another step each second.
    assert vm.told_again == []
    assert len(vm.targets) >= 14


def test_guest_that_was_found_with_a_balloon_is_told_the_level_below_it(
    vm: Vm, governor: Governor
) -> None:
    vm.host.reading = Reading(available_mib=1 << 20, margin_mib=400)
    governor.start(GIB, 100 * MIB)
    assert vm.targets == [3 * STEP]
    vm.loop.advance(60 + 2 * 30)
    assert vm.targets == [3 * STEP, 2 * STEP, STEP, 0]


def test_size_that_stays_or_comes_after_the_end_changes_nothing(
    vm: Vm, governor: Governor
) -> None:
    governor.resize(GIB)  # Before it has begun.
    governor.start(GIB)
    told = list(vm.targets)
    governor.resize(GIB)
    assert vm.targets == told
    governor.halt()
    governor.resize(4 * GIB)
    assert (vm.targets, governor.vm_mem_bytes) == (told, GIB)


@pytest.mark.parametrize("found_bytes", [0, 256 * MIB])
def test_guest_whose_rings_begin_after_the_end_is_asked_for_nothing(
    vm: Vm, monkeypatch: pytest.MonkeyPatch, found_bytes: int
) -> None:
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: vm.loop)
    late = Governor(
        PolicySettings(),
        cast(MemoryWatch, vm.host),
        vm.targets.append,
        lambda: None,
        vm,
        VM,
        vm.published.append,
    )
    late.halt()
    late.start(GIB, found_bytes)
    vm.loop.advance(60)
    assert not late.started
    assert not any(vm.targets)


def test_smaller_size_lowers_the_target_at_once_and_a_larger_one_raises_none(
    vm: Vm, governor: Governor
) -> None:
    governor.start(4 * GIB)
    vm.loop.advance(16)
    governor.resize(GIB)
    assert vm.targets[-1] == 512 * MIB
    governor.resize(4 * GIB)
    assert vm.targets[-1] == 384 * MIB


def test_objections_are_asked_for_at_each_look_with_the_level(vm: Vm, governor: Governor) -> None:
    governor.start(GIB)
    vm.loop.advance(2)
    assert vm.asked_at_levels == [0, 1, 2]


def test_size_is_published_as_it_becomes_known_and_as_it_changes(
    vm: Vm, governor: Governor
) -> None:
    vm.host.reading = Reading(available_mib=1 << 20, margin_mib=400)
    governor.start(GIB)
    governor.resize(2 * GIB)
    sizes = [event for event in vm.published if not isinstance(event, Decided)]
    assert sizes == [
        VmAttached(VM, GIB, GIB // 2, 16),
        VmResized(VM, 2 * GIB, GIB, 16, quiet=False),
    ]


def test_sizes_that_change_over_and_over_are_quiet(vm: Vm, governor: Governor) -> None:
    vm.host.reading = Reading(available_mib=1 << 20, margin_mib=400)
    governor.start(GIB)
    for turn in range(1, 11):
        governor.resize(GIB + turn * MIB)
    resized = [event for event in vm.published if isinstance(event, VmResized)]
    assert [event.quiet for event in resized] == [False, False, *[True] * 8]


def test_decision_that_falls_again_at_the_top_is_quiet(vm: Vm, governor: Governor) -> None:
    governor.start(GIB)
    vm.loop.advance(60)
    decided = [event for event in vm.published if isinstance(event, Decided)]
    at_top = [event for event in decided if event.decision.reason is Reason.AT_MAXIMUM]
    assert [event.quiet for event in at_top] == [False, *[True] * (len(at_top) - 1)]
    assert len(at_top) > 10
