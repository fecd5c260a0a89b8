"""The profile ``adaptive`` on a host: who is asked for how much, and who gets it back."""

import pytest

from balloon_daemon.ctl.simulate.replay import replay
from balloon_daemon.records.trace import Decided, Entry, Header, Trace, encode_entry
from balloon_daemon.records.trace_reader import Decoder
from balloon_daemon.sizing.adaptive_vm import settled_bytes
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Halted,
    Looked,
    Measured,
    Moved,
    Paused,
    Ran,
    Removed,
    Reserved,
    Sampled,
    SettingsChanged,
    Wanted,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.resumable import ResumablePolicy
from balloon_daemon.sizing.row import BACK_S, Row
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, VmId
from tests.harness.adaptive_host import ADAPTIVE, MARGIN_MIB, AdaptiveHost, Guest, well

A, B = VmId(1, "a"), VmId(2, "b")
LOW = Reading(10, MARGIN_MIB)
PLENTY = Reading(1 << 20, MARGIN_MIB)


def of(priority: int = 0, floor_bytes: int | None = None) -> Terms:
    return Terms(VmSettings(floor_bytes, None, priority, Profile.ADAPTIVE))


def two(a: Guest, b: Guest, bare_mib: float = 4000) -> AdaptiveHost:
    host = AdaptiveHost({A: a, B: b}, bare_mib)
    host.live(2)
    return host


def mib(host: AdaptiveHost, vm: VmId) -> int:
    return host.policy.target_bytes(vm) // MIB


def test_a_host_with_plenty_asks_for_nothing_and_is_read_seldom() -> None:
    host = two(Guest(), Guest())
    assert host.turns == []
    assert host.wake_at_s is not None
    assert host.wake_at_s - host.now_s > 2


def test_the_shortage_is_asked_for_before_memory_is_low() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, free_mib=1000, cache_mib=2000))
    for bare_mib in range(3900, 200, -300):
        host.bare_mib = bare_mib
        host.tick()
    assert host.low_s == 0
    assert {Reason.UNUSED, Reason.RUNNING_LOW} & {*host.reasons(A)}
    # Free memory alone, and of the one that has more of it more.
    assert mib(host, A) > mib(host, B)
    assert mib(host, B) < 1000


def test_what_is_taken_is_what_is_short_and_no_sixteenth() -> None:
    host = two(Guest(8 * GIB, free_mib=6000), Guest(8 * GIB, free_mib=6000))
    host.bare_mib = 300
    host.live(10)
    wanted_mib = 5 * MARGIN_MIB - 300  # Of memory that nobody uses.
    assert host.told_bytes // MIB == pytest.approx(wanted_mib, rel=0.1)


def test_page_cache_is_asked_for_last_and_of_one_guest_at_first() -> None:
    free = Guest(2 * GIB, free_mib=400, cache_mib=100)
    host = two(Guest(4 * GIB, free_mib=0, cache_mib=3000), free, 560)
    assert mib(host, A) == 0
    assert mib(host, B) > 0
    host.bare_mib = -200
    host.live(15)
    assert mib(host, A) > 400
    assert host.low_s < 6


def test_a_guest_that_reads_its_files_again_is_asked_for_no_cache() -> None:
    def reading(at_s: float, figures: Figures) -> Figures:
        return figures._replace(disk_read_bytes=int(max(0.0, at_s - 1002) * 20 * MIB))

    reader = Guest(4 * GIB, free_mib=1000, cache_mib=2500, says=reading)
    host = two(reader, Guest(4 * GIB, free_mib=0, cache_mib=2000))
    host.live(2)
    host.reads = Reading(MARGIN_MIB + 100, MARGIN_MIB)
    host.live(2)
    assert mib(host, A) == 0
    assert mib(host, B) > 0


def test_a_guest_keeps_the_memory_below_which_it_would_be_in_need() -> None:
    host = two(Guest(2 * GIB, free_mib=500, cache_mib=0), Guest(2 * GIB, free_mib=500))
    host.bare_mib = 0
    host.live(6)
    left = [guest.figures(0.0).available_bytes for guest in host.guests.values()]
    assert all(each is not None and each > 0.08 * 2 * GIB for each in left)
    assert host.findings == []


