"""The memory table: what is refused, and that a refused request changes nothing."""

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.memory_table import MAX_MEM_SLOTS, MemoryTable, Region
from balloon_daemon.vhost_user.messages import RegionDescription
from tests.fakes.counted_fd import CountedFd, inspect

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
    assert [region.fd for region in table.regions] == old


@pytest.mark.parametrize(
    ("region", "why"),
    [
        (LOW._replace(size_bytes=0), "empty"),
        (LOW._replace(size_bytes=4095), "not aligned"),
        (LOW._replace(guest_addr=GuestAddr(1)), "not aligned"),
        (LOW._replace(frontend_addr=FrontendAddr(0x7000_0800)), "not aligned"),
        (LOW._replace(mmap_offset_bytes=512), "not aligned"),
        (LOW._replace(guest_addr=GuestAddr(2**64 - MIB)), "wraps around"),
        (LOW._replace(frontend_addr=FrontendAddr(2**64 - MIB)), "wraps around"),
        (LOW._replace(mmap_offset_bytes=2**64 - MIB), "wraps around"),
        (LOW._replace(size_bytes=2**64 - 4096), "wraps around"),
        (LOW._replace(size_bytes=3 * MIB + 4096), "exceeds its file"),
        (LOW._replace(mmap_offset_bytes=MIB + 4096), "exceeds its file"),
    ],
)
def test_region_that_cannot_be_is_refused(region: RegionDescription, why: str) -> None:
    table = MemoryTable(inspect)
    with pytest.raises(FrontendError, match=why):
        table.set("SET_MEM_TABLE", [region], [CountedFd(3 * MIB)])
    with pytest.raises(FrontendError, match=why):
        table.add("ADD_MEM_REG", region, CountedFd(3 * MIB))
    assert table.regions == []


def test_region_up_to_the_end_of_all_addresses_is_allowed() -> None:
    table = MemoryTable(inspect)
    table.add("ADD_MEM_REG", described(2**64 - MIB, MIB, 2**64 - MIB), CountedFd(MIB))
    assert table.size_bytes == MIB


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
def test_region_that_overlaps_another_is_refused(region: RegionDescription) -> None:
    table, fds = table_of_two()
    with pytest.raises(FrontendError, match="overlaps"):
        table.add("ADD_MEM_REG", region, CountedFd())
    with pytest.raises(FrontendError, match="overlaps"):
        table.set("SET_MEM_TABLE", [LOW, HIGH, region], [CountedFd() for _ in range(3)])
    assert [(region.fd, region.fd.fileno() >= 0) for region in table.regions] == [
        (fd, True) for fd in fds
    ]


def test_regions_that_touch_are_allowed() -> None:
    table, _ = table_of_two()
    table.add("ADD_MEM_REG", described(2 * MIB, MIB, 0x7000_0000 - MIB), CountedFd())
    assert table.size_bytes == 4 * MIB


def test_file_that_is_no_guest_memory_is_refused_with_its_reason() -> None:
    table = MemoryTable(inspect)
    with pytest.raises(FrontendError, match="region at 0x0: its file is a pipe"):
        table.add("ADD_MEM_REG", LOW, CountedFd(refusal="is a pipe"))


def test_offset_inside_a_huge_page_is_refused() -> None:
    table = MemoryTable(inspect)
    huge = CountedFd(file_bytes=64 * MIB, page_bytes=2 * MIB)
    with pytest.raises(FrontendError, match="not aligned to its pages of 2097152"):
        table.add("ADD_MEM_REG", described(0, 2 * MIB, 0, MIB), huge)
    table.add("ADD_MEM_REG", described(0, 3 * MIB, 0, 2 * MIB), huge)
    assert table.regions[0].page_bytes == 2 * MIB


@pytest.mark.parametrize("which", [0, 1])
def test_remove_closes_the_regions_file_and_no_other(which: int) -> None:
    table, fds = table_of_two()
    table.remove("REM_MEM_REG", [LOW, HIGH][which])
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
def test_remove_region_that_is_not_there_is_refused(gone: RegionDescription) -> None:
    table, fds = table_of_two()
    with pytest.raises(FrontendError, match="no such region"):
        table.remove("REM_MEM_REG", gone)
    assert [fd.closings for fd in fds] == [0, 0]


def test_add_more_than_there_are_slots_is_refused() -> None:
    table = MemoryTable(inspect)
    for slot in range(MAX_MEM_SLOTS):
        table.add("ADD_MEM_REG", described(slot * 4096, 4096, slot * 4096), CountedFd())
    with pytest.raises(FrontendError, match="more than 256 regions"):
        table.add("ADD_MEM_REG", described(1 << 40, 4096, 1 << 40), CountedFd())


def test_close_closes_each_file_once() -> None:
    table, fds = table_of_two()
    table.close()
    table.close()
    assert [fd.closings for fd in fds] == [1, 1]
