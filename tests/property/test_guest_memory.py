"""GuestMemory against a model that knows the owner of every byte."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion

SPACE = 64
"""Addresses in the model's little world."""


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(start, size) of regions that do not overlap, in any order, often touching."""
    cuts = sorted(draw(st.sets(st.integers(0, SPACE), max_size=10)))
    spans = [(start, end - start) for start, end in pairwise(cuts) if draw(st.booleans())]
    return draw(st.permutations(spans))


@settings(max_examples=100)
@given(layouts(), st.integers(0, SPACE + 2), st.integers(1, SPACE + 2))
def test_locate_agrees_with_the_owner_of_every_byte(
    layout: list[tuple[int, int]], addr: int, length: int
) -> None:
    owners = {
        at: (index, at - start)
        for index, (start, size) in enumerate(sorted(layout))
        for at in range(start, start + size)
    }
    memory = GuestMemory(
        [
            MemoryRegion(GuestAddr(start), FrontendAddr(start), size, memoryview(bytearray(size)))
            for start, size in layout
        ]
    )
    touched = [owners.get(at) for at in range(addr, addr + length)]
    one = None not in touched and len({owner[0] for owner in touched if owner}) == 1
    assert memory.locate(addr, length) == (touched[0] if one else None)
    assert (memory.view_of_frontend(FrontendAddr(addr), length) is not None) == one
