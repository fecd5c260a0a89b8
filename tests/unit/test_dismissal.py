"""VMs that are let go: what they are told, when their tasks end, and what the end finds."""

import asyncio
from collections.abc import Awaitable, Callable

from balloon_daemon.controller.ending import GIVE_BACK_WITHIN_S
from balloon_daemon.controller.governor import Governor
from balloon_daemon.controller.loop import Registry
from balloon_daemon.events import Event, MemoryNotGivenBack, NotGivenBack
from balloon_daemon.guests.seam import Actual, Attached, VmRow
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.fakes.plain_guest import PlainGuest
from tests.fakes.quick_loop import run_quickly
from tests.fakes.still_loop import StillLoop
from tests.fakes.told_memory import ToldMemory

VM, OTHER = VmId(1, "vm1"), VmId(2, "vm2")
LEVEL_4 = VmRow(GIB, 4, None, 9000.0)


class Guest(PlainGuest):
    """A guest that serves until it is cancelled."""

    takes_back = True

    async def serve(self) -> None:
        await asyncio.Event().wait()

    async def give_back(self) -> None:
        self.gives = self.takes_back
        self.set_target(0)
        while not self.takes_back:
            await asyncio.sleep(1)


class Host:
    """A registry, its governor, and what is published."""

    def __init__(self) -> None:
        loop = StillLoop()
        self.events: list[Event] = []
        watch = MemoryWatch(ToldMemory(), 1.0, self.events.append, loop)
        self.governor = Governor(PolicySettings(), watch, self.events.append, loop)
        self.registry = Registry(self.governor, self.events.append)

    def guest(self, vm: VmId, guest_type: type[Guest] = Guest) -> Guest:
        """A guest with a balloon of four levels."""
        guest = guest_type(vm, [], self.registry.report)
        self.registry.add(guest)
        self.registry.serve(guest)
        self.registry.report(vm, Attached(GIB, row=LEVEL_4))
        return guest

    def known(self) -> list[VmId]:
        return [vm.guest.vm for vm in self.governor.vms]


class KeepingGuest(Guest):
    """A guest that takes nothing back."""

    takes_back = False


def play(scene: Callable[[Host], Awaitable[None]]) -> Host:
    async def run() -> Host:
        host = Host()
        await scene(host)
        host.registry.dismissals.close()
        for task in host.registry.tasks.values():
            task.cancel()
        await asyncio.sleep(0)
        return host

    return run_quickly(run())


def test_vm_that_is_let_go_gets_all_back_and_its_task_ends() -> None:
    async def scene(host: Host) -> None:
        guest, other = host.guest(VM), host.guest(OTHER)
        before = [*guest.targets], [*other.targets]
        host.registry.dismiss(VM)
        host.registry.dismiss(VM)
        await asyncio.sleep(1)
        assert (guest.targets, other.targets) == ([*before[0], 0], before[1])
        assert host.known() == [OTHER]
        assert VM not in host.registry.dismissals
        host.registry.dismiss(VM)  # It is gone by now.

    assert play(scene).events[-1:] != [MemoryNotGivenBack(1)]


def test_vm_that_takes_nothing_back_is_let_go_after_a_while_and_that_is_said() -> None:
    async def scene(host: Host) -> None:
        host.guest(VM, KeepingGuest)
        host.registry.dismiss(VM)
        await asyncio.sleep(GIVE_BACK_WITHIN_S / 2)
        assert host.known() == [VM]
        await asyncio.sleep(GIVE_BACK_WITHIN_S)
        assert host.known() == []

    assert NotGivenBack(VM, 128 * MIB) in play(scene).events


def test_vm_that_is_let_go_is_decided_on_no_more_whatever_it_reports() -> None:
    async def scene(host: Host) -> None:
        guest = host.guest(VM, KeepingGuest)
        host.registry.dismiss(VM)
        await asyncio.sleep(0.1)
        told = [*guest.targets]
        host.registry.report(VM, Attached(GIB, row=LEVEL_4))
        host.registry.report(VM, Actual(64 * MIB, 0.0))
        host.registry.change(VM, VmSettings(ceiling_bytes=0))
        assert guest.targets == told
        status = host.governor.vm_status(VM)
        assert status is not None
        assert (status.policy, status.balloon_bytes) == (None, 64 * MIB)

    play(scene)


def test_end_finds_the_vm_that_was_about_to_be_let_go() -> None:
    async def scene(host: Host) -> None:
        host.guest(VM, KeepingGuest)
        host.registry.dismiss(VM)
        await asyncio.sleep(0.1)
        host.registry.dismissals.close()
        await asyncio.sleep(10)
        assert host.known() == [VM]
        assert VM not in host.registry.drivers
        assert list(host.registry.tasks) == [VM]

    assert not any(isinstance(event, NotGivenBack) for event in play(scene).events)
