"""Reads the configuration file: text to ``Config``, or all of its mistakes.

The file's reference is ``docs/config.md``. Reading is strict: an unknown key is a mistake, not a
hint for a later version. Every mistake is one line that names file, table and key, and the remedy;
all of them are found in one go.
"""

import os
import posixpath
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from balloon_daemon.config.model import Config
from balloon_daemon.config.values import (
    parse_ceiling,
    parse_libvirt_uri,
    parse_list,
    parse_path,
    parse_pattern,
    parse_priority,
    parse_profile,
    parse_size_value,
    parse_socket_path,
    shown,
)
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.errors import ConfigError, ConfigFileError, printable
from balloon_daemon.linux.bounded_file import read_bounded, why_unreadable
from balloon_daemon.linux.directories import others_may_write
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import format_size

LIMIT_BYTES = 1 << 20
"""The largest file that is read; a VM takes some hundred bytes."""

MOST_NAME = 64
"""The most characters of a VM's name, as in the store of VMs (``handover/state.py``)."""

HOST_KEYS = ("margin", "low_mem_dir", "socket")
WAYS = tuple(kind.value for kind in Kind)
"""The keys that say how a VM is reached."""
VM_KEYS = (*WAYS, "memory", "floor", "ceiling", "priority", "profile")
DISCOVER_KEYS = (Kind.LIBVIRT.value, Kind.QMP.value)

_AGAIN = re.compile("twice|overwrite")
"""How tomllib says that a table or a key is there already."""

T = TypeVar("T")
Default = TypeVar("Default")


def read_config(path: Path) -> Config:
    """The settings in a configuration file.

    Args:
        path: the file. Where root reads it, nobody else may be able to write it: whoever can write
            it decides how much memory VMs keep, and where root makes sockets.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigFileError: the file cannot be read or trusted, or has mistakes.
    """
    file = printable(str(path))
    try:
        content, status = read_bounded(str(path), os.fspath(path), LIMIT_BYTES)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as err:  # ValueError: a NUL byte in the path
        why = why_unreadable(err) if isinstance(err, OSError) else str(err)
        raise ConfigFileError([f"{file}: {why}"]) from err
    if why := _why_not_trusted(path, status):
        raise ConfigFileError([f"{file}: {why}"])
    try:
        text = content.decode()
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise ConfigFileError([f"{file}: line {line} is not UTF-8; save it as UTF-8"]) from err
    return parse_config(text, file)


def _why_not_trusted(path: Path, status: os.stat_result) -> str:
    if os.geteuid() != 0:
        return ""
    if status.st_uid != 0:
        return f"belongs to user {status.st_uid}, who could change it; chown root it"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write it (mode {stat.S_IMODE(status.st_mode):o}); chmod go-w it"
    why = others_may_write(path.parent)
    return why and f"{why}: it could be replaced; move it to a directory of root's"


def parse_config(text: str, file: str) -> Config:
    """The settings in a configuration file's text.

    Args:
        text: TOML 1.0.
        file: the file's name, for messages.

    Raises:
        ConfigFileError: it has mistakes.
    """
    import tomllib  # imported here: a balloond without a configuration file does without it

    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as err:
        # ValueError: also of a number with thousands of digits. RecursionError: of thousands of
        # brackets.
        why = "is nested too deeply" if isinstance(err, RecursionError) else printable(str(err))
        again = "; each table and key may be there once" if _AGAIN.search(why) else ""
        raise ConfigFileError([f"{file}: is no TOML: {why}{again}"]) from err
    mistakes: list[str] = []
    top = _Table("", content, mistakes)
    host = _Table("[host]", top.pop("host"), mistakes)
    vms = _Table("[vm]", top.pop("vm"), mistakes)
    discover = _Table("[discover]", top.pop("discover"), mistakes)
    config = Config(
        socket=host.take("socket", parse_socket_path, None),
        low_mem_dir=host.take("low_mem_dir", parse_path, None),
        margin_bytes=host.take("margin", parse_size_value, None),
        vms=tuple(_vm(name, vms.pop(name), mistakes) for name in list(vms.left)),
        discover=Discover(
            libvirt=discover.take("libvirt", parse_list(parse_libvirt_uri), ()),
            qmp=discover.take("qmp", parse_list(parse_pattern), ()),
        ),
        profile=Profile.CAREFUL,
    )
    top.end(("host", "vm", "discover"))
    host.end(HOST_KEYS)
    discover.end(DISCOVER_KEYS)
    mistakes += reached_twice(config)
    if mistakes:
        raise ConfigFileError([f"{file}: {mistake}" for mistake in mistakes])
    return config


