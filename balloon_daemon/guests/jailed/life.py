"""The states of one guest's device, as a table: state and event -> next state and actions.

Pure: ``supervisor.py`` forks, kills and waits, and passes the results in as events. The table
ensures two rules, in whatever order events come: no two devices ever serve one guest, and no
device is forked while its predecessor or a killed device may still touch the guest's memory.
A device touches nothing before its first order, which it gets at FORKED. So a device that is no
longer wanted while it is being forked needs no waiting: it never gets an order.
An event for which the state has no row is a bug in balloond: ``StateError``, nothing changes.

=========================== =====================================================================
state                       meaning
=========================== =====================================================================
AT_REST                     No device, and none is due.
SETTLING                    No device. A device is forked when the timer ends; each change of
                            memory or vrings by the VMM restarts the timer.
FORKING                     The template was asked for a device, and has not answered.
RUNNING                     A device serves the guest. When it ends unasked, another is forked.
STOPPING                    A device was told to stop, and is killed when the timer ends.
KILLED                      A device was killed because it did not stop, and has not ended yet.
HANGS                       A killed device has not ended in time. A system call of it may still
                            touch the guest's memory, so no other device is forked.
FORKING_TO_LOOK             The template was asked for a device for LOOKING, and has not answered.
LOOKING                     A device reports each ring's ``used.idx`` and ends, because its first
                            order is to stop. It is killed when the timer ends.
WAITING_FOR_PREDECESSOR     The device of another controller, which is gone, may still live.
STOPPING_PREDECESSOR        The same, and a task waits until that device or the timer has ended.
GAVE_UP                     Devices of this guest have died too often: no device is forked any
                            more, except for LOOKING.
CLOSED                      The guest's session ends: no device is forked any more.
=========================== =====================================================================

A timer belongs to the state that started it: a change to another state ends it; a step that stays
in the state keeps it, unless the step starts another timer.
"""

from collections import deque
from enum import Enum, auto

from balloon_daemon.errors import StateError
from balloon_daemon.named_tuple import NamedTuple


class State(Enum):
    """The states of a guest's device; the module's docstring gives their meanings."""

    AT_REST = auto()
    SETTLING = auto()
    FORKING = auto()
    RUNNING = auto()
    STOPPING = auto()
    KILLED = auto()
    HANGS = auto()
    FORKING_TO_LOOK = auto()
    LOOKING = auto()
    WAITING_FOR_PREDECESSOR = auto()
    STOPPING_PREDECESSOR = auto()
    GAVE_UP = auto()
    CLOSED = auto()


class Event(Enum):
    """The events about a guest's device."""

    SETTLE = auto()
    """The VMM has changed memory or vrings."""
    DUE = auto()
    """The timer has ended."""
    FORKED = auto()
    NOT_READY = auto()
    """There is no vring that a device could serve or look at."""
    NO_FORK = auto()
    """The kernel allows no process or no descriptor for a device."""
    MISBEHAVED = auto()
    """The device has sent a message that no device sends, or has closed its tube and not ended:
    its guest has taken it over, or balloond has a bug."""
    GONE = auto()
    """The device has ended as it was told to, and is reaped."""
    DIED = auto()
    """The device has ended untimely, and is reaped."""
    DIED_TOO_OFTEN = auto()
    STOP = auto()
    """A task waits until no device touches the guest's memory any more."""
    LOOK = auto()
    """A task waits until a device has reported each ring's ``used.idx``."""
    WAIT_OUT = auto()
    """Another controller, which is gone, has left a device that may still run."""
    PREDECESSOR_GONE = auto()
    CLOSE = auto()


class Action(Enum):
    """The actions of a step, performed in the row's order."""

    FORK = auto()
    """Ask for a device; the event FORKED, NOT_READY or NO_FORK follows."""
    FORK_TO_LOOK = auto()
    """Ask for a device whose first order is to stop; the same events follow as after FORK."""
    DROP_FORK = auto()
    """Drop the request for a device: the device gets no order, and no event follows."""
    ORDER_STOP = auto()
    KILL = auto()
    PUBLISH_KILLING = auto()
    PUBLISH_HANGS = auto()
    ANSWER_ENDED = auto()
    """Answer the tasks that wait since STOP or LOOK: no device is left."""
    ANSWER_HANGS = auto()
    ANSWER_PREDECESSOR_STAYS = auto()


