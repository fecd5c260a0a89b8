"""Gathers what configuration files set, key by key, and finds what is wrong with it."""

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from balloon_daemon.config.entries import (
    UNREADABLE,
    Entry,
    Key,
    Origin,
    Where,
    key_said,
    table_said,
)
from balloon_daemon.config.metrics_place import MetricsPlace, parse_metrics
from balloon_daemon.config.model import Config
from balloon_daemon.config.values import (
    parse_api,
    parse_ceiling,
    parse_libvirt_uri,
    parse_list,
    parse_path,
    parse_pattern,
    parse_priority,
    parse_profile,
    parse_size_value,
    parse_socket_path,
    parse_truth,
    shown,
)
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import format_size

MOST_NAME = 64
"""The most characters of a VM's name, as in the store of VMs (``handover/state.py``)."""

Parse = Callable[[object], object]
"""Makes a setting of TOML's value, or raises ConfigError with a line for each mistake."""

HOST: Mapping[str, Parse] = {
    "margin": parse_size_value,
    "low_mem_dir": parse_path,
    "socket": parse_socket_path,
    "api": parse_api,
    "history": parse_path,
    "record": parse_path,
    "metrics": parse_metrics,
    "dry_run": parse_truth,
    "profile": parse_profile,
}
"""The keys of ``[host]``, each with its parser."""

WAYS: Mapping[str, Parse] = {
    kind.value: parse_libvirt_uri if kind is Kind.LIBVIRT else parse_socket_path for kind in Kind
}
"""The keys of ``[vm.NAME]`` that say how the VM is reached."""

VM: Mapping[str, Parse] = {
    **WAYS,
    "memory": parse_size_value,
    "floor": parse_size_value,
    "ceiling": parse_ceiling,
    "priority": parse_priority,
    "profile": parse_profile,
}
"""The keys of ``[vm.NAME]``."""

DISCOVER: Mapping[str, Parse] = {
    Kind.LIBVIRT.value: parse_list(parse_libvirt_uri),
    Kind.QMP.value: parse_list(parse_pattern),
}
"""The keys of ``[discover]``."""

_TABLES = {"host": HOST, "vm": VM, "discover": DISCOVER}
_HOMES = {"[host]": HOST, "[vm.NAME]": VM, "[discover]": DISCOVER}

T = TypeVar("T")
Default = TypeVar("Default")


