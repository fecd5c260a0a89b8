"""The fake guest's memory: patterns, holes, and what a check finds."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.ram import GuestRam, PageState, q35_layout
from balloon_daemon.units import GIB, MIB, PAGE_SIZE

LAYOUT = [(0, 256 * PAGE_SIZE), (4 * GIB, 256 * PAGE_SIZE)]
HIGH_PFN = 4 * GIB // PAGE_SIZE


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    guest = GuestRam(LAYOUT)
    yield guest
    guest.close()


def punch(ram: GuestRam, page: int) -> None:
    """Takes a page away, as a device does that removes what it was not given."""
    ram._map.madvise(mmap.MADV_REMOVE, page * PAGE_SIZE, PAGE_SIZE)


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        (2 * GIB, [(0, 2 * GIB)]),
        (0xB000_0000, [(0, 0xB000_0000)]),
        (4 * GIB, [(0, 2 * GIB), (4 * GIB, 2 * GIB)]),
    ],
)
def test_layout_of_q35_is_as_qemu_has_it(size: int, layout: list[tuple[int, int]]) -> None:
    assert q35_layout(size) == layout


def test_layout_with_its_own_split_puts_the_rest_high() -> None:
    assert q35_layout(64 * MIB, 16 * MIB) == [(0, 16 * MIB), (4 * GIB, 48 * MIB)]


def test_layout_with_the_vga_hole_lacks_what_is_the_vgas() -> None:
    layout = q35_layout(4 * GIB, vga_hole=True)

    assert layout == [(0, 0xA0000), (0xC0000, 2 * GIB - 0xC0000), (4 * GIB, 2 * GIB)]


@pytest.mark.parametrize("layout", [[(0, 0)], [(1, PAGE_SIZE)], [(0, PAGE_SIZE + 1)]])
def test_region_that_is_not_whole_pages_is_refused(layout: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="not whole pages"):
        GuestRam(layout)


def test_frontend_addresses_are_not_guest_addresses(ram: GuestRam) -> None:
    assert all(int(region.guest_addr) != int(region.frontend_addr) for region in ram.regions)
    assert ram.regions[1].mmap_offset_bytes == ram.regions[0].size_bytes


def test_pfns_and_pages_are_each_others_inverse_over_the_hole(ram: GuestRam) -> None:
    pages = np.array([0, 255, 256, 511])

    pfns = ram.numbers.pfns(pages)

    assert pfns.tolist() == [0, 255, HIGH_PFN, HIGH_PFN + 255]
    assert ram.numbers.pages(pfns).tolist() == pages.tolist()


def test_pfns_outside_memory_are_no_pages(ram: GuestRam) -> None:
    outside = np.array([256, HIGH_PFN - 1, HIGH_PFN + 256, 0xFFFF_FFFF], np.uint32)

    assert ram.numbers.pages(outside).tolist() == [-1, -1, -1, -1]


def test_memory_untouched_holds_no_blocks_and_check_allocates_none(ram: GuestRam) -> None:
    result = ram.check()

    assert (result.pages_checked, result.pages_corrupt) == (0, 0)
    assert ram.blocks_bytes() == 0


def test_touched_pages_hold_blocks_and_are_intact(ram: GuestRam) -> None:
    ram.touch(np.array([3, 4, 5, 300]))

    result = ram.check()

    assert (result.pages_checked, result.pages_corrupt) == (4, 0)
    assert ram.blocks_bytes() == 4 * PAGE_SIZE


def test_pattern_differs_by_page_generation_and_guest(ram: GuestRam) -> None:
    other = GuestRam(LAYOUT, seed=2)
    ram.touch(np.array([1, 2]))
    other.touch(np.array([1]))
    first, neighbour = (os.pread(ram.fd, PAGE_SIZE, page * PAGE_SIZE) for page in (1, 2))
    theirs = os.pread(other.fd, PAGE_SIZE, PAGE_SIZE)
    ram.touch(np.array([1]))
    again = os.pread(ram.fd, PAGE_SIZE, PAGE_SIZE)
    other.close()

    assert len({first, neighbour, theirs, again}) == 4


def test_kept_page_removed_is_found_without_allocating_it(ram: GuestRam) -> None:
    ram.touch(np.arange(256, 266))
    punch(ram, 260)
    blocks = ram.blocks_bytes()

    result = ram.check()

    assert (result.pages_checked, result.pages_corrupt) == (10, 1)
    assert result.bad_pfns == [HIGH_PFN + 4]
    assert ram.blocks_bytes() == blocks


@pytest.mark.parametrize("offset", [0, 2047, 4095])
def test_kept_page_with_one_byte_changed_is_found(ram: GuestRam, offset: int) -> None:
    ram.touch(np.arange(10))
    at = 7 * PAGE_SIZE + offset
    ram._map[at] ^= 1

    result = ram.check()

    assert (result.pages_corrupt, result.bad_pfns) == (1, [7])


def test_two_kept_pages_swapped_are_both_found(ram: GuestRam) -> None:
    ram.touch(np.array([1, 2]))
    first = os.pread(ram.fd, PAGE_SIZE, PAGE_SIZE)
    second = os.pread(ram.fd, PAGE_SIZE, 2 * PAGE_SIZE)
    os.pwrite(ram.fd, second + first, PAGE_SIZE)

    assert ram.check().bad_pfns == [1, 2]


def test_untouched_page_that_somebody_wrote_is_found(ram: GuestRam) -> None:
    os.pwrite(ram.fd, b"x", 9 * PAGE_SIZE)

    assert ram.check().bad_pfns == [9]


def test_pages_given_up_may_hold_anything(ram: GuestRam) -> None:
    ram.touch(np.arange(4))
    ram.state[0:2] = PageState.BALLOON
    ram.state[2] = PageState.GIVEN
    punch(ram, 0)

    result = ram.check()

    assert (result.pages_checked, result.pages_corrupt) == (1, 0)
    assert result.balloon_resident == 1


def test_check_of_many_scattered_pages_compares_each(ram: GuestRam) -> None:
    ram.touch(np.arange(0, 512, 2))
    ram._map[400 * PAGE_SIZE] ^= 0xFF

    result = ram.check()

    assert (result.pages_checked, result.bad_pfns) == (256, [HIGH_PFN + 144])


def test_reserved_memory_is_at_the_end_and_not_checked(ram: GuestRam) -> None:
    addr = ram.reserve(PAGE_SIZE + 1)
    view = ram.memory.view(addr, 2 * PAGE_SIZE)
    assert view is not None
    view[:] = b"r" * len(view)

    assert addr == 4 * GIB + 254 * PAGE_SIZE
    assert ram.check().pages_corrupt == 0


def test_reserving_a_whole_region_is_refused(ram: GuestRam) -> None:
    with pytest.raises(ConfigError, match="leave nothing"):
        ram.reserve(256 * PAGE_SIZE)


def test_closed_memory_is_gone_at_once() -> None:
    guest = GuestRam(LAYOUT)
    guest.touch(np.arange(100))
    inode = os.fstat(guest.fd).st_ino

    guest.close()

    # No collector is waited for: neither a mapping nor a descriptor holds the file any more.
    mapped = Path("/proc/self/maps").read_text()
    assert f" {inode} " not in mapped
