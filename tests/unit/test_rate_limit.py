"""What limits how often something is said."""

import tracemalloc

from balloon_daemon.rate_limit import OnceEach


def test_each_line_is_let_through_once_and_no_more_than_so_many() -> None:
    once = OnceEach(2)
    assert [once.admit(line) for line in ("a", "b", "a", "c", "b")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_of_long_lines_that_were_let_through_next_to_nothing_is_kept() -> None:
    once = OnceEach(32)
    tracemalloc.start()
    assert all(once.admit(f"{number:50000}") for number in range(32))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 32 * 1000
