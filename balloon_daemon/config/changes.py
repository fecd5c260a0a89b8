"""Compares a configuration that was read anew with the one in force: which settings differ, and
which of those balloond cannot change while it runs."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

from balloon_daemon.config.entries import Key, Origin, key_said, table_said
from balloon_daemon.config.model import Config
from balloon_daemon.config.values import shown
from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.errors import printable
from balloon_daemon.units import format_size

LIVE = frozenset({"margin_bytes", "discover", "vms", "profile", "found_profile", "unprofiled"})
"""The fields of ``Config`` that may change while balloond runs."""

_REMEDY = "restart balloond, or put it back as it was"


def keep_default_socket(present: Config, wanted: Config) -> Config:
    """The wanted settings, with ``socket`` as it is at present if neither the present nor the
    wanted settings name one: the default socket is opened, or left out, at a start alone."""
    unnamed = present.socket is None or present.is_default_socket
    if unnamed and (wanted.socket is None or wanted.is_default_socket):
        kept = present.is_default_socket
        return replace(wanted, socket=present.socket, is_default_socket=kept)
    return wanted


def takes_restart(
    present: Config, wanted: Config, origins: Mapping[Key, tuple[Origin, ...]], file: str
) -> Iterator[str]:
    """A line for each setting that cannot change while balloond runs, with the remedy.

    Args:
        present: the settings in force.
        wanted: the settings that were read anew.
        origins: the file and line that set each of their keys.
        file: the configuration file's path; the line about a key that is no longer set names it.
    """
    keys = {key: origins.get(key) for key in _fixed_keys(present, wanted)}
    set_here = [(places[-1], key) for key, places in keys.items() if places]
    for (where, value), key in sorted(set_here, key=lambda each: each[0].where[:2]):
        said = f"{key_said(key)} = {shown(value)}: this takes a restart"
        yield f"{where}: {said}; {_REMEDY}"
    for key in (key for key, places in keys.items() if not places):
        said = f"{key_said(key)}: that it is not set any more takes a restart"
        yield f"{printable(file)}: {said}; {_REMEDY}"


def _fixed_keys(present: Config, wanted: Config) -> Iterator[Key]:
    for field in fields(Config):
        name = field.name
        if name not in LIVE and getattr(present, name) != getattr(wanted, name):
            yield "host", name
    before, after = _own(present), _own(wanted)
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old is None or new is None or old.address != new.address:
            yield "vm", name, Kind.VHOST_USER.value
        elif old.vm_mem_bytes != new.vm_mem_bytes:
            yield "vm", name, "memory"


def _own(config: Config) -> dict[str, VmConfig]:
    """The named VMs on balloond's own device."""
    return {vm.name: vm for vm in config.vms if vm.kind is Kind.VHOST_USER}


def changes(present: Config, wanted: Config) -> Iterator[str]:
    """The settings that differ, a line each: ``[vm.web] floor: 1 GiB -> 2 GiB``."""
    margins = _size(present.margin_bytes), _size(wanted.margin_bytes)
    yield from _change(("host", "margin"), *margins)
    if present.profile is not wanted.profile:
        yield f"profile of VMs of no name: {present.profile.value} -> {wanted.profile.value}"
    if present.found_profile is not wanted.found_profile:
        found = f"{present.found_profile.value} -> {wanted.found_profile.value}"
        yield f"profile of VMs that are discovered: {found}"
    for name in wanted.discover._fields:
        before, after = getattr(present.discover, name), getattr(wanted.discover, name)
        for sign, places in (("-", set(before) - {*after}), ("+", set(after) - {*before})):
            for place in sorted(places):
                yield f"{key_said(('discover', name))}: {sign}{printable(place)}"
    old, new = ({vm.name: vm for vm in config.vms} for config in (present, wanted))
    for name in {**old, **new}:
        if name not in new:
            yield f"-{table_said(('vm', name))}"
        elif name not in old:
            yield f"+{table_said(('vm', name))}"
        else:
            yield from _vm_changes(old[name], new[name])


def _vm_changes(old: VmConfig, new: VmConfig) -> Iterator[str]:
    before, after = (f"{vm.kind.value} {printable(vm.address)}" for vm in (old, new))
    if before != after:
        yield f"{table_said(('vm', old.name))}: {before} -> {after}"
    for key, was, now in (
        ("floor", _size(old.settings.floor_bytes), _size(new.settings.floor_bytes)),
        ("ceiling", _size(old.settings.ceiling_bytes), _size(new.settings.ceiling_bytes)),
        ("priority", str(old.settings.priority), str(new.settings.priority)),
        ("profile", old.settings.profile.value, new.settings.profile.value),
    ):
        yield from _change(("vm", old.name, key), was, now)


def _change(key: Key, before: str, after: str) -> Iterator[str]:
    if before != after:
        yield f"{key_said(key)}: {before} -> {after}"


def _size(size_bytes: int | None) -> str:
    return "default" if size_bytes is None else format_size(size_bytes)
