"""A VM that is driven no more is gone at once, with the files of its VMM's process: nothing of it
waits for the garbage collector, which looks at old objects seldom and stops all VMs meanwhile."""

import asyncio
import contextlib
import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.events import Event, VmLost, VmNotDriven
from balloon_daemon.guests.driven.bases import Bases
from balloon_daemon.guests.driven.control import Control
from balloon_daemon.guests.driven.finder import Finder
from balloon_daemon.guests.driven.kinds import control_of
from balloon_daemon.guests.driven.lookups import LOOKUPS
from balloon_daemon.guests.driven.reporting import Shared
from balloon_daemon.guests.seam import Guest, Report
from balloon_daemon.sizing.vm_settings import CAREFUL, SEED, VmSettings
from balloon_daemon.units import MOST_MEMORY_BYTES, VmId
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.fakes.crosvm import FakeCrosvm
from tests.fakes.firecracker import FakeFirecracker
from tests.harness.faults import fault
from tests.harness.scripted_monitor import ScriptedMonitor
from tests.harness.waiting import HANG_S, wait_until

Vmm = ScriptedMonitor | FakeFirecracker | FakeCloudHypervisor | FakeCrosvm

VMMS: dict[Kind, Callable[[Path], Vmm]] = {
    Kind.QMP: ScriptedMonitor,
    Kind.FIRECRACKER: FakeFirecracker,
    Kind.CLOUD_HYPERVISOR: FakeCloudHypervisor,
    Kind.CROSVM: FakeCrosvm,
}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()  # What other tests have left would hold files of processes' figures open, too.
    gc.disable()
    yield
    gc.enable()
    wait_until(LOOKUPS.close, what="children that look paths up end")


class World:
    """A finder, its events, and the registry: a ``VmRegistry`` that keeps no VM."""

    def __init__(self, kind: Kind, path: Path) -> None:
        self.before = os.listdir("/proc/self/fd")
        self.events: list[Event] = []
        self.made: list[weakref.ref[Any]] = []
        bases = Bases(path.with_name("bases"), self.events.append)
        shared = Shared(self.events.append, self.report, bases)
        vm = VmConfig("web", kind, str(path), CAREFUL)
        self.finder = Finder(vm, lambda: self._control(kind, path), self, shared)

    def _control(self, kind: Kind, path: Path) -> Control:
        control = control_of(kind)(str(path))
        self.made.append(weakref.ref(control))
        return control

    def next_vm(self, name: str = "") -> VmId:
        return VmId(1, name)

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        self.made.append(weakref.ref(guest))

    def report(self, vm: VmId, report: Report) -> None:
        pass

    def serve(self, guest: Guest) -> None:
        asyncio.get_running_loop().create_task(guest.serve())

    def change(self, vm: VmId, settings: VmSettings) -> None:
        raise NotImplementedError

    dismiss: Any = change

    async def drive(self) -> None:
        """Begins, and waits until the VM is driven."""
        self.finder.start()
        await until(lambda: len(self.made) == 2)

    async def lose(self) -> None:
        """Waits until the VM is lost, without a file left open, and gone; then ends."""
        await until(lambda: isinstance(self.events[-1], VmLost))
        assert self.open_figures() == []
        await until(lambda: not self.left())
        self.finder.stop()

    def left(self) -> list[object]:
        """What there still is of connections and VMs."""
        return [each for each in (made() for made in self.made) if each is not None]

    def open_figures(self) -> list[str]:
        """The files of processes' figures that this process has opened since the beginning."""
        found = []
        for fd in os.listdir("/proc/self/fd"):
            if fd not in self.before:
                with contextlib.suppress(FileNotFoundError):  # The listing itself.
                    found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [each for each in found if each.endswith(("/statm", "/io"))]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.01)


async def hang_up(vmm: Vmm) -> None:
    if isinstance(vmm, ScriptedMonitor):
        vmm.disconnect()
    else:
        await vmm.hang_up()


@fault("a user's VMMs connect and leave over and over")
@pytest.mark.parametrize("kind", VMMS)
def test_vm_that_has_ended_leaves_nothing_to_the_garbage_collector(
    tmp_path: Path, kind: Kind
) -> None:
    async def run() -> None:
        async with VMMS[kind](tmp_path / "web") as vmm:
            world = World(kind, tmp_path / "web")
            await world.drive()
            assert world.open_figures()
            await hang_up(vmm)
            await world.lose()

    asyncio.run(run())


@fault("a user's VMMs connect and leave over and over")
def test_vm_whose_figures_make_no_sense_leaves_nothing_to_the_garbage_collector(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with ScriptedMonitor(tmp_path / "web") as vmm:
            vmm.vm.slots = 1
            world = World(Kind.QMP, tmp_path / "web")
            await world.drive()
            vmm.vm.dimms = [MOST_MEMORY_BYTES]
            vmm.send_event("ACPI_DEVICE_OST")
            await world.lose()

    asyncio.run(run())


@fault("a user's VMMs connect and leave over and over")
@pytest.mark.parametrize("kind", VMMS)
def test_vm_that_cannot_be_driven_leaves_nothing_to_the_garbage_collector(
    tmp_path: Path, kind: Kind
) -> None:
    async def run() -> None:
        async with VMMS[kind](tmp_path / "web") as vmm:
            world = World(kind, tmp_path / "web")
            if isinstance(vmm, ScriptedMonitor):
                vmm.vm.devices = []
            elif isinstance(vmm, FakeFirecracker):
                vmm.balloon = None
            elif isinstance(vmm, FakeCloudHypervisor):
                vmm.config["balloon"] = None
            else:
                vmm.actual_bytes = -1
            world.finder.start()
            await until(lambda: world.events)
            assert isinstance(world.events[-1], VmNotDriven)
            await until(lambda: not world.left())
            world.finder.stop()
        assert world.open_figures() == []

    asyncio.run(run())
