"""What never breaks however a VM's size changes, whatever it held, whoever objects."""

from itertools import cycle

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.balloon_policy import (
    AvailableMemoryTimer,
    BalloonPolicy,
    Event,
    LowMemory,
    LowMemoryTimer,
    PolicySettings,
    Reading,
    Reason,
    SetTarget,
    Step,
)
from balloon_daemon.units import PAGE_SIZE

LOW = Reading(available_mib=0, margin_mib=1)
PLENTY = Reading(available_mib=1 << 40, margin_mib=1)

# From balloons of less pages than there are steps to those of a VM of 64 TiB.
MAX_BYTES = st.one_of(st.integers(0, 40), st.integers(0, 1 << 34)).map(PAGE_SIZE.__mul__)
EVENTS: st.SearchStrategy[Event] = st.sampled_from(
    [
        LowMemory(LOW),
        LowMemoryTimer(),
        AvailableMemoryTimer(PLENTY),
        AvailableMemoryTimer(LOW),
        AvailableMemoryTimer(None),
    ]
)
HELD = st.sampled_from([None, Reason.FRUITLESS, Reason.NO_ROOM])
CHANGES = st.lists(st.one_of(EVENTS, MAX_BYTES, HELD), max_size=60)
STEPS = st.integers(1, 40)


def make(max_bytes: int, steps: int) -> BalloonPolicy:
    draws = cycle([0.0, 0.25, 0.75])
    return BalloonPolicy(max_bytes, PolicySettings(steps=steps), lambda: next(draws))


def taken(policy: BalloonPolicy, change: Event | int | Reason | None, now_s: float) -> Step | None:
    """Does what a controller does; None where nothing is decided by that."""
    match change:
        case int():
            return policy.resize(change)
        case Reason() | None:
            policy.held = change
            return None
        case _:
            try:
                return policy.step(change, now_s)
            except StateError:
                return None


@given(MAX_BYTES, STEPS, st.none() | MAX_BYTES, CHANGES)
def test_any_sizes_events_and_objections_leave_the_invariants_whole(
    max_bytes: int,
    steps: int,
    found: int | None,
    changes: list[Event | int | Reason | None],
) -> None:
    policy = make(max_bytes, steps)
    if found is not None:
        policy.adopt(found, 0.0)
        assert policy.target_bytes <= found
    for now_s, change in enumerate(changes, 1):
        before, held = policy.target_bytes, policy.held
        step = taken(policy, change, now_s)
        target, state = policy.target_bytes, policy.state()

        assert 0 <= target <= policy.max_bytes
        assert target % PAGE_SIZE == 0
        assert 0 <= state.level <= (steps if policy.max_bytes else 0)
        assert state.level == 0 or state.release_at_s is not None
        if isinstance(change, int):
            assert target <= before  # Growth raises no target, and what shrinks lowers it at once.
        if held is not None:
            assert target <= before
        if step is not None:
            assert step.decision.target_bytes == target
            sent = [a.target_bytes for a in step.actions if isinstance(a, SetTarget)]
            assert sent == [target] or (sent == [] and target == before)


@given(MAX_BYTES, STEPS, st.none() | MAX_BYTES, CHANGES)
def test_state_after_any_sizes_goes_on_in_another_process(
    max_bytes: int,
    steps: int,
    found: int | None,
    changes: list[Event | int | Reason | None],
) -> None:
    policy = make(max_bytes, steps)
    if found is not None:
        policy.adopt(found, 0.0)
    for now_s, change in enumerate(changes, 1):
        taken(policy, change, now_s)

    again = BalloonPolicy.restore(policy.state(), policy.max_bytes, policy.settings, lambda: 0.0)
    resumed = again.resume(float(len(changes)))

    assert resumed.actions[0] == SetTarget(policy.target_bytes, policy.level)
    assert again.listening == policy.listening
    # What was past is due at once; nothing lies further off than it did.
    for kept, late in zip(again.state()[1:], policy.state()[1:], strict=True):
        assert (kept is None) == (late is None)


@given(MAX_BYTES, STEPS, MAX_BYTES)
def test_adopted_level_is_the_highest_that_asks_for_no_more_than_is_there(
    max_bytes: int, steps: int, found: int
) -> None:
    policy = make(max_bytes, steps)
    policy.adopt(found, 0.0)

    pages, there = max_bytes // PAGE_SIZE, found // PAGE_SIZE
    higher = [k for k in range(policy.level + 1, steps + 1) if pages * k // steps <= there]
    assert policy.target_bytes <= found
    assert higher == [] or found == 0 or max_bytes == 0
