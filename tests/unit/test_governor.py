"""The whole governor under a clock that stands still, with guests that know no protocol."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from balloon_daemon.commands import (
    MOST_RESERVES,
    MOST_WAITING,
    Done,
    NotDone,
    Pause,
    Reclaim,
    Reclaimed,
    Refusal,
    Release,
    Reserve,
    ReserveAnswer,
    Resume,
    SetBalloon,
    Unreserve,
)
from balloon_daemon.controller.governor import Governor, MakePolicy
from balloon_daemon.controller.traced import TracedPolicy
from balloon_daemon.controller.vm import MOVES, MOVES_A_SECOND
from balloon_daemon.errors import StateError
from balloon_daemon.events import (
    BalloonContested,
    BalloonFreed,
    BalloonMissing,
    Decided,
    Event,
    GuestInNeed,
    ProtectionEvent,
    ReclaimBegan,
    ReclaimEnded,
    ReserveEnded,
    ReserveMet,
    SizeAsked,
    SqueezeStalled,
    Stepped,
    TakingPaused,
    TakingResumed,
    VmAttached,
    VmResized,
)
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    Gone,
    Guest,
    GuestState,
    Held,
    Refused,
    Resized,
    StateChanged,
    Stats,
    Stuck,
    VmRow,
)
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.linux.meminfo import host_memory
from balloon_daemon.sizing import host_events
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import (
    Decision,
    Ended,
    Missing,
    NeverLow,
    PolicyStatistics,
    Reading,
    Reason,
    Share,
    Sign,
)
from balloon_daemon.sizing.guard import Guard
from balloon_daemon.sizing.host_events import Moved
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.status import (
    HostStatus,
    LastDecision,
    PolicyStatus,
    ProtectionStatus,
    ReclaimStatus,
    SourceStatus,
    VmStatus,
)
from balloon_daemon.units import GIB, MIB, VmId
from tests.fakes.plain_guest import PlainGuest
from tests.fakes.still_loop import StillLoop
from tests.fakes.told_memory import ToldMemory
from tests.harness.faults import fault

A, B = VmId(1, "vm1"), VmId(2, "vm2")
LOW = Reading(available_mib=10, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""


WITHOUT_JITTER = PolicySettings(
    recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
)


class Host:
    """A governor, its guests, and what they and its events' readers hear."""

    def __init__(
        self, make: MakePolicy = HostPolicy, settings: PolicySettings = WITHOUT_JITTER
    ) -> None:
        self.loop = StillLoop()
        self.memory = ToldMemory()
        self.memory.seen = PLENTY
        self.events: list[Event] = []
        self.heard: list[tuple[VmId, str]] = []
        watch = MemoryWatch(self.memory, 1.0, self.events.append, self.loop)
        self.governor = Governor(settings, watch, self._published, self.loop, make)

    def _published(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Decided):
            self.heard.append((event.vm, "decided"))

    def guest(self, vm: VmId, settings: VmSettings = SEED) -> PlainGuest:
        """A guest that is known and has not reported anything."""
        guest = PlainGuest(vm, self.heard, self.governor.report)
        known: Guest = guest
        self.governor.add(known, settings, "qmp")
        return guest

    def careful(self, vm: VmId) -> PlainGuest:
        """A guest of a careful VM of 1 GiB, which can do all that protects it."""
        guest = self.guest(vm, CAREFUL)
        self.governor.report(vm, Attached(GIB, can=frozenset(Ability)))
        self.loop.advance()
        return guest

    def attached(self, vm: VmId, vm_mem_bytes: int = GIB, row: VmRow | None = None) -> PlainGuest:
        guest = self.guest(vm)
        self.governor.report(vm, Attached(vm_mem_bytes, row=row))
        self.loop.advance()
        return guest

    def reasons(self, vm: VmId) -> list[Reason]:
        return [
            event.decision.reason
            for event in self.events
            if isinstance(event, Decided) and event.vm == vm
        ]


CAREFUL = VmSettings()
WELL = Stats(0.0, free_bytes=300 * MIB, available_bytes=600 * MIB)


@pytest.fixture
def host() -> Host:
    return Host()


