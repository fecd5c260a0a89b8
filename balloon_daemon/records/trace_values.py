"""The values of a trace's lines, each taken and checked by one function. Pure.

Every function raises TraceError for another value.
"""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from balloon_daemon.errors import BalloondError, ConfigError
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import Seen
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings

MOST_NUMBER = 1 << 64

MOST_BEGAN_S, MOST_CLOCK_S = 1 << 37, 1 << 32
"""The latest beginning of a trace, in the year 6325, and the latest time of a line, 136 years
after its host has booted: localtime(3) can convert both, and their sum."""

T = TypeVar("T")


class TraceError(BalloondError):
    """A trace, or a line of one, that no balloond of this version has written."""


class Content:
    """One object, whose keys are taken one by one: a line, or a value in it."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise TraceError("is no object")
        self.left = value

    @classmethod
    def of_line(cls, line: bytes) -> "Content":
        """A line's object. Raises TraceError: the line has none."""
        try:
            return cls(json.loads(line))
        except (ValueError, RecursionError):
            raise TraceError("is no JSON") from None

    def take(self, key: str, parse: Callable[[Any], T], *default: T) -> T:
        """Takes a key's value. Raises TraceError: it is wrong, or missing without a default."""
        if key not in self.left:
            if default:
                return default[0]
            raise TraceError(f"{key}: is missing")
        try:
            return parse(self.left.pop(key))
        except TraceError as err:
            raise TraceError(f"{key}: {err}") from None

    def end(self) -> None:
        """Raises TraceError: a key was not taken."""
        for key in self.left:
            raise TraceError(f"there is no such key here: {key[:40]!r}")


def parsed_number(value: object) -> float:
    """A number of 0 or more."""
    # A comparison with NaN is false, and so NaN is refused too.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < MOST_NUMBER
    ):
        raise TraceError("is no number of 0 or more")
    return value


def parsed_began(value: object) -> float:
    """When a trace began, in seconds since the epoch."""
    return _below(MOST_BEGAN_S, value)


def parsed_clock(value: object) -> float:
    """When a line was written, in seconds on the host's clock."""
    return _below(MOST_CLOCK_S, value)


def _below(most: int, value: object) -> float:
    number = parsed_number(value)
    if number >= most:
        raise TraceError("is a time that no clock has")
    return number


def parsed_integer(value: object) -> int:
    """A whole number of 0 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_NUMBER:
        raise TraceError("is no whole number of 0 or more")
    return value


def parsed_signed(value: object) -> int:
    """A whole number, perhaps below 0."""
    return (
        -parsed_integer(-value) if isinstance(value, int) and value < 0 else parsed_integer(value)
    )


def parsed_text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise TraceError("is no text")
    return value


def parsed_truth(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TraceError("is neither true nor false")
    return value


def or_none(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """What ``parse`` makes of a value; None for None."""
    return lambda value: None if value is None else parse(value)


def rows_of(value: object, width: int) -> list[list[object]]:
    """A list of lists that have ``width`` values each."""
    if not isinstance(value, list):
        raise TraceError("is no list")
    if not all(isinstance(row, list) and len(row) == width for row in value):
        raise TraceError(f"is no list of lists of {width}")
    return value


def list_of(parse: Callable[[object], T], value: object) -> tuple[T, ...]:
    """What ``parse`` makes of each value of a list."""
    if not isinstance(value, list):
        raise TraceError("is no list")
    return tuple(map(parse, value))


def parsed_draws(value: object) -> tuple[float, ...]:
    """Random numbers of [0, 1)."""
    draws = list_of(parsed_number, value)
    if any(draw >= 1 for draw in draws):
        raise TraceError("has a number of 1 or more")
    return draws


def parsed_reason(value: object) -> Reason:
    """The reason of a decision."""
    try:
        return Reason(value)
    except ValueError:
        raise TraceError("is no reason of this balloond's") from None


def parsed_profile(value: object) -> Profile:
    """A VM's profile."""
    try:
        return Profile(value)
    except ValueError:
        raise TraceError("is no profile of this balloond's") from None


def parsed_settings(value: object) -> PolicySettings:
    """The numbers of ChromeOS's balloon policy."""
    names = [field.name for field in fields(PolicySettings)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise TraceError(f"has not the keys {', '.join(names)}")
    steps = parsed_integer(value["steps"])
    try:
        return PolicySettings(steps, *(parsed_number(value[name]) for name in names[1:]))
    except ConfigError as err:
        raise TraceError(str(err)) from None


def taken_seen(content: Content) -> Seen:
    """A reading of the low-memory source, from the keys of a line."""
    if content.take("unknown", parsed_truth, False):
        return None
    if (why := content.take("never_low", or_none(parsed_text), None)) is not None:
        return NeverLow(why)
    available, margin = (
        content.take("available", parsed_signed),
        content.take("margin", parsed_integer),
    )
    return Reading(available, margin, content.take("within", parsed_text, ""))


def taken_size(content: Content) -> tuple[int, int, Terms]:
    """A VM's size, its balloon's size, and its ``Terms`` (settings and abilities), from the keys
    of a line."""
    settings = taken_vm_settings(content)
    stats = content.take("sends_stats", parsed_truth)
    deflates = content.take("deflates_on_oom", parsed_truth)
    memory = content.take("memory", parsed_integer)
    balloon = content.take("balloon", parsed_integer)
    return memory, balloon, Terms(settings, stats, deflates)


def taken_vm_settings(content: Content) -> VmSettings:
    """A VM's settings, from the keys of a line."""
    return VmSettings(
        content.take("floor", or_none(parsed_integer)),
        content.take("ceiling", or_none(parsed_integer)),
        content.take("priority", parsed_signed),
        content.take("profile", parsed_profile),
    )