def reached_twice(config: Config) -> Iterator[str]:
    """The sockets that are named by two VMs, or by a VM and as ``socket``; a line each."""
    whose = {} if config.socket is None else {str(config.socket): "[host] socket"}
    for vm in config.vms:
        # Several VMs may have one libvirt connection: each is the domain of its name.
        if vm.kind is Kind.LIBVIRT or not vm.address:
            continue
        key = f"{table_of(vm.name)} {vm.kind.value}"
        other = whose.setdefault(posixpath.normpath(vm.address), key)
        if other != key:
            yield f"{key}: {printable(vm.address)} is {other} already; name each socket once"


def table_of(name: str) -> str:
    """The table of a VM, as the file has it."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return f"[vm.{name}]" if bare else f'[vm."{printable(name)}"]'


class _Table:
    """One table of the file, whose keys are taken one by one.

    Args:
        name: the table as the file has it; "": the file itself.
        content: what is there.
        mistakes: gets what is wrong, without the file's name.
    """

    def __init__(self, name: str, content: object, mistakes: list[str]) -> None:
        self._name = name
        self._mistakes = mistakes
        self.left: dict[str, object] = {}
        """The keys that were not taken yet, in the file's order."""
        if isinstance(content, dict):
            self.left = dict(content)
        else:
            self.mistake("", f"{shown(content)} is no table; write its keys below {name}")

    def pop(self, key: str) -> object:
        """Takes a table's content, whatever it is; an empty table where it is missing."""
        return self.left.pop(key, {})

    def take(self, key: str, parse: Callable[[object], T], default: Default) -> T | Default:
        """Takes a key's value; the default where the key is missing or its value is wrong."""
        if key not in self.left:
            return default
        try:
            return parse(self.left.pop(key))
        except ConfigError as err:
            self.mistake(key, str(err))
            return default

    def mistake(self, key: str, what: str) -> None:
        """Notes what is wrong with a key; "": with the table."""
        place = " ".join(word for word in (self._name, printable(key)) if word)
        self._mistakes.append(f"{place}: {what}" if place else what)

    def end(self, known: Iterable[str]) -> None:
        """Notes every key that was not taken as unknown."""
        for key, value in self.left.items():
            what = "table" if isinstance(value, dict) else "key"
            hint = _nearest(key, known)
            if what == "table" and self._name.startswith("[vm.") and not hint:
                hint = '; a name with a dot is written in quotes, as in [vm."web.example"]'
            self.mistake(key, f"there is no such {what}{hint}")


def _vm(name: str, content: object, mistakes: list[str]) -> VmConfig:
    table = _Table(table_of(name), content, mistakes)
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= MOST_NAME:
        table.mistake("", f"a name has 1 to {MOST_NAME} printable characters; give it another")
    named = [kind for kind in Kind if kind.value in table.left]
    kind = named[0] if named else Kind.QMP
    parse: Callable[[object], object] = (
        parse_libvirt_uri if kind is Kind.LIBVIRT else parse_socket_path
    )
    address = str(table.take(kind.value, parse, ""))
    for other in named[1:]:
        table.pop(other.value)
        table.mistake(other.value, f"it has {kind.value} too; name one way to reach a VM")
    vm_mem_bytes = table.take("memory", parse_size_value, None)
    if vm_mem_bytes is not None and kind is not Kind.VHOST_USER and named:
        table.mistake("memory", f"only for vhost_user; a VM's size by {kind.value} is its VMM's")
    settings = VmSettings(
        floor_bytes=table.take("floor", parse_size_value, None),
        ceiling_bytes=table.take("ceiling", parse_ceiling, None),
        priority=table.take("priority", parse_priority, 0),
        profile=table.take("profile", parse_profile, Profile.CAREFUL),
    )
    floor_bytes = settings.floor_bytes
    if floor_bytes is not None and vm_mem_bytes is not None and floor_bytes > vm_mem_bytes:
        memory = format_size(vm_mem_bytes)
        table.mistake("floor", f"{format_size(floor_bytes)} is more than its memory, {memory}")
    table.end(VM_KEYS)
    # A misspelt one of WAYS is an unknown key already: do not report it twice.
    if (
        not named
        and isinstance(content, dict)
        and not any(_nearest(key, WAYS) for key in table.left)
    ):
        table.mistake("", f"nothing says how to reach it; add one of {', '.join(WAYS)}")
    return VmConfig(name, kind, address, settings, vm_mem_bytes)


def _nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, as the end of a message; nothing where none is near."""
    import difflib  # imported here: needed after a mistake only

    near = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