def test_memory_that_the_host_does_not_back_is_asked_for_after_other() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, free_mib=3000))
    host.step(Measured(A, GIB))  # It has never used 3 GiB.
    host.bare_mib = 500
    host.live(3)
    assert mib(host, A) == 0
    assert mib(host, B) > 0


def test_lower_priorities_give_what_they_can_spare_first() -> None:
    host = two(Guest(4 * GIB, of(5), free_mib=3000), Guest(4 * GIB, of(-5), free_mib=3000))
    host.bare_mib = 700
    host.live(4)
    assert mib(host, A) == 0
    host.bare_mib = -2600
    host.live(6)
    assert mib(host, A) > 0


def test_higher_priorities_get_memory_back_first() -> None:
    host = two(Guest(4 * GIB, of(-5), GIB, says=well), Guest(4 * GIB, of(5), GIB, says=well))
    host.reads = LOW
    host.live(40)
    assert host.told_bytes == host.most_bytes
    host.reads = None
    host.bare_mib = -4000
    host.live(12)
    given = [turn.vm for turn in host.turns if not turn.up]
    assert given[0] == B


def test_a_floor_holds_whatever_is_short() -> None:
    host = two(
        Guest(4 * GIB, of(0, 3 * GIB), GIB, says=well), Guest(4 * GIB, of(), GIB, says=well)
    )
    host.reads = LOW
    host.live(20)
    assert mib(host, A) == 1024
    assert mib(host, B) == 3072


def test_a_guest_of_unknown_statistics_gives_what_the_seed_would_take() -> None:
    blind = Terms(VmSettings(profile=Profile.ADAPTIVE), sends_stats=False)
    silent = Guest(4 * GIB, blind, says=lambda _at_s, _figures: None)
    host = AdaptiveHost({A: silent})
    host.live(2)
    host.bare_mib = 450
    host.live(3)
    assert host.told_bytes == 0  # Memory is not low.
    host.reads = LOW
    step = host.policy.policy(A).max_bytes / 16
    for number in range(1, 17):
        host.tick()
        assert (number - 1) * step <= host.told_bytes <= (number + 1) * step


def test_a_balloon_is_asked_for_no_more_than_it_was_seen_to_give() -> None:
    host = two(Guest(8 * GIB, free_mib=7000, rate=60 * MIB), Guest(512 * MIB, of(), free_mib=0))
    host.bare_mib = 500
    ahead_mib = []
    for _ in range(8):
        host.tick()
        ahead_mib.append(mib(host, A) - host.guests[A].balloon_bytes // MIB)
    assert ahead_mib[0] <= 2 * 256
    assert ahead_mib[-1] <= 2 * 70


def test_memory_goes_back_once_there_was_room_for_it_for_a_while() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, free_mib=3000))
    host.bare_mib = 0
    host.live(5)
    assert host.told_bytes > 0
    host.bare_mib = 8000
    host.live(7)
    assert all(turn.up for turn in host.turns)
    host.live(20)
    assert host.told_bytes == 0
    assert Reason.MEMORY_BACK in host.reasons(A)


def test_what_has_just_gone_back_is_not_asked_for_again_within_10_s() -> None:
    host = AdaptiveHost({A: Guest(4 * GIB, of(), 64 * GIB, says=well)})
    host.reads = LOW
    host.live(4)
    host.reads = PLENTY
    while mib(host, A):
        host.tick()
    lowered_at_s = host.turns[-1].at_s
    host.reads = LOW
    while not mib(host, A):
        host.tick()
    assert lowered_at_s + 10 <= host.turns[-1].at_s < lowered_at_s + 13
    assert Reason.JUST_LOWERED in host.reasons(A)
    # What is promised by then is asked for at once.
    assert host.told_bytes >= host.most_bytes * 9 // 16


def test_half_of_what_is_taken_stays_where_it_can_be_had_again_at_once() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(256 * MIB), 300)
    host.live(4)
    told_bytes = host.told_bytes
    # Room for all of it, and hardly more.
    host.bare_mib = 650 + MARGIN_MIB // 2
    while not any(not turn.up for turn in host.turns):
        host.tick()
    at_s = host.turns[-1].at_s
    assert 0.4 * told_bytes < host.told_bytes < 0.7 * told_bytes
    while host.turns[-1].at_s == at_s:
        host.tick()
    assert host.turns[-1].at_s >= at_s + 10
    # The guests have used what they got: nobody is asked for memory to be prepared.
    assert not host.turns[-1].up


