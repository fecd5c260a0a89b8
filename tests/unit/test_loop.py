"""The VMs that a controller knows: their ids, and what becomes of them when their task ends."""

import asyncio

import pytest

from balloon_daemon.controller.governor import Governor
from balloon_daemon.controller.loop import Registry
from balloon_daemon.events import Event, VmFailed
from balloon_daemon.guests.seam import Attached
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.units import GIB, VmId
from tests.fakes.plain_guest import PlainGuest
from tests.fakes.still_loop import StillLoop
from tests.fakes.told_memory import ToldMemory


class Host:
    """A registry, its governor, and what is published."""

    def __init__(self) -> None:
        loop = StillLoop()
        self.events: list[Event] = []
        watch = MemoryWatch(ToldMemory(), 1.0, self.events.append, loop)
        self.governor = Governor(PolicySettings(), watch, self.events.append, loop)
        self.registry = Registry(self.governor, self.events.append)

    def add(self, vm: VmId, guest_type: type[PlainGuest] = PlainGuest) -> PlainGuest:
        guest = guest_type(vm, [], self.registry.report)
        self.registry.add(guest)
        return guest

    def known(self) -> list[VmId]:
        return [vm.guest.vm for vm in self.governor.vms]


class BrokenGuest(PlainGuest):
    """A guest whose driver has a bug."""

    async def serve(self) -> None:
        raise KeyError("nothing")


@pytest.fixture
def host() -> Host:
    return Host()


def test_number_is_used_up_by_a_vm_that_was_added_and_never_used_again(host: Host) -> None:
    assert host.registry.next_vm() == host.registry.next_vm() == VmId(1, "vm1")
    host.add(host.registry.next_vm())
    host.add(VmId(7, "vm7"))  # Another balloond's.
    host.add(VmId(3, "vm3"))
    assert (host.registry.next_vm().number, host.registry.next_vm().name) == (8, "vm8")


@pytest.mark.parametrize("guest_type", [PlainGuest, BrokenGuest])
def test_vm_whose_task_has_ended_is_known_no_more(
    host: Host, guest_type: type[PlainGuest]
) -> None:
    vm, other = VmId(1, "vm1"), VmId(2, "vm2")

    async def live() -> None:
        guest = host.add(vm, guest_type)
        host.add(other)
        host.registry.report(vm, Attached(GIB))
        host.registry.serve(guest)
        await asyncio.wait(host.registry.tasks.values())
        await asyncio.sleep(0)

    asyncio.run(live())
    assert (host.known(), host.registry.tasks) == ([other], {})
    failed = [event for event in host.events if isinstance(event, VmFailed)]
    assert failed == [VmFailed(vm, "KeyError: 'nothing'")] * (guest_type is BrokenGuest)
