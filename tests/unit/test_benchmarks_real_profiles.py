"""Runs with real guests whose logs were kept."""

import json
from dataclasses import asdict
from io import StringIO
from pathlib import Path

from rich.console import Console

from benchmarks.real_profiles import SCORES, kept, show
from benchmarks.real_scores import Change, Course, Moment, Spell, scores

MIB = 1 << 20
COURSE = Course(
    400,
    [Moment(0.0, 300, {"works": 0}), Moment(60.0, 500, {"works": 512})],
    [Spell("works", 1.0, 2.0, 200.0, 50, 0.5, 1000, 64, 0)],
    [Change("works", 3.0, 64 * MIB)],
)


def test_kept_run_has_the_scores_that_it_had(tmp_path: Path) -> None:
    directory = tmp_path / "0-careful"
    directory.mkdir()
    (directory / "course.json").write_text(json.dumps(asdict(COURSE)))

    ((profile, result),) = kept(tmp_path)

    assert profile == "careful"
    assert result.items() > asdict(scores(COURSE)).items()
    assert (result["works_done"], result["burst_done"]) == (0.25, 1.0)


def test_table_has_medians_and_the_simulators_order_beside_the_real_one() -> None:
    console = Console(width=150, file=StringIO(), record=True)
    runs = [dict.fromkeys(SCORES, figure) for figure in (1.0, 7.0, 2.0)]
    show({"seed": runs, "careful": [dict.fromkeys(SCORES, 40.0)]}, console)
    text = console.export_text()
    assert "seed, n=3" in text
    assert "2.00 (1.00 to 7.00)" in text
    assert "seed < careful" in text
