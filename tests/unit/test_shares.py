"""A need, divided among those that can give it."""

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.sizing.shares import divided
from balloon_daemon.units import MIB, PAGE_SIZE

PAGES = st.integers(0, 1 << 20).map(lambda pages: pages * PAGE_SIZE)


def test_shares_are_in_proportion() -> None:
    assert divided(30 * MIB, [20 * MIB, 40 * MIB], [0, 0]) == [10 * MIB, 20 * MIB]


def test_who_could_give_too_little_is_left_alone() -> None:
    assert divided(30 * MIB, [2 * MIB, 40 * MIB], [4 * MIB, 4 * MIB]) == [0, 30 * MIB]


def test_many_small_shares_become_few_large_ones() -> None:
    shares = divided(64 * MIB, [512 * MIB] * 256, [8 * MIB] * 256)
    assert sorted(shares, reverse=True)[:9] == [*[8 * MIB] * 8, 0]


def test_a_need_for_all_takes_all() -> None:
    assert divided(99 * MIB, [2 * MIB, 40 * MIB], [4 * MIB, 4 * MIB]) == [2 * MIB, 40 * MIB]


@given(st.integers(-PAGE_SIZE, 1 << 34), st.lists(st.tuples(PAGES, PAGES), max_size=12))
def test_shares_meet_the_need_and_exceed_nothing(
    need_bytes: int, sizes: list[tuple[int, int]]
) -> None:
    most, least = [size for size, _ in sizes], [size for _, size in sizes]
    shares = divided(need_bytes, most, least)
    assert all(0 <= share <= size for share, size in zip(shares, most, strict=True))
    assert all(share % PAGE_SIZE == 0 for share in shares)
    assert sum(shares) >= min(need_bytes, sum(most))
    assert sum(shares) <= max(0, need_bytes) + PAGE_SIZE * len(shares)
