"""What a memory table makes of its files: RAM, what is never freed, what contradicts itself."""

from collections.abc import Callable, Iterable

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.memory_table import (
    MAX_MEM_SLOTS,
    PFN_LIMIT_BYTES,
    Fd,
    FileFacts,
    MemoryTable,
)
from balloon_daemon.vhost_user.messages import RegionDescription
from tests.fakes.counted_fd import CountedFd
from tests.harness.faults import fault

RAM = FileFacts(GIB, PAGE_SIZE)
HUGE = FileFacts(GIB, 2 * MIB)
ON_DISK = FileFacts(GIB, PAGE_SIZE, "is a file on ext4")
SEALED = FileFacts(GIB, PAGE_SIZE, "is sealed against writing", mappable=False)
DEVICE = FileFacts(None, PAGE_SIZE, "is no file of shared memory", mappable=False)
LIMIT = 1 << 44
"""16 TiB: page frame number 2^32."""


def at(
    guest: int, size: int = MIB, frontend: int | None = None, offset: int = 0
) -> RegionDescription:
    address = guest + (1 << 45) if frontend is None else frontend
    return RegionDescription(GuestAddr(guest), size, FrontendAddr(address), offset)


class Files:
    """Files and what they are, by descriptor."""

    def __init__(self) -> None:
        self._facts: dict[int, FileFacts] = {}

    def open(self, facts: FileFacts) -> CountedFd:
        fd = CountedFd()
        self._facts[id(fd)] = facts
        return fd

    def inspect(self, fds: Iterable[Fd]) -> list[FileFacts]:
        return [self._facts[id(fd)] for fd in fds]


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def table(files: Files) -> MemoryTable:
    return MemoryTable(files.inspect)


def test_region_that_cannot_be_freed_stays_in_the_table_and_is_no_ram(
    files: Files, table: MemoryTable
) -> None:
    facts = [RAM, ON_DISK, SEALED, DEVICE, HUGE]
    regions = [at(2 * MIB * number, 2 * MIB) for number in range(5)]
    fds = [files.open(kind) for kind in facts]

    table.set("SET_MEM_TABLE", regions, fds)

    # Where no device may map it, its file is let go of.
    assert [(r.never_freed, r.fd is not None) for r in table.regions] == [
        ("", True),
        ("is a file on ext4", True),
        ("is sealed against writing", False),
        ("is no file of shared memory", False),
        ("", True),
    ]
    assert (table.size_bytes, table.ram_bytes) == (10 * MIB, 4 * MIB)
    assert table.unsound == ""
    assert [fd.closings for fd in fds] == [0, 0, 1, 1, 0]


def test_file_that_was_not_asked_for_its_size_may_have_any(
    files: Files, table: MemoryTable
) -> None:
    table.add(at(0, 1 << 40, offset=1 << 50), files.open(DEVICE))
    assert table.unsound == ""


@pytest.mark.parametrize("offset", [PAGE_SIZE, MIB, 2 * MIB + PAGE_SIZE])
def test_region_that_begins_inside_a_huge_page_is_neither_mapped_nor_freed(
    offset: int, files: Files, table: MemoryTable
) -> None:
    table.add(at(0, 4 * MIB, offset=offset), files.open(HUGE))
    region = table.regions[0]
    assert region.never_freed == "is not aligned to its file's pages of 2097152 bytes"
    assert region.fd is None
    assert table.ram_bytes == 0


Spoil = Callable[[MemoryTable, Files], None]

SPOILERS: dict[str, tuple[Spoil, str]] = {
    "empty": (lambda t, f: t.add(at(4 * GIB, 0), f.open(RAM)), "is empty or not aligned"),
    "odd-size": (lambda t, f: t.add(at(4 * GIB, 4095), f.open(RAM)), "not aligned to 4096"),
    "odd-start": (lambda t, f: t.add(at(4 * GIB + 1), f.open(RAM)), "not aligned to 4096"),
    "wraps": (lambda t, f: t.add(at(2**64 - MIB, 2 * MIB, 0), f.open(RAM)), "wraps around"),
    "overlaps": (lambda t, f: t.add(at(MIB - PAGE_SIZE), f.open(RAM)), "overlaps that at 0x0"),
    "overlaps-frontend": (
        lambda t, f: t.add(at(4 * GIB, frontend=1 << 45), f.open(RAM)),
        "overlaps that at 0x0",
    ),
    "exceeds": (
        lambda t, f: t.add(at(4 * GIB, 2 * GIB), f.open(RAM)),
        "exceeds its file of 1073741824 bytes",
    ),
    "exceeds-on-disk": (
        lambda t, f: t.add(at(4 * GIB, MIB, offset=GIB), f.open(ON_DISK)),
        "exceeds its file",
    ),
    "lost": (lambda t, f: t.lose("its memory is unknown: too many open files"), "is unknown"),
}


