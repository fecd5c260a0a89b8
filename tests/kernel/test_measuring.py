"""How often a VM's memory files are looked at: no more than its user's part of the time allows."""

import mmap
import os
from collections.abc import Iterator

import pytest

from balloon_daemon.events import Event, MemoryNeverFreed
from balloon_daemon.guests.jailed import peers
from balloon_daemon.guests.jailed.limits import BalloonLimits
from balloon_daemon.guests.jailed.peers import MEASURING, MEASURING_AT_ONCE_S, Peer, Peers
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import MIB, FrontendAddr, GuestAddr, VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import inspect_memory
from balloon_daemon.vhost_user.memory_table import MAX_MEM_SLOTS, MemoryTable
from balloon_daemon.vhost_user.messages import RegionDescription
from tests.harness.faults import fault

VM = VmId(1, "vm1")
SIZE = 8 * MIB


class Vm:
    """The limits of a VM, whose user's time may be used up."""

    def __init__(self) -> None:
        self.may = True
        self.published: list[Event] = []
        self.memory = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memory, SIZE)
        self.backend = Backend(MemoryTable(inspect_memory))
        region = RegionDescription(GuestAddr(0), SIZE, FrontendAddr(1 << 40), 0)
        self.backend.memory.add(region, OwnedFd(os.dup(self.memory)))
        self.limits = BalloonLimits(
            VM, self.backend, None, self.published.append, lambda spent_s: self.may
        )
        self.limits.look_at_memory()

    def touch(self, pages: int) -> None:
        os.pwrite(self.memory, bytes(pages * mmap.PAGESIZE), 0)

    def close(self) -> None:
        self.backend.close()
        os.close(self.memory)


@pytest.fixture
def vm() -> Iterator[Vm]:
    vm = Vm()
    yield vm
    vm.close()


@fault("VMs of many memory regions, while memory is low")
def test_vm_counts_as_it_was_while_its_users_time_is_used_up(vm: Vm) -> None:
    vm.touch(2)
    assert vm.limits.held_bytes() == 2 * mmap.PAGESIZE
    vm.may = False
    vm.touch(5)
    assert vm.limits.held_bytes() == 2 * mmap.PAGESIZE
    vm.may = True
    assert vm.limits.held_bytes() == 5 * mmap.PAGESIZE


def test_vm_with_another_memory_table_is_measured_whatever_its_user_has_used(vm: Vm) -> None:
    # What it was measured as before is another memory's.
    vm.may = False
    vm.touch(3)
    region = RegionDescription(GuestAddr(SIZE), SIZE, FrontendAddr(1 << 41), 0)
    other = os.memfd_create("more", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(other, SIZE)
    vm.backend.memory.add(region, OwnedFd(other))
    vm.limits.look_at_memory()
    assert vm.limits.held_bytes() == 3 * mmap.PAGESIZE


@fault("VMs of many memory regions, while memory is low")
def test_all_vms_of_a_user_are_measured_for_a_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = [1000.0]
    monkeypatch.setattr(peers, "now_s", lambda: clock_s[0])
    all_users = Peers(1000)
    one, other = Peer(1001, all_users), Peer(1002, all_users)
    spent_s, longest_s = 0.0, 0.0
    for _ in range(100):
        before_s = spent_s
        for _ in range(96):  # VMs of 256 files
            if one.charge_measuring(0.0):
                one.charge_measuring(0.0018)
                spent_s += 0.0018
        longest_s = max(longest_s, spent_s - before_s)
        clock_s[0] += 1.0
        assert other.charge_measuring(0.0)
    assert longest_s <= MEASURING_AT_ONCE_S + 0.0018
    assert spent_s <= 100 * MEASURING + MEASURING_AT_ONCE_S


@fault("memory region that cannot be freed")
def test_of_many_regions_that_are_never_freed_a_few_are_published_and_the_number_of_the_others(
    vm: Vm,
) -> None:
    reading, writing = os.pipe()
    for number in range(1, MAX_MEM_SLOTS):
        start = SIZE + number * mmap.PAGESIZE
        region = RegionDescription(
            GuestAddr(start), mmap.PAGESIZE, FrontendAddr((1 << 40) + start), 0
        )
        vm.backend.memory.add(region, OwnedFd(os.dup(reading)))
    os.close(reading)
    os.close(writing)
    vm.published.clear()
    vm.limits.look_at_memory()

    said = [event for event in vm.published if isinstance(event, MemoryNeverFreed)]
    assert len(said) == 8
    assert [event.others for event in said] == [0] * 7 + [MAX_MEM_SLOTS - 1 - 8]
