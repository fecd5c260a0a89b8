"""``docs/judgement.md`` says what the judge finds, and its picture is no burden."""

import json
from pathlib import Path

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.ctl.simulate.contenders import contenders
from balloon_daemon.ctl.simulate.judging import Judged, judge_hosts
from balloon_daemon.ctl.simulate.scripts import scripts
from tests.harness.judgement import PAGE, TRACES, tables, with_tables

PICTURE = PAGE.parent / "img" / "judge.png"
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def judged() -> Judged:
    """What make judge finds; ten policies on eleven hosts take some seconds."""
    return judge_hosts(TRACES, 0)


def test_tables_of_the_page_are_what_the_judge_finds(judged: Judged) -> None:
    remedy = "run python -m tests.harness.judgement"
    page = PAGE.read_text()
    assert with_tables(page, tables(judged)) == page, remedy


def test_tables_take_the_places_of_those_before_them() -> None:
    page = "a\n<!-- x -->\n\nold\n<!-- end of x -->\nb\n"
    assert with_tables(page, {"x": ["new", r"\1"]}) == (
        "a\n<!-- x -->\n\nnew\n\\1\n\n<!-- end of x -->\nb\n"
    )
    with pytest.raises(AssertionError):
        with_tables(page, {"y": []})


def test_every_policy_is_judged_on_each_host_and_on_traces(
    judged: Judged, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balloon_daemon.ctl.simulate.judging.judge_hosts", lambda *_: judged)
    assert main(["judge", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = [each.name for each in contenders()]
    assert set(names) >= {"seed", "careful", "none", "proxmox"}
    hosts = [*(host.name for host in scripts()), *(path.name for path in TRACES)]
    assert [*told["hosts"]] == hosts
    assert all([*scores] == names for scores in [*told["hosts"].values(), told["sums"]])
    lows = [scores["seed"]["low_s"] for scores in told["hosts"].values()]
    assert told["sums"]["seed"]["low_s"] == pytest.approx(sum(lows))


def test_picture_is_drawn_and_small(
    judged: Judged, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balloon_daemon.ctl.simulate.judging.judge_hosts", lambda *_: judged)
    path = tmp_path / "judge.png"
    assert main(["judge", "--plot", str(path)]) == 0
    assert capsys.readouterr().out.count("\nseed ") == 12
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert max(path.stat().st_size, PICTURE.stat().st_size) <= 200 << 10


@pytest.mark.parametrize("more", [["--margins"], ["--recordings", "."]])
def test_picture_of_something_else_is_refused(more: list[str], capsys: Output) -> None:
    assert main(["judge", "--plot", "x.png", *more]) == 2
    told = "balloonctl judge: --plot goes with standard hosts and --trace alone\n"
    assert capsys.readouterr().err == told


def test_picture_that_cannot_be_written_is_told(
    judged: Judged, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balloon_daemon.ctl.simulate.judging.judge_hosts", lambda *_: judged)
    (tmp_path / "judge.png").mkdir()
    assert main(["judge", "--plot", str(tmp_path / "judge.png")]) == 1
    assert capsys.readouterr().err == (f"balloonctl judge: {tmp_path}/judge.png: Is a directory\n")


def test_traces_are_those_of_the_documentation() -> None:
    assert [path.name for path in TRACES] == ["evening.trace", "need.trace", "waves.trace"]
