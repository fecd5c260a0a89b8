"""Events as values: they go into sets, and each is equal only to one of its own class."""

from balloon_daemon.events import Event, SourceTrouble, SourceUnknown, StoreLost, VmmHungUp
from balloon_daemon.units import VmId

VM = VmId(1, "vm1")


def test_events_are_equal_where_class_and_fields_are() -> None:
    same: list[Event] = [SourceTrouble("it is empty"), SourceTrouble("it is empty")]
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    assert len({*same, SourceTrouble("it is full"), VmmHungUp(VM)}) == 3


def test_events_of_two_classes_with_equal_fields_differ() -> None:
    events: list[object] = [SourceTrouble("margin"), VmmHungUp(VM), SourceUnknown("margin", "")]
    tuples: list[object] = [("margin",), (VM, 0), ("margin", "")]
    for event, values in zip(events, tuples, strict=True):
        assert event != values


def test_event_without_fields_is_true() -> None:
    assert bool(StoreLost())
