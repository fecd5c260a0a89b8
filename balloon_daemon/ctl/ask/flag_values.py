"""Sizes and times as flags of ``balloonctl`` have them: from text to number."""

import argparse

from balloon_daemon.ctl.times import parse_duration
from balloon_daemon.errors import ConfigError
from balloon_daemon.units import parse_memory_size

MOST_HOLD_S = 86_400
"""The longest time for which the API holds a size, a pause or a reserve
(``commands.MOST_HOLD_S``)."""

MOST_WITHIN_S = 600
"""The longest time for which a reclaim or a reserve may wait for memory
(``commands.MOST_WITHIN_S``)."""

LEAST_PAUSE_S = 0.05
"""The shortest time between two requests of ``top``: each costs the controller some
milliseconds."""


def size(text: str) -> int:
    """A size in bytes: ``512M``, ``0``. Raises ArgumentTypeError: the text is no size."""
    try:
        return 0 if text == "0" else parse_memory_size(text)
    except ConfigError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def parsed_time(text: str) -> float:
    """A time in seconds: ``90s``, ``10m``, ``1d``. Raises ArgumentTypeError: the text is no
    time."""
    try:
        return parse_duration(text)
    except ConfigError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def recording(text: str) -> float:
    """How long to record, in seconds. Raises ArgumentTypeError: it is no such time."""
    if (time_s := parsed_time(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time to record; name a longer one")
    return time_s


def pause(text: str) -> float:
    """The time between two requests of ``top``, in seconds. Raises ArgumentTypeError: the text is
    no time, or a shorter or longer one than ``top`` allows."""
    time_s = parsed_time(text)
    if not LEAST_PAUSE_S <= time_s <= MOST_HOLD_S:
        raise argparse.ArgumentTypeError(
            f"{text} is not from {LEAST_PAUSE_S}s to {MOST_HOLD_S // 3600}h"
        )
    return time_s


def hold(text: str) -> float:
    """How long a size, a pause or a reserve is to hold, in seconds. Raises ArgumentTypeError: the
    API would refuse this time."""
    time_s = parsed_time(text)
    if not 1 <= time_s <= MOST_HOLD_S:
        raise argparse.ArgumentTypeError(f"{text} is not from 1s to {MOST_HOLD_S // 3600}h")
    return time_s


def within(text: str) -> float:
    """How long a reclaim or a reserve may wait for memory, in seconds. Raises ArgumentTypeError:
    the API would refuse this time."""
    time_s = parsed_time(text)
    if not 1 <= time_s <= MOST_WITHIN_S:
        raise argparse.ArgumentTypeError(f"{text} is not from 1s to {MOST_WITHIN_S // 60}m")
    return time_s


def positive_size(text: str) -> int:
    """A size of more than nothing, in bytes. Raises ArgumentTypeError: the text is no such
    size."""
    size_bytes = size(text)
    if not size_bytes:
        raise argparse.ArgumentTypeError(f"{text} is nothing; write it like 512M or 1.5G")
    return size_bytes
