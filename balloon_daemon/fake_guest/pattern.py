"""The pattern in every touched page of a fake guest's memory. Runs in the fake guest's process."""

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.units import PAGE_SIZE

Pages = NDArray[np.int64]
"""Page numbers, counted from the beginning of the memfd; not PFNs."""

WORDS = PAGE_SIZE // 8


class Pattern:
    """The words of every page: they depend on page, word, generation and guest.

    Args:
        num_pages: the guest's memory, in 4 KiB pages.
        seed: makes this guest's pattern different from any other guest's.
    """

    def __init__(self, num_pages: int, seed: int) -> None:
        self._generation = np.zeros(num_pages, np.uint64)
        # Multiply the seed, so that guests with neighbouring seeds share no page's pattern.
        self._seed = np.uint64(seed * 0xFF51AFD7ED558CCD % 2**64)
        self._steps = np.arange(WORDS, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)

    def renew(self, pages: Pages) -> None:
        """Gives each of the pages, which are listed once each, a pattern that it has never had."""
        self._generation[pages] += np.uint64(1)

    def of(self, pages: Pages) -> NDArray[np.uint64]:
        """A row of 512 words for each page."""
        base = pages.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + self._seed
        base ^= self._generation[pages] * np.uint64(0xBF58476D1CE4E5B9)
        rows: NDArray[np.uint64] = base[:, None] + self._steps[None, :]
        return rows
