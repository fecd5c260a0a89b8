"""What a guest can spare, by its own statistics: free memory first, then page cache. Pure.

A balloon that takes free memory costs the guest nothing. One that takes page cache costs reads, if
the guest uses that cache again. What is below is the guest's working set, which is never counted
as spare.
"""

from typing import NamedTuple

from balloon_daemon.sizing.need import AVAILABLE_BYTES, AVAILABLE_SHARE, FREE_SHARE, Figures

FREE_KEPT_SHARE = FREE_SHARE
"""So much of a VM stays free as long as others have free memory to give: with less free memory a
guest may be in need of page cache (``need``)."""

AVAILABLE_KEPT = 1.5
"""A guest keeps so many times the available memory with which it would be in need: what other
projects' loops keep is 15 to 25 % of a VM, and 1.5 times 8 % and what the guest takes in the
seconds until it is judged anew are that."""


class Spare(NamedTuple):
    """What a guest can spare.

    Attributes:
        free_bytes: free memory.
        cache_bytes: page cache that the guest is not seen to read.
        available_share: its available memory, as a share of the VM.
    """

    free_bytes: int
    cache_bytes: int
    available_share: float


def spare_of(
    figures: Figures, vm_mem_bytes: int, taken_bytes: int, *, reads_cache: bool
) -> Spare | None:
    """What a guest can spare; None: it does not say what it has available.

    Args:
        figures: its statistics.
        vm_mem_bytes: the VM's size.
        taken_bytes: what it was asked for since, and had not given by then.
        reads_cache: whether it reads from its disks as a guest does whose page cache is too small.
    """
    if figures.available_bytes is None or vm_mem_bytes <= 0:
        return None
    kept = int(AVAILABLE_KEPT * max(AVAILABLE_SHARE * vm_mem_bytes, AVAILABLE_BYTES))
    available = figures.available_bytes - taken_bytes
    above = max(0, available - kept)
    free = 0
    if figures.free_bytes is not None:
        free = figures.free_bytes - taken_bytes - int(FREE_KEPT_SHARE * vm_mem_bytes)
    free = max(0, min(free, above))
    return Spare(free, 0 if reads_cache else above - free, max(0.0, available / vm_mem_bytes))