class Gathered:
    """The settings that several files make together.

    Attributes:
        origins: where each key was set; the last place of several counts.
        is_complete: False: some statement could not be parsed, so nobody knows which key it sets.
    """

    def __init__(self) -> None:
        self.origins: dict[Key, tuple[Origin, ...]] = {}
        self.is_complete = True
        self._mistakes: list[tuple[Where, str]] = []
        self._values: dict[Key, object] = {}
        """The value of each key that is set without a mistake."""
        self._vms: dict[str, Where] = {}
        """The VMs, and the place where each is named first."""
        self._misspelt: set[str] = set()
        """The VMs with an unknown key that may have been meant to say how to reach them."""

    def note(self, where: Where, what: str) -> None:
        """Notes a mistake."""
        self._mistakes.append((where, what))

    def mistakes(self) -> list[str]:
        """All mistakes, a line each, in the order of the files and their lines."""
        found = sorted(self._mistakes, key=lambda each: each[0][:2])
        return [f"{where}: {what}" for where, what in found]

    def take(self, entries: Iterable[Entry], file: str, order: int) -> None:
        """Takes the tables and keys of a file; its values override those of files before it.

        Args:
            entries: the file's tables and keys.
            file: its path.
            order: how many files were before it.
        """
        here: set[Key] = set()
        for path, value, line in entries:
            where = Where(order, line, 0, file)
            match path:
                case ("vm", name) if isinstance(value, dict):
                    self._name(name, where)
                case ("host" | "discover" as table, _) | ("vm" as table, _, _):
                    # TOML forbids a key that is twice in one file: ``statements`` has noted the
                    # mistake already, and the first value stays.
                    self._key(path, _TABLES[table], value, where, again=path in here)
                case (table,) if table not in _TABLES:
                    self._unknown(path, value, where, _TABLES)
                case ("vm", key) if key in VM and not isinstance(value, dict):
                    written = "" if value is UNREADABLE else f" = {shown(value)}"
                    said = "this VM has no name; write [vm.NAME] in place of [vm]"
                    self.note(where, f"{key_said(path)}{written}: {said}")
                case (_,) | ("vm", _) if not isinstance(value, dict) and value is not UNREADABLE:
                    table = table_said(path)
                    said = f"{shown(value)} is no table; write its keys below {table}"
                    self.note(where, f"{table}: {said}")
            here.add(path)

    def _name(self, name: str, where: Where) -> None:
        if name in self._vms:
            return
        self._vms[name] = where
        if not name.isprintable() or name != name.strip() or not 0 < len(name) <= MOST_NAME:
            said = f"a name has 1 to {MOST_NAME} printable characters; give it another"
            self.note(where, f"{table_said(('vm', name))}: {said}")

    def _key(
        self, path: Key, known: Mapping[str, Parse], value: object, where: Where, *, again: bool
    ) -> None:
        parse = known.get(path[-1])
        if parse is None:
            self._unknown(path, value, where, known)
            return
        if not again:
            self.origins[path] = (*self.origins.get(path, ()), Origin(where, value))
            self._values.pop(path, None)
        if value is UNREADABLE:
            return
        try:
            parsed = parse(value)
        except ConfigError as err:
            for said in str(err).splitlines():
                self.note(where, f"{key_said(path)}: {said}")
            return
        if not again:
            self._values[path] = parsed

    def _unknown(self, path: Key, value: object, where: Where, known: Iterable[str]) -> None:
        """Notes a table or a key that balloond does not know."""
        key, is_table = path[-1], isinstance(value, dict)
        hint = nearest(key, known)
        if path[0] == "vm":
            if nearest(key, WAYS):
                self._misspelt.add(path[1])
            if is_table and not hint:
                hint = '; a name with a dot is written in quotes, as in [vm."web.example"]'
        homes = [home for home, keys in _HOMES.items() if key in keys]
        if homes and not hint:
            hint = f"; it belongs in {' or '.join(homes)}"
        written = "" if is_table or value is UNREADABLE else f" = {shown(value)}"
        what = "table" if is_table else "key"
        self.note(where, f"{key_said(path)}{written}: there is no such {what}{hint}")

    def config(self) -> Config:
        """The settings of all files together. Notes where they contradict each other."""
        profile = self._default_profile
        config = Config(
            socket=self._get(("host", "socket"), Path, None),
            low_mem_dir=self._get(("host", "low_mem_dir"), Path, None),
            margin_bytes=self._get(("host", "margin"), int, None),
            api=self._get(("host", "api"), Path, None),
            history=self._get(("host", "history"), Path, None),
            record=self._get(("host", "record"), Path, None),
            metrics=self._get(("host", "metrics"), MetricsPlace, None),
            dry_run=self._get(("host", "dry_run"), bool, False),
            vms=tuple(self._vm(name) for name in self._vms),
            discover=Discover(
                libvirt=self._get(("discover", "libvirt"), tuple, ()),
                qmp=self._get(("discover", "qmp"), tuple, ()),
            ),
            profile=profile,
            found_profile=profile,
            unprofiled=frozenset(
                name for name in self._vms if ("vm", name, "profile") not in self.origins
            ),
        )
        self._look_for_shared_sockets(config)
        return config

    @property
    def _default_profile(self) -> Profile:
        """The profile of VMs that name none."""
        return self._get(("host", "profile"), Profile, Profile.CAREFUL)

    def _get(self, path: Key, kind: type[T], default: Default) -> T | Default:
        """What a key is set to; the default where it is not set, or to a wrong value."""
        value = self._values.get(path)
        return value if isinstance(value, kind) else default

    def _set(self, path: Key) -> Origin:
        """The place that sets a key, and its value there; the key must be set."""
        return self.origins[path][-1]

    def _vm(self, name: str) -> VmConfig:
        ways = [kind for kind in Kind if ("vm", name, kind.value) in self.origins]
        kind = ways[0] if ways else Kind.QMP
        for other in ways[1:]:
            where, value = self._set(("vm", name, other.value))
            first = self._set(("vm", name, kind.value)).where.seen_from(where)
            self.note(
                where,
                f"{key_said(('vm', name, other.value))} = {shown(value)}: it has {kind.value} "
                f"too{first}; name one way to reach a VM",
            )
        if not ways and self.is_complete and name not in self._misspelt:
            said = f"nothing says how to reach it; add one of {', '.join(WAYS)}"
            self.note(self._vms[name], f"{table_said(('vm', name))}: {said}")
        settings = VmSettings(
            floor_bytes=self._get(("vm", name, "floor"), int, None),
            ceiling_bytes=self._get(("vm", name, "ceiling"), int, None),
            priority=self._get(("vm", name, "priority"), int, 0),
            profile=self._get(("vm", name, "profile"), Profile, self._default_profile),
        )
        vm_mem_bytes = self._get(("vm", name, "memory"), int, None)
        if vm_mem_bytes is not None and ways:
            self._look_at_memory(name, kind, vm_mem_bytes, settings.floor_bytes)
        address = self._values.get(("vm", name, kind.value), "")
        return VmConfig(name, kind, str(address), settings, vm_mem_bytes)

    def _look_at_memory(
        self, name: str, kind: Kind, vm_mem_bytes: int, floor_bytes: int | None
    ) -> None:
        if kind is not Kind.VHOST_USER:
            path = ("vm", name, "memory")
            where, value = self._set(path)
            said = f"only for vhost_user; a VM's size by {kind.value} is its VMM's"
            self.note(where, f"{key_said(path)} = {shown(value)}: {said}")
        if floor_bytes is not None and floor_bytes > vm_mem_bytes:
            path = ("vm", name, "floor")
            floor, memory = format_size(floor_bytes), format_size(vm_mem_bytes)
            said = f"{floor} is more than its memory, {memory}"
            self.note(self._set(path).where, f"{key_said(path)}: {said}; make it less")

    def _look_for_shared_sockets(self, config: Config) -> None:
        """Notes each socket that is named by two VMs, or by a VM and as ``socket``."""
        whose: dict[str, Key] = {}
        for address, path in _sockets(config):
            first = whose.setdefault(posixpath.normpath(address), path)
            if first != path:
                where = self._set(path).where
                there = self._set(first).where.seen_from(where)
                said = f"{printable(address)} is {key_said(first)} already{there}"
                self.note(where, f"{key_said(path)}: {said}; name each socket once")


def _sockets(config: Config) -> Iterator[tuple[str, Key]]:
    """The path of each socket, and the key that names it."""
    if config.socket is not None:
        yield str(config.socket), ("host", "socket")
    if config.api is not None and config.api.is_absolute():  # else it is "none"
        yield str(config.api), ("host", "api")
    for vm in config.vms:
        # Several VMs may have one libvirt connection: each is the domain of its name.
        if vm.kind is not Kind.LIBVIRT and vm.address:
            yield vm.address, ("vm", vm.name, vm.kind.value)


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, as the end of a message; nothing where none is near."""
    import difflib  # imported here: needed after a mistake only

    near = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
