"""Divides what is needed among those that can give it. Pure."""

from collections.abc import Sequence

from balloon_daemon.units import PAGE_SIZE


def divided(need_bytes: int, most: Sequence[int], least: Sequence[int]) -> list[int]:
    """Everybody's share of a need, in proportion to what each can give.

    Shares that are too small to matter are left to those who can give most.

    Args:
        need_bytes: the need.
        most: what each can give, in whole pages.
        least: the smallest share of each that matters.

    Returns:
        The shares, in whole pages, each at most a page above its proportion: together not less
        than the need, or all that there is.
    """
    if need_bytes >= sum(most):
        return list(most)
    shares = [0] * len(most)
    if need_bytes <= 0:
        return shares
    givers, total = list[int](), 0
    for number in sorted(range(len(most)), key=most.__getitem__, reverse=True):
        size = most[number]
        if total >= need_bytes and need_bytes * size < least[number] * (total + size):
            break
        givers.append(number)
        total += size
    for number in givers:
        share = -(-most[number] * need_bytes // (total * PAGE_SIZE)) * PAGE_SIZE
        shares[number] = min(most[number], share)
    return shares
