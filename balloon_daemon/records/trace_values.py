"""Takes the values in a line of a trace one by one, and says what is wrong with them. Pure."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from balloon_daemon.errors import BalloondError

MOST_NUMBER = 1 << 64

T = TypeVar("T")


class TraceError(BalloondError):
    """A trace, or a line of one, that no balloond of this version has written."""


class Content:
    """One line's object, whose keys are taken one by one."""

    def __init__(self, line: bytes) -> None:
        try:
            self.left = json.loads(line)
        except (ValueError, RecursionError):
            raise TraceError("is no JSON") from None
        if not isinstance(self.left, dict):
            raise TraceError("is no object")

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


def number(value: object) -> float:
    """A number of 0 or more; raises TraceError."""
    # A comparison with NaN is false, and so NaN is refused too.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < MOST_NUMBER
    ):
        raise TraceError("is no number of 0 or more")
    return value


def integer(value: object) -> int:
    """A whole number of 0 or more; raises TraceError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_NUMBER:
        raise TraceError("is no whole number of 0 or more")
    return value


def signed(value: object) -> int:
    """A whole number; raises TraceError."""
    return -integer(-value) if isinstance(value, int) and value < 0 else integer(value)


def text(value: object) -> str:
    """A text; raises TraceError."""
    if not isinstance(value, str):
        raise TraceError("is no text")
    return value


def truth(value: object) -> bool:
    """True or False; raises TraceError."""
    if not isinstance(value, bool):
        raise TraceError("is neither true nor false")
    return value


def or_none(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    """Gives a parser that takes null, too."""
    return lambda value: None if value is None else parse(value)


def rows(value: object, width: int) -> list[list[object]]:
    """A list of lists of ``width`` values; raises TraceError."""
    if not isinstance(value, list):
        raise TraceError("is no list")
    if not all(isinstance(row, list) and len(row) == width for row in value):
        raise TraceError(f"is no list of lists of {width}")
    return value
