"""An event as the log has it: level, event word, message, fields. Pure."""

from enum import IntEnum
from typing import NamedTuple


class Level(IntEnum):
    """How much a line matters; the numbers are syslog(3)'s, as systemd's journal takes them."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Line(NamedTuple):
    """One line, before it is text or JSON.

    Attributes:
        level: how much it matters.
        word: the event's class, in small letters and hyphens.
        message: the sentence, without the VM's name.
        fields: for machines: numbers and names, by their key in JSON.
    """

    level: Level
    word: str
    message: str
    fields: dict[str, object]


def unless(quiet: bool) -> Level:
    """The level of a line that is worth reading unless it comes often."""
    return Level.DEBUG if quiet else Level.INFO


def more(suppressed: int) -> str:
    """How many events like this one were left out, for the end of a message."""
    return f" ({suppressed} more like it)" if suppressed else ""