def test_vm_steps_up_each_second_while_memory_is_low_and_down_once_it_is_back(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(1 + 15)
    assert guest.targets == [level * STEP for level in range(17)]
    host.memory.seen = PLENTY
    host.loop.advance(1 + 60 + 15 * 30)
    assert guest.targets[17:] == [level * STEP for level in range(15, -1, -1)]
    assert host.loop.failures == []


def test_low_memory_is_noticed_within_a_poll_and_asked_about_no_more_while_paused(
    host: Host,
) -> None:
    host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(1.0)
    reads = host.memory.reads
    host.loop.advance(0.9)
    assert host.reasons(A) == [Reason.LOW_MEMORY]
    assert host.memory.reads == reads


def test_readings_far_from_low_memory_are_no_steps_of_the_policy() -> None:
    told: list[host_events.Event] = []

    class ListedPolicy(HostPolicy):
        def step(self, event: host_events.Event, now_s: float) -> host_events.HostStep:
            told.append(event)
            return super().step(event, now_s)

    host = Host(ListedPolicy)
    host.attached(A)
    reads = host.memory.reads
    told.clear()
    host.loop.advance(5.0)
    assert (told, host.memory.reads - reads) == ([], 5)
    host.memory.seen = Reading(available_mib=900, margin_mib=400)
    host.loop.advance(1.0)
    assert told == [host_events.Looked(host.memory.seen)]
    host.memory.seen = LOW
    host.loop.advance(1.0)
    assert host.reasons(A) == [Reason.LOW_MEMORY]


def test_host_far_from_low_memory_is_polled_as_often_as_it_could_be_filled() -> None:
    host = Host()
    host.memory.fill_mib_s = 1000.0
    host.attached(A)
    host.loop.advance(1.0)
    reads = host.memory.reads
    host.loop.advance(15.0)
    assert host.memory.reads - reads == 3
    # 600 MiB more than the margin: they can be gone in less than a second.
    host.memory.seen = Reading(available_mib=1000, margin_mib=400)
    host.loop.advance(5.0)
    reads = host.memory.reads
    host.loop.advance(3.0)
    assert host.memory.reads - reads == 3


def test_recorded_policy_publishes_readings_far_from_low_memory_too() -> None:
    stepped: list[Event] = []
    policies: list[TracedPolicy] = []

    def make(
        settings: PolicySettings,
        draw: Callable[[], float],
        against_more: Callable[[VmId, int], Reason | None],
    ) -> HostPolicy:
        policy = TracedPolicy(settings, draw, against_more, stepped.append, lambda: 0.0)
        policies.append(policy)
        return policy

    host = Host(make)
    host.attached(A)
    stepped.clear()
    host.loop.advance(3.0)
    seen = [event.event for event in stepped if isinstance(event, Stepped)]
    assert seen == [host_events.Looked(PLENTY)] * 3
    policies[0].publishes = False
    host.loop.advance(3.0)
    assert len(stepped) == 3


def test_all_targets_of_a_reading_leave_before_anything_else(host: Host) -> None:
    host.attached(A)
    host.attached(B)
    host.heard.clear()
    host.memory.seen = LOW

    host.loop.advance(1.0)

    assert host.heard == [
        (A, "target"),
        (B, "target"),
        (A, "decided"),
        (B, "decided"),
        (A, "keep"),
        (A, "stats"),
        (B, "keep"),
        (B, "stats"),
    ]


def test_seed_vm_at_its_maximum_is_asked_for_statistics_once_in_30_s(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(20.0)
    assert guest.targets[-1] == 16 * STEP
    assert host.reasons(A)[-1] is Reason.AT_MAXIMUM
    host.heard.clear()

    host.loop.advance(61.0)

    assert host.heard.count((A, "stats")) == 2
    assert host.reasons(A).count(Reason.AT_MAXIMUM) > 60


def test_seed_vm_is_asked_again_when_a_new_decision_could_have_shown_its_effect(
    host: Host,
) -> None:
    host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(1.0)
    host.memory.seen = PLENTY
    host.heard.clear()

    host.loop.advance(20.0)

    assert host.reasons(A)[-2:] == [Reason.LOW_MEMORY, Reason.RECHECK]
    assert host.heard.count((A, "stats")) == 1


def test_one_wake_serves_several_vms_that_have_given_all_already() -> None:
    settings = PolicySettings()
    host = Host(settings=settings)
    guests = [host.attached(VmId(number, f"vm{number}")) for number in range(1, 101)]
    host.memory.seen = LOW
    host.loop.advance(20.0)
    assert {guest.targets[-1] for guest in guests} == {512 * MIB}
    host.events.clear()
    reads = host.memory.reads
    host.loop.advance(10.0)
    # Each of 100 VMs has a recheck in each second, and one reading serves all within 25 ms.
    assert host.memory.reads - reads <= 10 / (settings.recheck_jitter_s / 2)
    rechecks = [host.reasons(guest.vm).count(Reason.RECHECK) for guest in guests]
    assert min(rechecks) >= 9


def test_vms_that_attach_together_share_one_reading(host: Host) -> None:
    host.memory.seen = LOW
    guests = [host.guest(VmId(number, f"vm{number}")) for number in range(1, 9)]
    for guest in guests:
        host.governor.report(guest.vm, Attached(GIB))
    host.loop.advance()
    assert host.memory.reads == 1
    assert [guest.targets for guest in guests] == [[0, STEP]] * 8


def test_driver_that_fails_keeps_no_other_vm_from_its_target(host: Host) -> None:
    first, second = host.attached(A), host.attached(B)
    first.fails = True
    host.memory.seen = LOW
    host.loop.advance(1.0)
    assert second.targets == [0, STEP]
    assert len(host.loop.failures) == 1


def test_guest_that_is_gone_as_it_is_told_its_target_keeps_no_other_from_its_own(
    host: Host,
) -> None:
    first, second = host.attached(A), host.attached(B)
    first.gone = True
    host.memory.seen = LOW
    host.loop.advance(3.0)
    assert second.targets == [0, STEP, 2 * STEP, 3 * STEP]
    assert host.loop.failures == []


def test_vm_that_objects_is_not_asked_for_more(host: Host) -> None:
    first, second = host.attached(A), host.attached(B)
    first.objection = Reason.NO_ROOM
    host.memory.seen = LOW
    host.loop.advance(2.0)
    assert (first.targets, second.targets) == ([0], [0, STEP, 2 * STEP])


def test_guest_that_is_gone_in_the_midst_is_told_no_more(host: Host) -> None:
    first, second = host.attached(A), host.attached(B)
    host.memory.seen = LOW
    host.loop.advance(2.0)
    host.governor.report(A, Gone("it was closed"))
    host.governor.report(A, Actual(0, 0.0))
    host.loop.advance(2.0)
    assert first.targets == [0, STEP, 2 * STEP]
    assert second.targets == [level * STEP for level in range(5)]
    assert [vm.guest.vm for vm in host.governor.vms] == [B]


def test_host_without_vms_is_not_looked_at(host: Host) -> None:
    host.attached(A)
    host.loop.advance(3.0)
    host.governor.report(A, Gone("it was closed"))
    reads = host.memory.reads
    host.loop.advance(600.0)
    assert host.memory.reads == reads


def test_size_that_changes_moves_the_target_and_is_published(host: Host) -> None:
    guest = host.attached(A, 4 * GIB)
    host.memory.seen = LOW
    host.loop.advance(16.0)
    host.governor.report(A, Resized(GIB))
    assert guest.targets[-1] == 512 * MIB
    host.governor.report(A, Resized(GIB))
    sizes = [event for event in host.events if isinstance(event, VmAttached | VmResized)]
    assert sizes == [
        VmAttached(A, 4 * GIB, 3 * GIB, 16),
        VmResized(A, GIB, 512 * MIB, 16, quiet=False),
    ]
    assert guest.rows[-1].vm_mem_bytes == GIB


def test_sizes_that_change_all_the_time_are_quiet(host: Host) -> None:
    host.attached(A)
    for number in range(10):
        host.governor.report(A, Resized(GIB + number * MIB))
    quiet = [event.quiet for event in host.events if isinstance(event, VmResized)]
    assert quiet == [False, False] + [True] * 7


def test_size_before_the_vm_is_attached_changes_nothing(host: Host) -> None:
    guest = host.guest(A)
    host.governor.report(A, Resized(GIB))
    assert (guest.targets, host.events) == ([], [])


def test_balloon_that_was_found_is_adopted_at_the_level_below_it(host: Host) -> None:
    guest = host.guest(A)
    host.governor.report(A, Attached(GIB, balloon_bytes=100 * MIB))
    host.loop.advance(60.0 + 2 * 30)
    assert guest.targets == [3 * STEP, 2 * STEP, STEP, 0]


def test_restored_vm_goes_on_from_its_row(host: Host) -> None:
    now_s = host.loop.now_s
    guest = host.attached(A, row=VmRow(GIB, 4, now_s + 0.5, now_s + 20.0))
    assert guest.targets == [4 * STEP]
    assert host.reasons(A) == [Reason.RESTORED]
    assert guest.rows[-1] == VmRow(GIB, 4, now_s + 0.5, now_s + 20.0)
    host.loop.advance(20.0)
    assert guest.targets == [4 * STEP, 3 * STEP]


def test_row_that_no_policy_can_be_in_is_refused(host: Host) -> None:
    guest = host.guest(A)
    with pytest.raises(StateError):
        host.governor.report(A, Attached(GIB, row=VmRow(GIB, 17, None, 1.0)))
    assert guest.targets == []


def test_nothing_is_decided_once_it_is_halted(host: Host) -> None:
    first, late = host.attached(A), host.guest(B)
    host.memory.seen = LOW
    host.loop.advance(1.0)
    host.governor.halt()
    for report in (Attached(GIB, balloon_bytes=STEP), Attached(GIB), Resized(4 * GIB)):
        host.governor.report(B, report)
    host.governor.report(A, Resized(4 * GIB))
    host.loop.advance(600.0)
    assert first.targets == [0, STEP]
    assert late.targets == []


def test_guest_that_stopped_short_is_told_its_target_again_each_30_s(host: Host) -> None:
    guest = host.attached(A)
    guest.gives = False
    host.memory.seen = LOW
    host.loop.advance(16.0)
    told = len(guest.targets)
    host.loop.advance(95.0)
    assert guest.targets[told:] == [512 * MIB] * 3


def test_look_that_fails_loses_no_deadline(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(1.0)
    host.memory.error = MemoryError()
    host.loop.advance(1.5)
    host.memory.error = None
    host.loop.advance(1.0)
    assert len(guest.targets) >= 3
    assert set(host.loop.failures) == {"MemoryError()"}


@pytest.mark.parametrize("seen", [None, NeverLow("off")])
def test_unknown_or_switched_off_memory_asks_for_nothing(
    host: Host, seen: NeverLow | None
) -> None:
    guest = host.attached(A)
    host.memory.seen = seen
    host.loop.advance(30.0)
    assert guest.targets == [0]


def test_careful_vm_is_watched_and_let_go_as_soon_as_its_statistics_show_need(
    host: Host,
) -> None:
    guest = host.careful(A)
    assert guest.watched_s == 30.0
    host.memory.seen = LOW
    host.loop.advance(1.0)
    assert guest.watched_s == 1.0
    for _ in range(4):
        host.governor.report(A, replace(WELL, at_s=host.loop.now_s))
        host.loop.advance(1.0)
    assert guest.targets[-1] == 5 * STEP
    assert (A, "stats") not in host.heard

    host.governor.report(A, replace(WELL, at_s=host.loop.now_s, available_bytes=MIB))

    assert guest.targets[-1] == 0
    (need,) = (event for event in host.events if isinstance(event, GuestInNeed))
    assert need == GuestInNeed(A, (Sign.LITTLE_AVAILABLE,), 5 * STEP, 60.0)
    vm = host.governor.vm_status(A)
    assert vm is not None
    assert vm.protection == ProtectionStatus(
        Reason.IN_NEED, frozenset({Sign.LITTLE_AVAILABLE}), 60.0, 0.0, 0
    )


def test_seed_vm_is_asked_for_statistics_after_decisions_and_never_watched(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(3.0)
    host.governor.report(A, Stats(host.loop.now_s, available_bytes=0))
    host.governor.report(A, Held(GIB, host.loop.now_s))
    assert guest.watched_s is None
    assert (A, "stats") in host.heard
    assert guest.targets[-1] == 3 * STEP
    vm = host.governor.vm_status(A)
    assert vm is not None
    assert vm.protection is None


def test_careful_guest_that_is_paused_when_it_attaches_is_asked_for_nothing(host: Host) -> None:
    guest = host.guest(A, CAREFUL)
    host.governor.report(A, StateChanged(GuestState.PAUSED))
    host.governor.report(A, Attached(GIB, can=frozenset(Ability)))
    host.memory.seen = LOW
    host.loop.advance(5.0)
    assert guest.targets == [0]
    host.governor.report(A, StateChanged(GuestState.RUNNING))
    host.loop.advance(2.0)
    assert guest.targets[-1] > 0


def test_state_that_is_reported_again_changes_nothing(host: Host) -> None:
    guest = host.careful(A)
    host.memory.seen = LOW
    host.loop.advance(1.0)
    host.governor.report(A, replace(WELL, at_s=host.loop.now_s))
    # A guest that goes on has no statistics yet: nothing would show that it is in need.
    host.governor.report(A, StateChanged(GuestState.RUNNING))
    for kills in (1, 2):
        host.loop.advance(0.1)
        host.governor.report(A, replace(WELL, at_s=host.loop.now_s, oom_kills=kills))
    assert guest.targets[-1] == 0


def test_trouble_with_a_careful_vms_balloon_is_published(host: Host) -> None:
    guest = host.guest(A, CAREFUL)
    host.governor.report(A, Attached(4 * GIB, can=frozenset(Ability), balloon_bytes=2 * GIB))
    host.loop.advance()
    for _ in range(31):
        host.governor.report(A, Held(4 * GIB, host.loop.now_s))
        host.loop.advance(1.0)
    host.governor.report(A, Held(2 * GIB, host.loop.now_s))
    guest.gives = False
    host.loop.advance(10.0)
    host.governor.report(A, Actual(3 * GIB, host.loop.now_s))
    found = [event for event in host.events if isinstance(event, ProtectionEvent)]
    assert found == [
        BalloonMissing(A, Missing.NEVER_FREED, 2 * GIB, 2 * GIB),
        BalloonFreed(A),
        BalloonContested(A, 2 * GIB, 3 * GIB, 60.0),
    ]
    vm = host.governor.vm_status(A)
    assert vm is not None
    assert (vm.settings, vm.held_bytes) == (CAREFUL, 2 * GIB)


def test_careful_guest_that_gives_no_more_is_left_at_what_it_gave(host: Host) -> None:
    guest = host.careful(A)
    guest.gives = False
    host.memory.seen = LOW
    host.loop.advance(1.0)
    host.governor.report(A, Actual(7 * MIB, host.loop.now_s))
    for _ in range(5):
        host.governor.report(A, replace(WELL, at_s=host.loop.now_s))
        host.loop.advance(1.0)
    assert guest.targets[-1] == 7 * MIB
    assert any(isinstance(event, SqueezeStalled) for event in host.events)


def test_last_reports_of_a_vm_are_remembered(host: Host) -> None:
    host.guest(A)
    stats = Stats(5.0, total_bytes=GIB)
    for report in (Refused("no memory"), Stuck("no answer"), stats):
        host.governor.report(A, report)
    (vm,) = host.governor.vms
    assert (vm.stats, vm.trouble) == (stats, Stuck("no answer"))
    host.governor.report(A, Actual(STEP, 6.0))
    assert (vm.balloon_bytes, vm.trouble) == (STEP, None)


def test_status_is_what_source_policy_and_guests_say_at_this_moment(host: Host) -> None:
    host.guest(A)
    host.guest(B)
    host.governor.report(A, Attached(GIB, can=frozenset({Ability.STATS})))
    host.governor.report(B, Refused("no memory"))
    host.loop.advance()
    host.memory.seen = LOW
    host.loop.advance(2.0)
    host.governor.report(A, Actual(STEP, 6.0))
    host.governor.report(A, Stats(5.0, free_bytes=7))

    source = SourceStatus("told", "", host.memory.reads, 0, 0, LOW, 0.0)
    counters = PolicyStatistics(low_memory_events=2, steps_up=2)
    # A step down needs the margin and two steps: 400 MiB and 2 × 32 MiB.
    wanted = PolicyStatus(GIB, 512 * MIB, 2, 16, 2 * STEP, counters, 1.0, 60.0, 464)
    decision = Decision(Reason.LOW_MEMORY, 1, 2, 16, 2 * STEP, LOW)
    last = LastDecision(A, decision, 0.0)
    assert host.governor.host_status() == HostStatus(source, last, 1.0, listens=False)
    assert host.governor.vm_status(A) == VmStatus(
        A,
        frozenset({Ability.STATS}),
        wanted,
        STEP,
        Stats(5.0, free_bytes=7),
        None,
        kind="qmp",
        decided=last,
    )
    assert host.governor.vm_status(B) == VmStatus(
        B, frozenset(), None, 0, None, Refused("no memory"), kind="qmp"
    )
    host.governor.report(B, Gone("over"))
    assert host.governor.vm_status(B) is None


def test_status_reads_the_source_anew_where_the_last_reading_is_old(host: Host) -> None:
    host.attached(A)
    reads = host.memory.reads
    assert host.governor.host_status().source.seen == PLENTY
    host.governor.halt()
    host.memory.seen = LOW
    host.loop.advance(0.5)
    assert host.governor.host_status().source.seen == PLENTY
    host.loop.advance(0.6)
    status = host.governor.host_status()
    assert (status.source.seen, status.source.age_s) == (LOW, 0.0)
    assert host.memory.reads == reads + 1
    assert (status.wake_in_s, status.listens) == (None, False)


@fault("a VM's deadline stays in the past")
def test_deadline_that_stays_in_the_past_is_reported_and_holds_up_no_other_vm(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Guard, "check_at_s", 0.0)
    host.careful(A)
    guest = host.attached(B)
    host.memory.seen = LOW
    for _ in range(3):
        host.loop.advance(1.0)
    assert guest.targets == [0, STEP, 2 * STEP, 3 * STEP]
    assert set(host.loop.failures) == {repr(StateError(f"{A}: its deadline stays in the past"))}


def test_balloon_that_is_set_stays_for_its_time_and_is_given_back_after_it(host: Host) -> None:
    guest = host.attached(A)
    size = 5 * STEP + 12 * 4096
    assert host.governor.obey(SetBalloon(A, size + 7, 600.0), 1000) == Done(0, size)
    assert guest.targets[-1] == size
    assert SizeAsked(A, 1000, size, 600.0) in host.events
    host.loop.advance(599.0)
    assert guest.targets[-1] == size
    host.loop.advance(2.0)
    assert guest.targets[-1] == 4 * STEP
    host.loop.advance(300.0)
    assert guest.targets[-1] == 0


def test_low_memory_takes_more_than_was_set_and_then_gives_back_as_ever(host: Host) -> None:
    guest = host.attached(A)
    host.governor.obey(SetBalloon(A, 2 * STEP, 86_400.0), 0)
    host.memory.seen = LOW
    host.loop.advance(1.0)
    assert guest.targets[-1] == 3 * STEP
    host.memory.seen = PLENTY
    host.loop.advance(60.0 + 2 * 30.0 + 1.0)
    assert guest.targets[-1] == 0


def test_guest_in_need_gets_all_back_although_a_size_was_set(host: Host) -> None:
    guest = host.careful(A)
    host.governor.report(A, replace(WELL, at_s=host.loop.now_s))
    assert host.governor.obey(SetBalloon(A, 5 * STEP, 600.0), 0) == Done(0, 5 * STEP)
    host.loop.advance(1.0)
    host.governor.report(A, replace(WELL, at_s=host.loop.now_s, available_bytes=MIB))
    assert guest.targets[-1] == 0
    refused = NotDone(Refusal.OBJECTION, objection=Reason.IN_NEED)
    assert host.governor.obey(SetBalloon(A, STEP, 600.0), 0) == refused
    assert guest.targets[-1] == 0


def test_release_gives_all_back_at_once_and_the_policy_goes_on_from_there(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(3.0)
    assert guest.targets[-1] == 3 * STEP
    assert host.governor.obey(Release(A), 0) == Done(3 * STEP, 0)
    assert guest.targets[-1] == 0
    host.loop.advance(1.0)
    assert guest.targets[-1] == STEP


@pytest.mark.parametrize("floor_mib", [None, 900])
def test_more_than_the_maximum_is_refused_and_floors_hold(floor_mib: int | None) -> None:
    host = Host()
    floor = None if floor_mib is None else floor_mib * MIB
    guest = host.guest(A, VmSettings(floor_bytes=floor, profile=SEED.profile))
    host.governor.report(A, Attached(GIB))
    most = 512 * MIB if floor is None else 124 * MIB
    assert host.governor.obey(SetBalloon(A, most + 4096, 60.0), 0) == NotDone(
        Refusal.TOO_LARGE, most
    )
    assert guest.targets == [0]
    assert host.governor.obey(SetBalloon(A, most, 60.0), 0) == Done(0, most)
    assert guest.targets == [0, most]


def test_guest_that_must_not_be_asked_for_more_may_be_asked_for_less(host: Host) -> None:
    guest = host.attached(A)
    host.governor.obey(SetBalloon(A, 4 * STEP, 60.0), 0)
    guest.objection = Reason.NO_ROOM
    refused = NotDone(Refusal.OBJECTION, objection=Reason.NO_ROOM)
    assert host.governor.obey(SetBalloon(A, 5 * STEP, 60.0), 0) == refused
    assert host.governor.obey(SetBalloon(A, 3 * STEP, 60.0), 0) == Done(4 * STEP, 3 * STEP)
    guest.objection = None
    host.governor.report(A, StateChanged(GuestState.PAUSED))
    stands = NotDone(Refusal.OBJECTION, objection=Reason.NOT_RUNNING)
    assert host.governor.obey(SetBalloon(A, 5 * STEP, 60.0), 0) == stands
    assert guest.targets[-1] == 3 * STEP


def test_vm_without_a_size_and_a_balloond_that_ends_set_nothing(host: Host) -> None:
    host.guest(A)
    no_size = NotDone(Refusal.NO_SIZE)
    assert host.governor.obey(Release(A), 0) == no_size
    assert host.governor.obey(Release(B), 0) == no_size
    guest = host.attached(B)
    host.governor.halt()
    assert host.governor.obey(SetBalloon(B, STEP, 60.0), 0) == NotDone(Refusal.ENDING)
    assert guest.targets == [0]


def test_vm_with_other_settings_keeps_its_balloon_up_to_its_new_ceiling(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(4)
    told = list(guest.targets)

    host.governor.change(A, replace(SEED, ceiling_bytes=8 * STEP))
    assert guest.targets == told
    host.governor.change(A, replace(SEED, ceiling_bytes=2 * STEP))
    assert guest.targets == [*told, 2 * STEP]
    status = host.governor.vm_status(A)
    assert status is not None
    assert status.settings.ceiling_bytes == 2 * STEP
    assert host.loop.failures == []


def test_vm_that_becomes_careful_while_it_stands_still_is_not_squeezed(host: Host) -> None:
    guest = host.attached(A)
    host.governor.report(A, StateChanged(GuestState.PAUSED))
    host.governor.change(A, CAREFUL)
    host.memory.seen = LOW
    host.loop.advance(4)
    assert guest.targets == [0]
    assert host.reasons(A)[-1] is Reason.NOT_RUNNING


def test_vm_that_is_governed_no_more_gets_no_target_until_it_is_gone(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    host.loop.advance(4)
    told = list(guest.targets)

    host.governor.change(A, None)
    host.governor.report(A, Actual(STEP, 0.0))
    host.loop.advance(20)

    assert guest.targets == told
    status = host.governor.vm_status(A)
    assert status is not None
    assert (status.policy, status.balloon_bytes) == (None, STEP)
    host.governor.report(A, Gone("its task has ended"))
    assert host.governor.vm_status(A) is None
    assert host.loop.failures == []


@pytest.mark.parametrize("settings", [VmSettings(ceiling_bytes=0), None])
def test_vm_that_is_gone_is_governed_by_no_other_settings(
    host: Host, settings: VmSettings | None
) -> None:
    host.attached(A)
    host.governor.report(A, Gone("its connection is closed"))
    host.governor.change(A, settings)
    assert host.governor.vm_status(A) is None


def test_pause_is_published_shown_and_over_once_its_time_is(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    assert host.governor.steer(Pause((A,), 30.0), 7) is None
    host.loop.advance(10.0)
    assert guest.targets == [0]
    status = host.governor.vm_status(A)
    assert status is not None
    assert status.paused_s == 20.0
    assert host.governor.host_status().paused_s is None
    host.loop.advance(22.0)
    assert guest.targets[-1] >= STEP
    pauses = [event for event in host.events if isinstance(event, TakingPaused | TakingResumed)]
    assert pauses == [TakingPaused(A, 7, 30.0), TakingResumed(A, None)]


def test_all_vms_are_paused_and_resumed_together(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = LOW
    assert host.governor.steer(Pause((), 60.0), 7) is None
    assert host.governor.host_status().paused_s == 60.0
    assert host.governor.steer(Resume((A,)), 7) == NotDone(Refusal.ALL_PAUSED)
    host.loop.advance(2.0)
    assert guest.targets == [0]
    assert host.governor.steer(Resume(()), 7) is None
    assert host.governor.steer(Resume(()), 7) is None
    host.loop.advance(2.0)
    assert guest.targets[-1] >= STEP
    pauses = [event for event in host.events if isinstance(event, TakingPaused | TakingResumed)]
    assert pauses == [TakingPaused(None, 7, 60.0), TakingResumed(None, 7)]


def test_vm_without_a_size_and_a_balloond_that_ends_pause_nothing(host: Host) -> None:
    host.guest(A)
    assert host.governor.steer(Pause((A,), 60.0), 7) == NotDone(Refusal.NO_SIZE)
    host.governor.halt()
    assert host.governor.steer(Pause((), 60.0), 7) == NotDone(Refusal.ENDING)
    assert not any(isinstance(event, TakingPaused) for event in host.events)


def test_reclaim_is_answered_once_all_has_come(host: Host) -> None:
    guest = host.attached(A)
    guest.gives = False
    answers: list[Reclaimed | ReserveAnswer] = []
    command = Reclaim((), STEP, 30.0, 600.0)
    ticket = host.governor.want(command, 7, answers.append)
    assert isinstance(ticket, int)
    assert guest.targets[-1] == STEP
    assert host.governor.host_status().reclaims == (ReclaimStatus(STEP, 0, 30.0),)
    host.loop.advance(1.0)
    host.governor.report(A, Actual(STEP // 2, host.loop.now_s))
    host.loop.advance(0.5)
    assert host.governor.host_status().reclaims == (ReclaimStatus(STEP, STEP // 2, 28.5),)
    assert answers == []
    host.governor.report(A, Actual(STEP, host.loop.now_s))
    host.loop.advance(0.2)
    (answer,) = answers
    assert (answer.why, answer.shares) == (Ended.COMPLETE, (Share(A, STEP, STEP),))
    assert host.governor.host_status().reclaims == ()
    host.governor.withdraw(ticket)
    assert guest.targets[-1] == STEP
    began, ended = (
        event for event in host.events if isinstance(event, ReclaimBegan | ReclaimEnded)
    )
    assert began == ReclaimBegan(7, STEP, "", 30.0)
    assert isinstance(ended, ReclaimEnded)
    assert (ended.came_bytes, ended.why) == (STEP, Ended.COMPLETE)


def test_reclaim_for_which_nobody_waits_is_not_answered(host: Host) -> None:
    guest = host.attached(A)
    guest.gives = False
    answers: list[Reclaimed | ReserveAnswer] = []
    ticket = host.governor.want(Reclaim((A,), STEP, 30.0, 600.0), 7, answers.append)
    assert isinstance(ticket, int)
    host.governor.withdraw(ticket)
    host.loop.advance(40.0)
    assert answers == []
    assert guest.targets[-1] == 0
    assert host.governor.host_status().reclaims == ()


def test_reclaim_is_refused_without_a_size_for_too_many_and_at_the_end(host: Host) -> None:
    host.guest(B)
    answers: list[Reclaimed | ReserveAnswer] = []

    def want(*vms: VmId) -> int | NotDone:
        return host.governor.want(Reclaim(vms, 16 * STEP, 30.0, 600.0), 7, answers.append)

    assert want(B) == NotDone(Refusal.NO_SIZE)
    guest = host.attached(A)
    guest.gives = False
    for _ in range(MOST_WAITING):
        assert isinstance(want(), int)
    assert want() == NotDone(Refusal.TOO_MANY)
    host.governor.halt()
    assert {answer.why for answer in answers} == {Ended.HALTED}
    assert len(answers) == MOST_WAITING
    assert want() == NotDone(Refusal.ENDING)


def test_reserve_is_answered_once_the_host_has_it_and_over_after_its_time(host: Host) -> None:
    guest = host.attached(A)
    host.memory.seen = Reading(500, 400)
    answers: list[Reclaimed | ReserveAnswer] = []
    ticket = host.governor.want(Reserve(150 * MIB, 30.0, 60.0), 7, answers.append)
    assert isinstance(ticket, int)
    host.loop.advance(1.5)
    assert guest.targets[-1] >= STEP
    assert answers == []
    host.memory.seen = Reading(550, 400)
    host.loop.advance(0.2)
    (answer,) = answers
    assert isinstance(answer, ReserveAnswer)
    assert (answer.why, answer.shares) == (Ended.COMPLETE, ())
    assert answer.reading == Reading(550, 550, reserved_mib=150)
    status = host.governor.host_status()
    assert status.reserved_mib == 150
    ((size_bytes, left_s),) = status.reserves
    assert size_bytes == 150 * MIB
    assert left_s == pytest.approx(58.3)
    host.governor.withdraw(ticket)
    assert host.governor.host_status().reserved_mib == 150
    host.loop.advance(60.0)
    assert host.governor.host_status().reserved_mib == 0
    met, ended = (event for event in host.events if isinstance(event, ReserveMet | ReserveEnded))
    assert isinstance(met, ReserveMet)
    assert ended == ReserveEnded(7, 150 * MIB, Ended.TIME)


def test_user_has_only_so_many_reserves_and_may_end_all(host: Host) -> None:
    host.attached(A)
    answers: list[Reclaimed | ReserveAnswer] = []
    for _ in range(MOST_RESERVES):
        assert isinstance(host.governor.want(Reserve(MIB, 30.0, 60.0), 7, answers.append), int)
        host.loop.advance(0.2)
    assert len(answers) == MOST_RESERVES
    refused = NotDone(Refusal.TOO_MANY_RESERVES)
    assert host.governor.want(Reserve(MIB, 30.0, 60.0), 7, answers.append) == refused
    assert isinstance(host.governor.want(Reserve(MIB, 30.0, 60.0), 8, answers.append), int)
    assert host.governor.steer(Unreserve(), 7) is None
    assert host.governor.host_status().reserved_mib == 0
    assert isinstance(host.governor.want(Reserve(MIB, 30.0, 60.0), 7, answers.append), int)
    ended = [event.why for event in host.events if isinstance(event, ReserveEnded)]
    assert ended == [Ended.WITHDRAWN] * (MOST_RESERVES + 1)


@fault("a reserve of all that the host can have")
def test_reserves_and_margin_of_all_that_this_host_can_have_are_refused(host: Host) -> None:
    most_bytes = host_memory().usable_bytes
    host.attached(A)
    host.memory.seen = Reading(500, 400)
    host.loop.advance(1.5)
    answers: list[Reclaimed | ReserveAnswer] = []

    def want(size_bytes: int) -> int | NotDone:
        return host.governor.want(Reserve(size_bytes, 30.0, 60.0), 7, answers.append)

    refused = NotDone(Refusal.BEYOND_HOST, most_bytes)
    assert want(most_bytes - 400 * MIB) == refused
    assert isinstance(want(MIB), int)
    assert want(most_bytes - 401 * MIB) == refused
    assert host.governor.host_status().reserved_mib == 1
    assert isinstance(want(most_bytes - 402 * MIB), int)


@pytest.mark.parametrize("settings", [SEED, CAREFUL], ids=["seed", "careful"])
def test_sizes_that_a_driver_writes_as_fast_as_it_can_are_few_in_a_trace_and_the_last_one_counts(
    settings: VmSettings,
) -> None:
    host = Host()
    told: list[Event] = []

    def make(numbers: PolicySettings, draw: Any, against_more: Any) -> TracedPolicy:
        return TracedPolicy(numbers, draw, against_more, told.append, host.loop.time)

    watch = MemoryWatch(host.memory, 1.0, host.events.append, host.loop)
    host.governor = Governor(PolicySettings(), watch, host.events.append, host.loop, make)
    host.guest(A, settings)
    host.governor.report(A, Attached(GIB, can=frozenset(Ability)))
    for second in range(10):
        for number in range(1000):
            host.governor.report(A, Actual((second * 1000 + number) % 4 * MIB, host.loop.time()))
        host.loop.advance(1.0)
    steps = [each.event for each in told if isinstance(each, Stepped)]
    sizes = [event for event in steps if isinstance(event, Moved)]
    assert len(sizes) <= MOVES + 2 * 10 * MOVES_A_SECOND
    assert sizes[-1] == Moved(A, 3 * MIB)
