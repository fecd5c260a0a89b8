"""What a guest can spare, by its own statistics: free memory first, then page cache. Pure.

A balloon that takes free memory costs the guest nothing. One that takes page cache costs reads, if
the guest uses that cache again. All other memory is the guest's working set, which is never
counted as spare.
"""

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.need import Figures, least_available_bytes

FREE_KEPT_SHARE = 0.08
"""This share of a VM does not count as free memory: what Linux keeps free anyway (66 MiB of 1 GiB
in the recordings of real guests, docs/judgement.md), below which it drops page cache, and what is
taken while statistics are on their way."""

UNUSED_KEPT_SHARE = 0.15
"""So much of a VM stays free if memory is asked for only because the guest does not use it: with
less than 12 % a guest that begins to read its disks would be in need (``need``)."""

AVAILABLE_KEPT = 1.25
"""A guest keeps so many times the available memory below which it would be in need, and what its
programs take in the next seconds. On the hosts of docs/judgement.md: with 1.5 times memory is low
for a fifth longer; with 1 time guests that are not in need are found to be."""


class Spare(NamedTuple):
    """What a guest can spare.

    Attributes:
        unused_bytes: free memory that it will hardly use soon, beyond ``UNUSED_KEPT_SHARE``.
        free_bytes: free memory beyond ``FREE_KEPT_SHARE``.
        cache_bytes: page cache that the guest is not seen to read.
        available_share: its available memory, as a share of the VM.
        backed_share: how much of its free memory the host backs: what a balloon takes of the rest
            brings the host nothing.
    """

    unused_bytes: int
    free_bytes: int
    cache_bytes: int
    available_share: float
    backed_share: float


def spare_of(
    figures: Figures,
    vm_mem_bytes: int,
    *,
    taken_bytes: int,
    untouched_bytes: int,
    reads_cache: bool,
) -> Spare | None:
    """What a guest can spare; None: its statistics do not say how much it has available.

    Args:
        figures: its statistics.
        vm_mem_bytes: the VM's size.
        taken_bytes: what its balloon lacked of its present target when it sent the statistics, and
            what its programs will take soon.
        untouched_bytes: how much of its memory the host does not back.
        reads_cache: whether it reads from its disks as a guest does whose page cache is too small.
    """
    if figures.available_bytes is None or vm_mem_bytes <= 0:
        return None
    kept = int(AVAILABLE_KEPT * least_available_bytes(vm_mem_bytes))
    available = figures.available_bytes - taken_bytes
    above = max(0, available - kept)
    unused, free, backed_share = 0, 0, 1.0
    if figures.free_bytes is not None:
        left = figures.free_bytes - taken_bytes
        unused = max(0, min(left - int(UNUSED_KEPT_SHARE * vm_mem_bytes), above))
        free = max(0, min(left - int(FREE_KEPT_SHARE * vm_mem_bytes), above))
        backed_share = 1 - min(1.0, untouched_bytes / left) if left > 0 else 1.0
    cache = above - free
    if reads_cache:
        # Such a guest fills its free memory with what it reads, and is in need once little is
        # left.
        unused = free = cache = 0
    return Spare(unused, free, cache, max(0.0, available / vm_mem_bytes), backed_share)