def test_the_promise_begins_anew_once_memory_was_not_low() -> None:
    def nothing(_at_s: float, figures: Figures) -> Figures:
        return figures._replace(available_bytes=160 * MIB, free_bytes=0)

    host = AdaptiveHost({A: Guest(GIB, of(), says=nothing)})
    host.live(2)
    host.reads = LOW
    host.live(8)
    told_bytes = host.told_bytes
    assert told_bytes == host.most_bytes // 16 * 7
    host.reads = Reading(MARGIN_MIB + 10, MARGIN_MIB)
    host.live(2)
    host.reads = LOW
    host.live(5)
    assert host.told_bytes == told_bytes


def test_the_guest_that_has_least_gets_memory_back_first() -> None:
    host = two(Guest(4 * GIB, free_mib=3500), Guest(4 * GIB, free_mib=2500))
    host.bare_mib = -1500
    host.live(12)
    host.bare_mib = 500
    host.live(16)
    assert next(turn.vm for turn in host.turns if not turn.up) == B


def test_switched_off_gives_all_back() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest())
    host.bare_mib = 0
    host.live(3)
    host.reads = NeverLow("off")
    host.live(12)
    assert host.told_bytes == 0
    assert host.reasons(A)[-1] is Reason.SWITCHED_OFF


def test_unknown_figures_change_nothing() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest())
    host.bare_mib = 0
    host.live(3)
    told = mib(host, A) * MIB
    host.step(Moved(A, told))
    for _ in range(60):
        host.now_s += 1
        assert host.step(Woke(None)).targets == ()
    assert mib(host, A) * MIB == told


def test_a_decision_says_what_is_aimed_at_and_what_was_before() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(), 500)
    first = next(each.decision for each in host.decisions if each.vm == A)
    assert (first.reason, first.before_bytes) == (Reason.RUNNING_LOW, 0)
    assert first.aim_mib == 1.5 * MARGIN_MIB
    assert first.target_bytes > 0
    assert first.reading == Reading(500, MARGIN_MIB)


def test_why_nothing_is_asked_is_said_once() -> None:
    host = two(Guest(512 * MIB, free_mib=50, cache_mib=0), Guest(256 * MIB, of()))
    host.reads = LOW
    host.live(3)
    assert host.reasons(B).count(Reason.NO_BALLOON) == 1


# --- beside what operators and other rules do ---------------------------------------------------


def test_a_paused_vm_is_asked_for_nothing() -> None:
    host = two(Guest(4 * GIB, of(), GIB, says=well), Guest(4 * GIB, of(), GIB, says=well))
    host.step(Paused((A,), 600.0))
    host.reads = LOW
    host.live(20)
    assert (mib(host, A), mib(host, B)) == (0, 3072)
    assert host.reasons(A)[-1] is Reason.PAUSED


def test_what_an_operator_has_asked_for_is_held() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest())
    host.step(Asked(A, 500 * MIB, 120.0))
    host.bare_mib = 9000
    host.live(100)
    assert mib(host, A) == 500
    host.live(40)
    assert mib(host, A) == 0


def test_a_reclaim_and_a_reserve_take_from_adaptive_vms() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest())
    host.step(Wanted(1, (), 200 * MIB, 30.0, 60.0))
    host.live(5)
    assert host.told_bytes >= 200 * MIB
    host.step(Reserved(2, 4 * GIB, 30.0, 60.0))
    host.live(20)
    assert mib(host, A) > 1800


def test_a_guest_in_need_gets_all_back_and_is_left_alone() -> None:
    host = two(Guest(2 * GIB, free_mib=1500), Guest(4 * GIB, free_mib=3000))
    host.bare_mib = 0
    host.live(5)
    assert mib(host, A) > 100
    host.guests[A].free_mib = host.guests[A].balloon_bytes // MIB + 50
    host.guests[A].cache_mib = 50
    host.tick()
    assert mib(host, A) == 0
    assert Reason.IN_NEED in host.reasons(A)
    host.reads = LOW
    host.live(20)
    assert mib(host, A) == 0


