"""The model's guests that suffer: where memory comes from, what it costs, what they report."""

import pytest

from balloon_daemon.ctl.simulate.live_guest import GRIND, LiveGuest
from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load
from balloon_daemon.units import MIB

KERNEL = Kernel()
STEP_S = 0.25

IDLE = Load(100.0)
COLD = Load(100.0, cache_mib=800.0)
SET = Load(100.0, cache_mib=800.0, set_mib=800.0, touch_rate=60.0, faults_per_mib=9.0, works=True)
ZRAM = Load(800.0, swap_mib=512.0, swap_touches=1200.0, works=True)
BURST = Load(100.0, grow_mib=600.0, grow_at_s=10.0, grow_rate=100.0)


def guest(load: Load, *, untouched: float = 0.0, deflates_on_oom: bool = True) -> LiveGuest:
    kind = Kind(1024, KERNEL, load)
    return LiveGuest(kind, untouched=untouched, deflates_on_oom=deflates_on_oom)


def pass_time(guest: LiveGuest, seconds: float, since_s: float = 0.0) -> float:
    """Lets time pass; returns the seconds that the guest lost."""
    lost = 0.0
    for step in range(1, round(seconds / STEP_S) + 1):
        guest.advance(since_s + step * STEP_S, STEP_S)
        lost += guest.stall * STEP_S
    return lost


@pytest.mark.parametrize("load", [IDLE, COLD, SET, ZRAM, BURST], ids=str)
@pytest.mark.parametrize("target_mib", [0, 200, 512, 900])
def test_all_uses_of_memory_add_up_to_the_vm_and_none_is_below_nothing(
    load: Load, target_mib: float
) -> None:
    squeezed = guest(load, untouched=0.5)
    memory = squeezed.memory
    squeezed.set_target(target_mib)
    for second in range(60):
        pass_time(squeezed, 1.0, second)
        if second == 40:
            squeezed.set_target(0)
        uses = (memory.anon_mib, memory.set_mib, memory.cold_mib, memory.balloon_mib)
        assert min(*uses, memory.free_mib, memory.untouched_mib, memory.swapped_mib) > -1e-6
        assert sum(uses) + memory.free_mib == pytest.approx(1024 - KERNEL.own_mib)
        assert memory.untouched_mib <= memory.free_mib + 1e-6
        assert memory.anon_mib + memory.swapped_mib <= load.anon_mib + load.grow_mib + 1e-6


def test_free_memory_costs_a_guest_nothing() -> None:
    squeezed = guest(SET)
    squeezed.set_target(1024 - KERNEL.own_mib - 900 - KERNEL.keep_mib - 1)
    assert pass_time(squeezed, 20) == 0
    assert squeezed.programs.read_mib == 0


def test_cold_page_cache_goes_before_the_working_set_and_costs_no_stall() -> None:
    squeezed = guest(Load(100.0, cache_mib=800.0, set_mib=300.0, touch_rate=60.0))
    squeezed.set_target(500)
    assert pass_time(squeezed, 20) == 0
    assert squeezed.memory.set_mib == 300
    assert squeezed.memory.cold_mib < 500


def test_working_set_that_is_squeezed_stalls_and_is_read_again() -> None:
    squeezed = guest(SET)
    squeezed.set_target(512)
    assert pass_time(squeezed, 20) > 5
    assert squeezed.is_in_need
    assert squeezed.programs.read_mib == pytest.approx(20 * SET.disk_rate, rel=0.2)
    assert squeezed.programs.major_faults == pytest.approx(squeezed.programs.read_mib * 9)


def test_guest_that_has_its_memory_back_reads_its_working_set_and_recovers() -> None:
    squeezed = guest(SET)
    squeezed.set_target(300)
    pass_time(squeezed, 20)
    assert squeezed.memory.set_mib < 800
    squeezed.set_target(0)
    pass_time(squeezed, 120, 20)
    assert squeezed.memory.set_mib == pytest.approx(800, rel=0.01)
    assert not squeezed.is_in_need


