"""Guest memory: which addresses are in it, and where."""

import pytest

from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion


def region(guest_addr: int, size_bytes: int, frontend_addr: int, fill: int = 0) -> MemoryRegion:
    view = memoryview(bytearray([fill]) * size_bytes)
    return MemoryRegion(GuestAddr(guest_addr), FrontendAddr(frontend_addr), size_bytes, view)


LOW = region(0, 0x3000, 0x7000_0000, 1)
NEXT = region(0x3000, 0x1000, 0x1000_0000, 2)
HIGH = region(0x1_0000_0000, 0x2000, 0x9000_0000, 3)
MEMORY = GuestMemory([HIGH, LOW, NEXT])


def test_regions_are_sorted_by_guest_address() -> None:
    assert MEMORY.regions == (LOW, NEXT, HIGH)


@pytest.mark.parametrize(
    ("addr", "length", "place"),
    [
        (0, 1, (0, 0)),
        (0, 0x3000, (0, 0)),
        (0x2FFF, 1, (0, 0x2FFF)),
        (0x3000, 1, (1, 0)),
        (0x3FFF, 1, (1, 0xFFF)),
        (0x1_0000_0000, 0x2000, (2, 0)),
        (0x1_0000_1FFF, 1, (2, 0x1FFF)),
        (0x1_0000_2000, 0, (2, 0x2000)),
    ],
)
def test_locate_range_inside_one_region_finds_it(
    addr: int, length: int, place: tuple[int, int]
) -> None:
    assert MEMORY.locate(addr, length) == place


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (0, 0x3001),
        (0x2FFF, 2),  # Goes on in the next region, whose memory lies elsewhere.
        (0x4000, 1),
        (0x3FFF, 2),
        (0xFFFF_FFFF, 1),
        (0xFFFF_FFFF, 2),
        (0x1_0000_2000, 1),
        (2**64 - 1, 1),
        (2**64 - 1, 2**32 - 1),
        (0, 2**64),
    ],
)
def test_locate_range_not_inside_one_region_is_none(addr: int, length: int) -> None:
    assert MEMORY.locate(addr, length) is None
    assert MEMORY.view(addr, length) is None


def test_locate_region_that_ends_at_the_end_of_all_addresses() -> None:
    memory = GuestMemory([region(2**64 - 0x1000, 0x1000, 2**64 - 0x1000)])
    assert memory.locate(2**64 - 1, 1) == (0, 0xFFF)
    assert memory.locate(2**64 - 1, 2) is None
    assert memory.view_of_frontend(FrontendAddr(2**64 - 1), 2) is None


def test_locate_without_regions_is_none() -> None:
    assert GuestMemory([]).locate(0, 0) is None


def test_view_is_the_regions_own_memory() -> None:
    only = region(0x3000, 0x1000, 0)
    view = GuestMemory([only]).view(0x3FF0, 16)
    assert view is not None
    assert only.view is not None
    view[:] = b"0123456789abcdef"
    assert bytes(only.view[0xFF0:]) == b"0123456789abcdef"


def test_region_that_nobody_may_touch_is_found_and_has_no_view() -> None:
    untouchable = MemoryRegion(GuestAddr(0x3000), FrontendAddr(0x7000), 0x1000, None)
    memory = GuestMemory([LOW, untouchable])
    assert memory.locate(0x3010, 16) == (1, 0x10)
    assert memory.view(0x3010, 16) is None
    assert memory.view_of_frontend(FrontendAddr(0x7010), 16) is None
    assert memory.view(0x10, 16) is not None


@pytest.mark.parametrize(
    ("addr", "length", "fill"),
    [(0x7000_0000, 0x3000, 1), (0x1000_0FFF, 1, 2), (0x9000_0000, 1, 3), (0x9000_2000, 0, 3)],
)
def test_view_of_frontend_address_inside_a_region_is_its_memory(
    addr: int, length: int, fill: int
) -> None:
    view = MEMORY.view_of_frontend(FrontendAddr(addr), length)
    assert view is not None
    assert bytes(view) == bytes([fill]) * length


@pytest.mark.parametrize(
    ("addr", "length"),
    [(0, 1), (0x6FFF_FFFF, 2), (0x7000_2FFF, 2), (0x7000_3000, 1), (2**64 - 1, 1)],
)
def test_view_of_frontend_address_outside_is_none(addr: int, length: int) -> None:
    assert MEMORY.view_of_frontend(FrontendAddr(addr), length) is None
