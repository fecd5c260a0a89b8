"""The states of a guest's device: what each event makes of them, without a process."""

import pytest

from balloon_daemon.errors import StateError
from balloon_daemon.guests.jailed.life import (
    DEATHS_WITHIN_S,
    MAX_DEATHS,
    TABLE,
    Action,
    Event,
    Life,
    State,
    Step,
    Wait,
)

E, A = Event, Action

ASKED = (E.SETTLE, E.DUE)
RUNS = (*ASKED, E.FORKED)
KILLED = (*RUNS, E.STOP, E.DUE)
LOOKS = (E.LOOK, E.FORKED)


WAYS: list[tuple[tuple[Event, ...], State]] = [
    ((), State.AT_REST),
    ((E.SETTLE,), State.SETTLING),
    (ASKED, State.FORKING),
    (RUNS, State.RUNNING),
    ((*RUNS, E.STOP), State.STOPPING),
    (KILLED, State.KILLED),
    ((*KILLED, E.DUE), State.HANGS),
    ((*KILLED, E.DUE, E.GONE), State.AT_REST),
    ((*ASKED, E.SETTLE), State.FORKING),
    ((*ASKED, E.STOP), State.AT_REST),
    ((*ASKED, E.CLOSE), State.CLOSED),
    ((E.LOOK,), State.FORKING_TO_LOOK),
    (LOOKS, State.LOOKING),
    ((*LOOKS, E.DUE), State.KILLED),
    ((E.WAIT_OUT, E.SETTLE), State.WAITING_FOR_PREDECESSOR),
    ((E.WAIT_OUT, E.STOP), State.STOPPING_PREDECESSOR),
    ((E.WAIT_OUT, E.STOP, E.DUE), State.WAITING_FOR_PREDECESSOR),
    ((E.WAIT_OUT, E.STOP, E.PREDECESSOR_GONE), State.AT_REST),
    ((*RUNS, E.DIED_TOO_OFTEN), State.GAVE_UP),
    ((*RUNS, E.DIED_TOO_OFTEN, *LOOKS, E.GONE), State.GAVE_UP),
    ((*RUNS, E.DIED_TOO_OFTEN, E.LOOK, E.NOT_READY), State.GAVE_UP),
    ((*KILLED, E.DUE, E.CLOSE, E.GONE), State.CLOSED),
]
"""Every state, by some way."""


def after(*events: Event) -> Life:
    """A device to which all of this has happened."""
    life = Life()
    for event in events:
        life.take(event)
    return life


@pytest.mark.parametrize(("events", "state"), WAYS)
def test_events_lead_to_this_state(events: tuple[Event, ...], state: State) -> None:
    assert after(*events).state is state


def test_table_has_every_state_and_every_state_can_be_reached() -> None:
    reached, seen = {State.AT_REST}, set[State]()
    while reached - seen:
        state = (reached - seen).pop()
        seen.add(state)
        reached |= {step.state for step in TABLE[state].values()}
    assert reached == set(TABLE) == set(State)


@pytest.mark.parametrize(("events", "state"), WAYS)
def test_event_that_a_state_does_not_have_changes_nothing(
    events: tuple[Event, ...], state: State
) -> None:
    life = after(*events)
    before = life.state, life.rings_known, life.gave_up, life.deaths
    for event in set(Event) - set(TABLE[state]):
        with pytest.raises(StateError, match=f"{event.name} in {state.name}"):
            life.take(event)
        assert (life.state, life.rings_known, life.gave_up, life.deaths) == before


def test_front_end_that_goes_on_talking_is_waited_for_anew() -> None:
    life = after(E.SETTLE)
    assert life.take(E.SETTLE) == Step(State.SETTLING, wait=Wait.QUIET)


@pytest.mark.parametrize(
    ("outcome", "step"),
    [
        (E.NOT_READY, Step(State.AT_REST)),
        (E.NO_FORK, Step(State.SETTLING, wait=Wait.NO_FORK)),
    ],
)
def test_fork_that_comes_to_nothing_is_tried_again_where_a_device_could_serve(
    outcome: Event, step: Step
) -> None:
    assert after(*ASKED).take(outcome) == step


@pytest.mark.parametrize("asked", [ASKED, (E.LOOK,)])
def test_nobody_who_wants_the_end_waits_for_a_fork(asked: tuple[Event, ...]) -> None:
    # A device that comes gets no order: it serves nobody, and the rings are as known as before.
    life = after(*asked)
    assert life.take(E.STOP) == Step(State.AT_REST, (A.DROP_FORK, A.ANSWER_ENDED))
    assert life.rings_known
    assert after(*asked).take(E.CLOSE) == Step(State.CLOSED, (A.DROP_FORK,))


