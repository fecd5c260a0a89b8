"""The order in which a guest gives up its pages.

Runs in the fake guest's process. In a real guest the order decides the cost of reclaim for the
host: see the recorded traces. Free pages and the balloon's pages are stacks, like the lists of
Linux's buddy allocator and balloon driver: the page added last is taken first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.fake_guest.ram import GuestRam, PageState

BUFFER_PFNS = 256
"""PFNs in one buffer of Linux's driver (VIRTIO_BALLOON_ARRAY_PFNS_MAX)."""


class PageStack:
    """Page numbers, last in first out."""

    def __init__(self, pages: Pages, capacity: int) -> None:
        """Args: ``pages`` in the order in which they will be taken; ``capacity`` of the stack."""
        self._items = np.empty(capacity, np.int64)
        self._items[: len(pages)] = pages[::-1]
        self._top = len(pages)

    def __len__(self) -> int:
        return self._top

    def take(self, count: int) -> Pages:
        """Removes up to ``count`` pages, the next one first."""
        bottom = max(0, self._top - count)
        taken = self._items[bottom : self._top][::-1].copy()
        self._top = bottom
        return taken

    def give(self, pages: Pages) -> None:
        """Adds pages one after the other: the last one will be taken first."""
        self._items[self._top : self._top + len(pages)] = pages
        self._top += len(pages)

    def give_last(self, pages: Pages) -> None:
        """Adds pages that will be taken after all others."""
        self._items[len(pages) : len(pages) + self._top] = self._items[: self._top].copy()
        self._items[: len(pages)] = pages
        self._top += len(pages)

    def next(self) -> Pages:
        """All pages in the order in which they will be taken, without taking them."""
        return self._items[: self._top][::-1].copy()

    def remove(self, pages: Pages) -> None:
        """Removes particular pages, wherever they are in the stack."""
        items = self._items[: self._top]
        rest = items[~np.isin(items, pages)]
        self._items[: len(rest)] = rest
        self._top = len(rest)


@dataclass(frozen=True, slots=True)
class Population:
    """The initial content of a guest's memory.

    Attributes:
        order: ``descending``, ``fragmented``, ``random``, or the path of a recorded trace.
        run_pages: mean length of a run in a fragmented order.
        touched_bytes: memory with the pattern that the guest may give up.
        share: the touched part of the memory given up first, above 0 and at most 1; 1 gives up all
            touched memory first, as Linux does with memory freed last.
        pinned_bytes: memory with the pattern that the guest never gives up, spread evenly.
        pinned_run_pages: length of each run of pinned pages.
        seed: seeds all random choices here.
    """

    order: str = "descending"
    run_pages: int = 16
    touched_bytes: int = 0
    share: float = 1.0
    pinned_bytes: int = 0
    pinned_run_pages: int = 16
    seed: int = 1


def populate(ram: GuestRam, population: Population) -> PageStack:
    """Touches memory according to the settings.

    Returns:
        The free pages, in the order in which the guest will give them up.

    Raises:
        ConfigError: there is less memory than asked for, or a trace cannot be read.
    """
    random = np.random.default_rng(population.seed)
    free = np.flatnonzero(ram.state == PageState.FRESH)
    first = np.empty(0, np.int64)
    if population.order.endswith(".npz"):
        first = read_trace(ram, population.order)
        free = np.setdiff1d(free, first, assume_unique=True)
    pinned = _pick_pinned(free, population)
    free = np.setdiff1d(free, pinned, assume_unique=True)
    order = np.concatenate([first, _arrange(free, population, random)])
    touched = order[_touched_places(len(order), population)]
    ram.touch(np.sort(touched))
    ram.touch(pinned)
    return PageStack(order, ram.num_pages)


def read_trace(ram: GuestRam, path: str) -> Pages:
    """The pages of a recorded trace that this guest has and may give up, each once, in the trace's
    order.

    Raises:
        ConfigError: the file is no trace.
    """
    try:
        with np.load(path) as trace:
            pfns = trace["pfns"]
    except (OSError, ValueError, KeyError) as err:
        raise ConfigError(f"{path} is not a trace: {err}") from err
    pages = ram.numbers.pages(pfns)
    pages = pages[pages >= 0]
    pages = pages[ram.state[pages] == PageState.FRESH]
    _, first_at = np.unique(pages, return_index=True)
    in_order: Pages = pages[np.sort(first_at)]
    return in_order


def _pick_pinned(free: Pages, population: Population) -> Pages:
    wanted = population.pinned_bytes // 4096
    if wanted == 0:
        return np.empty(0, np.int64)
    if wanted > len(free):
        raise ConfigError(f"{wanted} pages to pin, only {len(free)} are there")
    run = min(population.pinned_run_pages, wanted)
    starts = np.linspace(0, len(free) - run, -(-wanted // run)).astype(np.int64)
    return np.unique(free[(starts[:, None] + np.arange(run)).ravel()])


def _arrange(free: Pages, population: Population, random: np.random.Generator) -> Pages:
    shuffled: Pages
    match population.order:
        case "random":
            shuffled = random.permutation(free)
            return shuffled
        case "fragmented":
            lengths = random.geometric(1 / population.run_pages, len(free))
            cuts = np.cumsum(lengths)
            runs: list[Pages] = np.split(free, cuts[cuts < len(free)])
            order = random.permutation(len(runs))
            shuffled = np.concatenate([runs[number][::-1] for number in order.tolist()])
            return shuffled
        case "descending":
            return free[::-1]
        case name if name.endswith(".npz"):
            return free[::-1]
        case name:
            raise ConfigError(
                f"order {name!r}: allowed are descending, fragmented, random or a .npz trace"
            )


def _touched_places(available: int, population: Population) -> NDArray[np.int64]:
    """The places in the order that are touched: whole buffers, as evenly as the share allows."""
    wanted = population.touched_bytes // 4096
    if wanted == 0:
        return np.empty(0, np.int64)
    if not 0 < population.share <= 1:
        raise ConfigError(f"share {population.share:g} is not over 0 and at most 1")
    if wanted > available:
        raise ConfigError(f"{wanted} pages to touch, only {available} are there")
    over = min(available, int(wanted / population.share))
    buffers = -(-over // BUFFER_PFNS)
    # Spread the touched buffers evenly over all (Bresenham's line algorithm). Each buffer adds
    # `wanted / over` to a running total, and is touched where the total reaches another whole
    # number.
    total = np.floor(np.arange(buffers + 1) * (wanted / over) + 1e-9)
    chosen = np.flatnonzero(np.diff(total))
    places = (chosen[:, None] * BUFFER_PFNS + np.arange(BUFFER_PFNS)).ravel()
    return places[places < available][:wanted]


def whole_blocks(ram: GuestRam, free: PageStack, block_pages: int) -> Pages:
    """The first pages of the aligned blocks that are wholly free, and neither in a balloon nor
    fresh.

    Blocks are aligned by PFN, as a guest's buddy allocator does, and never cross a region's end.
    """
    loose = np.zeros(ram.num_pages, np.bool_)
    loose[free.next()] = True
    held = ram.state == PageState.PATTERN
    pfns = ram.numbers.pfns(np.arange(ram.num_pages))
    starts = np.flatnonzero(pfns % block_pages == 0)
    starts = starts[starts + block_pages <= ram.num_pages]
    ends_as_it_should = pfns[starts + block_pages - 1] == pfns[starts] + block_pages - 1
    starts = starts[ends_as_it_should]
    rows = starts[:, None] + np.arange(block_pages)
    result: Pages = starts[loose[rows].all(axis=1) & held[rows].any(axis=1)]
    return result
