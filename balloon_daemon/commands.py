"""The commands and questions to a running controller: pure values, and the Protocol ``Desk``,
which answers them.

The API, which asks, needs to know neither the controller nor its guests.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Ended, Reading, Reason, Share
from balloon_daemon.status import HostStatus, VmStatus
from balloon_daemon.units import VmId

MOST_HOLD_S = 86_400.0
"""The longest time for which a balloon's size may be held: a size that an operator has forgotten
holds for a day at most."""

MOST_WITHIN_S = 600.0
"""The longest time for which a ``Reclaim`` or a ``Reserve`` may try to have memory taken from
guests."""

MOST_WAITING = 16
"""How many requests may wait for their answers at a time."""

MOST_RESERVES = 8
"""How many reserves one user may have at a time."""


class Release(NamedTuple):
    """Give a VM all of its balloon back, now. The sizing policy goes on from an empty balloon: it
    may take memory from the VM again."""

    vm: VmId


class SetBalloon(NamedTuple):
    """Make a VM's balloon this large, and give nothing of it back for a time.

    Attributes:
        vm: the VM.
        balloon_bytes: the size; rounded down to whole pages.
        for_s: for how long, at most ``MOST_HOLD_S``. Low memory ends the hold, and so does a
            guest in need.
    """

    vm: VmId
    balloon_bytes: int
    for_s: float


class Pause(NamedTuple):
    """Take nothing more from VMs for a time; giving memory back to them goes on.

    Attributes:
        vms: from these VMs; empty: from any VM.
        for_s: for how long, at most ``MOST_HOLD_S``.
    """

    vms: tuple[VmId, ...]
    for_s: float


class Resume(NamedTuple):
    """End pauses.

    Attributes:
        vms: the pauses of these VMs; empty: all pauses.
    """

    vms: tuple[VmId, ...]


class Reclaim(NamedTuple):
    """Take this much memory from guests now, and answer how much of it balloons then hold.

    Attributes:
        vms: from these VMs; empty: from any.
        size_bytes: how much memory to take, from all of these VMs together.
        within_s: how long to try, at most ``MOST_WITHIN_S``.
        hold_s: for how long none of this memory is given back, at most ``MOST_HOLD_S``. Low memory
            on the host ends the hold, and so does a guest in need.
    """

    vms: tuple[VmId, ...]
    size_bytes: int
    within_s: float
    hold_s: float


class Reclaimed(NamedTuple):
    """The answer to a ``Reclaim``.

    Attributes:
        why: why it has ended.
        wanted_bytes: how much was wanted.
        took_s: how many seconds the reclaim took.
        shares: for each VM, how much it was asked for and how much of that its balloon holds, or
            why it was asked for no more.
    """

    why: Ended
    wanted_bytes: int
    took_s: float
    shares: tuple[Share, ...]


class Reserve(NamedTuple):
    """Keep this much of the host's memory available beyond the margin (below which memory is low),
    and answer once it is available.

    Attributes:
        size_bytes: how much more than the margin is to be available.
        within_s: after how long to answer at the latest, at most ``MOST_WITHIN_S``.
        for_s: for how long the memory is to stay available, at most ``MOST_HOLD_S``.
    """

    size_bytes: int
    within_s: float
    for_s: float


@fact
class Unreserve(NamedTuple):
    """End all reserves."""


class ReserveAnswer(NamedTuple):
    """The answer to a ``Reserve``. The reserve itself stays in force for ``left_s``.

    Attributes:
        why: why the wait for the memory has ended.
        size_bytes: how much was reserved.
        took_s: how many seconds the wait took.
        left_s: for how many seconds more the reserve is in force.
        reading: what is available, and the margin with all reserves added; None: unknown.
        shares: if less is available than that: why each VM is not asked for more.
    """

    why: Ended
    size_bytes: int
    took_s: float
    left_s: float
    reading: Reading | None
    shares: tuple[Share, ...]


class Refusal(Enum):
    """Why a command is not carried out."""

    ENDING = "ending"
    """balloond ends, and decides nothing any more."""
    NO_SIZE = "no-size"
    """The VM has not reported its size yet, or has just gone."""
    TOO_LARGE = "too-large"
    """The balloon may not be so large."""
    OBJECTION = "objection"
    """The guest must not be asked for more now."""
    TOO_MANY = "too-many"
    """As many requests as may wait for their answers wait already."""
    TOO_MANY_RESERVES = "too-many-reserves"
    """This user has as many reserves as one may have."""
    BEYOND_HOST = "beyond-host"
    """The margin, all reserves and this one are all that the host can have, or more."""
    ALL_PAUSED = "all-paused"
    """A ``Resume`` names a VM, but a ``Pause`` of all VMs is in force, which only a ``Resume`` of
    all ends."""


class Done(NamedTuple):
    """The command is carried out: the VM was told its target.

    Attributes:
        balloon_bytes: its balloon's size before the command, as its driver reported it last.
        target_bytes: the size that it was told.
    """

    balloon_bytes: int
    target_bytes: int


class NotDone(NamedTuple):
    """The command is not carried out.

    Attributes:
        why: the reason.
        most_bytes: how large the balloon may be, for ``TOO_LARGE``; how much the host can have
            available, for ``BEYOND_HOST``.
        objection: why the guest must not be asked for more now, for ``OBJECTION``.
    """

    why: Refusal
    most_bytes: int = 0
    objection: Reason | None = None


class Reloaded(NamedTuple):
    """The configuration was read anew, and is in force.

    Attributes:
        changed: the settings that differ from those before, a line each.
    """

    changed: tuple[str, ...]


class NotReloaded(NamedTuple):
    """The configuration that was read anew has mistakes: none of it is applied, and all settings
    stay as they were.

    Attributes:
        mistakes: the mistakes, a line each.
    """

    mistakes: tuple[str, ...]


TakeAnswer = Callable[[Reclaimed | ReserveAnswer], None]
"""Called with the answer to a command that takes a while."""


class Desk(Protocol):
    """Answers questions about the host and its VMs. No call waits for anything."""

    def host_status(self) -> HostStatus:
        """The host's last memory reading, and the present state of the sizing policy
        (``HostPolicy``), which decides how large every balloon should be."""

    def vm_ids(self) -> Sequence[VmId]:
        """The VMs, by their names; those of one name in the order in which they came."""

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        """The present state of a VM; None: there is no such VM any more."""

    def obey(self, command: Release | SetBalloon, uid: int) -> Done | NotDone:
        """Carries out a command, or refuses it.

        Args:
            command: the command.
            uid: the user who gives it.
        """

    def steer(self, command: Pause | Resume | Unreserve, uid: int) -> NotDone | None:
        """Carries out a command about what the sizing policy may take from VMs, or refuses it as
        ``obey`` does; None: the command is carried out."""

    def want(self, command: Reclaim | Reserve, uid: int, answer: TakeAnswer) -> int | NotDone:
        """Begins a command that takes a while.

        Args:
            command: what is asked.
            uid: the user who asks.
            answer: called once the command has ended, perhaps before this call returns; it must
                not raise, nor call a method of this ``Desk``.

        Returns:
            The number by which ``withdraw`` knows the command.
        """

    def withdraw(self, ticket: int) -> None:
        """Ends a command that ``want`` has begun, because its client has gone; does nothing if the
        command has ended already."""


class Tracing(Protocol):
    """Publishes each event that the sizing policy handles, for as long as a client records a
    trace."""

    def begin(self) -> None:
        """Publishes the sizing policy's present state (``TraceBegun``, ``VmFound``), and from now
        on all events that the policy handles."""

    def end(self) -> None:
        """Called when no client records a trace any more."""


class Reloader(Protocol):
    """Has the configuration read anew."""

    def reload(self, done: Callable[[Reloaded | NotReloaded], None]) -> None:
        """Begins to read the configuration, and returns before it is read.

        Args:
            done: called with the result; never called if balloond ends before there is one.
        """


class Service(Protocol):
    """Runs in the controller's event loop, beside the guests."""

    def start(self, desk: Desk, tracing: Tracing, reloader: Reloader | None) -> None:
        """Begins to serve, in the running event loop.

        Args:
            desk: answers, and does what is asked.
            tracing: publishes the events that the sizing policy handles.
            reloader: has the configuration read anew; None: there is no configuration to read.
        """

    def close(self) -> None:
        """Stops serving."""