def test_a_guest_whose_programs_take_memory_is_asked_for_less() -> None:
    calm = two(Guest(2 * GIB, free_mib=900), Guest(512 * MIB, of(), free_mib=0))
    busy = two(Guest(2 * GIB, free_mib=900), Guest(512 * MIB, of(), free_mib=0))
    for host in (calm, busy):
        host.reads = Reading(MARGIN_MIB * 6, MARGIN_MIB)
        host.step(SettingsChanged(A, host.guests[A].terms.settings))
        for _ in range(3):
            host.step(Sampled(A, host.guests[A].figures(host.now_s)))
            host.now_s += 1
            host.step(Woke(Reading(MARGIN_MIB * 3, MARGIN_MIB * 2 // 2)))
    for _ in range(2):
        busy.guests[A].free_mib -= 150
        for host in (calm, busy):
            host.reads = Reading(MARGIN_MIB - 50, MARGIN_MIB)
            host.tick()
    assert mib(busy, A) < mib(calm, A)


def test_a_paused_guest_is_not_counted_on() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, free_mib=3000))
    host.step(Ran(A, runs=False))
    host.bare_mib = 300
    host.live(5)
    assert mib(host, A) == 0
    assert mib(host, B) > 0


def test_what_a_guest_that_stands_still_was_asked_for_is_asked_of_others() -> None:
    host = two(Guest(4 * GIB, of(-1), rate=0, free_mib=3000), Guest(4 * GIB, free_mib=3000), 700)
    assert mib(host, A) > 0
    before_mib = mib(host, B)
    host.step(Ran(A, runs=False))
    host.bare_mib = 390
    host.tick()
    assert mib(host, B) - before_mib > 200
    row = Row(host.policy.policy(A), 4 * GIB, of(), 5 * MIB, 9 * MIB, guard=host.policy.guard(A))
    assert settled_bytes(row) == 5 * MIB
    host.step(Ran(A, runs=True))
    assert settled_bytes(row) == 9 * MIB


@pytest.mark.parametrize("profile", Profile)
def test_a_balloon_of_a_size_that_nobody_asked_for_takes_from_no_other_guest(
    profile: Profile,
) -> None:
    terms = Terms(VmSettings(profile=profile))
    liar = Guest(GIB, terms, rate=0, free_mib=0, cache_mib=130)
    host = two(liar, Guest(4 * GIB, free_mib=2000), bare_mib=8000)
    # The first size after a reset is taken as it is.
    host.step(Ran(A, runs=False))
    host.step(Ran(A, runs=True))
    claim(host, 0xFFFFFFFF * PAGE_SIZE)
    host.live(60)
    assert host.policy.target_bytes(B) == 0


def test_a_balloon_counts_no_memory_that_its_vm_occupies() -> None:
    liar = Guest(8 * GIB, rate=0, free_mib=0, cache_mib=1000)
    host = two(liar, Guest(4 * GIB, free_mib=2000), bare_mib=3000)
    host.step(Ran(A, runs=False))
    host.step(Ran(A, runs=True))
    host.step(Measured(A, 8 * GIB))
    claim(host, 8 * GIB)
    host.live(60)
    assert host.policy.target_bytes(B) == 0


def test_a_balloon_that_goes_back_counts_until_its_guest_has_it_or_should_have() -> None:
    liar = Guest(8 * GIB, rate=0, free_mib=0, cache_mib=1000)
    host = two(liar, Guest(4 * GIB, free_mib=2000), bare_mib=3000)
    host.step(Asked(A, 4 * GIB, 1.0))
    claim(host, 4 * GIB)
    host.step(Asked(A, 0, 1.0))
    host.tick()
    at_first = host.policy.target_bytes(B)
    host.live(2 * int(BACK_S))
    assert at_first > 0
    assert host.policy.target_bytes(B) == 0


@pytest.mark.parametrize("profile", [Profile.CAREFUL, Profile.ADAPTIVE])
def test_a_balloon_that_nobody_asked_for_in_a_huge_vm_takes_from_no_other_guest(
    profile: Profile,
) -> None:
    # The VM's memory is sparse: the host backs 1 GiB of its 64, so its figures allow any balloon.
    terms = Terms(VmSettings(profile=profile))
    liar = Guest(64 * GIB, terms, rate=0, free_mib=0, cache_mib=1000)
    host = two(liar, Guest(4 * GIB, free_mib=2000), bare_mib=8000)
    host.step(Ran(A, runs=False))
    host.step(Ran(A, runs=True))
    host.step(Measured(A, GIB))
    claim(host, 60 * GIB)
    host.live(60)
    assert host.policy.target_bytes(B) == 0


def claim(host: AdaptiveHost, balloon_bytes: int) -> None:
    """Has the guest of A write a size of its balloon."""
    if host.policy.guard(A) is None:
        host.policy.note_actual(A, balloon_bytes)
    else:
        host.step(Moved(A, balloon_bytes))


def test_a_vm_becomes_adaptive_and_careful_again() -> None:
    careful = VmSettings(profile=Profile.CAREFUL)
    host = AdaptiveHost({A: Guest(4 * GIB, Terms(careful), GIB, says=well)})
    host.live(2)
    host.reads = LOW
    host.live(5)
    told = host.told_bytes
    assert 0 < told < host.most_bytes
    step = host.step(SettingsChanged(A, VmSettings(profile=Profile.ADAPTIVE)))
    assert step.targets == ()
    host.live(17)
    assert host.told_bytes == host.most_bytes
    assert host.step(SettingsChanged(A, careful)).targets == ()
    host.reads = PLENTY
    host.live(540)
    assert host.told_bytes == 0


def test_seed_vms_beside_adaptive_ones_keep_their_own_rule() -> None:
    host = two(Guest(4 * GIB, Terms(SEED)), Guest(4 * GIB, of(), GIB, says=well))
    host.reads = LOW
    host.live(9)
    assert host.policy.policy(A).level in (8, 9)
    host.live(8)
    assert host.told_bytes == host.most_bytes


def test_a_removed_vm_is_asked_for_nothing_and_halted_is_the_end() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, free_mib=3000))
    host.step(Removed(B))
    assert host.step(Looked(LOW)).targets[0].vm == A
    step = host.step(Halted())
    assert (step.wake_at_s, step.listen) == (None, False)
    assert host.step(Woke(LOW)).targets == ()
    assert ADAPTIVE.is_adaptive


