"""Turns the settings that may change while balloond runs into values of JSON, and back.

The child that has read a configuration sends them to the controller. They are split into small
parts, because each part is one packet of a socket, and a file may name thousands of VMs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.sizing.vm_settings import Profile, VmSettings


def parts_of(config: Config) -> Iterator[list[object]]:
    """The settings of ``changes.LIVE``, in parts."""
    profiles = [config.profile.value, config.found_profile.value]
    yield ["host", config.margin_bytes, *profiles]
    for uri in config.discover.libvirt:
        yield ["libvirt", uri]
    for pattern in config.discover.qmp:
        yield ["qmp", pattern]
    for name, kind, address, limits, vm_mem_bytes, _ in config.vms:
        settings = [limits.floor_bytes, limits.ceiling_bytes, limits.priority]
        yield ["vm", name, kind.value, address, *settings, limits.profile.value, vm_mem_bytes]


def config_of(present: Config, parts: Iterable[object]) -> Config:
    """The settings in force, in which the values that ``parts_of`` has sent replace their own.

    Raises:
        ValueError: the parts are no such settings.
    """
    margin_bytes, profile = present.margin_bytes, present.profile
    found_profile = present.found_profile
    libvirt, qmp, vms = list[str](), list[str](), list[VmConfig]()
    for part in parts:
        match part:
            case ["host", int() | None as margin_bytes, str(profile_name), str(found_name)]:
                profile, found_profile = Profile(profile_name), Profile(found_name)
            case ["libvirt", str(uri)]:
                libvirt.append(uri)
            case ["qmp", str(pattern)]:
                qmp.append(pattern)
            case [
                "vm",
                str(name),
                str(kind),
                str(address),
                int() | None as floor,
                int() | None as ceiling,
                int(priority),
                str(profile_name),
                int() | None as vm_mem_bytes,
            ]:
                settings = VmSettings(floor, ceiling, priority, Profile(profile_name))
                vms.append(VmConfig(name, Kind(kind), address, settings, vm_mem_bytes))
            case _:
                raise ValueError(f"{part!r} is no part of a configuration")
    return replace(
        present,
        margin_bytes=margin_bytes,
        profile=profile,
        found_profile=found_profile,
        discover=Discover(tuple(libvirt), tuple(qmp)),
        vms=tuple(vms),
    )
