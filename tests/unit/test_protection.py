"""Careful VMs in the host's policy: when it lets go, when it holds, and when it goes on."""

from collections.abc import Callable

import pytest

from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import (
    Balance,
    Contested,
    Finding,
    InNeed,
    Missing,
    NeverLow,
    Reading,
    Reason,
    Sign,
    Stalled,
)
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Event,
    Halted,
    HostStep,
    Looked,
    Measured,
    Moved,
    Ran,
    Restored,
    Sampled,
    Seen,
    Target,
    Watch,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.protection import CLOSE_S, SELDOM_S
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.faults import fault
from tests.harness.recordings import Second, first_refaults_s, recording

A, B = VmId(1, "vm1"), VmId(2, "vm2")
LOW = Reading(available_mib=10, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""

WELL = Figures(0.0, 600 * MIB, 300 * MIB, 0, 0, 0, 0)
POOR = WELL._replace(available_bytes=100 * MIB)
BLIND = Terms(VmSettings(), sends_stats=False)


class Host:
    """A host's policy, a clock, and guests that do as they are told unless a test says else."""

    def __init__(self, *terms: Terms, seen: Seen = LOW, vm_mem_bytes: int = GIB) -> None:
        settings = PolicySettings(
            recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
        )
        self.policy = HostPolicy(settings, lambda: 0.0, lambda _vm, _level: None)
        self.now_s = 1000.0
        self.seen = seen
        self.gives = True
        self.figures: Figures | None = WELL
        self.vms = [VmId(number, f"vm{number}") for number in range(1, len(terms or (0,)) + 1)]
        self.told: list[Target] = []
        self.found: list[Finding] = []
        self.watches: list[Watch] = []
        self.reasons: list[Reason] = []
        for vm, vm_terms in zip(self.vms, terms or (Terms(VmSettings()),), strict=True):
            self.step(Added(vm, vm_mem_bytes, 0, vm_terms))

    def step(self, event: Event) -> HostStep:
        step = self.policy.step(event, self.now_s)
        self.told += step.targets
        self.found += [found.finding for found in step.findings]
        self.watches += step.watches
        self.reasons += [decided.decision.reason for decided in step.decisions]
        if self.gives:
            for vm, target_bytes in step.targets:
                self.step(Moved(vm, target_bytes))
        return step

    def live(self, seconds: int) -> None:
        """Lets seconds go by, in each of which every guest sends its statistics."""
        for _ in range(seconds):
            if self.figures is not None:
                for vm in self.vms:
                    self.step(Sampled(vm, self.figures._replace(at_s=self.now_s)))
            self.look(self.seen)
            self.now_s += 1.0

    def look(self, seen: Seen) -> None:
        """What a governor does when time has gone by."""
        if self.step(Woke(seen)).listen:
            self.step(Looked(seen))

    def target(self, vm: VmId = A) -> int:
        return self.policy.target_bytes(vm)


def test_guest_that_is_well_is_squeezed_as_the_seed_would() -> None:
    host = Host()
    host.live(16)
    assert [target.target_bytes for target in host.told] == [n * STEP for n in range(17)]
    assert host.found == []


@fault("a guest is in need")
def test_guest_in_need_gets_all_back_in_that_very_step_and_is_left_alone() -> None:
    host = Host()
    host.live(5)
    assert host.target() == 5 * STEP

    step = host.step(Sampled(A, POOR._replace(at_s=host.now_s)))

    assert step.targets == (Target(A, 0),)
    assert host.found == [InNeed(frozenset({Sign.LITTLE_AVAILABLE}), 5 * STEP, 60.0)]
    assert host.policy.policy(A).level == 0
    host.live(60)
    assert host.target() == 0
    assert host.reasons[-1] is Reason.IN_NEED
    host.live(3)
    assert host.target() > 0


def test_guest_that_stays_in_need_is_left_alone_until_30_s_after_it() -> None:
    host = Host()
    host.live(5)
    host.figures = POOR
    host.live(90)
    host.figures = WELL
    host.live(29)
    assert host.target() == 0
    host.live(3)
    assert host.target() > 0


def test_guest_that_is_in_need_each_time_is_left_alone_twice_as_long_each_time() -> None:
    host = Host()
    for _ in range(4):
        host.figures = WELL
        while host.target() == 0:
            host.live(1)
        host.figures = POOR
        host.live(1)
    waits = [found.left_alone_s for found in host.found if isinstance(found, InNeed)]
    assert waits == [60.0, 120.0, 240.0, 480.0]


def test_stream_that_begins_in_a_squeezed_guest_is_let_go_once_and_is_in_the_next_base() -> None:
    host = Host()
    host.live(16)
    began_s = host.now_s
    for _ in range(150):
        # It reads 10 MiB a second, and fills all free memory with page cache.
        read = int(host.now_s - began_s) * 10 * MIB
        host.figures = WELL._replace(free_bytes=60 * MIB, disk_read_bytes=read)
        host.live(1)
    (found,) = host.found
    assert isinstance(found, InNeed)
    assert found.signs == {Sign.READS_DISK}
    assert host.target() == 512 * MIB


def test_guest_that_is_in_need_by_itself_is_not_squeezed_and_nothing_is_said() -> None:
    host = Host(seen=PLENTY)
    host.figures = POOR
    host.live(3)
    host.seen = LOW
    host.live(5)
    assert host.target() == 0
    assert host.found == []
    assert host.reasons[-1] is Reason.IN_NEED


def test_seed_vm_is_squeezed_whatever_its_guest_reports() -> None:
    host = Host(Terms(SEED))
    host.figures = POOR
    host.live(16)
    assert host.target() == 512 * MIB
    assert host.watches == []


def test_vm_of_higher_priority_is_squeezed_when_those_below_are_in_need() -> None:
    host = Host(Terms(VmSettings()), Terms(VmSettings(priority=1)))
    host.live(2)
    assert (host.target(A), host.target(B)) == (2 * STEP, 0)
    host.step(Sampled(A, POOR._replace(at_s=host.now_s)))
    host.live(2)
    assert (host.target(A), host.target(B)) == (0, 2 * STEP)


@fault("a guest's balloon shrinks although nobody asked for it")
def test_guest_that_takes_pages_back_gets_all_of_them_and_the_target_is_not_repeated() -> None:
    host = Host(BLIND)
    host.figures = None
    host.live(16)
    assert host.target() == 512 * MIB
    host.step(Moved(A, 510 * MIB))
    assert host.target() == 0
    assert host.found == [InNeed(frozenset({Sign.TOOK_BACK}), 510 * MIB, 60.0)]


def test_statistics_that_stop_coming_hold_the_squeeze_and_give_nothing_back() -> None:
    host = Host()
    host.live(5)
    host.figures = None
    host.live(5)
    held = host.target()
    assert held == 10 * STEP
    host.live(60)
    assert host.target() == held
    assert host.reasons[-1] is Reason.NO_FRESH_STATS
    host.figures = WELL
    host.live(2)
    assert host.target() > held


def test_statistics_of_a_time_to_come_are_of_the_present() -> None:
    host = Host()
    host.live(2)
    host.step(Sampled(A, WELL._replace(at_s=host.now_s + 1e9)))
    host.live(3)
    assert host.target() == 5 * STEP
    host.step(Sampled(A, POOR._replace(at_s=host.now_s)))
    assert host.target() == 0


def test_old_statistics_hold_nothing_before_new_ones_were_asked_for() -> None:
    host = Host(seen=PLENTY)
    host.live(1)
    host.figures = None
    host.now_s += 30.0
    host.seen = LOW
    host.live(5)
    assert host.target() == 5 * STEP


def test_guest_without_statistics_is_squeezed_at_the_seeds_pace_down_to_its_floor() -> None:
    host = Host(BLIND, vm_mem_bytes=8 * GIB)
    host.figures = None
    host.live(16)
    assert host.target() == 6 * GIB
    assert host.found == []


@pytest.mark.parametrize("figures", [None, Figures(0.0, free_bytes=GIB)])
def test_guest_whose_statistics_never_say_what_is_available_keeps_the_floor(
    figures: Figures | None,
) -> None:
    host = Host(vm_mem_bytes=8 * GIB)
    host.figures = figures
    host.live(20)
    assert host.target() == 6 * GIB
    assert Reason.LIMITS_CHANGED in host.reasons
    host.figures = WELL._replace(available_bytes=4 * GIB)
    host.live(80)
    assert host.target() == 7 * GIB


def test_guest_that_says_what_is_available_now_and_then_changes_its_limits_once() -> None:
    host = Host(vm_mem_bytes=8 * GIB)
    for second in range(100):
        host.figures = WELL._replace(available_bytes=None if second % 2 else 4 * GIB)
        host.live(1)
    assert host.reasons.count(Reason.LIMITS_CHANGED) == 1
    assert host.target() == 6 * GIB


def test_floor_that_comes_later_gives_back_what_is_below_it() -> None:
    host = Host(Terms(VmSettings()), vm_mem_bytes=8 * GIB)
    host.figures = WELL._replace(available_bytes=4 * GIB)
    host.live(16)
    assert host.target() == 7 * GIB
    host.figures = WELL._replace(available_bytes=None)
    host.live(1)
    assert host.target() == 6 * GIB


@fault("a guest gives no more")
def test_balloon_that_stands_still_ends_the_squeeze_at_what_was_reached() -> None:
    host = Host()
    host.live(5)
    host.gives = False
    host.live(1)
    host.step(Moved(A, 5 * STEP + 4096 + 17))
    host.live(5)
    reached = 5 * STEP + 4096
    assert host.target() == reached
    (found,) = host.found
    assert isinstance(found, Stalled)
    assert (found.balloon_bytes, found.left_alone_s) == (reached + 17, 60.0)
    host.live(55)
    assert host.target() == reached
    assert host.reasons[-1] is Reason.STALLED
    host.gives = True
    host.live(8)
    assert host.target() > reached
    assert host.target() % STEP == 0


def test_stalled_guest_without_free_memory_is_in_need() -> None:
    host = Host()
    host.live(5)
    host.gives = False
    host.figures = WELL._replace(free_bytes=50 * MIB)
    host.live(6)
    assert host.target() == 0
    (found,) = host.found
    assert isinstance(found, InNeed)
    assert found.signs == {Sign.STUCK}


def test_squeeze_that_ends_below_the_first_level_is_given_back_with_the_rest() -> None:
    host = Host()
    host.gives = False
    host.step(Moved(A, 0))
    host.live(3)
    host.step(Moved(A, 5 * MIB))
    host.live(5)
    assert host.target() == 5 * MIB
    host.seen = PLENTY
    host.live(120)
    assert host.target() == 0


@pytest.mark.parametrize("begins", [0, 3])
def test_guest_that_stands_still_is_neither_stalled_nor_in_need_nor_asked_for_more(
    begins: int,
) -> None:
    host = Host()
    host.live(begins)
    host.gives = False
    host.figures = None
    host.step(Ran(A, runs=False))
    # A guest takes all of its balloon back before it is suspended.
    host.step(Moved(A, 0))
    told = len(host.told)
    host.live(60)
    assert (host.found, host.told[told:]) == ([], [])
    host.step(Ran(A, runs=True))
    host.gives, host.figures = True, WELL
    host.step(Moved(A, host.target()))
    host.live(3)
    assert host.target() == (begins + 3) * STEP


def test_guest_that_takes_all_back_just_before_it_is_known_to_be_suspended_is_not_in_need() -> (
    None
):
    host = Host()
    host.live(16)
    host.gives = False
    host.step(Moved(A, 0))
    host.now_s += 2.0
    host.step(Ran(A, runs=False))
    host.now_s += 10.0
    host.step(Woke(PLENTY))
    assert host.found == []


def test_suspended_guest_that_takes_its_balloon_back_in_pieces_is_not_in_need() -> None:
    host = Host()
    host.live(8)
    host.gives = False
    host.step(Ran(A, runs=False))
    for left in (4, 3, 1, 0):
        host.step(Moved(A, left * STEP))
    assert host.found == []


def test_what_a_guest_reads_while_it_is_suspended_or_reset_is_no_need() -> None:
    """A VMM's counter of disk reads goes on over both."""
    host = Host()
    host.figures = None
    full = WELL._replace(free_bytes=50 * MIB)
    host.live(4)
    host.step(Sampled(A, full._replace(at_s=host.now_s)))
    host.step(Ran(A, runs=False))
    host.step(Ran(A, runs=True))
    host.now_s += 3.0
    read = 100 * MIB
    host.step(Sampled(A, full._replace(at_s=host.now_s, disk_read_bytes=read)))
    assert host.found == []
    host.now_s += 3.0
    host.step(Sampled(A, full._replace(at_s=host.now_s, disk_read_bytes=2 * read)))
    (found,) = host.found
    assert isinstance(found, InNeed)
    assert found.signs == {Sign.READS_DISK}


@fault("somebody else sets a VM's balloon")
def test_balloon_that_somebody_else_makes_larger_is_left_to_them_and_that_is_said_once() -> None:
    host = Host()
    host.live(5)
    host.seen = PLENTY
    host.live(5)
    told = len(host.told)
    for _ in range(3):
        host.step(Moved(A, 400 * MIB))
        host.live(2)
    assert host.found == [Contested(5 * STEP, 400 * MIB, 60.0)]
    host.seen = LOW
    host.live(40)
    assert host.told[told:] == []
    assert host.reasons[-1] is Reason.CONTESTED
    host.live(20)
    # Left alone long enough: it is squeezed again, from the size that it has.
    assert [target.target_bytes for target in host.told[told:]][:2] == [400 * MIB, 13 * STEP]


@fault("somebody else sets a VM's balloon")
@pytest.mark.parametrize("later_s", [0, 3, 300])
def test_two_balloonds_on_one_vm_do_not_fight_over_it_and_one_says_so(
    later_s: int,
) -> None:
    hosts = [Host(), Host()]
    for each in hosts:
        each.gives = False
    for second in range(600):
        # 20 s of low memory in every two minutes.
        seen = LOW if second % 120 < 20 else PLENTY
        for host in hosts[: 1 if second < later_s else 2]:
            told = len(host.told)
            host.now_s, host.seen = 1000.0 + second, seen
            host.live(1)
            # The guest does at once what it is told, and both see it.
            for target in host.told[told:]:
                for each in hosts:
                    each.step(Moved(A, target.target_bytes))
        if second == later_s + 120:
            assert any(isinstance(found, Contested) for host in hosts for found in host.found)
    # Each leaves it alone for a minute or more. One alone sends 17 targets in each such time.
    assert sum(len(host.told) for host in hosts) < 5 * 17


def test_balloon_that_somebody_else_empties_again_and_again_is_said_to_be_theirs() -> None:
    host = Host()
    for _ in range(2):
        while host.target() < 5 * STEP:
            host.live(1)
        host.step(Moved(A, 100 * MIB))
        host.step(Moved(A, 0))
    first, second, contested = host.found
    assert isinstance(first, InNeed)
    assert isinstance(second, InNeed)
    assert isinstance(contested, Contested)


def test_found_balloon_is_adopted_to_the_byte_and_cut_to_the_floor() -> None:
    host = Host()
    step = host.step(Added(B, GIB, 100 * MIB + 4096 + 1, Terms(VmSettings())))
    assert step.targets == (Target(B, 100 * MIB + 4096),)
    host.policy = Host().policy
    step = host.step(Added(B, GIB, 600 * MIB, Terms(VmSettings())))
    assert step.targets == (Target(B, 512 * MIB),)


def test_restored_vm_is_protected_too() -> None:
    host = Host()
    state = PolicyState(4, None, host.now_s + 20.0)
    host.step(Restored(B, GIB, state, 4 * STEP, Terms(VmSettings())))
    step = host.step(Sampled(B, POOR._replace(at_s=host.now_s)))
    assert step.targets == (Target(B, 0),)


@fault("the host does not get what a guest gives")
def test_balloon_of_which_the_host_gets_nothing_is_said_and_not_made_larger() -> None:
    host = Host(vm_mem_bytes=4 * GIB)
    host.live(8)
    host.seen = PLENTY
    for _ in range(40):
        host.live(1)
        host.step(Measured(A, 4 * GIB))
    half = 3 * GIB // 2
    assert host.found == [Balance(Missing.NEVER_FREED, half, half)]
    host.seen = LOW
    host.live(2)
    assert (host.target(), host.reasons[-1]) == (half, Reason.FRUITLESS)
    host.step(Measured(A, 4 * GIB - half))
    assert host.found[1:] == [Balance(Missing.NOTHING, 0, half)]
    host.live(2)
    assert host.target() > half


@pytest.mark.parametrize(
    ("seen", "every_s"),
    [
        (PLENTY, []),
        (Reading(600, 400), []),
        (Reading(599, 400), [1.0]),
        (LOW, [1.0]),
        (None, []),
        (NeverLow("off"), []),
    ],
)
def test_guest_is_watched_closely_where_memory_is_within_reach_of_low(
    seen: Seen, every_s: list[float]
) -> None:
    host = Host(seen=seen)
    host.figures = None
    host.live(3)
    assert [watch.every_s for watch in host.watches] == [30.0, *every_s]


def test_guest_is_watched_closely_until_its_balloon_is_empty_and_memory_is_back() -> None:
    host = Host()
    host.live(3)
    host.seen = Reading(799, 400)
    host.live(1200)
    assert host.target() == 0
    host.watches.clear()
    host.seen = Reading(800, 400)
    host.live(1)
    assert host.watches == [Watch(A, 30.0)]


def test_reports_after_the_end_change_nothing() -> None:
    host = Host()
    host.live(3)
    host.step(Halted())
    events: list[Callable[[], Event]] = [
        lambda: Sampled(A, POOR._replace(at_s=host.now_s)),
        lambda: Moved(A, 0),
        lambda: Ran(A, runs=False),
        lambda: Measured(A, 0),
    ]
    nothing = HostStep((), (), None, listen=False)
    assert [host.step(event()) for event in events] == [nothing] * 4


def replay(host: Host, seconds: list[Second]) -> float | None:
    """Shows a recorded guest to a host that is low on memory from 0 s on.

    Returns:
        When anything was noticed about the guest; None: nothing was.
    """
    host.gives = False
    began_s = host.now_s - seconds[0].t_s
    noticed_s = None
    for second in seconds:
        host.now_s = began_s + second.t_s
        # Whoever squeezed the guest then was at times a moment ahead of this host.
        host.step(Moved(A, min(second.balloon_bytes, host.target())))
        figures = second.figures._replace(at_s=began_s + second.figures.at_s)
        host.step(Sampled(A, figures))
        if noticed_s is None and host.found:
            noticed_s = second.t_s
        host.look(LOW if second.t_s >= 0 else PLENTY)
    return noticed_s


@pytest.mark.parametrize("name", ["k61-mmapr-all", "k72-mmapr-all"])
def test_recorded_guest_that_was_let_go_is_let_go_here_and_not_squeezed_again(name: str) -> None:
    host, seconds = Host(), recording(name)

    let_go_s = replay(host, seconds)

    assert let_go_s is not None
    assert let_go_s <= first_refaults_s(seconds) + 1
    (found,) = host.found
    assert isinstance(found, InNeed)
    assert found.signs <= {Sign.READS_DISK, Sign.FAULTS}
    assert host.target() == 0


@pytest.mark.parametrize("kernel", ["k61", "k72"])
@pytest.mark.parametrize("load", ["idle", "stream", "churn", "coldstart"])
def test_recorded_guest_that_suffers_nothing_is_squeezed_to_its_maximum(
    kernel: str, load: str
) -> None:
    host = Host()
    assert replay(host, recording(f"{kernel}-{load}")) is None
    assert host.target() == 512 * MIB


def test_guest_is_watched_closely_while_an_operator_has_taken_memory_from_it() -> None:
    host = Host(seen=PLENTY)
    host.live(1)
    host.watches.clear()
    host.step(Asked(A, 64 * MIB))
    assert host.watches == [Watch(A, CLOSE_S)]
    host.step(Asked(A, 0))
    assert host.watches == [Watch(A, CLOSE_S), Watch(A, SELDOM_S)]
