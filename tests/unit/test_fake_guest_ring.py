"""The driver's side of a queue against the device's side of it, over the same bytes."""

import pytest

from balloon_daemon.errors import GuestError
from balloon_daemon.fake_guest.ring import DriverQueue, ring_bytes
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from balloon_daemon.virtio.split_queue import (
    VIRTQ_USED_F_NO_NOTIFY,
    SplitQueue,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)

BASE = 0x10_0000


def memory_of(size: int) -> GuestMemory:
    view = memoryview(bytearray(ring_bytes(size)))
    return GuestMemory([MemoryRegion(GuestAddr(BASE), FrontendAddr(0), len(view), view)])


def both_ends(size: int) -> tuple[DriverQueue, SplitQueue]:
    memory = memory_of(size)
    driver = DriverQueue(0, size, memory, BASE)
    descriptors = memory.view(driver.ring.descriptors, descriptors_bytes(size))
    available = memory.view(driver.ring.available, available_bytes(size))
    used = memory.view(driver.ring.used, used_bytes(size))
    assert descriptors is not None
    assert available is not None
    assert used is not None
    return driver, SplitQueue("inflateq", size, descriptors, available, used)


@pytest.mark.parametrize("size", [1, 2, 8, 128, 32768])
def test_chain_through_both_ends_arrives_and_comes_back(size: int) -> None:
    driver, device = both_ends(size)

    head = driver.add([(0x5000, 1024)])
    chain = device.pop()
    device.push(chain.head, 7)

    assert chain.readable == [(0x5000, 1024)]
    assert chain.writable == []
    assert driver.collect() == [(head, 7)]
    assert driver.free_descriptors == size


def test_chain_of_several_parts_keeps_order_and_direction() -> None:
    driver, device = both_ends(8)

    driver.add([(0x1000, 10), (0x2000, 20)], [(0x3000, 30), (0x4000, 40)])
    chain = device.pop()

    assert chain.readable == [(0x1000, 10), (0x2000, 20)]
    assert chain.writable == [(0x3000, 30), (0x4000, 40)]


@pytest.mark.parametrize("size", [1, 4])
def test_indices_beyond_65535_wrap_on_both_ends(size: int) -> None:
    driver, device = both_ends(size)

    for number in range(65540):
        driver.add([(number, 4)])
        chain = device.pop()
        assert chain.readable == [(number, 4)]
        device.push(chain.head)
        assert len(driver.collect()) == 1

    assert device.used_index == 4
    assert device.pending() == 0


def test_full_ring_is_emptied_out_of_order() -> None:
    driver, device = both_ends(4)
    heads = [driver.add([(addr, 4)]) for addr in (1, 2, 3, 4)]

    taken = [device.pop().head for _ in range(device.pending())]
    for head in reversed(taken):
        device.push(head)

    assert taken == heads
    assert [head for head, _ in driver.collect()] == heads[::-1]
    assert driver.outstanding == 0


def test_chain_longer_than_the_free_descriptors_is_refused_and_changes_nothing() -> None:
    driver, device = both_ends(4)
    driver.add([(1, 4)])

    with pytest.raises(ValueError, match="3 descriptors free"):
        driver.add([(1, 4)] * 4)

    assert device.pending() == 1
    assert driver.free_descriptors == 3


def test_used_entry_that_was_never_available_is_noticed() -> None:
    driver, device = both_ends(4)
    device.push(2)

    with pytest.raises(RuntimeError, match="id 2 is not a head"):
        driver.collect()


def test_interrupt_suppression_reaches_the_device() -> None:
    driver, device = both_ends(4)
    wanted_before = device.wants_call()

    driver.suppress_interrupts(suppress=True)

    assert wanted_before
    assert not device.wants_call()


def test_kick_suppression_reaches_the_driver() -> None:
    memory = memory_of(4)
    driver = DriverQueue(0, 4, memory, BASE)
    used = memory.view(driver.ring.used, 2)
    assert used is not None
    wanted_before = driver.wants_kick()

    used[:] = VIRTQ_USED_F_NO_NOTIFY.to_bytes(2, "little")

    assert wanted_before
    assert not driver.wants_kick()


def test_new_queue_in_used_memory_begins_empty() -> None:
    memory = memory_of(4)
    before = DriverQueue(0, 4, memory, BASE)
    before.add([(1, 4)])

    again = DriverQueue(0, 4, memory, BASE)

    available = memory.view(again.ring.available, 4)
    assert available is not None
    assert bytes(available) == bytes(4)


def test_queue_outside_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        DriverQueue(0, 4, memory_of(4), BASE + 4096)


def test_device_error_of_one_chain_leaves_the_driver_whole() -> None:
    driver, device = both_ends(4)
    head = driver.add([(1, 4)])
    # Bit 2 of the flags: an indirect table, which nobody offered.
    device._descriptors[head * 16 + 12] |= 4

    with pytest.raises(GuestError, match="indirect"):
        device.pop()
    device.push(head)

    assert driver.collect() == [(head, 0)]
