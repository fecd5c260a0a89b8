"""What ``balloonctl top`` makes of the statuses that it has seen."""

from typing import Any

import pytest

from balloon_daemon.ctl.ask.screen import (
    ASCII,
    BLOCKS,
    GREEN,
    MOST_CELLS,
    RED,
    Line,
    Seen,
    screen,
    spark,
)
from balloon_daemon.units import MIB
from tests.harness.api_answers import DECISION, HOST, WEB, status

START_S = 1_000_000.0
"""The beginning of a cell of 5 s."""


def seen_of(*statuses: dict[str, Any], every_s: float = 5.0) -> Seen:
    seen = Seen(5.0)
    for number, one in enumerate(statuses):
        seen.take(one, START_S + number * every_s)
    return seen


def plain(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def web(balloon_mib: int, **changes: object) -> dict[str, Any]:
    return WEB | {"balloon_bytes": balloon_mib * MIB, "max_balloon_bytes": 800 * MIB, **changes}


def test_sparkline_has_heights_from_nothing_to_the_top() -> None:
    assert spark([0, 100, 200, 400, 800, None], 800, BLOCKS) == " ▁▂▄█ "
    assert spark([0, 1, 900, None], 800, ASCII) == " .@ "
    assert spark([5], 0, BLOCKS) == " "


def test_balloon_is_drawn_over_time_up_to_its_maximum() -> None:
    lines = plain(screen(seen_of(*(status(web(mib)) for mib in (0, 100, 400, 800))), 80, 24))
    heading, vm = lines[4:6]
    assert heading.endswith("LAST 90 S")
    assert vm.startswith("web")
    assert vm.endswith(" ▁▄█")
    assert len(vm) == 80


def test_time_in_which_the_host_was_low_is_red_though_it_was_short() -> None:
    low = HOST | {"available_mib": 0, "low": True}
    seen = seen_of(status(WEB, host=low), status(WEB), status(WEB), status(WEB), every_s=2.5)
    graph = next(line for line in screen(seen, 80, 24) if line[0][0] == "available ")
    assert graph[-2:] == [("▁", RED), ("█", GREEN)]


def test_nothing_is_kept_for_longer_than_it_is_shown() -> None:
    seen = seen_of(*[status(web(800))] * (MOST_CELLS + 30))
    assert seen.balloon_cells("web", MOST_CELLS + 30) == [None] * 30 + [800 * MIB] * MOST_CELLS
    assert seen.host_cells(MOST_CELLS + 30)[:31] == [None] * 30 + [(12 * 1024, False)]


def test_vm_that_has_gone_is_not_shown() -> None:
    other = web(1, name="db", last_decision=None)
    lines = plain(screen(seen_of(status(WEB, other), status(other)), 80, 24))
    assert [line.split()[0] for line in lines if line.startswith(("db", "web"))] == ["db"]


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 10), (20, 4), (200, 60)])
def test_screen_fits_the_terminal_with_the_largest_balloons_on_top(
    columns: int, rows: int
) -> None:
    vms = [
        web(mib, name=f"vm{mib}-{'x' * 30}", trouble=f"no answer {mib}") for mib in range(1, 100)
    ]
    lines = plain(screen(seen_of(status(*vms)), columns, rows, trouble="it is gone " * 30))
    assert len(lines) <= rows
    assert max(map(len, lines)) <= columns
    shown = [line for line in lines if line.startswith("vm") and "no answer" not in line]
    assert rows < 24 or shown[0].startswith("vm99")
    assert rows < 24 or any(line.endswith("more, of smaller balloons") for line in lines)


def decided(level: int, age_s: float, reason: str = "low-memory") -> dict[str, Any]:
    decision = DECISION | {"balloon_level": level, "age_s": age_s, "reason": reason}
    return status(WEB | {"last_decision": decision | {"message": f"to level {level}"}})


def test_decision_that_is_seen_again_or_made_again_is_one_line() -> None:
    seen = seen_of(decided(1, 0.0), decided(1, 5.0), decided(1, 1.0), decided(2, 0.0))
    assert [(d.message, d.at_s - START_S) for d in seen.decisions] == [
        ("to level 2", 15.0),
        ("to level 1", 9.0),
    ]
    last = plain(screen(seen, 80, 24))[-2:]
    assert [line[9:] for line in last] == ["web: to level 2", "web: to level 1"]


def test_what_a_terminal_would_obey_is_escaped() -> None:
    lines = plain(screen(seen_of(status(web(1, name="a\x1b[2Jb", trouble="\x07"))), 80, 24))
    assert any(line.startswith("a\\x1b[2Jb") for line in lines)
    assert "".join(lines).isprintable()


def test_pause_of_all_vms_stands_below_the_host() -> None:
    lines = plain(screen(seen_of(status(WEB, host=HOST | {"paused_s": 90.0})), 80, 24))
    assert lines[2] == "All VMs: paused by an operator for 90 s more: nothing more is taken"
