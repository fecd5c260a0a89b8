"""Counts faults and decisions as they are published, for metrics. Pure.

Counting an event only adds to a number; no text is made until a client asks for one. Whoever can
cause an event can cause millions, so all that grows is bounded: an event that is about a VM is
counted for that VM only while the VM is there, and the VM's numbers are deleted with it.
"""

from collections import Counter

from balloon_daemon import events
from balloon_daemon.events import (
    Connected,
    Decided,
    Disconnected,
    Event,
    Fault,
    VmDriven,
    VmLetGo,
    VmLost,
)
from balloon_daemon.records.words import word_of
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.units import VmId

FAULTS: frozenset[type[Event]] = frozenset(
    {
        events.ApiClientTooSlow,
        events.ApiMisused,
        events.ApiNotOpened,
        events.CallbackFailed,
        events.ConfigRefused,
        events.ConnectionRefused,
        events.EventsLost,
        events.HistoryEnded,
        events.HistorySetAside,
        events.KeeperUnreachable,
        events.LinesLost,
        events.MemoryNotGivenBack,
        events.MetricsFileEnded,
        events.MetricsNotWritten,
        events.NotAccepted,
        events.ReaderFailed,
        events.RecordingEnded,
        events.SocketNotOpened,
        events.SourceTrouble,
        events.SourceUnknown,
        events.StoreLost,
        events.TemplateLost,
        # Devices, and guests on them.
        events.DeviceDied,
        events.DeviceDoesNotStop,
        events.DeviceHangs,
        events.DeviceNotForked,
        events.DeviceSendsGarbage,
        events.DeviceStalled,
        events.GuestFault,
        events.HostFault,
        events.RingsUnknown,
        # Driven VMs. VmNotDriven is not here: it is a lasting state, with a metric of its own.
        events.BasesNotStored,
        events.BasesPathTaken,
        events.DirectoryHangs,
        events.DomainsNotFound,
        events.FinderFailed,
        events.VmLost,
        events.VmmRefuses,
        # Memory that does not come back.
        events.BalloonContested,
        events.BalloonMissing,
        events.BalloonNotFreed,
        events.Fruitless,
        events.MemoryNeverFreed,
        events.MemoryNotFreeable,
        events.MemoryNotShared,
        events.MemoryOutOfReach,
        events.NothingFreeable,
        events.PagesLost,
        events.SqueezeStalled,
        # VMs' connections, stored states and ends.
        events.AlreadyConnected,
        events.ConnectionClosed,
        events.ConnectionFailed,
        events.NoBackendChannel,
        events.NotGivenBack,
        events.NotStored,
        events.RequestNotServed,
        events.StateRefused,
        events.StoreShareUsed,
        events.StoreStalled,
        events.VmDoesNotEnd,
        events.VmFailed,
        events.VmNotServed,
    }
)
"""The events that are counted as faults; a VM that ends (``VmLost`` with ``Fault.GONE``) is not
counted."""


class Counters:
    """Counts events since this balloond was started. The event bus calls this object with each
    event: it is a ``Reader`` (``records/bus.py``).

    Attributes:
        faults: how many faults of each kind there were, about whatever VM, by their event words.
        decisions: how many decisions there were for each reason, about all VMs together.
    """

    def __init__(self) -> None:
        self.faults = Counter[str]({word_of(fault.__name__): 0 for fault in FAULTS})
        self.decisions = Counter[Reason](dict.fromkeys(Reason, 0))
        self._of_vms: dict[VmId, Counter[str]] = {}

    def __call__(self, event: Event, at_s: float) -> None:
        """Counts an event.

        Args:
            event: the event.
            at_s: unused: counters have no time.
        """
        match event:
            case Decided(_, decision):
                self.decisions[decision.reason] += 1
                return
            case Connected(vm) | VmDriven(vm):
                self._of_vms.setdefault(vm, Counter())
                return
            case Disconnected(vm) | VmLetGo(vm) | VmLost(vm):
                self._of_vms.pop(vm, None)
        if type(event) not in FAULTS or (isinstance(event, VmLost) and event.fault is Fault.GONE):
            return
        # Count the events of this kind that were suppressed since the last published one, too.
        number = 1 + getattr(event, "suppressed", 0)
        word = word_of(type(event).__name__)
        self.faults[word] += number
        about = self._of_vms.get(getattr(event, "vm", None))  # type: ignore[arg-type]  # or None
        if about is not None:
            about[word] += number

    def faults_of(self, vm: VmId) -> dict[str, int]:
        """How many faults there were that are about a VM, by their event words, without kinds of
        fault that have not occurred."""
        return dict(self._of_vms.get(vm, {}))
