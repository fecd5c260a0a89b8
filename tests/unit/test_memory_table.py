"""The memory table: what it keeps of regions that cannot be freed, and what makes it unsound."""

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.memory_table import (
    MAX_MEM_SLOTS,
    PFN_LIMIT_BYTES,
    MemoryTable,
    Region,
)
from balloon_daemon.vhost_user.messages import RegionDescription
from tests.fakes.counted_fd import CountedFd, inspect
from tests.harness.faults import fault

MIB = 1 << 20


def described(guest: int, size: int, frontend: int, offset: int = 0) -> RegionDescription:
    return RegionDescription(GuestAddr(guest), size, FrontendAddr(frontend), offset)


LOW = described(0, 2 * MIB, 0x7000_0000)
HIGH = described(0x1_0000_0000, MIB, 0x9000_0000, 2 * MIB)


def table_of_two() -> tuple[MemoryTable, list[CountedFd]]:
    table, fds = MemoryTable(inspect), [CountedFd(3 * MIB), CountedFd(3 * MIB)]
    table.set("SET_MEM_TABLE", [LOW, HIGH], fds)
    return table, fds


def test_set_holds_the_regions_and_adds_up_their_sizes() -> None:
    table, fds = table_of_two()
    assert table.regions == [Region(LOW, fds[0], 4096), Region(HIGH, fds[1], 4096)]
    assert table.size_bytes == 3 * MIB


def test_set_again_closes_the_files_that_it_held() -> None:
    table, old = table_of_two()
    table.set("SET_MEM_TABLE", [LOW], [new := CountedFd()])
    assert [fd.closings for fd in (*old, new)] == [1, 1, 0]
    assert [region.description for region in table.regions] == [LOW]


