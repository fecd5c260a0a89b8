"""What limits how often something is said."""

from balloon_daemon.rate_limit import OnceEach


def test_each_line_is_let_through_once_and_no_more_than_so_many() -> None:
    once = OnceEach(2)
    assert [once.admit(line) for line in ("a", "b", "a", "c", "b")] == [
        True, True, False, False, False,
    ]  # fmt: skip
