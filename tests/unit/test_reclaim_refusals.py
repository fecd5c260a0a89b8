"""A kernel that refuses to remove some runs: the others go, and each refusal is told."""

import errno

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.device.reclaim import Reclaimer, coalesce, runs_of
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from tests.fakes.recording_map import buffer_of

FIRST_PFN, PAGES = 100, 64


class RefusingMap:
    """A mapping of which some pages cannot be removed."""

    def __init__(self, refused: set[int], number: int) -> None:
        self.number = number
        self.refused = {(pfn - FIRST_PFN) * PAGE_SIZE for pfn in refused}
        self.removed: list[tuple[int, int]] = []

    def madvise(self, _option: int, start: int, length: int) -> None:
        if self.refused & set(range(start, start + length, PAGE_SIZE)):
            raise OSError(self.number, "refused")
        self.removed.append((start, length))


@given(
    pfns=st.lists(st.integers(FIRST_PFN, FIRST_PFN + PAGES - 1), min_size=1, max_size=PAGES),
    refused=st.sets(st.integers(FIRST_PFN, FIRST_PFN + PAGES - 1), max_size=8),
    number=st.sampled_from([errno.EPERM, errno.EBUSY, errno.ENOMEM, errno.EINVAL]),
)
def test_refused_runs_are_told_and_all_others_removed(
    pfns: list[int], refused: set[int], number: int
) -> None:
    start = GuestAddr(FIRST_PFN * PAGE_SIZE)
    region = MemoryRegion(start, FrontendAddr(start), PAGES * PAGE_SIZE, memoryview(b""))
    mapping, faults = RefusingMap(refused, number), list[tuple[int, int]]()
    reclaimer = Reclaimer(
        GuestMemory([region]),
        [mapping],
        lambda number, addr: faults.append((number, addr)),
    )

    reclaimer.inflate("inflateq", 0, runs_of(buffer_of(pfns)))

    runs = list(zip(*coalesce(list(pfns)), strict=True))
    kept = [run for run in runs if refused & set(range(run[0], run[0] + run[1]))]
    gone = [run for run in runs if run not in kept]
    offsets = [((first - FIRST_PFN) * PAGE_SIZE, count * PAGE_SIZE) for first, count in gone]
    assert mapping.removed == offsets
    assert faults == [(number, first * PAGE_SIZE) for first, _ in kept]
    assert reclaimer.removals == len(gone)
    assert reclaimer.removed_bytes == sum(count for _, count in gone) * PAGE_SIZE
