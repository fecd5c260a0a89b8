"""Divides what is needed among those that can give it. Pure."""

from collections.abc import Sequence

from balloon_daemon.units import PAGE_SIZE


def divided(need_bytes: int, most: Sequence[int], least: Sequence[int]) -> list[int]:
    """Everybody's share of a need, in proportion to what each can give.

    Shares that are too small to matter are left to the others; where all are, who can give most
    gives all that it can of the need.

    Args:
        need_bytes: the need.
        most: what each can give, in whole pages.
        least: the share of each that is not too small.

    Returns:
        The shares, in whole pages: together not less than the need, where all can give that much,
        and each at most a page above its proportion.
    """
    total = sum(most)
    if need_bytes >= total:
        return list(most)
    if need_bytes <= 0:
        return [0] * len(most)
    large = [
        each if each * need_bytes >= enough * total else 0
        for each, enough in zip(most, least, strict=True)
    ]
    total = sum(large)
    if not total:
        large = [0] * len(most)
        first = max(range(len(most)), key=most.__getitem__)
        large[first] = total = most[first]
    need_bytes = min(need_bytes, total)
    return [
        min(each, -(-each * need_bytes // (total * PAGE_SIZE)) * PAGE_SIZE) if each else 0
        for each in large
    ]
