"""Events about each step of the sizing policy (``HostPolicy``), from which readers make traces.
Pure.

They are published only while a trace or a history is recorded, and the log has no lines for them.
"""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing import host_events
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Seen, VmDecision
from balloon_daemon.units import VmId


@fact
class Stepped(NamedTuple):
    """The sizing policy has handled an event.

    Attributes:
        at_s: the time that the policy was given, on CLOCK_MONOTONIC.
        event: the event.
        draws: the random numbers that the policy drew, in this order.
        objections: the VMs of which a driver said that they must not be asked for more, and why.
        decisions: what the policy decided.
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
    """The low-memory source was read only for traces and the history; the sizing policy did not
    get the reading.

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
    """A trace begins while balloond runs: from now on each event that the sizing policy handles is
    published.

    Attributes:
        at_s: when, on CLOCK_MONOTONIC.
        number: counts the beginnings of traces since balloond was started.
        seen: a reading of the low-memory source.
    """

    at_s: float
    number: int
    seen: Seen


@fact
class VmFound(NamedTuple):
    """How the sizing policy governed a VM when a trace began.

    Attributes:
        at_s: when the trace began.
        number: the ``TraceBegun.number`` of that trace's beginning.
        found: the VM, and the policy's state for it.
        reports: what its guest reported last, oldest first.
    """

    at_s: float
    number: int
    found: host_events.Found
    reports: tuple[host_events.Reported, ...] = ()


PolicyEvent = Stepped | Surveyed | TraceBegun | VmFound
"""The union of all events from which traces are made."""
