"""Values of requests' bodies: each taken and checked, or refused with a sentence. Pure."""

from collections.abc import Mapping
from typing import Any

from balloon_daemon.commands import MOST_HOLD_S
from balloon_daemon.units import MOST_MEMORY_BYTES

HOLD_S = 600.0
"""For how long a balloon's size is set where nobody says how long."""


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: the status code.
        sentence: what is wrong, and the remedy.
        allow: the methods that the path has; "" where that is not the question.
    """

    def __init__(self, status: int, sentence: str, allow: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.allow = allow


def size_of(body: Mapping[str, Any]) -> int:
    """The size that a body has."""
    size = body.get("size_bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MOST_MEMORY_BYTES:
        raise RefusedError(400, "size_bytes must be a whole number of bytes, 0 or more")
    return size


def time_of(
    body: Mapping[str, Any], key: str, default_s: float = HOLD_S, most_s: float = MOST_HOLD_S
) -> float:
    """The time that a body has there."""
    time_s = body.get(key, default_s)
    if type(time_s) not in (int, float) or not 1 <= time_s <= most_s:
        raise RefusedError(400, f"{key} must be from 1 to {most_s:.0f} seconds")
    return float(time_s)
