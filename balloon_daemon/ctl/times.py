"""Times as people write them."""

import re

from balloon_daemon.errors import ConfigError, printable

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Parses a time: ``500ms``, ``2s``, ``1.5m``, ``1h``, ``2d``; in seconds.

    Raises:
        ConfigError: the text is no such time.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{printable(text)!r} is no time; write it like 500ms, 90s, 10m, 2h or 1d"
        )
    number, unit = match.groups()
    return float(number) * _SECONDS[unit]
