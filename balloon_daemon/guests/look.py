"""Looks once at each VM that ``open_guest.py`` would drive, for ``--check``; changes nothing."""

import asyncio
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind, VmConfig, bases_path
from balloon_daemon.errors import printable
from balloon_daemon.events import (
    DirectoryNotListed,
    DomainsNotFound,
    SocketIgnored,
    VmNotDriven,
)
from balloon_daemon.guests.driven.bases import Bases
from balloon_daemon.guests.driven.control import Control, ControlError
from balloon_daemon.guests.driven.discovery import (
    Search,
    name_of,
    nearest_directory,
    search_all,
)
from balloon_daemon.guests.driven.finder import opened
from balloon_daemon.guests.driven.kinds import control_of
from balloon_daemon.guests.driven.reporting import Shared, keys_of
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.terms import Terms

AT_ONCE = 64
"""How many VMMs are asked at the same time; each may take some seconds before it counts as
hanging."""


class Looked(NamedTuple):
    """A VM that would be driven, as it is now.

    Attributes:
        vm: its configuration.
        vm_mem_bytes: its size less ``base_bytes``.
        max_balloon_bytes: the largest size, beyond ``base_bytes``, to which its balloon may grow.
        base_bytes: the size of the balloon that it had before balloond, and keeps.
        state: its guest's state.
        can: what its balloon and its guest can do (``seam.Ability``).
        closed_pid: its VMM's process, if balloond may not see the files that the process has open;
            else 0.
    """

    vm: VmConfig
    vm_mem_bytes: int
    max_balloon_bytes: int
    base_bytes: int
    state: GuestState
    can: frozenset[Ability]
    closed_pid: int = 0


Seen = Looked | VmNotDriven | DomainsNotFound | SocketIgnored | DirectoryNotListed
"""A VM that would be driven, one that would not, a libvirt whose domains cannot be listed, a file
that matches a pattern and is no socket, or a pattern's directory that cannot be listed."""


async def look_at_vms(config: Config, low: Callable[[], LowNumbers]) -> list[Seen]:
    """Looks at all VMs of a configuration but those on our own device.

    Args:
        config: the configuration.
        low: makes a ``LowNumbers``, which starts libvirt's client so that the client inherits no
            descriptor that came from a VMM.
    """
    others = [vm.address for vm in config.others if vm.kind is not Kind.LIBVIRT]
    search = await search_all(config.discover.qmp, others)
    look = _Look(config.main_socket)
    look.seen += [SocketIgnored(printable(path)) for path in search.others]
    look.seen += _not_listed(config.discover.qmp)
    uris = [vm.address for vm in config.others if vm.kind is Kind.LIBVIRT]
    async with asyncio.TaskGroup() as looks:
        for vm in _with_sockets(config, search):
            looks.create_task(look.at(vm, control_of(vm.kind)(vm.address)))
        for uri in dict.fromkeys((*uris, *config.discover.libvirt)):
            looks.create_task(_domains(uri, config, low(), look))
    return look.seen


class _Look:
    """Looks at VMs, at ``AT_ONCE`` of them at a time.

    Args:
        main_socket: balloond's main socket, beside which are the files that store the balloons
            that VMs had before balloond.
    """

    def __init__(self, main_socket: Path) -> None:
        self.seen: list[Seen] = []
        self._bases = {kind: _bases(bases_path(main_socket, kind)) for kind in Kind}
        nowhere = _bases(Path(os.devnull))
        self._shared = Shared(lambda event: None, lambda vm, report: None, nowhere)
        self._places = asyncio.Semaphore(AT_ONCE)

    async def at(self, vm: VmConfig, control: Control) -> None:
        """Opens a VM's control, and closes it again."""
        async with self._places:
            try:
                found, host, claim = await opened(control, lambda notice: None, vm, self._shared)
            except ControlError as err:
                self.seen.append(VmNotDriven(vm.name, vm.address, err.fault, err.detail))
                return
            control.close()
        self._shared.claims.claim(claim)
        key, *earlier = keys_of(vm.name, claim.socket, found, host)
        self._bases[vm.kind].know(key, earlier)
        base_bytes = self._bases[vm.kind].get(key)
        if base_bytes is None:
            no_driver = found.state is GuestState.NO_DRIVER
            base_bytes = 0 if no_driver else found.balloon_bytes or 0
        size_bytes = max(0, found.vm_mem_bytes - base_bytes)
        can = found.can
        if host.disk_read_bytes() is not None:
            can |= {Ability.DISK_READS}
        terms = Terms(vm.settings, Ability.STATS in can, Ability.DEFLATE_ON_OOM in can)
        most_bytes = terms.max_bytes(size_bytes)
        closed_pid = host.pid if host.is_closed else 0
        self.seen.append(
            Looked(vm, size_bytes, most_bytes, base_bytes, found.state, can, closed_pid)
        )


def _bases(path: Path) -> Bases:
    """The balloons that VMs had before balloond first changed them, from a file; never stored."""
    return Bases(path, lambda event: None)


def _not_listed(patterns: Iterable[str]) -> Iterator[DirectoryNotListed]:
    """The directories of patterns in which nothing can be found now."""
    # Leave out patterns without wildcards: such a path is looked up, and its directory not listed.
    listed = {nearest_directory(pattern) for pattern in patterns if glob.has_magic(pattern)}
    for directory in sorted(listed):
        try:
            os.scandir(directory).close()
        except OSError as err:
            yield DirectoryNotListed(printable(directory), err.strerror or str(err))


def _with_sockets(config: Config, search: Search) -> Sequence[VmConfig]:
    """The VMs that are reached by their VMM's socket: those that the configuration names, and
    those whose socket the search has found."""
    vms = [vm for vm in config.others if vm.kind is not Kind.LIBVIRT]
    for resolved, (path, *_) in sorted(search.found.items(), key=itemgetter(1)):
        name = printable(name_of(path, {vm.name for vm in vms}))
        vms.append(VmConfig(name, Kind.QMP, resolved, config.found_settings))
    return vms


async def _domains(uri: str, config: Config, low: LowNumbers, look: _Look) -> None:
    """Looks at the domains of one libvirt: those that the configuration names, and all that run
    where ``[discover]`` has this libvirt."""
    # Imported here: a host without libvirt's VMs does not load these modules.
    from balloon_daemon.guests.libvirt.connection import Connection
    from balloon_daemon.guests.libvirt.control import DomainControl

    named = {vm.name: vm for vm in config.others if vm.address == uri}
    connection = Connection(uri, low, lambda happened: None)
    try:
        running = {domain.name for domain in await connection.domains()}
        if uri in config.discover.libvirt:
            settings = config.found_settings
            found = {
                name: VmConfig(printable(name), Kind.LIBVIRT, uri, settings) for name in running
            }
            named = found | named
        for name, vm in named.items():
            await look.at(vm, DomainControl(connection, name))
    except ControlError as err:
        if uri in config.discover.libvirt:
            look.seen.append(DomainsNotFound(uri, err.fault, err.detail))
        look.seen += [VmNotDriven(name, uri, err.fault, err.detail) for name in named]
    finally:
        await connection.close()
