"""What the host got for what a guest gave: the causes that show, each once, and when to stop."""

import pytest

from balloon_daemon.events import LossCause
from balloon_daemon.guests.jailed.gain import WINDOW_PAGES, Gain, Loss
from balloon_daemon.tube.messages import Progress

HUGE_PAGES = 512
"""4 KiB pages of a huge page of 2 MiB."""


def causes(losses: list[Loss]) -> list[LossCause]:
    return [loss.cause for loss in losses]


def test_balloon_that_is_freed_loses_nothing() -> None:
    gain = Gain()
    for given in range(0, 8 * WINDOW_PAGES, 256):
        assert gain.take(Progress(inflated_pages=given, freed_pages=given)) == []
        assert not gain.fruitless


@pytest.mark.parametrize(
    ("done", "cause"),
    [
        (Progress(inflated_pages=WINDOW_PAGES, kept_pages=WINDOW_PAGES), LossCause.NEVER_FREED),
        (Progress(foreign_pages=WINDOW_PAGES), LossCause.NOT_SHARED),
        (Progress(inflated_pages=WINDOW_PAGES, refused_pages=WINDOW_PAGES), LossCause.REFUSED),
        (Progress(inflated_pages=WINDOW_PAGES), LossCause.IN_PIECES),
    ],
    ids=lambda value: value.name if isinstance(value, LossCause) else "",
)
def test_balloon_of_which_nothing_is_freed_is_fruitless_for_its_cause(
    done: Progress, cause: LossCause
) -> None:
    gain = Gain()
    assert gain.take(done) == [Loss(cause, WINDOW_PAGES)]
    assert gain.fruitless


def test_cause_is_told_once_however_much_comes_of_it() -> None:
    gain = Gain()
    told = [
        loss
        for pages in range(256, 8 * WINDOW_PAGES, 256)
        for loss in gain.take(Progress(inflated_pages=pages, kept_pages=pages))
    ]
    assert told == [Loss(LossCause.NEVER_FREED, 256)]


def test_second_cause_is_told_too() -> None:
    gain = Gain()
    first = gain.take(Progress(inflated_pages=256, kept_pages=256))
    second = gain.take(Progress(inflated_pages=256, kept_pages=256, foreign_pages=256))
    assert (causes(first), causes(second)) == ([LossCause.NEVER_FREED], [LossCause.NOT_SHARED])


def test_few_pages_that_come_to_nothing_are_told_and_stop_nobody() -> None:
    gain = Gain()
    given = 4 * WINDOW_PAGES
    done = Progress(inflated_pages=given, freed_pages=given - 100, kept_pages=100)
    assert gain.take(done) == [Loss(LossCause.NEVER_FREED, 100)]
    assert not gain.fruitless


def test_pages_too_few_to_judge_by_stop_nobody() -> None:
    gain = Gain()
    assert gain.take(Progress(inflated_pages=WINDOW_PAGES - 1)) == []
    assert not gain.fruitless


def test_what_was_freed_long_ago_does_not_count_for_what_is_given_now() -> None:
    # A VMM that seals its memory later.
    gain = Gain()
    freed = 64 * WINDOW_PAGES
    gain.take(Progress(inflated_pages=freed, freed_pages=freed))
    assert not gain.fruitless

    gain.take(
        Progress(
            inflated_pages=freed + WINDOW_PAGES, freed_pages=freed, refused_pages=WINDOW_PAGES
        )
    )
    assert gain.fruitless


def test_pages_that_are_freed_again_end_it() -> None:
    gain = Gain()
    gain.take(Progress(inflated_pages=WINDOW_PAGES, refused_pages=WINDOW_PAGES))
    gain.take(
        Progress(
            inflated_pages=2 * WINDOW_PAGES, freed_pages=WINDOW_PAGES, refused_pages=WINDOW_PAGES
        )
    )
    assert not gain.fruitless


def test_forgiven_begins_anew_and_tells_nothing_twice() -> None:
    gain = Gain()
    done = Progress(inflated_pages=WINDOW_PAGES, kept_pages=WINDOW_PAGES)
    gain.take(done)
    gain.start_anew()
    assert not gain.fruitless
    assert gain.take(done) == []
    assert not gain.fruitless

    gain.take(Progress(inflated_pages=2 * WINDOW_PAGES, kept_pages=2 * WINDOW_PAGES))
    assert gain.fruitless


@pytest.mark.parametrize("skipped", [0, 1, 100, 255, 511])
@pytest.mark.parametrize("reported_every", [256, 768, 1280, 5000])
def test_huge_pages_that_go_as_a_whole_are_a_success_wherever_the_balloon_begins(
    skipped: int, reported_every: int
) -> None:
    # A run of pages begins and ends in the middle of a huge page: those two are not freed yet.
    gain = Gain()
    for given in range(0, 100 * HUGE_PAGES, reported_every):
        whole = max(0, (skipped + given) // HUGE_PAGES - (skipped > 0))
        losses = gain.take(Progress(inflated_pages=given, freed_pages=whole * HUGE_PAGES))
        assert (losses, gain.fruitless) == ([], False), given
