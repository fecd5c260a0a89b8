"""What a guest's inflate queue brings: recorded from real guests, and synthetic worst cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.units import MIB, PAGE_SIZE
from benchmarks.guest_file import Pfns

RECORDED = Path(__file__).parents[1] / "tests/data/traces"
GUEST_BYTES = 2048 * MIB
"""All traces come from guests of 2 GiB."""

BUFFER_PFNS = 256


@dataclass(frozen=True, slots=True)
class Trace:
    """PFN buffers in the order in which a driver sent them.

    Attributes:
        name: the kind of guest, its kernel.
        buffers: the PFNs of each.
        fresh: from a guest that has its memory in large pieces.
    """

    name: str
    buffers: list[Pfns]
    fresh: bool

    @property
    def size_bytes(self) -> int:
        """All that it takes from the guest."""
        return sum(len(buffer) for buffer in self.buffers) * PAGE_SIZE

    def first(self, buffers: int) -> "Trace":
        """Its beginning."""
        return Trace(self.name, self.buffers[:buffers], self.fresh)

    def ranges(self) -> NDArray[np.uint64]:
        """(offset, length) in bytes of each run of each buffer: the fewest calls that free it."""
        return np.concatenate([runs_of(buffer) for buffer in self.buffers])

    def pages(self) -> NDArray[np.int64]:
        """All of its pages, as indices into guest memory."""
        return np.concatenate(self.buffers).astype(np.int64)


def runs_of(pfns: Pfns) -> NDArray[np.uint64]:
    """A buffer's pages sorted and merged: (offset, length) in bytes of each run."""
    pages = np.unique(pfns).astype(np.uint64)
    starts = np.flatnonzero(np.diff(pages, prepend=pages[0]) != 1)
    starts[0] = 0
    counts = np.diff(starts, append=len(pages))
    size = np.uint64(PAGE_SIZE)
    return np.column_stack([pages[starts] * size, counts.astype(np.uint64) * size])


def every_trace() -> list[Trace]:
    """The recorded traces, fresh ones first, then the synthetic."""
    recorded = list(_recorded())
    recorded.sort(key=lambda trace: not trace.fresh)
    return [*recorded, descending(1024), random_pages(128)]


def descending(buffers: int) -> Trace:
    """The best case: one run a buffer, each below the one before."""
    top = GUEST_BYTES // PAGE_SIZE
    pfns = np.arange(top - 1, top - 1 - buffers * BUFFER_PFNS, -1, dtype=np.uint32)
    return Trace("descending", list(pfns.reshape(buffers, BUFFER_PFNS)), fresh=True)


def random_pages(buffers: int) -> Trace:
    """The worst case: single pages from all over the guest's memory."""
    order = np.random.default_rng(1).permutation(GUEST_BYTES // PAGE_SIZE).astype(np.uint32)
    pfns = order[: buffers * BUFFER_PFNS]
    return Trace("random pages", list(pfns.reshape(buffers, BUFFER_PFNS)), fresh=False)


def _recorded() -> Iterator[Trace]:
    for path in sorted(RECORDED.glob("*.npz")):
        with np.load(path) as content:
            pfns, lengths = content["pfns"], content["lens"]
        kernel, *_, kind = path.stem.removesuffix("-run3").split("-")
        name = f"{kind} {kernel[1]}.{kernel[2]}"
        cuts = np.cumsum(lengths)[:-1].astype(np.int64)
        yield Trace(name, np.split(pfns, cuts), fresh=kind == "fresh")