# --- in traces, and to who asks -----------------------------------------------------------------


def recorded(host: AdaptiveHost) -> Trace:
    """What the host was told and has decided, as ``--record`` writes it and reads it again."""
    decoder, entries = Decoder(), []
    for at_s, event, step in host.steps:
        decided = tuple(
            Decided(vm, decision.reason, decision.level, decision.target_bytes)
            for vm, decision, _ in step.decisions
        )
        line = encode_entry(Entry(at_s, event, (), {}, decided))
        entries.append(decoder.entry(line))
    return Trace("a.trace", Header(0.0, PolicySettings()), entries)


def test_a_trace_replays_with_the_same_decisions() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, of(3), free_mib=500, cache_mib=2000))
    for bare_mib in (1500, -500, 300, 6000, 100):
        host.bare_mib = bare_mib
        host.live(15)
    replayed = replay(recorded(host))
    assert replayed.recorded > 10
    assert replayed.first_other is None


def test_what_it_aims_at_is_told_of_adaptive_vms_alone() -> None:
    host = two(Guest(4 * GIB, free_mib=3000), Guest(4 * GIB, Terms(SEED)), 3000)
    aims = [host.policy.aim(A), host.policy.aim(B)]
    host.step(Reserved(2, GIB, 30.0, 60.0))
    host.live(2)
    aims.append(host.policy.aim(A))
    assert aims == [(600, 650), None, (600 + 1024, 650 + 1024)]


def test_another_policy_goes_on_from_the_targets_that_there_are() -> None:
    first = ResumablePolicy(PolicySettings(), lambda: 0.0, lambda _vm, _level: None)
    first.step(Added(A, 4 * GIB, 300 * MIB, ADAPTIVE), 1000.0)
    first.step(Woke(Reading(500, MARGIN_MIB)), 1000.0)
    (found,) = first.found()
    second = ResumablePolicy(PolicySettings(), lambda: 0.0, lambda _vm, _level: None)
    second.resume(found, 1001.0)
    assert second.target_bytes(A) == first.target_bytes(A) == 300 * MIB
    assert second.step(Woke(LOW), 1002.0).targets
