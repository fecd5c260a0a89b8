"""The content of a log line: level, event word, message, fields. Pure."""

from enum import IntEnum

from balloon_daemon.named_tuple import NamedTuple


class Level(IntEnum):
    """The importance of a line; the numbers are syslog(3)'s, which journald understands."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Line(NamedTuple):
    """One line, before it is formatted as text or JSON.

    Attributes:
        level: its importance.
        word: the event's class in lower case, with hyphens.
        message: the sentence, without the VM's name.
        fields: for machines: numbers and names, by their key in JSON.
    """

    level: Level
    word: str
    message: str
    fields: dict[str, object]


def unless(quiet: bool) -> Level:
    """The level of a line: INFO, but DEBUG where its event is ``quiet``."""
    return Level.DEBUG if quiet else Level.INFO


def more(suppressed: int) -> str:
    """The end of a message: how many events of this kind were left out; "" for none."""
    return f" ({suppressed} more like it)" if suppressed else ""
