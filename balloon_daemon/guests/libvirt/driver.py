"""Finds and drives all VMs whose balloon is reached through libvirt.

Runs in the controller. For each libvirt there is one ``Connection``, and a task that keeps it up
and knows which domains run: from events at once, and from a list every 30 s, which finds changes
without an event and shows whether libvirt's daemon still answers.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.errors import printable
from balloon_daemon.events import DomainsNotFound, Publish
from balloon_daemon.guests.driven.bases import Bases
from balloon_daemon.guests.driven.claims import Claims
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.finder import Finder, Pause
from balloon_daemon.guests.driven.lookups import LOOKUPS
from balloon_daemon.guests.driven.memory_files import MEMORY_FILES
from balloon_daemon.guests.driven.reporting import Shared
from balloon_daemon.guests.libvirt import wire
from balloon_daemon.guests.libvirt.connection import Connection
from balloon_daemon.guests.libvirt.control import DomainControl
from balloon_daemon.guests.seam import VmRegistry
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.sizing.vm_settings import CAREFUL, VmSettings

LIST_EVERY_S = 30.0

MOST_DOMAINS = 1024
"""How many domains of one libvirt are driven at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which domains are to be driven.

    Attributes:
        vms: the domains that the configuration names.
        discover: connection URIs whose domains are all driven.
        bases_path: the file for the balloons that domains had before balloond.
        found: the settings of domains that the configuration does not name.
        left_over: domains of which an earlier balloond has taken memory, and which the
            configuration does not have any more: they get that memory back, and are then
            left alone.
    """

    vms: Sequence[VmConfig]
    discover: Sequence[str]
    bases_path: Path
    found: VmSettings = CAREFUL
    left_over: Sequence[VmConfig] = ()


class LibvirtVms:
    """All domains of one or more libvirts. The controller starts and ends the search for them by
    the methods of ``GuestDriver`` (``guests/seam.py``).

    Args:
        wanted: which domains.
        publish: takes events.
        is_own: tells by a VMM's pid whether its VM is attached to balloond's own device.
        low: makes a ``LowNumbers``, which starts libvirt's client without any VMM's
            descriptors.
        claims: which VMs are driven.
        bases: the balloons that domains had before balloond; None: read from
            ``wanted.bases_path``.
    """

    keeps = True
    """A VM that balloond leaves keeps its balloon, and the next balloond takes over from there."""

    def __init__(
        self,
        wanted: Wanted,
        publish: Publish,
        is_own: Callable[[int], bool],
        low: Callable[[], LowNumbers],
        claims: Claims | None = None,
        bases: Bases | None = None,
    ) -> None:
        self._wanted = wanted
        self._publish = publish
        self._is_own = is_own
        self._low = low
        self._claims = Claims() if claims is None else claims
        self._bases = bases or Bases(wanted.bases_path, publish)
        self._hosts: list[Host] = []
        self._new_host: Callable[[str], Host]

    def start(self, registry: VmRegistry) -> None:
        """Finds domains from now on."""
        report = registry.report
        shared = Shared(self._publish, report, self._bases, self._is_own, self._claims)
        self._new_host = lambda uri: Host(uri, self._low(), registry, shared)
        self._open_hosts()
        for host in self._hosts:
            host.return_left_over([v for v in self._wanted.left_over if v.address == host.uri])

    def change(self, wanted: Wanted) -> None:
        """Drives other domains from now on. A domain that is wanted as before is not touched."""
        self._wanted = wanted
        for host in self._hosts:
            named = [vm for vm in wanted.vms if vm.address == host.uri]
            host.found = wanted.found
            host.change(named, discover=host.uri in wanted.discover)
        self._open_hosts()

    def stop(self, *, leaving: bool) -> None:
        """Finds no more domains; those that were found are driven on."""
        for host in self._hosts:
            host.stop(leaving=leaving)

    async def close(self, *, leaving: bool) -> None:
        """Ends libvirt's clients, and stores the domains' bases for another balloond."""
        for host in self._hosts:
            await host.close()
        self._bases.store(last=True)
        LOOKUPS.close()
        MEMORY_FILES.close()

    def _open_hosts(self) -> None:
        """Begins with the libvirts that are wanted and not looked at yet."""
        wanted = self._wanted
        vms = [*wanted.vms, *wanted.left_over]
        uris = dict.fromkeys([*wanted.discover, *(vm.address for vm in vms)])
        for uri in uris.keys() - {host.uri for host in self._hosts}:
            host = self._new_host(uri)
            named = [vm for vm in wanted.vms if vm.address == uri]
            host.found = wanted.found
            host.start(named, discover=uri in wanted.discover)
            self._hosts.append(host)


class Host:
    """Finds the domains of one libvirt, and has each driven by a ``Finder``.

    Args:
        uri: libvirt's name for the connection.
        low: starts libvirt's client, a process, without any VMM's descriptors.
        registry: gets the VMs.
        shared: what all driven VMs share.
    """

    def __init__(self, uri: str, low: LowNumbers, registry: VmRegistry, shared: Shared) -> None:
        self.uri = uri
        self.found = CAREFUL
        """The settings of domains that the configuration does not name."""
        self._connection = Connection(uri, low, self._happened)
        self._registry = registry
        self._shared = shared
        self._named: dict[str, Finder] = {}
        self._discovered: dict[str, Finder] = {}
        self._dismissed: list[Finder] = []
        self._discovers = False
        self._pause = Pause()
        self._task: asyncio.Task[None] | None = None
        self._lists: asyncio.Task[None] | None = None

    def start(self, named: Sequence[VmConfig], *, discover: bool) -> None:
        """Finds domains from now on.

        Args:
            named: the domains that the configuration names.
            discover: True: find all other domains, too.
        """
        self._discovers = discover
        self._named = {vm.name: self._find(vm, vm.name) for vm in named}
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def return_left_over(self, vms: Sequence[VmConfig]) -> None:
        """Gives these domains back what an earlier balloond has taken of them."""
        for vm in vms:
            control = partial(DomainControl, self._connection, vm.name)
            self._dismissed.append(Finder(vm, control, self._registry, self._shared))
            self._dismissed[-1].return_left_over()

    def change(self, named: Sequence[VmConfig], *, discover: bool) -> None:
        """Finds other domains from now on. The connection stays even if no domain is wanted any
        more: it is needed to give memory back.

        Args:
            named: the domains that the configuration names.
            discover: True: find all other domains, too.
        """
        self._discovers = discover
        known = self._named | self._discovered
        self._named = {}
        for vm in named:
            finder = known.pop(vm.name) if vm.name in known else self._find(vm, vm.name)
            finder.change(vm)
            self._named[vm.name] = finder
        self._discovered = known if discover else {}
        if not discover:
            left = [each for each in self._dismissed if not each.has_ended]
            self._dismissed = left + list(known.values())
        for finder in known.values():
            if discover:
                finder.change(finder.config._replace(settings=self.found))
            else:
                finder.dismiss()
        if self._task is not None and not named and not discover:
            self._task.cancel()
        elif self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())
        elif discover:
            self._lists = asyncio.get_running_loop().create_task(self._list_now())

    def stop(self, *, leaving: bool) -> None:
        """Finds no more domains; the connection stays for those that were found.

        Args:
            leaving: as for ``Finder.stop``.
        """
        self._discovers = False
        for task in (self._task, self._lists):
            if task is not None:
                task.cancel()
        for finder in [
            *self._named.values(),
            *self._discovered.values(),
            *self._dismissed,
        ]:
            finder.stop(leaving=leaving)

    async def close(self) -> None:
        """Ends libvirt's client."""
        await self._connection.close()

    async def _watch(self) -> None:
        while True:
            try:
                running = await self._connection.domains()
            except ControlError as err:
                quiet = self._pause.failed(err.fault)
                uri = self._connection.uri
                self._shared.publish(DomainsNotFound(uri, err.fault, err.detail, quiet))
                await asyncio.sleep(self._pause.next_s())
                continue
            self._bring_up_to_date(running)
            if not await self._connection.ended(within_s=LIST_EVERY_S):
                self._pause = Pause()  # The next failure is published as new, not as ``quiet``.

    async def _list_now(self) -> None:
        with contextlib.suppress(ControlError):  # ``_watch`` asks, too, and publishes the error.
            self._bring_up_to_date(await self._connection.domains())

    def _bring_up_to_date(self, running: Sequence[wire.Domain]) -> None:
        names = {domain.name for domain in running}
        for name in self._discovered.keys() - names:
            self._discovered.pop(name).retire()
        for name in names:
            self._runs(name)

    def _happened(self, happened: wire.Happened) -> None:
        name = happened.domain.name
        match happened.event:
            case wire.Event.STARTED:
                self._runs(name)
            case wire.Event.STOPPED if name in self._discovered:
                self._discovered.pop(name).retire()

    def _runs(self, name: str) -> None:
        finder = self._named.get(name) or self._discovered.get(name)
        if finder is not None:
            finder.wake()
        elif self._discovers and len(self._discovered) < MOST_DOMAINS:
            vm = VmConfig(printable(name), Kind.LIBVIRT, self._connection.uri, self.found)
            self._discovered[name] = self._find(vm, name)

    def _find(self, vm: VmConfig, domain: str) -> Finder:
        new_control = partial(DomainControl, self._connection, domain)
        finder = Finder(vm, new_control, self._registry, self._shared)
        finder.start()
        return finder
