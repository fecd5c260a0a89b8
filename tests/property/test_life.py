"""No two devices ever serve one guest, whatever happens to them in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from balloon_daemon.guests.jailed.life import State
from tests.fakes.device_world import DeviceWorld


class Lives(RuleBasedStateMachine):
    """Any course of events that the world can take."""

    def __init__(self) -> None:
        super().__init__()
        self.world = DeviceWorld()

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        possible = self.world.possible()
        if possible:
            data.draw(st.sampled_from(possible))()

    @invariant()
    def one_device_at_most(self) -> None:
        self.world.check()


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLives = Lives.TestCase


def test_every_course_of_events_keeps_the_rules() -> None:
    # There are few enough of them to go through all: what Hypothesis may miss this does not.
    world = DeviceWorld()
    seen, ahead = {world.key()}, [world]
    while ahead:
        here = ahead.pop()
        for number in range(len(here.possible())):
            there = here.copy()
            there.possible()[number]()
            if there.key() not in seen:
                seen.add(there.key())
                ahead.append(there)
    assert {key[0] for key in seen} == set(State)
