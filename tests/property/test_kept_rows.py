"""The row of a VM's policy that is stored for another balloond, against the policy's own state."""

from collections.abc import Callable
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.controller.governor import Governor
from balloon_daemon.events import Decided, Event
from balloon_daemon.guests.seam import Attached, VmRow
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing.balloon_policy import (
    ArmTimer,
    BalloonPolicy,
    PolicySettings,
    PolicyState,
    Timer,
)
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.vm_settings import SEED
from balloon_daemon.units import GIB, VmId
from tests.fakes.plain_guest import PlainGuest
from tests.fakes.still_loop import StillLoop
from tests.fakes.told_memory import ToldMemory

VM = VmId(1, "vm1")
LOW = Reading(available_mib=10, margin_mib=400)
NOT_LOW = Reading(available_mib=400, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)
SETTINGS = PolicySettings()
LATEST_S = SETTINGS.release_after_s + SETTINGS.release_after_jitter_s
TO_MAXIMUM_S = 20.0


class Host:
    """A governor with one guest of the profile seed.

    Args:
        draw: gives the policy's random numbers.
        vm_mem_bytes: the guest's size.
    """

    def __init__(self, draw: Callable[[], float], vm_mem_bytes: int = GIB) -> None:
        self.loop = StillLoop()
        self.memory = ToldMemory()
        self.memory.seen = PLENTY
        self.low_at_s = self.up_at_s = -1e9
        """When memory was last low for the policy, and when it last took a step up."""
        self._policies: list[HostPolicy] = []

        def make(
            settings: PolicySettings,
            _draw: Callable[[], float],
            against_more: Callable[[VmId, int], Reason | None],
        ) -> HostPolicy:
            self._policies.append(HostPolicy(settings, draw, against_more))
            return self._policies[0]

        watch = MemoryWatch(self.memory, 1.0, self._published, self.loop)
        self.governor = Governor(SETTINGS, watch, self._published, self.loop, make)
        self.guest = PlainGuest(VM, [], self.governor.report)
        self.governor.add(self.guest, SEED)
        self.governor.report(VM, Attached(vm_mem_bytes))
        self.loop.advance()

    def _published(self, event: Event) -> None:
        if isinstance(event, Decided):
            decision = event.decision
            if decision.reading is not None and decision.reading.is_low:
                self.low_at_s = self.loop.now_s
            if decision.level > decision.level_before:
                self.up_at_s = self.loop.now_s

    @property
    def state(self) -> PolicyState:
        return self._policies[0].policy(VM).state()

    @property
    def kept(self) -> VmRow:
        return self.guest.rows[-1]

    def restored(self, later_s: float) -> dict[Timer, float]:
        """The next balloond's timers, by when they are due."""
        now_s = self.loop.now_s + later_s
        state = PolicyState(*self.kept[1:])
        policy = BalloonPolicy.restore(state, GIB // 2, SETTINGS, lambda: 0.0)
        actions = policy.resume(now_s).actions
        return {a.timer: now_s + a.delay_s for a in actions if isinstance(a, ArmTimer)}


PHASES = st.lists(
    st.tuples(
        st.sampled_from([LOW, LOW, LOW, NOT_LOW, PLENTY, None]),
        st.floats(0.1, 40.0),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(
    seed=st.integers(0, 1 << 32),
    size=st.sampled_from([GIB, GIB, 1 << 28]),
    phases=PHASES,
    later_s=st.floats(0.0, 30.0),
)
def test_policy_that_goes_on_from_what_is_kept_promises_what_the_policy_did(
    seed: int,
    size: int,
    phases: list[tuple[Reading | None, float, bool]],
    later_s: float,
) -> None:
    host = Host(Random(seed).random, size)
    for seen, seconds, objects in phases:
        host.memory.seen = seen
        host.guest.objection = Reason.FRUITLESS if objects else None
        end_s = host.loop.now_s + seconds
        while host.loop.now_s < end_s:
            # Whenever the controller is killed.
            host.loop.advance(min(0.7, end_s - host.loop.now_s))
            _check(host, later_s)


def _check(host: Host, later_s: float) -> None:
    kept, state, goes_on_s = host.kept, host.state, host.loop.now_s + later_s
    assert kept.level == state.level
    assert (kept.release_at_s is None) == (state.release_at_s is None)
    timers = host.restored(later_s)
    if kept.release_at_s is not None and state.release_at_s is not None:
        at_s = timers[Timer.AVAILABLE_MEMORY]
        if kept.release_at_s != state.release_at_s:
            # Any time that could have been drawn at the last low memory.
            soonest_s = host.low_at_s + SETTINGS.release_after_s
            assert soonest_s <= kept.release_at_s <= host.low_at_s + LATEST_S
            assert soonest_s <= state.release_at_s <= host.low_at_s + LATEST_S
        due_s = max(goes_on_s, min(kept.release_at_s, goes_on_s + LATEST_S))
        assert abs(at_s - due_s) < 1e-6
    listens_at_s = timers.get(Timer.LOW_MEMORY, goes_on_s)
    assert listens_at_s >= host.up_at_s + SETTINGS.recheck_s - 1e-6


def test_vm_at_its_maximum_is_kept_as_long_as_its_release_could_have_been_drawn_now() -> None:
    host = Host(lambda: 0.5)
    host.memory.seen = LOW
    host.loop.advance(TO_MAXIMUM_S)
    assert host.kept.level == SETTINGS.steps
    host.guest.rows.clear()
    host.loop.advance(61.5)
    # Sixty rechecks, of which every sixth comes when less than 60 s of 66 are left.
    assert 9 <= len(host.guest.rows) <= 11
    # The first step back is stored at once.
    host.memory.seen = PLENTY
    host.loop.advance(SETTINGS.release_after_s + 7.0)
    assert host.state.level == SETTINGS.steps - 1
    assert host.kept == VmRow(GIB, *host.state)


def test_row_that_could_not_be_stored_is_kept_again_with_the_next_recheck() -> None:
    host = Host(lambda: 0.5)
    host.memory.seen = LOW
    host.loop.advance(TO_MAXIMUM_S)
    host.guest.rows.clear()
    host.guest.has_store = False
    host.loop.advance(10.0)
    # The row of before did for some seconds more.
    missed = len(host.guest.rows)
    assert missed >= 2
    host.guest.has_store = True
    host.loop.advance(1.1)
    assert len(host.guest.rows) == missed + 1
    host.loop.advance(3.0)
    assert len(host.guest.rows) == missed + 1
