"""Sizes as people write them, and as we write them for people."""

import pytest

from balloon_daemon.errors import ConfigError
from balloon_daemon.units import (
    GIB,
    KIB,
    MIB,
    format_size,
    parse_memory_size,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1),
        ("1048576", MIB),
        ("7b", 7),
        ("4G", 4 * GIB),
        ("4g", 4 * GIB),
        ("4GB", 4 * GIB),
        ("4GiB", 4 * GIB),
        ("4 GiB", 4 * GIB),
        (" 512 MB ", 512 * MIB),
        ("1.5GiB", 1536 * MIB),
        ("0.5k", 512),
        ("64K", 64 * KIB),
        ("2T", 2048 * GIB),
    ],
)
def test_size_as_people_write_it_is_its_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", " ", "G", "four", "4X", "4GG", "4Gi", "-4G", "+4G", "1e3", "0x10", "4,5G", ".5G", "nan"],
)
def test_text_that_is_no_size_raises_and_shows_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a size; write it like 4G"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0G", "0.0M", "0.5", "0.0001K"])
def test_size_of_less_than_a_byte_raises(text: str) -> None:
    with pytest.raises(ConfigError, match="at least one byte"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (1536, "1.5 KiB"),
        (192 * MIB, "192 MiB"),
        (3 * GIB, "3 GiB"),
        (1536 * MIB, "1.5 GiB"),
        (2048 * GIB, "2048 GiB"),
        (-192 * MIB, "-192 MiB"),
    ],
)
def test_size_for_people_has_the_largest_unit_that_fits(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize("size_bytes", [1, 4096, 250 * MIB, 768 * MIB, 3 * GIB])
def test_size_written_for_people_parses_to_itself(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["1" * 400 + ".0", "1" * 5000, "\u0661G"])
def test_size_of_absurd_digits_raises(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size(text)


def test_size_with_a_fraction_drops_what_is_no_whole_byte() -> None:
    assert parse_size("0.1G") == 107374182


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1M", MIB),
        ("1048576", MIB),
        ("4294967296", 4 * GIB),
        ("4294967296B", 4 * GIB),
        ("1.5G", 1536 * MIB),
        ("4096T", 1 << 52),
    ],
)
def test_memory_size_within_its_bounds_is_its_bytes(text: str, size_bytes: int) -> None:
    assert parse_memory_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1.5", "'1.5' has no unit; write 1.5G or 1.5M"),
        ("4", "'4' has no unit; write 4G or 4M"),
        ("1048577", "'1048577' has no unit"),
        ("0", "'0' is not a size of at least one byte"),
        ("1023K", "'1023K' is less than 1 MiB"),
        ("4097T", "'4097T' is more than 4 PiB, the most that x86-64 can address"),
        ("-1G", "'-1G' is not a size; write it like 4G"),
    ],
)
def test_memory_size_without_a_unit_or_outside_its_bounds_raises(
    text: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_memory_size(text)
