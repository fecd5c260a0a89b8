"""``balloond --check``: the effective settings, and where each of them comes from."""

from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from balloon_daemon.cli.device_user import default_user
from balloon_daemon.cli.flags import Settings, build_parser
from balloon_daemon.cli.own_api import api_place
from balloon_daemon.config.entries import Key, Origin, key_said
from balloon_daemon.config.vms import Kind
from balloon_daemon.errors import printable
from balloon_daemon.host.low_memory import MARGIN_PER_MILLE
from balloon_daemon.sizing.vm_settings import Profile
from balloon_daemon.units import format_size

MARGIN_DEFAULT = f"the margin file's, else {MARGIN_PER_MILLE / 10} % of what can be available"
LOW_MEM_DIR_DEFAULT = "ChromeOS's, where there is one"
NO_SOCKET = "none, as VMs are named otherwise"
NO_PLACE = "none"

VM_DEFAULTS = {
    "floor": "what the profile leaves",
    "ceiling": "what the balloon policy takes at most",
    "priority": "0",
    "profile": '"careful"',
    "memory": "what its VMM and its guest say",
}
"""The values of a VM's keys where they are not set."""

_FLAGS = {
    "vm_mem": "--vm-mem",
    "policy": "--policy",
    "policy_dialect": "--policy-dialect",
    "user": "--user",
    "keep_fds": "--keep-fds",
    "log": "--log",
    "verbose": "--verbose",
    "speed": "--speed",
    "page_reporting": "page reporting",
}
"""The flags whose settings cannot be set in a file, by the name of the flag's value."""


def settings_said(settings: Settings) -> Iterator[str]:
    """A line for each setting: its value, and the file and line, or the flag, that sets it."""
    config, args = settings.config, settings.args
    margin = None if args.margin is None else format_size(args.margin)
    socket = NO_SOCKET if config.socket is None else _written(config.socket)
    yield _host_said(settings, "margin", margin, MARGIN_DEFAULT)
    yield _host_said(settings, "low_mem_dir", args.low_mem_dir, LOW_MEM_DIR_DEFAULT)
    yield _host_said(settings, "socket", args.socket, socket)
    is_default = args.profile is None and ("host", "profile") not in settings.origins
    if config.socket is not None and is_default:
        file = "a" if config.profile is Profile.CAREFUL else "no"
        why = f"as there is {file} configuration file, by default"
        yield f'profile of VMs there = "{config.profile.value}" {why}'
    api = api_place(None)
    yield _host_said(settings, "api", args.api, NO_PLACE if api is None else _written(api))
    yield _host_said(settings, "history", args.history, NO_PLACE)
    yield _host_said(settings, "record", args.record, NO_PLACE)
    yield _host_said(settings, "dry_run", args.dry_run or None, "false")
    profile = None if args.profile is None else args.profile.value
    yield _host_said(settings, "profile", profile, VM_DEFAULTS["profile"])
    for key, places in config.discover._asdict().items():
        yield from _discover_said(settings, ("discover", key), places)
    for vm in config.vms:
        yield _key_said(settings, ("vm", vm.name, vm.kind.value), "")
        defaults = VM_DEFAULTS | {"profile": _written(config.found_profile.value)}
        for key, default in defaults.items():
            if key != "memory" or vm.kind is Kind.VHOST_USER:
                yield _key_said(settings, ("vm", vm.name, key), default)
    yield from _flags_said(args)


def _host_said(settings: Settings, key: str, flag: object, default: str) -> str:
    """A setting of ``[host]``, which the flag of its name overrides.

    Args:
        settings: all settings.
        key: its key.
        flag: the flag's value; None: the flag was not given.
        default: the value where neither file nor flag sets it.
    """
    path = ("host", key)
    if flag is None:
        return _key_said(settings, path, default)
    instead = _instead_of(settings.origins.get(path, ()))
    return f"{key_said(path)} = {_written(flag)}, from --{key.replace('_', '-')}{instead}"


def _discover_said(settings: Settings, path: Key, places: Iterable[str]) -> Iterator[str]:
    """Each place where VMs are found; flags add some to the file's."""
    *overridden, last = settings.origins.get(path) or (None,)
    if not places:
        yield _key_said(settings, path, "[]")
    for place in places:
        source = "--discover"
        if last is not None and isinstance(last.value, list) and place in last.value:
            source = f"{last.where}{_instead_of(overridden)}"
        yield f"{key_said(path)} has {_written(place)}, from {source}"


def _key_said(settings: Settings, path: Key, default: str) -> str:
    """A key of a file: its value and the place that sets it, else its default."""
    origins = settings.origins.get(path)
    if not origins:
        return f"{key_said(path)} = {default}, by default"
    *overridden, (where, value) = origins
    return f"{key_said(path)} = {_written(value)}, from {where}{_instead_of(overridden)}"


def _instead_of(origins: Iterable[Origin | None]) -> str:
    """Which other settings of the same key are overridden; "" where there are none."""
    places = ", ".join(str(each.where) for each in origins if each)
    return places and f" (instead of {places})"


def _flags_said(args: Namespace) -> Iterator[str]:
    parser = build_parser()
    for name, flag in _FLAGS.items():
        value = getattr(args, name)
        if value == parser.get_default(name):
            source = "by default"
            value = _by_default(name, value)
        else:
            source = f"from {'--no-page-reporting' if name == 'page_reporting' else flag}"
            value = format_size(value) if name == "vm_mem" else value
        said = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
        yield f"{flag} = {printable(str(said))}, {source}"


def _by_default(name: str, value: object) -> object:
    """The value that is used if a flag is not given. For ``--vm-mem`` and ``--user`` the parser's
    default is None, and the value is chosen later."""
    match name:
        case "vm_mem":
            return VM_DEFAULTS["memory"]
        case "user":
            return default_user()
        case _:
            return value


def _written(value: object) -> str:
    """A value as the configuration file writes it, not shortened."""
    match value:
        case bool():
            return str(value).lower()
        case str() | PurePath():
            return f'"{printable(str(value))}"'
        case list():
            return f"[{', '.join(map(_written, value))}]"
        case _:
            return printable(str(value))
