"""What a low-memory source says of itself, and what is held back."""

from collections.abc import Iterator

import pytest

from balloon_daemon.events import (
    SourceEvent,
    SourceKnown,
    SourceOff,
    SourceOn,
    SourceTrouble,
    SourceUnknown,
)
from balloon_daemon.host.notices import LINES, LINES_S, LowMemoryStatistics, SourceNotices, Unknown
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading
from tests.harness.faults import fault

Measured = Reading | NeverLow | Unknown

PLENTY = Reading(1000, 400)
EMPTY = Unknown("available memory", "it is empty")
DENIED = Unknown("available memory", "Permission denied")
NO_MARGIN = Unknown("the margin", "it is empty")
OFF = NeverLow("margin says off")

IS_EMPTY = SourceUnknown("available memory", "it is empty")
IS_DENIED = SourceUnknown("available memory", "Permission denied")
IS_OFF = SourceOff("margin says off")
IS_ON = SourceOn(400)


class Told:
    """Notices, their clock, and what they have said so far."""

    def __init__(self) -> None:
        self.now_s = 5.0
        self.notices = SourceNotices(lambda: self.now_s)

    def see(self, *measured: Measured) -> list[SourceEvent]:
        """One reading a second."""
        lines: list[SourceEvent] = []
        for one in measured:
            self.notices.note_reading(one)
            lines += self.lines()
            self.now_s += 1
        return lines

    def lines(self) -> Iterator[SourceEvent]:
        return iter(self.notices.take_notice, None)


@pytest.fixture
def told() -> Told:
    return Told()


def known_again(reads: int, figure: str = "available memory") -> SourceEvent:
    return SourceKnown(figure, reads)


def test_reading_is_given_back_and_counted(told: Told) -> None:
    assert told.notices.note_reading(PLENTY) is PLENTY
    assert told.notices.note_reading(OFF) is OFF
    assert told.notices.note_reading(EMPTY) is None
    assert told.notices.last_error == "it is empty"
    told.notices.note_wakeup()

    assert told.notices.statistics() == LowMemoryStatistics(reads=3, unknown=1, wakeups=1)
    assert told.notices.note_reading(OFF) is OFF
    assert told.notices.last_error == ""


@fault("a second cause while the figures are unknown")
def test_each_cause_of_a_trouble_is_said_when_it_begins(told: Told) -> None:
    assert told.see(EMPTY, EMPTY, DENIED, DENIED, NO_MARGIN, PLENTY, PLENTY) == [
        IS_EMPTY,
        IS_DENIED,
        SourceUnknown("the margin", "it is empty"),
        known_again(5, "the margin"),
    ]


@fault("a second cause while the figures are unknown")
def test_causes_that_alternate_are_said_twice_a_minute(told: Told) -> None:
    minute: list[Measured] = [EMPTY, DENIED] * 30

    first, second = told.see(*minute), told.see(*minute)

    assert first == [IS_EMPTY, IS_DENIED]
    assert second == [IS_EMPTY, IS_DENIED]


def test_cause_that_comes_back_for_good_is_said_in_the_end(told: Told) -> None:
    assert told.see(EMPTY, DENIED, *[EMPTY] * 57) == [IS_EMPTY, IS_DENIED]
    assert told.see(EMPTY, EMPTY, EMPTY) == [IS_EMPTY]


def test_trouble_that_comes_again_is_said_again(told: Told) -> None:
    assert told.see(EMPTY, PLENTY, EMPTY, EMPTY, PLENTY) == [
        IS_EMPTY,
        known_again(1),
        IS_EMPTY,
        known_again(2),
    ]


@fault("a second cause while the figures are unknown")
def test_trouble_that_comes_and_goes_each_second_is_said_a_limited_number_of_times(
    told: Told,
) -> None:
    flapping: list[Measured] = [EMPTY, PLENTY] * 300

    lines = told.see(*flapping)

    minutes = 600 / LINES_S
    assert lines[: 2 * LINES] == [IS_EMPTY, known_again(1)] * LINES
    assert lines.count(IS_EMPTY) <= LINES * (minutes + 1)
    # Whoever reads the log is never left with the wrong word for long.
    assert lines.count(IS_EMPTY) == lines.count(known_again(1))


def test_cause_of_another_wording_each_time_is_limited_too(told: Told) -> None:
    lines = told.see(*[Unknown("available memory", f"holds {n}") for n in range(600)])

    assert len(lines) <= LINES * (600 / LINES_S + 1)


def test_trouble_that_is_held_back_and_stays_is_said_in_the_end(told: Told) -> None:
    flapping: list[Measured] = [EMPTY, PLENTY] * (2 * LINES)
    told.see(*flapping)

    assert told.see(*[DENIED] * int(LINES_S)) == [IS_DENIED]


def test_switched_off_and_on_are_said_once_each(told: Told) -> None:
    assert told.see(PLENTY, OFF, OFF, OFF, PLENTY, PLENTY) == [IS_OFF, IS_ON]


def test_switched_off_at_the_start_is_said(told: Told) -> None:
    assert told.see(OFF, OFF) == [IS_OFF]


def test_switched_off_after_trouble_ends_the_trouble(told: Told) -> None:
    assert told.see(EMPTY, OFF, OFF, PLENTY) == [IS_EMPTY, IS_OFF, IS_ON]


def test_trouble_while_switched_off_is_said_and_how_it_ends(told: Told) -> None:
    assert told.see(OFF, NO_MARGIN, PLENTY) == [
        IS_OFF,
        SourceUnknown("the margin", "it is empty"),
        known_again(1, "the margin"),
        IS_ON,
    ]


def test_switch_that_is_flipped_each_second_is_said_a_limited_number_of_times(told: Told) -> None:
    flapping: list[Measured] = [OFF, PLENTY] * 300

    lines = told.see(*flapping)

    assert lines[:4] == [IS_OFF, IS_ON] * 2
    assert len(lines) <= 2 * LINES * (600 / LINES_S + 1)


def test_trouble_beside_a_reading_is_said_once_until_it_has_ended(told: Told) -> None:
    def note(line: str) -> list[SourceEvent]:
        told.notices.note_trouble("cgroups", line)
        return told.see(PLENTY)

    assert [note(line) for line in ("", "a", "a", "b", "", "b")] == [
        [],
        [SourceTrouble("a")],
        [],
        [SourceTrouble("b")],
        [],
        [SourceTrouble("b")],
    ]


def test_notices_nobody_takes_are_bounded(told: Told) -> None:
    for _ in range(1000):
        told.notices.note_reading(EMPTY)
        told.notices.note_reading(PLENTY)
        told.now_s += LINES_S

    assert len(list(told.lines())) <= 8
