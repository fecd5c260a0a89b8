"""Sizes and times as flags of ``balloonctl`` have them: from text to number."""

import argparse
import re

from balloon_daemon.errors import ConfigError
from balloon_daemon.units import parse_memory_size

MOST_HOLD_S = 86_400
"""The longest time that the API takes (``commands.MOST_HOLD_S``)."""

MOST_WITHIN_S = 600
"""The longest time for which the API tries (``commands.MOST_WITHIN_S``)."""

LEAST_PAUSE_S = 0.05
"""The shortest time between two looks of ``top``: each costs the controller some milliseconds."""


def size(text: str) -> int:
    """A size in bytes: ``512M``, ``0``. Raises ArgumentTypeError: it is none."""
    try:
        return 0 if text == "0" else parse_memory_size(text)
    except ConfigError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def parsed_time(text: str) -> float:
    """A time in seconds: ``90s``, ``10m``, ``2h``. Raises ArgumentTypeError: it is none."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m|h)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it like 90s, 10m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def pause(text: str) -> float:
    """The time between two looks of ``top``, in seconds. Raises ArgumentTypeError: it is none."""
    time_s = parsed_time(text)
    if not LEAST_PAUSE_S <= time_s <= MOST_HOLD_S:
        raise argparse.ArgumentTypeError(
            f"{text} is not from {LEAST_PAUSE_S}s to {MOST_HOLD_S // 3600}h"
        )
    return time_s


def hold(text: str) -> float:
    """A time that the API takes, in seconds. Raises ArgumentTypeError: it is none."""
    time_s = parsed_time(text)
    if not 1 <= time_s <= MOST_HOLD_S:
        raise argparse.ArgumentTypeError(f"{text} is not from 1s to {MOST_HOLD_S // 3600}h")
    return time_s


def within(text: str) -> float:
    """How long to try, in seconds. Raises ArgumentTypeError: it is none."""
    time_s = parsed_time(text)
    if not 1 <= time_s <= MOST_WITHIN_S:
        raise argparse.ArgumentTypeError(f"{text} is not from 1s to {MOST_WITHIN_S // 60}m")
    return time_s


def positive_size(text: str) -> int:
    """A size of more than nothing, in bytes. Raises ArgumentTypeError: it is none."""
    size_bytes = size(text)
    if not size_bytes:
        raise argparse.ArgumentTypeError(f"{text} is nothing; write it like 512M or 1.5G")
    return size_bytes