@pytest.mark.parametrize(
    ("load", "rate"),
    [
        (IDLE, KERNEL.free_rate),
        (COLD, KERNEL.free_rate),
        (SET, KERNEL.free_rate),
        (ZRAM, KERNEL.free_rate),
    ],
    ids=str,
)
def test_balloon_grows_no_faster_than_its_rate(load: Load, rate: float) -> None:
    squeezed = guest(load)
    squeezed.set_target(512)
    for step in range(1, 40):
        before = squeezed.memory.balloon_mib
        squeezed.advance(step * STEP_S, STEP_S)
        assert 0 <= squeezed.memory.balloon_mib - before <= rate * STEP_S + 1e-6
    assert squeezed.memory.balloon_mib <= 512


def test_memory_that_is_used_comes_slower_than_what_is_free() -> None:
    sizes = []
    for load in (IDLE, COLD, ZRAM, SET):
        squeezed = guest(load)
        squeezed.set_target(512)
        pass_time(squeezed, 2.0)
        sizes.append(squeezed.memory.balloon_mib)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def test_guest_without_anything_to_give_keeps_it_and_grinds() -> None:
    squeezed = guest(Load(700.0, works=True))
    squeezed.set_target(512)
    pass_time(squeezed, 20)
    assert squeezed.memory.free_mib == pytest.approx(KERNEL.least_mib)
    assert squeezed.stall == GRIND
    assert squeezed.programs.oom_kills == 0


def test_statistics_are_a_second_old_and_two_in_need() -> None:
    squeezed = guest(SET)
    assert squeezed.figures(0.0) is None
    pass_time(squeezed, 10.0)
    calm = squeezed.figures(10.0)
    assert calm is not None
    assert 10.0 - calm.at_s >= KERNEL.age_s
    squeezed.set_target(512)
    pass_time(squeezed, 10.0, 10.0)
    late = squeezed.figures(20.0)
    assert late is not None
    assert squeezed.is_in_need
    assert 20.0 - late.at_s >= KERNEL.late_s
    assert late.available_bytes is not None
    assert late.available_bytes > int(squeezed.memory.available_mib) * MIB


def test_available_memory_is_what_the_kernel_would_say() -> None:
    # free 332, caches 603, available 812 in a real guest (k61-mmapr at -2 s).
    memory = guest(Load(37.0, 603.0, 603.0)).memory
    assert memory.free_mib == 332
    assert memory.available_mib == 812


def test_host_gets_nothing_for_what_the_guest_has_never_touched() -> None:
    touched, untouched = guest(IDLE), guest(IDLE, untouched=1.0)
    gains = []
    for each in (touched, untouched):
        before = each.memory.held_mib
        each.set_target(500)
        pass_time(each, 10)
        gains.append(before - each.memory.held_mib)
    assert gains == pytest.approx([500, 0])


def test_memory_that_is_given_back_is_the_hosts_until_it_is_used() -> None:
    squeezed = guest(BURST)
    squeezed.set_target(500)
    pass_time(squeezed, 5)
    squeezed.set_target(0)
    pass_time(squeezed, 5, 5)
    assert squeezed.memory.held_mib == pytest.approx(1024 - 500)
    pass_time(squeezed, 20, 10)
    assert squeezed.memory.held_mib > 1024 - 500 + 200


def test_burst_takes_pages_out_of_the_balloon_before_anything_is_killed() -> None:
    squeezed = guest(BURST)
    squeezed.set_target(512)
    pass_time(squeezed, 9)
    assert pass_time(squeezed, 20, 9) > 5
    assert squeezed.memory.balloon_mib < 512
    assert squeezed.programs.oom_kills == 0
    shrunk = squeezed.memory.balloon_mib
    pass_time(squeezed, 20, 29)
    assert squeezed.memory.balloon_mib == shrunk
    squeezed.set_target(400)
    pass_time(squeezed, 5, 49)
    assert squeezed.memory.balloon_mib <= 400


def test_burst_without_deflate_on_oom_kills_once() -> None:
    squeezed = guest(BURST, deflates_on_oom=False)
    squeezed.set_target(512)
    pass_time(squeezed, 60)
    assert squeezed.programs.oom_kills == 1
    assert squeezed.memory.anon_mib == BURST.anon_mib


def test_swap_is_written_for_a_balloon_and_read_by_who_uses_it() -> None:
    squeezed = guest(ZRAM)
    squeezed.set_target(512)
    assert pass_time(squeezed, 20) > 3
    assert squeezed.memory.swapped_mib > 200
    assert squeezed.programs.swapped_in > 20 * 16
    assert guest(Load(800.0, swap_mib=512.0)).programs.swap_in(1.0) == 0