class Wait(Enum):
    """The purposes of timers; ``WAIT_S`` has their seconds."""

    QUIET = auto()
    NO_FORK = auto()
    STOPPED = auto()
    KILLED = auto()
    FREED = auto()
    PREDECESSOR = auto()


WAIT_S = {
    # A VMM sends its messages in bursts: fork a device once no message has come for so long.
    Wait.QUIET: 0.005,
    Wait.NO_FORK: 1.0,
    Wait.STOPPED: 1.0,
    Wait.KILLED: 5.0,
    # For a killed device that has already reported each ring's ``used.idx``. Its end may free
    # guest memory, of which the kernel frees some 5 GiB a second.
    Wait.FREED: 120.0,
    # For the device of an earlier controller. Because that controller is gone, the device ends by
    # itself once it has finished the work that it has begun, which does not take long.
    Wait.PREDECESSOR: 5.0,
}

MAX_DEATHS = 5
DEATHS_WITHIN_S = 60.0
"""If more than ``MAX_DEATHS`` devices of a guest die within ``DEATHS_WITHIN_S`` seconds, no new
device is forked for that guest."""


class Step(NamedTuple):
    """One row of the table: the next state, the actions in their order, and the timer to start."""

    state: State
    actions: tuple[Action, ...] = ()
    wait: Wait | None = None


_S, _E, _A = State, Event, Action

TABLE: dict[State, dict[Event, Step]] = {
    _S.AT_REST: {
        _E.SETTLE: Step(_S.SETTLING, wait=Wait.QUIET),
        _E.STOP: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
        _E.LOOK: Step(_S.FORKING_TO_LOOK, (_A.FORK_TO_LOOK,)),
        _E.WAIT_OUT: Step(_S.WAITING_FOR_PREDECESSOR),
        _E.CLOSE: Step(_S.CLOSED),
    },
    _S.SETTLING: {
        _E.SETTLE: Step(_S.SETTLING, wait=Wait.QUIET),
        _E.DUE: Step(_S.FORKING, (_A.FORK,)),
        _E.STOP: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
        _E.CLOSE: Step(_S.CLOSED),
    },
    _S.FORKING: {
        _E.FORKED: Step(_S.RUNNING),
        _E.NOT_READY: Step(_S.AT_REST),
        _E.NO_FORK: Step(_S.SETTLING, wait=Wait.NO_FORK),
        _E.SETTLE: Step(_S.FORKING),
        _E.STOP: Step(_S.AT_REST, (_A.DROP_FORK, _A.ANSWER_ENDED)),
        _E.CLOSE: Step(_S.CLOSED, (_A.DROP_FORK,)),
    },
    _S.RUNNING: {
        _E.SETTLE: Step(_S.RUNNING),
        _E.MISBEHAVED: Step(_S.RUNNING, (_A.KILL,)),
        _E.STOP: Step(_S.STOPPING, (_A.ORDER_STOP,), Wait.STOPPED),
        _E.DIED: Step(_S.FORKING, (_A.FORK,)),
        _E.DIED_TOO_OFTEN: Step(_S.GAVE_UP),
    },
    _S.STOPPING: {
        _E.MISBEHAVED: Step(_S.STOPPING, (_A.KILL,)),
        _E.STOP: Step(_S.STOPPING),
        _E.DUE: Step(_S.KILLED, (_A.PUBLISH_KILLING, _A.KILL), Wait.KILLED),
        _E.GONE: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
    },
    _S.KILLED: {
        _E.MISBEHAVED: Step(_S.KILLED),
        _E.STOP: Step(_S.KILLED),
        _E.DUE: Step(_S.HANGS, (_A.PUBLISH_HANGS, _A.ANSWER_HANGS)),
        _E.GONE: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
    },
    _S.HANGS: {
        _E.SETTLE: Step(_S.HANGS),
        _E.MISBEHAVED: Step(_S.HANGS),
        _E.STOP: Step(_S.HANGS, (_A.ANSWER_HANGS,)),
        _E.GONE: Step(_S.AT_REST),
        _E.CLOSE: Step(_S.CLOSED),
    },
    _S.FORKING_TO_LOOK: {
        _E.FORKED: Step(_S.LOOKING, wait=Wait.STOPPED),
        _E.NOT_READY: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
        _E.NO_FORK: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
        _E.STOP: Step(_S.AT_REST, (_A.DROP_FORK, _A.ANSWER_ENDED)),
        _E.CLOSE: Step(_S.CLOSED, (_A.DROP_FORK,)),
    },
    _S.LOOKING: {
        _E.MISBEHAVED: Step(_S.LOOKING, (_A.KILL,)),
        _E.STOP: Step(_S.LOOKING),
        _E.DUE: Step(_S.KILLED, (_A.PUBLISH_KILLING, _A.KILL), Wait.KILLED),
        _E.GONE: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
    },
    _S.WAITING_FOR_PREDECESSOR: {
        _E.SETTLE: Step(_S.WAITING_FOR_PREDECESSOR),
        _E.STOP: Step(_S.STOPPING_PREDECESSOR, wait=Wait.PREDECESSOR),
        _E.PREDECESSOR_GONE: Step(_S.FORKING, (_A.FORK,)),
        _E.CLOSE: Step(_S.CLOSED),
    },
    _S.STOPPING_PREDECESSOR: {
        _E.STOP: Step(_S.STOPPING_PREDECESSOR),
        _E.DUE: Step(_S.WAITING_FOR_PREDECESSOR, (_A.ANSWER_PREDECESSOR_STAYS,)),
        _E.PREDECESSOR_GONE: Step(_S.AT_REST, (_A.ANSWER_ENDED,)),
        _E.CLOSE: Step(_S.CLOSED),
    },
    _S.GAVE_UP: {
        _E.SETTLE: Step(_S.GAVE_UP),
        _E.STOP: Step(_S.GAVE_UP, (_A.ANSWER_ENDED,)),
        _E.LOOK: Step(_S.FORKING_TO_LOOK, (_A.FORK_TO_LOOK,)),
        _E.CLOSE: Step(_S.CLOSED),
    },
    _S.CLOSED: {
        _E.MISBEHAVED: Step(_S.CLOSED),
        _E.GONE: Step(_S.CLOSED),
        _E.CLOSE: Step(_S.CLOSED),
    },
}


