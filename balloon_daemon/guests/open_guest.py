"""Makes the drivers of all VMs whose balloon belongs to their own VMM.

Runs in the controller. Only this module and ``look.py`` import the modules of all kinds of VMs,
each kind's where the configuration has VMs of that kind.
"""

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind, VmConfig, bases_path
from balloon_daemon.events import Publish
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.guests.vmm_files import Ask, Take
from balloon_daemon.linux.apart import LowNumbers

if TYPE_CHECKING:
    from pathlib import Path

    from balloon_daemon.guests.driven.bases import Bases
    from balloon_daemon.guests.driven.claims import Claims
    from balloon_daemon.guests.driven.driver import DrivenVms
    from balloon_daemon.guests.libvirt.driver import LibvirtVms

Low = Callable[[], LowNumbers]
"""Makes a ``LowNumbers``, whose child processes inherit no descriptor that came from a VMM."""

NEW_LOW: Low = LowNumbers
"""For a balloond without devices of its own. With such devices, libvirt's client and the children
that look paths up share the ``LowNumbers`` of the template process."""


def asker(low: Low) -> Ask:
    """Makes the function by which VMs on balloond's own device have children look at their VMMs'
    processes (an ``Ask``). It uses the same child processes as the lookups for driven VMs do.

    Args:
        low: makes a ``LowNumbers``, which forks the children.
    """
    # Imported at the start: whoever may list a directory of modules can keep an import waiting.
    from balloon_daemon.guests.driven.lookups import LOOKUPS

    async def ask(order: Sequence[object], take: Take, fd: int = -1) -> None:
        if LOOKUPS.low is None:
            LOOKUPS.low = low()
        await LOOKUPS.ask(order, take, fd)

    return ask


def load(config: Config) -> None:
    """Imports what ``Drivers.open`` needs for a configuration."""
    kinds = {vm.kind for vm in config.others} | ({Kind.QMP} if config.discover.qmp else set())
    if kinds - {Kind.LIBVIRT}:
        import balloon_daemon.guests.driven.driver
        from balloon_daemon.guests.driven.kinds import control_of

        for kind in kinds - {Kind.LIBVIRT}:
            control_of(kind)
    if Kind.LIBVIRT in kinds or config.discover.libvirt:
        import balloon_daemon.guests.libvirt.driver  # noqa: F401


def _bases_paths(config: Config) -> "dict[Kind, Path]":
    """The files of the balloons that VMs had before balloond: under ``Kind.QMP`` the file of all
    VMs whose VMM has a socket, under ``Kind.LIBVIRT`` that of libvirt's domains."""
    return {kind: bases_path(config.bases_socket, kind) for kind in (Kind.QMP, Kind.LIBVIRT)}


