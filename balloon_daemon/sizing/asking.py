"""How much each adaptive VM is asked for: by what its guest can spare, and, while memory is low,
by how long it has been low (``ask_promised``).

Pure.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import groupby

from balloon_daemon.sizing.adaptive_vm import BACKED, AdaptiveVm
from balloon_daemon.sizing.shares import divided
from balloon_daemon.units import PAGE_SIZE

AT_ONCE = 64
"""About how many VMs at most are asked for what was promised (``ask_promised``) at one look: a
decision must not take longer than 2 ms."""


class Kind(Enum):
    """The kinds of memory that a guest can spare, in the order in which it is asked for them."""

    BACKED = 0
    """Free memory of a guest of whose free memory the host backs a quarter or more
    (``adaptive_vm.BACKED``)."""
    UNTOUCHED = 1
    """Free memory of a guest of whose free memory the host backs less than a quarter, because the
    guest has never used the rest: little of it comes to the host."""
    CACHE = 2
    """Memory that holds files (page cache)."""


LEVEL = 0.05
"""VMs whose page cache differs by less than this, as a share of the VM, are asked alike."""


def ask_spare(short_bytes: int, givers: Sequence[AdaptiveVm]) -> None:
    """Divides a shortage among VMs by what their guests can spare: sets their ``asked_bytes``.

    Page cache is asked for only if all free memory is less than the shortage, and only for the
    rest. VMs of a higher priority are asked only for what VMs of lower priorities cannot spare, at
    once or later.

    Args:
        short_bytes: the shortage.
        givers: the VMs that may be asked.
    """
    for vms in _by_priority(givers):
        spares = [each.spares for each in vms]
        for kind in Kind:
            if short_bytes <= 0:
                return
            most = [spare[kind.value] for spare in spares]
            if kind is Kind.CACHE:
                most = _coldest(vms, most)
            backed = [1.0 if kind is Kind.CACHE else _backed_share(each) for each in vms]
            short_bytes -= _ask(short_bytes, vms, most, backed)
            for each, before in zip(vms, spares, strict=True):
                each.gives_cache |= each.asked_bytes > before[0] + before[1]


def ask_unused(wanted_bytes: int, givers: Sequence[AdaptiveVm]) -> None:
    """Asks guests for memory that they do not use: adds to their ``asked_bytes``.

    Args:
        wanted_bytes: how much is wanted in all, with what they are asked for already.
        givers: the VMs that may be asked.
    """
    wanted_bytes -= sum(each.asked_bytes for each in givers)
    if wanted_bytes <= 0:
        return
    for vms in _by_priority(givers):
        most = [
            min(max(0, each.spare.unused_bytes - each.asked_bytes), each.left_bytes)
            if each.spare is not None and each.spare.backed_share >= BACKED
            else 0
            for each in vms
        ]
        if wanted_bytes > 0:
            backed = [_backed_share(each) for each in vms]
            wanted_bytes -= _ask(wanted_bytes, vms, [_pages(size) for size in most], backed)


def _ask(
    need_bytes: int, vms: list[AdaptiveVm], most: Sequence[int], backed: Sequence[float]
) -> int:
    """Asks VMs for shares of a need of the host's.

    Args:
        need_bytes: the need.
        vms: the VMs.
        most: how much each can give.
        backed: of what each gives, the share that the host gets.

    Returns:
        How much of the need they can meet, at once or later.
    """
    once = [min(size, _at_once(each)) for each, size in zip(vms, most, strict=True)]
    gains = [_pages(int(size * share)) for size, share in zip(once, backed, strict=True)]
    small = [each.small_bytes for each in vms]
    asked = divided(min(need_bytes, sum(gains)), gains, small)
    for each, gain, share, limit in zip(vms, asked, backed, once, strict=True):
        if gain:
            each.asked_bytes += min(limit, _pages(int(gain / share)))
    return sum(int(size * share) for size, share in zip(most, backed, strict=True))


def _coldest(vms: list[AdaptiveVm], most: list[int]) -> list[int]:
    """How much page cache to ask each VM for: 0 for all but those whose page cache is the most
    likely to be cold. These are the guests that have page cache to give, were asked for some
    before, and have not got their memory back since. If there are none, these are the guests with
    the most page cache for their size; a guest with less is asked once the others have no more.
    """
    if any(size and each.gives_cache for each, size in zip(vms, most, strict=True)):
        return [size if each.gives_cache else 0 for each, size in zip(vms, most, strict=True)]
    shares = [size / each.row.vm_mem_bytes for each, size in zip(vms, most, strict=True)]
    first = max(shares) - LEVEL
    return [size if share >= first else 0 for size, share in zip(most, shares, strict=True)]


def ask_promised(promised: Sequence[AdaptiveVm], givers: Sequence[AdaptiveVm], steps: int) -> None:
    """Keeps the promise of each profile: while memory is low, the targets' sum rises at each look,
    and is the sum of the maximums after ``steps`` looks. Asks VMs for what is missing to that.

    Args:
        promised: the VMs whose targets and maximums are added up.
        givers: those of them that may be asked for more.
        steps: after how many looks the targets' sum is to be the sum of the maximums.
    """
    missing = sum(_behind_bytes(each, each.low_looks, steps) for each in promised)
    # Of very many VMs a part is asked at each look, for as many steps at once as there are parts.
    ahead = -(-len(givers) // AT_ONCE)
    spare = [(sum(each.spares) - each.asked_bytes, each) for each in givers]
    for size, each in sorted(spare, key=_size, reverse=True):
        if missing <= 0 or size <= each.small_bytes:
            break
        step = -(-each.row.policy.max_bytes // steps)
        missing -= _add(each, min(size, ahead * step, missing))
    for each in sorted(givers, key=_reached):
        if missing <= 0:
            break
        behind = max(0, _behind_bytes(each, each.low_looks + ahead - 1, steps))
        missing -= _add(each, min(behind, missing))


def _add(each: AdaptiveVm, size_bytes: int) -> int:
    """Asks a VM for more, in whole pages; returns how much."""
    share = min(-(-size_bytes // PAGE_SIZE) * PAGE_SIZE, each.left_bytes)
    each.asked_bytes += share
    return share


def _size(item: tuple[int, AdaptiveVm]) -> int:
    return item[0]


def _behind_bytes(each: AdaptiveVm, looks: int, steps: int) -> int:
    """What a VM's target would lack, after so many looks with low memory, of the promised part of
    its maximum (``looks`` / ``steps``); less than 0: it would exceed that part."""
    pages = each.row.policy.max_bytes // PAGE_SIZE * min(looks, steps) // steps
    return pages * PAGE_SIZE - each.row.told_bytes - each.asked_bytes


def _reached(each: AdaptiveVm) -> float:
    return (each.row.told_bytes + each.asked_bytes) / each.row.policy.max_bytes


def _by_priority(givers: Sequence[AdaptiveVm]) -> Iterator[list[AdaptiveVm]]:
    """The VMs of each priority, the lowest first."""
    for _, group in groupby(sorted(givers, key=_priority), _priority):
        yield list(group)


def _backed_share(each: AdaptiveVm) -> float:
    return 1.0 if each.spare is None else each.spare.backed_share


def _at_once(each: AdaptiveVm) -> int:
    """How much more a VM can give in ``AHEAD_S``, by how fast its balloon grows."""
    return max(0, _pages(each.ahead_bytes - each.row.told_bytes - each.asked_bytes))


def _pages(size_bytes: int) -> int:
    return size_bytes // PAGE_SIZE * PAGE_SIZE


def _priority(each: AdaptiveVm) -> int:
    return each.row.priority
