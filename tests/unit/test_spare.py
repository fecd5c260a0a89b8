"""What a guest can spare, by its own statistics."""

import pytest

from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.spare import Spare, spare_of
from balloon_daemon.units import GIB, MIB

SIZE = 2 * GIB
KEPT = int(1.25 * 0.08 * SIZE)
"""The available memory that a guest keeps."""


def spare(
    available_mib: int | None,
    free_mib: int | None,
    *,
    taken_mib: int = 0,
    untouched_mib: int = 0,
    reads: bool = False,
) -> Spare | None:
    def size(mib: int | None) -> int | None:
        return None if mib is None else mib * MIB

    return spare_of(
        Figures(0.0, size(available_mib), size(free_mib)),
        SIZE,
        taken_bytes=taken_mib * MIB,
        untouched_bytes=untouched_mib * MIB,
        reads_cache=reads,
    )


def spares_nothing(found: Spare | None) -> bool:
    return found is not None and found[:3] == (0, 0, 0)


def test_free_memory_and_cache_are_told_apart() -> None:
    found = spare(1500, 600)
    assert found is not None
    assert found.free_bytes == 600 * MIB - int(0.08 * SIZE)
    assert found.free_bytes + found.cache_bytes == 1500 * MIB - KEPT
    assert found.unused_bytes == 600 * MIB - int(0.15 * SIZE)
    assert found.available_share == pytest.approx(1500 / 2048)


def test_what_was_asked_since_is_spared_no_more() -> None:
    found = spare(1500, 600, taken_mib=500)
    assert found is not None
    assert found.free_bytes == 0
    assert found.cache_bytes == 1000 * MIB - KEPT


def test_a_guest_near_its_need_spares_nothing() -> None:
    assert spares_nothing(spare(200, 190))
    # Without swap much free memory is kept by the kernel and is not available.
    few = spare(220, 600)
    assert few is not None
    assert few.free_bytes == 220 * MIB - KEPT
    assert few.cache_bytes == 0


def test_a_guest_that_reads_its_disks_spares_nothing() -> None:
    assert spares_nothing(spare(1500, 600, reads=True))


def test_memory_that_the_guest_has_never_used_is_known() -> None:
    found = spare(1500, 1000, untouched_mib=750)
    assert found is not None
    assert found.backed_share == 0.25


def test_without_available_memory_nothing_is_known() -> None:
    assert spare(None, 600) is None


def test_without_free_memory_all_is_cache() -> None:
    found = spare(1500, None)
    assert found is not None
    assert (found.free_bytes, found.cache_bytes) == (0, 1500 * MIB - KEPT)