class Life:
    """The present state of one guest's device, and facts by which ``take`` changes a row of the
    table: deaths of devices, and whether each ring's ``used.idx`` is known."""

    def __init__(self) -> None:
        self._state = State.AT_REST
        self._rings_known = True
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._gave_up = False

    @property
    def state(self) -> State:
        return self._state

    @property
    def rings_known(self) -> bool:
        """Whether every vring's ``base`` equals the present ``used.idx`` of its ring."""
        return self._rings_known

    @property
    def gave_up(self) -> bool:
        """Whether devices have died too often."""
        return self._gave_up

    @property
    def deaths(self) -> int:
        """How many deaths of devices are remembered: ``MAX_DEATHS`` + 1 at most."""
        return len(self._deaths)

    def know_rings(self, *, known: bool) -> None:
        """Notes whether each ring's ``used.idx`` is known."""
        self._rings_known = known

    def take(self, event: Event) -> Step:
        """Handles an event; the state has changed when this returns.

        Raises:
            StateError: the state does not have this event; nothing has changed.
        """
        step = TABLE[self.state].get(event)
        if step is None:
            raise StateError(f"a device's life: {event.name} in {self.state.name}")
        if event is Event.DIED_TOO_OFTEN:
            self._gave_up = True
        if event in (Event.FORKED, Event.WAIT_OUT):
            self._rings_known = False
        if step.wait is Wait.KILLED and self.rings_known:
            step = step._replace(wait=Wait.FREED)
        if step.state is State.AT_REST and self._gave_up:
            # A guest whose devices have died too often stays in GAVE_UP: no device serves it any
            # more. The device that ends here was forked only to report each ring's ``used.idx``.
            # In AT_REST the next SETTLE would fork a device that serves.
            step = step._replace(state=State.GAVE_UP)
        self._state = step.state
        return step

    def gone(self, now_s: float) -> Step:
        """Handles the end of the device, which was reaped; the state tells whether the end was
        untimely.

        Args:
            now_s: seconds of a clock that never goes back.

        Raises:
            StateError: there was no device.
        """
        if self.state is not State.RUNNING:
            return self.take(Event.GONE)
        self._deaths.append(now_s)
        many = len(self._deaths) > MAX_DEATHS
        too_often = many and now_s - self._deaths[0] < DEATHS_WITHIN_S
        return self.take(Event.DIED_TOO_OFTEN if too_often else Event.DIED)
