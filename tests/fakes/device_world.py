"""The table of states with counters in place of processes: performs actions as a supervisor
does."""

from collections.abc import Callable
from copy import copy

from balloon_daemon.guests.jailed.life import TABLE, Action, Event, Life, State, Step, Wait

ANSWERS = {Action.ANSWER_ENDED, Action.ANSWER_HANGS, Action.ANSWER_PREDECESSOR_STAYS}
FORKS = {Action.FORK, Action.FORK_TO_LOOK}


class DeviceWorld:
    """One guest: its device, the device of an earlier controller, and the tasks that wait for
    their end.

    Attributes:
        devices: how many devices of this controller run.
        predecessor: the device of an earlier controller runs.
        said: the running device has reported where its rings stand, which it does at its end.
        waits: a task waits for the answer to STOP or LOOK.
        forking: a fork was asked for, and has no result yet.
    """

    def __init__(self) -> None:
        self.life = Life()
        self.devices = 0
        self.predecessor = False
        self.said = False
        self.timer: Wait | None = None
        self.waits = False
        self.forking = False
        self.closed = False

    def copy(self) -> "DeviceWorld":
        other = copy(self)
        other.life = copy(self.life)
        return other

    def key(self) -> tuple[object, ...]:
        """Everything that decides what can happen from here on."""
        life = self.life.state, self.life.gave_up, self.life.rings_known
        world = self.devices, self.predecessor, self.said, self.timer, self.waits, self.forking
        return *life, *world, self.closed

    def possible(self) -> list[Callable[[], None]]:
        """The events that the world can cause next. An event that no table may refuse is included
        even if the present state lacks it."""
        row = TABLE[self.life.state]
        acts: list[Callable[[], None]] = []
        if self.forking:
            acts += [self.fork_succeeds, *self._fork_fails()]
        if self.timer is not None:
            acts.append(self.timer_ends)
        if self.devices:
            acts += [self.device_ends, self.device_ends_too_often, self.device_misbehaves]
        if self.devices and not self.closed:
            acts.append(self.device_says_where_its_rings_stand)
        if self.predecessor and not self.closed:
            acts.append(self.predecessor_ends)
        asked = {
            Event.SETTLE: self.vmm_changes_something,
            Event.STOP: self.somebody_wants_the_end,
            Event.LOOK: self.somebody_wants_to_know_the_rings,
        }
        acts += [act for event, act in asked.items() if event in row]
        if self.life.state is State.AT_REST and not self.life.gave_up:
            acts.append(self.controller_takes_over)
        assert not (self.forking and self.closed), "a fork for a guest that is gone"
        if Event.CLOSE in row and not self.waits:
            acts.append(self.guest_is_let_go)
        return acts

    def _happens(self, event: Event) -> None:
        before = self.life.state
        self._perform(before, self.life.take(event))
        self.check()

    def _perform(self, before: State, step: Step) -> None:
        if step.state is not before or step.wait is not None:
            self.timer = step.wait
        for action in step.actions:
            if action in FORKS:
                assert not self.devices, "two devices"
                assert not self.predecessor, "a device beside its predecessor"
                assert not self.closed, "a device of a guest that is gone"
                self.forking = True
            elif action is Action.DROP_FORK:
                # Whatever comes of it is no event of this guest's any more.
                assert self.forking
                self.forking = False
            elif action in ANSWERS:
                assert self.waits
                self.waits = False
                nothing_left = not self.devices and not self.predecessor
                assert (action is Action.ANSWER_ENDED) == nothing_left

    def check(self) -> None:
        """Asserts the invariants."""
        assert self.devices + self.predecessor <= 1
        if self.waits:
            # Without a timer or a fork under way, the task would wait for ever.
            assert self.timer is not None or self.forking
        if self.devices or self.predecessor:
            assert self.life.rings_known == self.said

    def vmm_changes_something(self) -> None:
        self._happens(Event.SETTLE)

    def timer_ends(self) -> None:
        self.timer = None
        self._happens(Event.DUE)

    def fork_succeeds(self) -> None:
        self.forking, self.said = False, False
        self.devices += 1
        self._happens(Event.FORKED)

    def _fork_fails(self) -> list[Callable[[], None]]:
        def act(event: Event) -> Callable[[], None]:
            def fail() -> None:
                self.forking = False
                self._happens(event)

            return fail

        return [act(event) for event in (Event.NOT_READY, Event.NO_FORK)]

    def device_ends(self) -> None:
        self.devices -= 1
        self._happens(Event.DIED if self.life.state is State.RUNNING else Event.GONE)

    def device_ends_too_often(self) -> None:
        self.devices -= 1
        died = self.life.state is State.RUNNING
        self._happens(Event.DIED_TOO_OFTEN if died else Event.GONE)

    def device_misbehaves(self) -> None:
        self._happens(Event.MISBEHAVED)

    def device_says_where_its_rings_stand(self) -> None:
        self.said = True
        self.life.know_rings(known=True)

    def somebody_wants_the_end(self) -> None:
        self.waits = True
        self._happens(Event.STOP)

    def somebody_wants_to_know_the_rings(self) -> None:
        self.waits = True
        self._happens(Event.LOOK)

    def controller_takes_over(self) -> None:
        self.predecessor, self.said = True, False
        self._happens(Event.WAIT_OUT)

    def predecessor_ends(self) -> None:
        self.predecessor = False
        self._happens(Event.PREDECESSOR_GONE)

    def guest_is_let_go(self) -> None:
        self.closed = True
        self._happens(Event.CLOSE)
