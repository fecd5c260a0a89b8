"""How much each adaptive VM is asked for: by what its guest can spare, and by what was promised.

Pure.
"""

from collections.abc import Sequence
from itertools import groupby

from balloon_daemon.sizing.adaptive_vm import AdaptiveVm
from balloon_daemon.sizing.shares import divided
from balloon_daemon.units import PAGE_SIZE

PROMISE_POWER = 2.0
"""While memory stays low, the targets' sum is at least the square of the time's share in the
promise: a 64th of the maximums after an eighth of the time, a quarter after half of it, all at its
end. The first seconds are left to what guests can spare; that memory is low then may be only the
time that balloons take to grow."""


def ask_spare(short_bytes: int, givers: Sequence[AdaptiveVm], *, low: bool) -> None:
    """Divides a shortage among VMs by what their guests can spare: sets their ``asked_bytes``.

    VMs of a higher priority are asked for what VMs of the lower ones have not to spare: not for
    what those can only not give within a second.

    Args:
        short_bytes: the shortage.
        givers: the VMs that may be asked.
        low: whether memory is low. Until then nothing is asked of a guest of unknown statistics.
    """
    for _, group in groupby(sorted(givers, key=_priority), _priority):
        vms = list(group)
        spares = [_spares(each, low=low) for each in vms]
        for kind in (0, 1):
            if short_bytes > 0:
                most = [
                    min(spare[kind], _at_once(each))
                    for each, spare in zip(vms, spares, strict=True)
                ]
                short_bytes -= _ask(short_bytes, vms, most)
        if short_bytes <= 0 or sum(map(sum, spares)) > sum(each.asked_bytes for each in vms):
            break


def ask_promised(promised: Sequence[AdaptiveVm], givers: Sequence[AdaptiveVm], steps: int) -> None:
    """Adds what is missing of the targets' sum that each profile promises while memory is low.

    Args:
        promised: the VMs whose maximums the promise is about.
        givers: those of them that may be asked for more.
        steps: after how many looks all is promised.
    """
    missing = sum(
        _due_bytes(each, steps) - each.row.told_bytes - each.asked_bytes for each in promised
    )
    if missing > 0:
        spare = [max(0, sum(_spares(each, low=True)) - each.asked_bytes) for each in givers]
        missing -= _ask(missing, givers, spare)
    if missing > 0:
        behind = [
            max(0, _due_bytes(each, steps) - each.row.told_bytes - each.asked_bytes)
            for each in givers
        ]
        shares = divided(missing, behind, [0] * len(behind))
        for each, share in zip(givers, shares, strict=True):
            each.asked_bytes += share


def _ask(need_bytes: int, vms: Sequence[AdaptiveVm], most: Sequence[int]) -> int:
    """Asks VMs for their shares of a need, which are at most ``most``; returns their sum."""
    shares = divided(need_bytes, most, [each.small_bytes for each in vms])
    for each, share in zip(vms, shares, strict=True):
        each.asked_bytes += share
    return sum(shares)


def _due_bytes(each: AdaptiveVm, steps: int) -> int:
    """What a VM's target is to be by now at least, if no other VM's is more."""
    share = (min(each.low_looks, steps) / steps) ** PROMISE_POWER
    return int(each.row.policy.max_bytes // PAGE_SIZE * share) * PAGE_SIZE


def _spares(each: AdaptiveVm, *, low: bool) -> tuple[int, int]:
    """What a VM can spare of its free memory and of its page cache, in whole pages, beyond its
    present target."""
    policy, spare = each.row.policy, each.spare
    left = policy.max_bytes - each.row.told_bytes
    if spare is None:
        # Unknown: what the seed's rule takes in a second.
        step = -(-policy.max_bytes // policy.settings.steps)
        return (_pages(min(step, left)) if low else 0), 0
    free = min(spare.free_bytes, left)
    return _pages(free), _pages(min(spare.cache_bytes, left - free))


def _at_once(each: AdaptiveVm) -> int:
    """How much more a VM can give until soon, by how fast its balloon grows."""
    return max(0, _pages(each.ahead_bytes - each.row.told_bytes - each.asked_bytes))


def _pages(size_bytes: int) -> int:
    return size_bytes // PAGE_SIZE * PAGE_SIZE


def _priority(each: AdaptiveVm) -> int:
    return each.row.priority
