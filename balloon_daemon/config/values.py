"""Checks values as operators write them in the configuration file.

Each parser takes a value of TOML, which may be of any type, and raises ConfigError, whose text
shows the value and names the remedy.
"""

import os
from collections.abc import Callable
from pathlib import Path

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.sizing.vm_settings import Profile
from balloon_daemon.units import parse_memory_size

PRIORITIES = range(-1000, 1001)

MOST_PATH_BYTES = 107
"""The longest path of a Unix socket (unix(7))."""

_SHOWN = 60


def shown(value: object) -> str:
    """A value for a message, as the configuration file writes it; a long one is shortened."""
    match value:
        case str():
            text = f'"{printable(value)}"'
        case bool():
            text = str(value).lower()
        case dict():
            text = "a table"
        case list():
            # The first items alone: a list may have a hundred thousand.
            text = f"[{', '.join(map(shown, value[:_SHOWN]))}]"
        case _:
            try:
                text = printable(str(value))
            except ValueError:  # a hexadecimal number with more digits than Python prints
                text = "that number"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _text(value: object, what: str, example: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f'{shown(value)} is no {what}; write it like "{example}"')
    if not value.isprintable() or not value:
        raise ConfigError(f"{shown(value)} is empty or not printable; name {what} like {example}")
    return value


def parse_size_value(value: object) -> int:
    """An amount of memory of a VM or a host, in bytes."""
    return parse_memory_size(_text(value, "size", "512M"))


def parse_ceiling(value: object) -> int:
    """The most that a balloon may take, in bytes; 0 where it may take nothing."""
    return 0 if value in (0, "0") and value is not False else parse_size_value(value)


def parse_priority(value: object) -> int:
    """A VM's priority."""
    if type(value) is not int or value not in PRIORITIES:
        least, most = PRIORITIES[0], PRIORITIES[-1]
        raise ConfigError(f"{shown(value)} is no whole number from {least} to {most}")
    return value


def parse_profile(value: object) -> Profile:
    """A profile, by its name."""
    names = [profile.value for profile in Profile]
    if value not in names:
        written = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ConfigError(f"{shown(value)} is no profile; write {written}")
    return Profile(value)


def parse_truth(value: object) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise ConfigError(f"{shown(value)} is neither true nor false; write one, without quotes")
    return value


def parse_path(value: object) -> Path:
    """An absolute path: a relative one would depend on the directory where balloond starts."""
    path = _text(value, "path", "/run/balloond/web.sock")
    if not path.startswith("/"):
        raise ConfigError(f"{shown(path)} is a relative path; write it from / on")
    return Path(path)


def parse_socket_path(value: object) -> Path:
    """An absolute path that can be a Unix socket's."""
    path = parse_path(value)
    if len(os.fsencode(path)) > MOST_PATH_BYTES:
        raise ConfigError(
            f"{shown(str(path))} is too long: a socket's path has at most "
            f"{MOST_PATH_BYTES} bytes; name a shorter"
        )
    return path


def parse_api(value: object) -> Path:
    """The path of the API's socket, or "none"."""
    return Path("none") if value == "none" else parse_socket_path(value)


def parse_pattern(value: object) -> str:
    """A pattern of absolute paths."""
    return str(parse_path(value))


def parse_libvirt_uri(value: object) -> str:
    """The URI of a libvirt connection to this host."""
    uri = _text(value, "libvirt URI", "qemu:///system")
    scheme, colon, rest = uri.partition("://")
    if not colon or not scheme:
        raise ConfigError(f"{shown(uri)} is no libvirt URI; write it like qemu:///system")
    transport = scheme.partition("+")[2]
    if transport not in ("", "unix") or not rest.startswith("/"):
        raise ConfigError(f"{shown(uri)} is another host's; run a balloond there")
    return uri


def parse_list(parse: Callable[[object], str]) -> Callable[[object], tuple[str, ...]]:
    """Parses a list by its items' parser; its ConfigError has a line for each wrong item."""

    def parse_items(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise ConfigError(f"{shown(value)} is no list; write it in brackets, [{shown(value)}]")
        items: dict[str, None] = {}
        mistakes = []
        for each in value:
            try:
                item = parse(each)
            except ConfigError as err:
                mistakes.append(str(err))
                continue
            if item in items:
                mistakes.append(f"{shown(item)} is there twice; name it once")
            items[item] = None
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        return tuple(items)

    return parse_items
