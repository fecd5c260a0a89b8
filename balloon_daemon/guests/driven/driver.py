"""Finds and drives all VMs whose balloon is reached through a socket of their own VMM's.

Runs in the controller.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.errors import printable
from balloon_daemon.events import DirectoryHangs, Publish, SocketIgnored
from balloon_daemon.guests.driven.bases import Bases
from balloon_daemon.guests.driven.claims import Claims
from balloon_daemon.guests.driven.control import Control
from balloon_daemon.guests.driven.directories import Directories
from balloon_daemon.guests.driven.discovery import (
    Search,
    Searches,
    is_matched,
    name_of,
    nearest_directory,
)
from balloon_daemon.guests.driven.finder import Finder
from balloon_daemon.guests.driven.lookups import LOOKUPS, Ask
from balloon_daemon.guests.driven.memory_files import MEMORY_FILES
from balloon_daemon.guests.driven.reporting import Shared
from balloon_daemon.guests.seam import ReportTo, VmRegistry
from balloon_daemon.rate_limit import LineBudget, OnceEach
from balloon_daemon.sizing.vm_settings import CAREFUL, VmSettings

NewControl = Callable[..., Control]
"""Makes a connection to the VMM whose socket has this path; QEMU's function also takes an
``identity``, the device and inode numbers of the socket that was found there."""

IGNORED = 256
"""How many paths that are no sockets are published, each once."""


HANGING_LINES, HANGING_LINES_A_SECOND = 8, 1 / 30
"""How often ``DirectoryHangs`` is published: ``HANGING_LINES`` times at once, then
``HANGING_LINES_A_SECOND`` times a second. Users may make directories hang in turn."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which VMs are to be driven.

    Attributes:
        vms: the VMs that the configuration names.
        qmp: patterns of the paths of QEMU's monitor sockets; a VM behind each socket that matches
            is driven.
        controls: for each kind of VMM that occurs, the function that makes a connection.
        bases_path: the file that has the size of each VM's balloon from before balloond drove it.
        taken: names that no discovered VM may have.
        found: the settings of discovered VMs.
        left_over: VMs of which an earlier balloond has taken memory, and which the configuration
            does not have any more: they get that memory back, and are then left alone.
    """

    vms: Sequence[VmConfig]
    qmp: Sequence[str]
    controls: Mapping[Kind, NewControl]
    bases_path: Path
    taken: frozenset[str] = frozenset()
    found: VmSettings = CAREFUL
    left_over: Sequence[VmConfig] = ()


class DrivenVms:
    """All VMs with a socket of their own VMM's. The controller starts and ends the search for them
    by the methods of ``GuestDriver`` (``guests/seam.py``).

    Args:
        wanted: which VMs.
        publish: takes events.
        is_own: tells by a VMM's pid whether its VM is attached to balloond's own device.
        claims: which VMs are driven.
        ask: looks paths up.
        bases: the balloons that VMs had before balloond; None: read from
            ``wanted.bases_path``.
    """

    keeps = True
    """A VM that balloond leaves keeps its balloon, and the next balloond takes over from there."""

    def __init__(
        self,
        wanted: Wanted,
        publish: Publish,
        is_own: Callable[[int], bool] = lambda pid: False,
        claims: Claims | None = None,
        ask: Ask = LOOKUPS.ask,
        bases: Bases | None = None,
    ) -> None:
        self._wanted = wanted
        self._publish = publish
        self._bases = bases or Bases(wanted.bases_path, publish)
        claims = Claims() if claims is None else claims
        self._new_shared: Callable[[ReportTo], Shared] = lambda report: Shared(
            publish, report, self._bases, is_own, claims, ask
        )
        self._directories = Directories(self._changed, ask)
        self._searches = Searches(partial(self._new_search, ask), self._searched)
        self._named: list[Finder] = []
        """The finders of VMs that the configuration names, and dismissed finders, which may still
        search for their VMs to give memory back."""
        self._discovered: dict[str, Finder] = {}
        self._last = Search((), ask)
        """The last search that is over."""
        self._ignored = OnceEach(IGNORED)
        self._hanging = LineBudget(HANGING_LINES, HANGING_LINES_A_SECOND)
        self._new_finder: Callable[[VmConfig, Callable[[], Control]], Finder]

    def start(self, registry: VmRegistry) -> None:
        """Finds VMs from now on."""
        shared = self._new_shared(registry.report)
        self._new_finder = partial(Finder, registry=registry, shared=shared)
        for vm in self._wanted.vms:
            self._find_named(vm)
        for vm in self._wanted.left_over:
            control = partial(self._wanted.controls[vm.kind], vm.address)
            self._named.append(self._new_finder(vm, control))
            self._named[-1].return_left_over()
        self._watch({nearest_directory(pattern) for pattern in self._wanted.qmp})
        self._directories.look()

    def change(self, wanted: Wanted) -> None:
        """Drives other VMs from now on. A VM that is wanted as before is not touched, nor is one
        that was named and is found by a pattern now, or the other way round."""
        self._wanted = wanted
        left = {(vm.name, vm.kind, vm.address): vm for vm in wanted.vms}
        before, self._named = self._named, []
        for finder in before:
            name, kind, address, *_ = finder.config
            if finder.is_dismissed:
                self._named += [] if finder.has_ended else [finder]
            elif (vm := left.pop((name, kind, address), None)) is not None:
                finder.change(vm)
                self._named.append(finder)
            elif kind is Kind.QMP and name not in wanted.taken and self._matches(address):
                self._have_discovered(finder, address)
            else:
                self._dismiss(finder)
        for resolved, finder in list(self._discovered.items()):
            name, paths = finder.config.name, self._paths(resolved)
            keys = [(name, Kind.QMP, path) for path in paths]
            if (key := next(filter(left.__contains__, keys), None)) is not None:
                vm = left.pop(key)
                finder.change(vm, partial(wanted.controls[Kind.QMP], vm.address))
                self._named.append(self._discovered.pop(resolved))
            elif name in wanted.taken or not any(map(self._matches, paths)):
                self._dismiss(self._discovered.pop(resolved))
            else:
                finder.change(finder.config._replace(settings=wanted.found))
        for vm in left.values():
            self._find_named(vm)
        self._watch({nearest_directory(pattern) for pattern in wanted.qmp})
        if wanted.qmp:
            self._searches.begin()

    def stop(self, *, leaving: bool) -> None:
        """Finds no more VMs; those that were found are driven on."""
        self._directories.stop()
        self._searches.stop()
        for finder in [*self._named, *self._discovered.values()]:
            finder.stop(leaving=leaving)

    async def close(self, *, leaving: bool) -> None:
        """Stores the VMs' bases for another balloond."""
        self._bases.store(last=True)
        LOOKUPS.close()
        MEMORY_FILES.close()

    def _find(self, vm: VmConfig, new_control: Callable[[], Control]) -> Finder:
        finder = self._new_finder(vm, new_control)
        finder.start()
        return finder

    def _dismiss(self, finder: Finder, *, elsewhere: bool = False) -> None:
        finder.dismiss(elsewhere=elsewhere)
        left = [each for each in self._named if not (each.is_dismissed and each.has_ended)]
        self._named = [*left, finder]

    def _find_named(self, vm: VmConfig) -> None:
        self._named.append(self._find(vm, partial(self._wanted.controls[vm.kind], vm.address)))

    def _matches(self, path: str) -> bool:
        return is_matched(path, self._wanted.qmp)

    def _paths(self, resolved: str) -> set[str]:
        """The paths by which a discovered VM's socket is known."""
        found = self._last.found.get(resolved)
        return {resolved} if found is None else {resolved, found.path}

    def _have_discovered(self, finder: Finder, resolved: str) -> None:
        """Treats a VM that has a finder already as one that a pattern has found."""
        name, _, matched, *_ = finder.config
        vm = VmConfig(name, Kind.QMP, resolved, self._wanted.found, matched=matched)
        finder.change(vm, partial(self._control_of_found, resolved))
        self._discovered[resolved] = finder

    def _watch(self, of_patterns: set[str], owners: Mapping[str, int] | None = None) -> None:
        named = {os.path.dirname(vm.address) for vm in self._wanted.vms}
        owners = {name: user for name, user in (owners or {}).items() if name not in named}
        self._directories.watch(named | of_patterns, owners)

    def _changed(self, changed: set[str]) -> None:
        self._bases.store()
        for finder in self._named:
            if os.path.dirname(finder.config.address) in changed:
                finder.wake()
        if self._wanted.qmp:
            # Begin a search even if only the directory of a VM that the configuration names has
            # changed: the VM's path may be a new symbolic link to a socket that a pattern has
            # found before. The search then leaves that socket out, and ``_searched`` dismisses the
            # VM that the pattern has found.
            self._searches.begin()

    def _new_search(self, ask: Ask) -> Search:
        # Leave out the sockets of named VMs, which have settings of their own.
        named = [vm.address for vm in self._wanted.vms]
        return Search(self._wanted.qmp, ask, self._last.found, named, self._admits)

    def _admits(self, user: int, *, again: bool = False) -> bool:
        now_s = asyncio.get_running_loop().time()
        return self._searches.shares.admits(user, now_s, again=again)

    def _searched(self, search: Search) -> None:
        if search.patterns is not self._wanted.qmp:
            return  # The patterns have changed during this search, and another search is to come.
        self._watch(search.directories, search.owners)
        for path in sorted(search.unseen - self._last.unseen):
            if self._hanging.has_one(asyncio.get_running_loop().time()):
                self._publish(DirectoryHangs(printable(path)))
        self._last = search
        for path in sorted(search.others):
            if self._ignored.admit(path):
                self._publish(SocketIgnored(printable(path)))
        for resolved, found in search.found.items():
            if found.path in self._discovered and resolved not in self._discovered:
                # The configuration named this VM before, by a path with a symbolic link in it.
                self._have_discovered(self._discovered.pop(found.path), resolved)
        for resolved in self._discovered.keys() & search.named:
            # The configuration names this discovered VM, by another path or with another name.
            self._dismiss(self._discovered.pop(resolved), elsewhere=True)
        for resolved in self._discovered.keys() - search.found.keys():
            self._discovered.pop(resolved).retire()
        taken = {finder.config.name for finder in self._discovered.values()} | self._wanted.taken
        for resolved, found in sorted(search.found.items(), key=itemgetter(1)):
            if (finder := self._discovered.get(resolved)) is not None:
                if finder.is_absent and self._admits(found.owner, again=True):
                    finder.wake()
                continue
            name = printable(name_of(found.path, taken))
            taken |= {name}
            vm = VmConfig(name, Kind.QMP, resolved, self._wanted.found, matched=found.path)
            self._discovered[resolved] = self._find(vm, partial(self._control_of_found, resolved))

    def _control_of_found(self, resolved: str) -> Control:
        """A connection to the socket that the last search has found here, and to no other."""
        found = self._last.found.get(resolved)
        identity = (0, 0) if found is None else found.identity
        return self._wanted.controls[Kind.QMP](resolved, identity=identity)