def test_dropped_fork_of_a_guest_whose_devices_died_too_often_forks_no_other() -> None:
    life = after(*RUNS, E.DIED_TOO_OFTEN, E.LOOK)
    assert life.take(E.STOP).state is State.GAVE_UP
    assert life.take(E.SETTLE) == Step(State.GAVE_UP)


def test_device_that_died_is_replaced_at_once() -> None:
    assert after(*RUNS).gone(100.0) == Step(State.FORKING, (A.FORK,))


def test_device_that_misbehaves_is_killed_and_replaced_only_when_it_is_gone() -> None:
    life = after(*RUNS)
    assert life.take(E.MISBEHAVED) == Step(State.RUNNING, (A.KILL,))
    assert life.gone(100.0).actions == (A.FORK,)


def test_device_that_was_told_to_stop_has_not_died() -> None:
    life = after(*RUNS, E.STOP)
    assert life.gone(100.0) == Step(State.AT_REST, (A.ANSWER_ENDED,))
    assert life.deaths == 0


def die(life: Life, now_s: float) -> Step:
    step = life.gone(now_s)
    if step.state is State.FORKING:
        life.take(E.FORKED)
    return step


def test_sixth_death_within_a_minute_is_the_last() -> None:
    life = after(*RUNS)
    for number in range(MAX_DEATHS):
        assert die(life, float(number)).actions == (A.FORK,)
    assert die(life, DEATHS_WITHIN_S - 0.1) == Step(State.GAVE_UP)
    assert (life.gave_up, life.deaths) == (True, MAX_DEATHS + 1)
    assert life.take(E.SETTLE) == Step(State.GAVE_UP)


def test_deaths_that_are_a_minute_apart_are_forgotten() -> None:
    life = after(*RUNS)
    for number in range(10 * MAX_DEATHS):
        assert die(life, number * DEATHS_WITHIN_S / MAX_DEATHS).actions == (A.FORK,)


@pytest.mark.parametrize(("known", "wait"), [(False, Wait.KILLED), (True, Wait.FREED)])
def test_killed_device_that_said_where_its_rings_stand_has_time_to_free_memory(
    known: bool, wait: Wait
) -> None:
    life = after(*RUNS, E.STOP)
    life.know_rings(known=known)
    assert life.take(E.DUE) == Step(State.KILLED, (A.PUBLISH_KILLING, A.KILL), wait)


def test_rings_stand_where_nobody_knows_from_the_fork_on() -> None:
    assert after(*ASKED).rings_known
    assert not after(*RUNS).rings_known
    assert not after(E.LOOK, E.FORKED).rings_known
    assert not after(E.WAIT_OUT).rings_known


@pytest.mark.parametrize("events", [(*RUNS, E.STOP), KILLED, LOOKS, (E.WAIT_OUT, E.STOP)])
def test_second_one_who_waits_for_the_end_changes_nothing(events: tuple[Event, ...]) -> None:
    life = after(*events)
    assert life.take(E.STOP) == Step(life.state)


def test_device_that_hangs_answers_everybody_who_waits_at_once_and_forks_none() -> None:
    life = after(*KILLED)
    assert life.take(E.DUE).actions == (A.PUBLISH_HANGS, A.ANSWER_HANGS)
    assert life.take(E.STOP).actions == (A.ANSWER_HANGS,)
    assert life.take(E.SETTLE) == Step(State.HANGS)


def test_predecessor_that_goes_while_somebody_waits_for_the_end_forks_none() -> None:
    life = after(E.WAIT_OUT, E.SETTLE, E.STOP)
    assert life.take(E.PREDECESSOR_GONE) == Step(State.AT_REST, (A.ANSWER_ENDED,))


def test_predecessor_that_stays_is_answered_and_still_waited_for() -> None:
    life = after(E.WAIT_OUT, E.STOP)
    assert life.take(E.DUE).actions == (A.ANSWER_PREDECESSOR_STAYS,)
    assert life.take(E.PREDECESSOR_GONE).actions == (A.FORK,)


@pytest.mark.parametrize("outcome", [E.NOT_READY, E.NO_FORK])
def test_looking_that_comes_to_nothing_is_answered(outcome: Event) -> None:
    life = after(E.LOOK)
    assert life.take(outcome) == Step(State.AT_REST, (A.ANSWER_ENDED,))