@fault("memory table that contradicts itself")
@pytest.mark.parametrize(("spoil", "why"), SPOILERS.values(), ids=SPOILERS)
def test_table_that_contradicts_itself_holds_nothing_and_says_why(
    spoil: Spoil, why: str, files: Files, table: MemoryTable
) -> None:
    fd = files.open(RAM)
    table.add(at(0), fd)

    spoil(table, files)

    assert why in table.unsound
    assert table.regions == []
    assert fd.closings == 1


@pytest.mark.parametrize(("spoil", "why"), SPOILERS.values(), ids=SPOILERS)
def test_unsound_table_takes_nothing_more_and_is_sound_with_the_next_one(
    spoil: Spoil, why: str, files: Files, table: MemoryTable
) -> None:
    spoil_first, late = files.open(RAM), files.open(RAM)
    table.add(at(0), spoil_first)
    spoil(table, files)

    # Alone it would be a table that lacks the regions before it.
    table.add(at(8 * GIB), late)
    assert (table.regions, late.closings) == ([], 1)
    assert why in table.unsound

    table.set("SET_MEM_TABLE", [at(0)], [files.open(RAM)])
    assert (table.unsound, len(table.regions)) == ("", 1)


def test_set_whose_second_region_contradicts_the_first_closes_all_files(
    files: Files, table: MemoryTable
) -> None:
    fds = [files.open(RAM) for _ in range(3)]
    table.set("SET_MEM_TABLE", [at(0), at(0), at(2 * GIB)], fds)
    assert "overlaps" in table.unsound
    assert [fd.closings for fd in fds] == [1, 1, 1]


def test_set_with_another_number_of_files_raises_and_changes_nothing(
    files: Files, table: MemoryTable
) -> None:
    table.add(at(0), files.open(RAM))
    with pytest.raises(FrontendError, match="2 regions with 1 file descriptors"):
        table.set("SET_MEM_TABLE", [at(0), at(GIB)], [files.open(RAM)])
    assert [region.description for region in table.regions] == [at(0)]


def test_one_region_more_than_there_are_slots_makes_the_table_unsound(
    files: Files, table: MemoryTable
) -> None:
    for slot in range(MAX_MEM_SLOTS):
        table.add(at(slot * MIB), files.open(RAM))
    assert table.unsound == ""
    table.add(at(MAX_MEM_SLOTS * MIB), files.open(RAM))
    assert table.unsound == "more than 256 memory regions"


def test_remove_of_a_region_that_is_not_there_says_so(files: Files, table: MemoryTable) -> None:
    table.add(at(0), files.open(DEVICE))
    assert not table.remove(at(MIB))
    assert not table.remove(at(0, 2 * MIB))
    assert table.remove(at(0))
    assert not table.remove(at(0))


@pytest.mark.parametrize(
    ("region", "unnameable"),
    [
        (at(LIMIT - MIB), False),  # Its last page has PFN 2^32 - 1.
        (at(LIMIT - MIB, MIB + PAGE_SIZE), True),
        (at(LIMIT), True),
        (at(1 << 50), True),
        (at(LIMIT - MIB, PAGE_SIZE), False),
    ],
)
def test_page_at_16_tib_is_the_first_that_cannot_be_named(
    region: RegionDescription, unnameable: bool, files: Files, table: MemoryTable
) -> None:
    assert PFN_LIMIT_BYTES == LIMIT
    table.add(at(0), files.open(RAM))
    table.add(region, files.open(RAM))
    assert table.has_unnameable is unnameable


def test_memory_that_cannot_be_named_counts_until_it_is_unplugged(
    files: Files, table: MemoryTable
) -> None:
    table.add(at(0), files.open(RAM))
    table.add(at(LIMIT), files.open(RAM))
    assert table.has_unnameable
    table.remove(at(LIMIT))
    assert not table.has_unnameable
