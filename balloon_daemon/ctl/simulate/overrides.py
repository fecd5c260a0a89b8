"""``--set NAME=VALUE``: settings by their short names, and the times and sizes that they take."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from balloon_daemon.config.gathered import nearest
from balloon_daemon.config.values import parse_ceiling, parse_size_value
from balloon_daemon.ctl.simulate.world import Changes
from balloon_daemon.ctl.times import parse_duration
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import MIB, parse_memory_size

_TIMES = {
    "recheck": "recheck_s",
    "recheck-jitter": "recheck_jitter_s",
    "release-after": "release_after_s",
    "release-after-jitter": "release_after_jitter_s",
    "release-every": "release_every_s",
    "release-every-jitter": "release_every_jitter_s",
}

_OF_VMS: dict[str, tuple[str, Callable[[object], int]]] = {
    "floor": ("floor_bytes", parse_size_value),
    "ceiling": ("ceiling_bytes", parse_ceiling),
}

NAMES = ("steps", *_TIMES, "margin", *_OF_VMS)
"""The names of all settings that can be set."""


def changes_of(
    recorded: PolicySettings, assignments: Iterable[str], profile: Profile | None
) -> Changes:
    """The changes that ``--set`` and ``--profile`` make.

    Args:
        recorded: the numbers of ChromeOS's balloon policy in the trace.
        assignments: the values of ``--set``, each NAME=VALUE.
        profile: the profile of all VMs; None: each VM has its recorded profile.

    Raises:
        ConfigError: one of them is wrong.
    """
    settings, margin_mib = recorded, None
    of_vms: dict[str, int | Profile] = {} if profile is None else {"profile": profile}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        try:
            if name not in NAMES:
                hint = nearest(name, NAMES) or f"; there are {', '.join(NAMES)}"
                raise ConfigError(f"there is no such setting{hint}")
            if not equals:
                raise ConfigError(f"has no value; write it like {name}=VALUE")
            if name == "steps":
                settings = replace(settings, steps=_steps(value))
            elif name == "margin":
                margin_mib = parse_memory_size(value) // MIB
            elif name in _TIMES:
                settings = replace(settings, **{_TIMES[name]: parse_duration(value)})  # type: ignore[arg-type] # a time
            else:
                field, parse = _OF_VMS[name]
                of_vms[field] = parse(value)
        except ConfigError as err:
            raise ConfigError(f"--set {printable(assignment)}: {err}") from err

    def of_vm(vm: VmSettings) -> VmSettings:
        return replace(vm, **of_vms)  # type: ignore[arg-type] # each value has its field's type

    return Changes(settings, margin_mib, of_vm)


def _steps(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII):
        raise ConfigError(f"{printable(text)!r} is no whole number")
    return int(text)
