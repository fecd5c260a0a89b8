"""The balloon device's numbers: features, queue indices, config space, statistics."""

import pytest

from balloon_daemon.units import PAGE_SIZE, NumPages
from balloon_daemon.virtio.balloon import (
    MAX_STATS,
    OFFERED_FEATURES,
    STAT_ENTRY,
    BalloonConfig,
    BalloonFeature,
    BalloonQueue,
    StatTag,
    decode_stats,
    pages_of,
    queue_numbers,
)

F = BalloonFeature
INFLATEQ, DEFLATEQ, STATSQ, FREE_PAGE_VQ, REPORTING_VQ = BalloonQueue


@pytest.mark.parametrize(
    ("acknowledged", "optional"),
    [
        (0, []),
        (F.STATS_VQ, [STATSQ]),
        (F.REPORTING, [REPORTING_VQ]),
        (F.STATS_VQ | F.REPORTING, [STATSQ, REPORTING_VQ]),
        (F.FREE_PAGE_HINT | F.REPORTING, [FREE_PAGE_VQ, REPORTING_VQ]),
        (F.STATS_VQ | F.FREE_PAGE_HINT | F.REPORTING, [STATSQ, FREE_PAGE_VQ, REPORTING_VQ]),
        (F.VERSION_1 | F.MUST_TELL_HOST | F.DEFLATE_ON_OOM | 1 << 30, []),
    ],
)
def test_queue_numbers_are_compacted_by_acknowledged_features(
    acknowledged: int, optional: list[BalloonQueue]
) -> None:
    assert queue_numbers(acknowledged) == dict(enumerate([INFLATEQ, DEFLATEQ, *optional]))


def test_offered_features_are_those_that_are_implemented() -> None:
    # virtio 1.3, 5.5.3: bits 0, 1, 2, 4, 5 and VERSION_1 (32).
    assert int(OFFERED_FEATURES) == 1 << 32 | 0b110111


def config() -> BalloonConfig:
    return BalloonConfig(NumPages(0x11223344), NumPages(0x55667788))


WHOLE = bytes.fromhex("44332211 88776655 00000000 00000000".replace(" ", ""))


@pytest.mark.parametrize("offset", range(17))
def test_config_read_gives_any_part_of_the_space(offset: int) -> None:
    parts = [config().read(offset, length) for length in range(17 - offset)]
    assert parts == [WHOLE[offset : offset + length] for length in range(17 - offset)]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 17), (6, 20), (16, 1), (17, 0), (15, 2), (2**32, 4)]
)
def test_config_read_beyond_the_space_is_zeros(offset: int, length: int) -> None:
    inside = WHOLE[offset : offset + length]
    assert config().read(offset, length) == inside + bytes(length - len(inside))


@pytest.mark.parametrize(
    ("offset", "length", "actual"),
    [(0, 17, 0xFFFFFFFF), (4, 64, 0xFFFFFFFF), (5, 16, 0xFFFFFF88), (7, 1, 0xFF667788)],
)
def test_config_write_beyond_the_space_takes_what_it_has_of_actual(
    offset: int, length: int, actual: int
) -> None:
    space = config()
    assert space.write(offset, b"\xff" * length) is True
    assert space == BalloonConfig(NumPages(0x11223344), NumPages(actual))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (4, 0), (6, 0), (3, 1), (15, 2), (16, 1), (17, 0), (2**32, 4)]
)
def test_config_write_of_nothing_of_actual_changes_nothing(offset: int, length: int) -> None:
    space = config()
    assert space.write(offset, b"\xff" * length) is False
    assert space == config()


def test_config_write_of_the_whole_space_keeps_num_pages() -> None:
    # QEMU writes its cached num_pages with every actual: here 0, long out of date.
    space = config()
    assert space.write(0, bytes.fromhex("00000000 01020304 ffffffff ffffffff".replace(" ", "")))
    assert space == BalloonConfig(NumPages(0x11223344), NumPages(0x04030201))
    assert space.read(8, 8) == bytes(8)


@pytest.mark.parametrize("offset", [4, 5, 6, 7])
def test_config_write_of_one_byte_of_actual_changes_that_byte(offset: int) -> None:
    space = config()
    assert space.write(offset, b"\x00")
    expected = bytearray(WHOLE)
    expected[offset] = 0
    assert space.read(0, 16) == bytes(expected)


@pytest.mark.parametrize("offset", [0, 8, 12])
def test_config_write_beside_actual_changes_nothing(offset: int) -> None:
    space = config()
    assert space.write(offset, b"\xff\xff\xff\xff") is False
    assert space == config()


@pytest.mark.parametrize(
    ("offset", "content", "poison_val"),
    [
        (12, "aaaaaaaa", 0xAAAAAAAA),
        (12, "04030201", 0x01020304),
        (0, "ff" * 12 + "00000000", 0),
        (8, "ff" * 4 + "05000000" + "ff" * 40, 5),
        (12, "7f", 0x7F),
        (15, "7f", 0x7F000000),
        (11, "ffff", 0xFF),
    ],
)
def test_config_write_of_poison_val_is_kept_and_read_and_changes_nothing_else(
    offset: int, content: str, poison_val: int
) -> None:
    space = config()
    assert space.write_poison_val(offset, bytes.fromhex(content)) is True
    assert space == BalloonConfig(space.num_pages, space.actual, poison_val)
    assert space.read(0, 16) == WHOLE[:12] + poison_val.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 12), (4, 4), (11, 1), (12, 0), (16, 4), (17, 1), (2**32, 4)]
)
def test_config_write_beside_poison_val_leaves_it_unwritten(offset: int, length: int) -> None:
    space = config()
    assert space.write_poison_val(offset, b"\xff" * length) is False
    assert space.poison_val is None
    assert space.read(12, 4) == bytes(4)


@pytest.mark.parametrize(
    ("size_bytes", "pages"),
    [(0, 0), (4095, 0), (4096, 1), (3 << 30, 786432), (2**44 - 1, 2**32 - 1)],
)
def test_pages_of_counts_whole_pages(size_bytes: int, pages: int) -> None:
    assert pages_of(size_bytes) == pages


@pytest.mark.parametrize("size_bytes", [2**44, 2**60])
def test_pages_of_more_than_num_pages_can_say_is_the_most_that_it_can(size_bytes: int) -> None:
    # A front-end may describe memory of 2**60 bytes: a memfd may have any length. 5.5.4 has a u32.
    space = BalloonConfig(pages_of(size_bytes))
    assert space.read(0, 4) == b"\xff\xff\xff\xff"


def test_decode_stats_yields_whole_entries_and_leaves_a_rest() -> None:
    buffer = STAT_ENTRY.pack(StatTag.MEMFREE, 5 * PAGE_SIZE) + STAT_ENTRY.pack(999, 2**64 - 1)
    for rest in range(STAT_ENTRY.size):
        entries = list(decode_stats(buffer + bytes(rest)))
        assert entries == [(StatTag.MEMFREE, 5 * PAGE_SIZE), (999, 2**64 - 1)]


def test_decode_stats_looks_at_no_more_than_the_limit() -> None:
    buffer = b"".join(STAT_ENTRY.pack(n, n) for n in range(MAX_STATS + 1))
    assert len(list(decode_stats(buffer))) == MAX_STATS


def test_stat_entry_is_packed() -> None:
    assert STAT_ENTRY.size == 10  # Linux: struct virtio_balloon_stat is __attribute__((packed))