class Drivers:
    """The drivers of all VMs of a configuration but those on our own device.

    Args:
        publish: takes events.
        is_own: tells by a VMM's pid whether its VM is attached to balloond's own device; such a VM
            is not driven through its VMM as well.
        low: makes a ``LowNumbers``, which starts libvirt's client and children that look paths up
            without any VMM's descriptors.
    """

    def __init__(
        self,
        publish: Publish,
        is_own: Callable[[int], bool] = lambda pid: False,
        low: Low = NEW_LOW,
    ) -> None:
        self._publish = publish
        self._is_own = is_own
        self._low = low
        self._claims: Claims | None = None
        self._bases: dict[Kind, Bases] = {}
        self._driven: DrivenVms | None = None
        self._libvirt: LibvirtVms | None = None

    def open(self, config: Config) -> list[GuestDriver]:
        """Makes the drivers that a configuration needs. Drivers that were made before are told
        which VMs are wanted now.

        Returns:
            The drivers that were made, to be started.
        """
        with_socket = [vm for vm in config.others if vm.kind is not Kind.LIBVIRT]
        has_domains = len(with_socket) < len(config.others) or bool(config.discover.libvirt)
        drivers: list[GuestDriver | None] = []
        left = self._left_over(config)
        left_domains = [vm for vm in left if vm.kind is Kind.LIBVIRT]
        left_others = [vm for vm in left if vm.kind is not Kind.LIBVIRT]
        if with_socket or config.discover.qmp or self._driven is not None or left_others:
            drivers.append(self._open_driven(config, left_others))
        if has_domains or self._libvirt is not None or left_domains:
            drivers.append(self._open_libvirt(config, left_domains))
        return [driver for driver in drivers if driver is not None]

    def _left_over(self, config: Config) -> list[VmConfig]:
        """The VMs of which an earlier balloond has taken memory, and which the configuration does
        not have any more. After the start there are none: a reload gives such VMs their memory
        back itself."""
        if self._bases or not any(map(os.path.lexists, _bases_paths(config).values())):
            return []
        from balloon_daemon.guests.driven.discovery import is_matched

        # libvirt's domains are compared by name and connection URI, other VMs by their socket's
        # path alone.
        named = {(vm.kind is Kind.LIBVIRT and vm.name, vm.address) for vm in config.others}
        found = config.discover
        return [
            VmConfig(name, kind, address, config.found_settings)
            for of_kind in _bases_paths(config)
            for kind, name, address in self._bases_of(config, of_kind).places()
            if kind is not Kind.VHOST_USER
            and (kind is Kind.LIBVIRT and name, address) not in named
            and address not in found.libvirt
            and not is_matched(address, found.qmp)
        ]

    def _open_driven(self, config: Config, left: list[VmConfig]) -> GuestDriver | None:
        from balloon_daemon.guests.driven.driver import DrivenVms, Wanted
        from balloon_daemon.guests.driven.kinds import control_of

        named = [vm for vm in config.others if vm.kind is not Kind.LIBVIRT]
        kinds = {vm.kind for vm in [*named, *left]}
        kinds |= {Kind.QMP} if config.discover.qmp else set()
        controls = {kind: control_of(kind) for kind in kinds}
        bases = _bases_paths(config)[Kind.QMP]
        names = frozenset(vm.name for vm in config.vms)
        found = config.found_settings
        wanted = Wanted(named, config.discover.qmp, controls, bases, names, found, left)
        if self._driven is not None:
            self._driven.change(wanted)
            return None
        claims, of_kind = self._shared_claims(), self._bases_of(config, Kind.QMP)
        self._driven = DrivenVms(wanted, self._publish, self._is_own, claims, bases=of_kind)
        return self._driven

    def _open_libvirt(self, config: Config, left: list[VmConfig]) -> GuestDriver | None:
        from balloon_daemon.guests.libvirt.driver import LibvirtVms, Wanted

        domains = [vm for vm in config.others if vm.kind is Kind.LIBVIRT]
        bases = _bases_paths(config)[Kind.LIBVIRT]
        found = config.found_settings
        wanted = Wanted(domains, config.discover.libvirt, bases, found, left)
        if self._libvirt is not None:
            self._libvirt.change(wanted)
            return None
        claims, of_kind = self._shared_claims(), self._bases_of(config, Kind.LIBVIRT)
        self._libvirt = LibvirtVms(wanted, self._publish, self._is_own, self._low, claims, of_kind)
        return self._libvirt

    def _bases_of(self, config: Config, kind: Kind) -> "Bases":
        """The balloons that VMs of a kind had before balloond. Both files are read even where one
        of the drivers is not needed: a VM that libvirt's driver has driven before may be driven by
        its QEMU's monitor now, or the other way round."""
        from balloon_daemon.guests.driven.bases import Bases

        if not self._bases:
            paths = _bases_paths(config)
            self._bases = {each: Bases(paths[each], self._publish) for each in paths}
            of_sockets, of_libvirt = self._bases.values()
            of_sockets.others, of_libvirt.others = [of_libvirt], [of_sockets]
        return self._bases[kind]

    def _shared_claims(self) -> "Claims":
        """The ``Claims`` that both drivers share. The first driver's call makes them, and the
        ``LowNumbers`` that forks the children which look up names."""
        from balloon_daemon.guests.driven.claims import Claims
        from balloon_daemon.guests.driven.lookups import LOOKUPS
        from balloon_daemon.guests.driven.memory_files import MEMORY_FILES

        if self._claims is None:
            self._claims = Claims()
            MEMORY_FILES.low = self._low()
            LOOKUPS.low = LOOKUPS.low or self._low()
        return self._claims
