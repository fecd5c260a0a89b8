"""What is counted as a fault, about which VM, and for how long."""

from typing import get_args

import pytest

from balloon_daemon import events
from balloon_daemon.events import (
    Connected,
    Decided,
    DeviceNotForked,
    DeviceReady,
    Disconnected,
    Event,
    Fault,
    VmDriven,
    VmLetGo,
    VmLost,
    VmmRefuses,
)
from balloon_daemon.records.counters import FAULTS, Counters
from balloon_daemon.sizing.decision import Decision, Reason
from balloon_daemon.units import GIB, VmId

WEB = VmId(1, "web")
DRIVEN = VmDriven(WEB, "/run/web.qmp", GIB, None)
DIED = DeviceNotForked(WEB, "EAGAIN")

NO_FAULTS = {
    # balloond begins, ends, changes its settings, or says what is usual.
    "ApiListening", "ConfigMistake", "ConfigReloaded", "DevicesShareUser", "DrivesOthers",
    "DryRunBegins", "Listening", "MetricsListening", "PolicyFileWarning", "SocketNotPrivate",
    "SocketUnitNotServed", "SourceKnown", "SourceOff", "SourceOn", "Stopping", "StoppingAtOnce",
    "TemplateStarted", "UserIgnored",
    # Devices and VMs begin, go on, or end as they should.
    "BalloonFound", "BalloonSought", "BaseFound", "Connected", "DeviceLooks", "DeviceReady",
    "DeviceStarted", "DeviceTakesOrders", "Disconnected", "GivenBackLater", "GivingBack",
    "GivesHugePages", "GuestStats", "MemoryKnown", "NoDriverYet", "Refilled",
    "ReportsNotFreed", "SizesDiffer", "StillToGiveBack", "TakenOver", "TargetReached",
    "TmpfsLimited", "VmAttached", "VmDriven", "VmResized", "VmmHungUp",
    # VMs that are not driven: a state.
    "DirectoryNotListed", "ProcessNotSeen", "SocketIgnored", "VmLetGo", "VmNotDriven",
    "VmNotSought", "VmNotWanted",
    # What the policy decides and finds, and what operators ask of it.
    "BalloonFreed", "Decided", "GuestInNeed", "ReclaimBegan", "ReclaimEnded", "ReserveBegan",
    "ReserveEnded", "ReserveMet", "ReserveNotMet", "SizeAsked", "Stepped", "Surveyed",
    "TakingPaused", "TakingResumed", "TargetWithheld", "TraceBegun", "VmFound",
}  # fmt: skip
"""The events that are no faults. A new event stands here, or among ``FAULTS``."""


def counted(*happened: Event) -> Counters:
    counters = Counters()
    for event in happened:
        counters(event, 0.0)
    return counters


def test_each_event_is_a_fault_or_is_none() -> None:
    faults = {fault.__name__ for fault in FAULTS}
    assert faults & NO_FAULTS == set()
    assert faults | NO_FAULTS == {event.__name__ for event in get_args(Event)}


@pytest.mark.parametrize(
    ("comes", "goes"),
    [
        (Connected(WEB, 0), Disconnected(WEB)),
        (DRIVEN, VmLost(WEB, Fault.HANGS)),
        (DRIVEN, VmLetGo(WEB)),
    ],
)
def test_faults_of_a_vm_go_with_it_and_stay_in_the_sum(comes: Event, goes: Event) -> None:
    counters = counted(comes, DIED, DIED)
    assert counters.faults_of(WEB) == {"device-not-forked": 2}
    counters(goes, 0.0)
    counters(DIED, 0.0)  # Said after the VM's end.
    assert counters.faults_of(WEB) == {}
    assert counters.faults["device-not-forked"] == 3


def test_events_that_were_left_out_before_one_are_counted_with_it() -> None:
    assert counted(DIED._replace(suppressed=9)).faults["device-not-forked"] == 10


def test_quiet_repetition_of_a_fault_is_counted() -> None:
    refused = VmmRefuses(WEB, "no", quiet=True)
    assert counted(DRIVEN, refused).faults_of(WEB) == {"vmm-refuses": 1}


def test_vm_that_ends_is_no_fault_and_one_that_hangs_is_one() -> None:
    assert counted(DRIVEN, VmLost(WEB, Fault.GONE)).faults["vm-lost"] == 0
    assert counted(DRIVEN, VmLost(WEB, Fault.HANGS)).faults["vm-lost"] == 1


def test_vm_that_comes_twice_keeps_its_numbers() -> None:
    assert counted(DRIVEN, DIED, DRIVEN).faults_of(WEB) == {"device-not-forked": 1}


def test_decisions_are_counted_by_their_reasons() -> None:
    up = Decided(WEB, Decision(Reason.LOW_MEMORY, 0, 1, 16, 1 << 25))
    counters = counted(up, up, DeviceReady(WEB))
    assert counters.decisions[Reason.LOW_MEMORY] == 2
    assert sum(counters.decisions.values()) == 2
    assert sum(counters.faults.values()) == 0


def test_every_fault_is_an_event() -> None:
    assert {getattr(events, fault.__name__) for fault in FAULTS} == FAULTS