def test_set_nothing_forgets_all() -> None:
    table, old = table_of_two()
    table.set("SET_MEM_TABLE", [], [])
    assert (table.regions, table.size_bytes) == ([], 0)
    assert [fd.closings for fd in old] == [1, 1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_set_with_another_number_of_files_than_regions_is_refused(count: int) -> None:
    table, old = table_of_two()
    with pytest.raises(FrontendError, match=f"2 regions with {count} file descriptors"):
        table.set("SET_MEM_TABLE", [LOW, HIGH], [CountedFd() for _ in range(count)])
    assert (table.unsound, [region.fd for region in table.regions]) == ("", old)
    assert [fd.closings for fd in old] == [0, 0]


IMPOSSIBLE = [
    (LOW._replace(size_bytes=0), "memory region at 0x0 is empty or not aligned to 4096 bytes"),
    (LOW._replace(size_bytes=4095), "memory region at 0x0 is empty or not aligned"),
    (LOW._replace(guest_addr=GuestAddr(1)), "memory region at 0x1 is empty or not aligned"),
    (LOW._replace(frontend_addr=FrontendAddr(0x7000_0800)), "not aligned to 4096 bytes"),
    (LOW._replace(mmap_offset_bytes=512), "not aligned to 4096 bytes"),
    (LOW._replace(guest_addr=GuestAddr(2**64 - MIB)), "of 2097152 bytes wraps around"),
    (LOW._replace(frontend_addr=FrontendAddr(2**64 - MIB)), "wraps around"),
    (LOW._replace(mmap_offset_bytes=2**64 - MIB), "wraps around"),
    (LOW._replace(size_bytes=2**64 - 4096), "wraps around"),
    (LOW._replace(size_bytes=3 * MIB + 4096), "exceeds its file of 3145728 bytes"),
    (LOW._replace(mmap_offset_bytes=MIB + 4096), "exceeds its file of 3145728 bytes"),
]


@fault("memory table that contradicts itself")
@pytest.mark.parametrize(("region", "why"), IMPOSSIBLE)
def test_region_that_cannot_be_makes_the_table_unsound_and_closes_all_files(
    region: RegionDescription, why: str
) -> None:
    fds = [CountedFd(3 * MIB) for _ in range(3)]
    table = MemoryTable(inspect)
    table.set("SET_MEM_TABLE", [region, HIGH], fds[:2])
    assert why in table.unsound
    assert (table.regions, table.size_bytes) == ([], 0)
    table = MemoryTable(inspect)
    table.add(region, fds[2])
    assert why in table.unsound
    assert table.regions == []
    assert [fd.closings for fd in fds] == [1, 1, 1]


def test_region_up_to_the_end_of_all_addresses_is_allowed() -> None:
    table = MemoryTable(inspect)
    table.add(described(2**64 - MIB, MIB, 2**64 - MIB), CountedFd(MIB))
    assert (table.size_bytes, table.unsound) == (MIB, "")


@fault("memory table that contradicts itself")
@pytest.mark.parametrize(
    "region",
    [
        described(0, MIB, 0x5000_0000),
        described(2 * MIB - 4096, MIB, 0x5000_0000),
        described(0x8000_0000, MIB, 0x7000_0000 - MIB + 4096),
        described(0x8000_0000, 64 * MIB, 0x7000_0000 - 4096),
        described(0x1_0000_0000 - 4096, 2 * MIB, 0x5000_0000),
    ],
)
def test_region_that_overlaps_another_makes_the_table_unsound(region: RegionDescription) -> None:
    table, old = table_of_two()
    added, fds = CountedFd(), [CountedFd() for _ in range(3)]
    table.add(region, added)
    assert f"memory region at {region.guest_addr:#x} overlaps that at" in table.unsound
    assert table.regions == []
    table.set("SET_MEM_TABLE", [LOW, HIGH, region], fds)
    assert "overlaps" in table.unsound
    assert table.regions == []
    assert [fd.closings for fd in (*old, added, *fds)] == [1] * 6


def test_unsound_table_takes_no_region_and_closes_what_comes_until_it_is_set_anew() -> None:
    table, old = table_of_two()
    table.add(LOW, CountedFd())
    table.add(described(1 << 40, MIB, 1 << 40), later := CountedFd())
    assert table.remove(HIGH) is False
    assert table.regions == []
    assert table.unsound
    assert [fd.closings for fd in (*old, later)] == [1, 1, 1]
    table.set("SET_MEM_TABLE", [LOW], [new := CountedFd()])
    assert (table.unsound, table.regions) == ("", [Region(LOW, new, 4096)])


def test_unsound_table_that_is_set_to_nothing_is_sound_and_takes_regions_again() -> None:
    table = MemoryTable(inspect)
    table.add(LOW._replace(size_bytes=0), CountedFd())
    table.set("SET_MEM_TABLE", [], [])
    table.add(LOW, fd := CountedFd())
    assert (table.unsound, table.regions) == ("", [Region(LOW, fd, 4096)])


def test_table_that_is_lost_holds_nothing_and_says_why() -> None:
    table, old = table_of_two()
    table.lose("its memory is unknown")
    assert (table.unsound, table.regions) == ("its memory is unknown", [])
    assert [fd.closings for fd in old] == [1, 1]


def test_regions_that_touch_are_allowed() -> None:
    table, _ = table_of_two()
    table.add(described(2 * MIB, MIB, 0x7000_0000 - MIB), CountedFd())
    assert (table.size_bytes, table.unsound) == (4 * MIB, "")


@fault("memory region that cannot be freed")
@pytest.mark.parametrize("mappable", [True, False])
def test_file_that_cannot_be_freed_is_never_freed_and_let_go_where_nobody_may_map_it(
    mappable: bool,
) -> None:
    # Whoever closes a file of FUSE waits for its server: a store and its keeper would have to.
    table = MemoryTable(inspect)
    fd = CountedFd(3 * MIB, never_freed="is a file on ext4", mappable=mappable)
    table.set("SET_MEM_TABLE", [LOW, HIGH], [fd, ram := CountedFd(3 * MIB)])
    kept = fd if mappable else None
    assert table.unsound == ""
    assert table.regions == [Region(LOW, kept, 4096, "is a file on ext4"), Region(HIGH, ram, 4096)]
    assert (table.size_bytes, table.ram_bytes) == (3 * MIB, MIB)
    assert fd.closings == (0 if mappable else 1)
    assert table.remove(LOW) is True
    assert fd.closings == 1


def test_region_whose_file_was_let_go_of_is_never_freed() -> None:
    table = MemoryTable(inspect)
    table.add(LOW, None)
    assert table.regions == [Region(LOW, None, 4096, "is not known here")]
    assert (table.unsound, table.size_bytes, table.ram_bytes) == ("", 2 * MIB, 0)
    table.add(LOW, None)
    assert "overlaps" in table.unsound
    table.add(LOW, None)
    table.close()
    assert (table.unsound, table.regions) == ("", [])


def test_file_that_is_not_asked_for_its_length_is_held_to_none() -> None:
    table = MemoryTable(inspect)
    table.add(LOW, CountedFd(None, never_freed="is no file of shared memory", mappable=False))
    assert (table.unsound, table.size_bytes, table.ram_bytes) == ("", 2 * MIB, 0)


def test_file_that_cannot_be_freed_is_still_held_to_its_length_where_that_is_known() -> None:
    table = MemoryTable(inspect)
    table.add(LOW, CountedFd(MIB, never_freed="is a file on ext4"))
    assert table.unsound == "memory region at 0x0 exceeds its file of 1048576 bytes"


def test_offset_inside_a_huge_page_is_never_freed_and_not_mapped() -> None:
    table = MemoryTable(inspect)
    huge = CountedFd(file_bytes=64 * MIB, page_bytes=2 * MIB)
    other = CountedFd(file_bytes=64 * MIB, page_bytes=2 * MIB)
    table.add(described(0, 2 * MIB, 0, MIB), huge)
    table.add(described(4 * MIB, 3 * MIB, 4 * MIB, 2 * MIB), other)
    why = "is not aligned to its file's pages of 2097152 bytes"
    assert table.regions == [
        Region(described(0, 2 * MIB, 0, MIB), None, 2 * MIB, why),
        Region(described(4 * MIB, 3 * MIB, 4 * MIB, 2 * MIB), other, 2 * MIB),
    ]
    assert (table.unsound, table.ram_bytes) == ("", 3 * MIB)
    assert (huge.closings, other.closings) == (1, 0)


@pytest.mark.parametrize(
    ("end", "unnameable"),
    [(PFN_LIMIT_BYTES, False), (PFN_LIMIT_BYTES + 4096, True), (1 << 64, True)],
)
def test_memory_above_what_a_page_frame_number_reaches_is_known(
    end: int, unnameable: bool
) -> None:
    table, _ = table_of_two()
    table.add(described(end - MIB, MIB, 0x5000_0000), CountedFd())
    assert (table.unsound, table.has_unnameable) == ("", unnameable)


@pytest.mark.parametrize("which", [0, 1])
def test_remove_closes_the_regions_file_and_no_other(which: int) -> None:
    table, fds = table_of_two()
    assert table.remove([LOW, HIGH][which]) is True
    assert fds[which].closings == 1
    assert [region.fd for region in table.regions] == [fds[1 - which]]
    assert fds[1 - which].closings == 0


@pytest.mark.parametrize(
    "gone",
    [
        LOW._replace(size_bytes=MIB),
        LOW._replace(guest_addr=GuestAddr(4096)),
        LOW._replace(frontend_addr=FrontendAddr(0)),
    ],
)
def test_remove_region_that_is_not_there_changes_nothing(gone: RegionDescription) -> None:
    table, fds = table_of_two()
    assert table.remove(gone) is False
    assert (table.unsound, [region.fd for region in table.regions]) == ("", fds)
    assert [fd.closings for fd in fds] == [0, 0]


@fault("memory table that contradicts itself")
def test_add_more_than_there_are_slots_makes_the_table_unsound() -> None:
    table = MemoryTable(inspect)
    fds = [CountedFd() for _ in range(MAX_MEM_SLOTS + 1)]
    for slot, fd in enumerate(fds[:-1]):
        table.add(described(slot * 4096, 4096, slot * 4096), fd)
    assert (table.unsound, len(table.regions)) == ("", MAX_MEM_SLOTS)
    table.add(described(1 << 40, 4096, 1 << 40), fds[-1])
    assert (table.unsound, table.regions) == ("more than 256 memory regions", [])
    assert [fd.closings for fd in fds] == [1] * (MAX_MEM_SLOTS + 1)


def test_close_closes_each_file_once() -> None:
    table, fds = table_of_two()
    table.close()
    table.close()
    assert [fd.closings for fd in fds] == [1, 1]


class Compared(int):
    """An address that counts how often addresses were compared."""

    times = 0

    def __lt__(self, other: int) -> bool:
        Compared.times += 1
        return int(self) < int(other)

    def __gt__(self, other: int) -> bool:
        Compared.times += 1
        return int(self) > int(other)


@fault("controller that takes over the VMs of a user with 256 memory regions each")
@pytest.mark.parametrize("step", [1, -1])
def test_region_of_256_is_compared_with_few_others(step: int) -> None:
    table = MemoryTable(inspect)
    Compared.times = 0
    for number in range(MAX_MEM_SLOTS)[::step]:
        guest, frontend = GuestAddr(Compared(number * MIB)), FrontendAddr(Compared(number * MIB))
        table.add(RegionDescription(guest, MIB, frontend, 0), CountedFd())
    assert (table.unsound, len(table.regions)) == ("", MAX_MEM_SLOTS)
    # A binary search in two lists takes eight steps in each; all others would be 32,640 pairs.
    assert Compared.times <= MAX_MEM_SLOTS * 2 * 12


def test_region_that_was_removed_leaves_its_place_to_another() -> None:
    table, _ = table_of_two()
    assert table.remove(LOW)
    table.add(described(MIB, MIB, 0x7000_0000 + MIB), CountedFd())
    assert (table.unsound, len(table.regions)) == ("", 2)
    table.add(LOW, CountedFd(3 * MIB))
    assert table.unsound == "memory region at 0x0 overlaps that at 0x100000"
