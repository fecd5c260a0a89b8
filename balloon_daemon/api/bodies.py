"""Takes and checks each value in a request, or refuses the request with a sentence. Pure."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from balloon_daemon.commands import MOST_HOLD_S
from balloon_daemon.errors import printable
from balloon_daemon.units import MOST_MEMORY_BYTES

HOLD_S = 600.0
"""How long a set size, a pause, a reclaim or a reserve holds where the request does not say."""

NAME_SHOWN = 80
"""An error's text repeats this many characters, at most, of a name that a client sent."""


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: the status code.
        sentence: what is wrong, and the remedy.
        allow: the methods that the path has; "": the refusal is not about the method.
    """

    def __init__(self, status: int, sentence: str, allow: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.allow = allow


def size_of(body: Mapping[str, Any]) -> int:
    """The value of ``size_bytes`` in a body."""
    size = body.get("size_bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MOST_MEMORY_BYTES:
        raise RefusedError(400, "size_bytes must be a whole number of bytes, 0 or more")
    return size


def time_of(
    body: Mapping[str, Any], key: str, default_s: float = HOLD_S, most_s: float = MOST_HOLD_S
) -> float:
    """The seconds that a body has under a key."""
    time_s = body.get(key, default_s)
    if type(time_s) not in (int, float) or not 1 <= time_s <= most_s:
        raise RefusedError(400, f"{key} must be from 1 to {most_s:.0f} seconds")
    return float(time_s)


def asked_of(query: str) -> dict[str, str]:
    """The names and values of a query."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8
        )
    except ValueError:
        raise RefusedError(400, "the query is not NAME=VALUE, joined by &") from None
    asked = dict(pairs)
    if len(asked) < len(pairs):
        raise RefusedError(400, "the query names something twice")
    return asked


def truth_of(text: str) -> bool:
    """The truth value that a query has for ``follow``."""
    if text not in ("true", "false"):
        raise RefusedError(400, f"follow is {cut(text)}; it must be true or false")
    return text == "true"


def cut(text: str) -> str:
    """What an error's text repeats of a text that a client sent."""
    shown = printable(text)
    return shown if len(shown) <= NAME_SHOWN else f"{shown[:NAME_SHOWN]}…"
