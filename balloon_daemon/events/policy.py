"""Events about what the host's policy is told, for readers that record it. Pure.

They are published only while somebody records them, and the log has no lines for them.
"""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing import host_events
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Seen, VmDecision
from balloon_daemon.units import VmId


@fact
class Stepped(NamedTuple):
    """The host's policy has handled an event.

    Attributes:
        at_s: the time that it was given, on CLOCK_MONOTONIC.
        event: the event.
        draws: the random numbers that it drew, in this order.
        objections: the VMs of which a driver said that they must not be asked for more, and why.
        decisions: what it decided.
    """

    at_s: float
    event: host_events.Event
    draws: tuple[float, ...] = ()
    objections: tuple[tuple[VmId, Reason], ...] = ()
    decisions: tuple[VmDecision, ...] = ()


class VmFigures(NamedTuple):
    """One VM at one moment.

    Attributes:
        vm: which VM.
        vm_mem_bytes: its size.
        balloon_bytes: its balloon's size.
        target_bytes: its balloon's wanted size.
        available_bytes: what its guest has available; None: not known.
        held_bytes: the host's memory that it occupies; None: not known.
    """

    vm: VmId
    vm_mem_bytes: int
    balloon_bytes: int
    target_bytes: int
    available_bytes: int | None
    held_bytes: int | None


@fact
class Surveyed(NamedTuple):
    """The source was read for the record; the policy was not told.

    Attributes:
        at_s: when, on CLOCK_MONOTONIC.
        seen: the reading.
        vms: the VMs whose size is known.
    """

    at_s: float
    seen: Seen
    vms: tuple[VmFigures, ...] = ()


@fact
class TraceBegun(NamedTuple):
    """A trace begins while balloond runs: all that the policy is told is published from now on.

    Attributes:
        at_s: when, on CLOCK_MONOTONIC.
        number: tells this trace's beginning from others while balloond runs: later ones have
            greater numbers.
        seen: a reading of the source.
    """

    at_s: float
    number: int
    seen: Seen


@fact
class VmFound(NamedTuple):
    """How the policy governed a VM when a trace began.

    Attributes:
        at_s: when the trace began.
        number: which beginning: ``TraceBegun.number``.
        found: the VM.
        reports: what its guest reported last, oldest first.
    """

    at_s: float
    number: int
    found: host_events.Found
    reports: tuple[host_events.Reported, ...] = ()


PolicyEvent = Stepped | Surveyed | TraceBegun | VmFound
"""The union of all events about what the host's policy is told."""
