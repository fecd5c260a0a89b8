"""``balloonctl demo``: all of it with real processes, its plan, and what it calls a success."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from balloon_daemon.ctl.charts.live import LiveChart, columns_of, half_blocks
from balloon_daemon.ctl.charts.plot import draw
from balloon_daemon.ctl.charts.still import PlainLines
from balloon_daemon.ctl.demo.host import PretendedHost, Sample
from balloon_daemon.ctl.demo.play import freed_bytes, judge, seconds_to_relief
from balloon_daemon.ctl.demo.processes import DemoError
from balloon_daemon.ctl.demo.story import MARGIN_BYTES, Phase, Story, plan
from balloon_daemon.ctl.main import main
from balloon_daemon.errors import ConfigError
from balloon_daemon.units import GIB, MIB
from tests.harness.jail_watch import is_alive
from tests.harness.waiting import HANG_S, wait_until

PATIENTLY = """
import sys
from balloon_daemon.ctl.demo import play, processes
from balloon_daemon.ctl.main import main
play.DEADLINE_S = play.PATIENCE_S = processes.START_S = 600.0
sys.exit(main())
"""
"""A busy machine may need longer than the minute that people are promised."""

BALLOONCTL = [sys.executable, "-c", PATIENTLY, "demo"]
INTERRUPTS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
KEYS = [
    "max_balloon_bytes", "peak_balloon_bytes", "freed_bytes", "low_memory_events",
    "seconds_to_relief", "pages_checked", "pages_corrupt", "final_balloon_bytes", "ok",
]  # fmt: skip


def demo(*options: str, temp: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BALLOONCTL, *options],
        capture_output=True,
        text=True,
        timeout=10 * HANG_S,
        env=os.environ | {"TMPDIR": str(temp)},
    )


@pytest.fixture
def temp() -> Iterator[Path]:
    """The demo's TMPDIR: a short path, as that of a socket in it may have 107 bytes at most."""
    with tempfile.TemporaryDirectory() as temp:
        yield Path(temp)


def test_demo_succeeds_and_its_last_line_holds_the_figures(tmp_path: Path, temp: Path) -> None:
    picture = tmp_path / "demo.png"

    done = demo("--speed", "50", "--json", "--plot", str(picture), temp=temp)

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert list(figures) == KEYS
    assert figures["ok"] is True
    assert figures["max_balloon_bytes"] == 3 * GIB
    assert 0 < figures["freed_bytes"] <= figures["peak_balloon_bytes"] <= 3 * GIB
    assert figures["peak_balloon_bytes"] % (192 * MIB) == 0
    # More, where a busy machine has memory back before the guest has got there.
    assert figures["peak_balloon_bytes"] // (192 * MIB) <= figures["low_memory_events"] <= 16
    assert figures["seconds_to_relief"] > 0
    assert figures["pages_checked"] > 64 * MIB // 4096
    assert figures["pages_corrupt"] == 0
    assert figures["final_balloon_bytes"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(temp.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--vm-mem", "4Q"], "'4Q' is not a size"),
        (["--vm-mem", "499M"], "below it there is no balloon"),
        (["--vm-mem", "17G"], "a VM of 17 GiB"),
        (["--speed", "1"], "speed 1: the demo takes 10"),
        (["--speed", "nan"], "speed nan"),
        (["--plot", "demo.jpg"], "must end in .png"),
        (["--plot", "/nowhere/demo.png"], "/nowhere is no directory"),
    ],
)
def test_demo_refuses_nonsense_in_one_line(options: list[str], complaint: str, temp: Path) -> None:
    done = demo(*options, temp=temp)

    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


INSTALLING = [
    *("make", "wheels", "EXTRA=ctl", "&&"),
    *(sys.executable, "-m", "pip", "install", "--no-index", "build/wheels/*.whl"),
]


def remedy(errors: str) -> list[str]:
    """The command that a message names, for the checkout that balloond was installed from."""
    found = re.search(r": run (.+) in the checkout that balloond was installed from", errors)
    assert found is not None, errors
    return shlex.split(found[1])


def test_demo_without_numpy_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("balloon_daemon.ctl.demo.main.find_spec", lambda _name: None)

    status = main(["demo"])

    output, errors = capsys.readouterr()
    assert status == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert remedy(errors) == INSTALLING


def test_plot_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    status = main(["demo", "--plot", str(tmp_path / "demo.png")])

    output, errors = capsys.readouterr()
    assert status == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert remedy(errors) == INSTALLING


@pytest.fixture
def running(temp: Path) -> Iterator[subprocess.Popen[str]]:
    """A demonstration whose two children run."""
    process = subprocess.Popen(
        [*BALLOONCTL, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temp)},
    )
    assert process.stdout is not None
    # The introduction, then the first sample: everybody has been started.
    process.stdout.readline()
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def daemon_of(process: subprocess.Popen[str]) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(process.pid).children()
        if "--low-mem-dir" in child.cmdline()
    )


@pytest.mark.parametrize("number", INTERRUPTS, ids=["INT", "TERM", "HUP"])
def test_demo_interrupted_leaves_no_process_and_no_file(
    running: subprocess.Popen[str], number: signal.Signals, temp: Path
) -> None:
    theirs = children(running)

    running.send_signal(number)
    _, errors = running.communicate(timeout=HANG_S)

    assert running.returncode == 130
    assert len(theirs) >= 2
    assert errors == "balloonctl demo: interrupted; nothing of it is left\n"
    wait_until(
        lambda: not any(is_alive(child.pid) for child in theirs),
        what="its processes end",
    )
    assert list(temp.iterdir()) == []


def test_demo_whose_daemon_dies_says_so_and_keeps_its_log(
    running: subprocess.Popen[str], temp: Path
) -> None:
    daemon_of(running).kill()

    output, errors = running.communicate(timeout=HANG_S)

    assert running.returncode == 1
    assert errors.splitlines()[0] == "balloonctl demo: balloond ended with status -9"
    figures = json.loads(output.splitlines()[-1])
    assert list(figures) == KEYS
    assert figures["ok"] is False
    kept = next(temp.iterdir())
    assert str(kept) in errors
    assert (kept / "balloond.log").read_text()


def test_demo_whose_reader_leaves_ends_quietly_and_leaves_nothing(temp: Path) -> None:
    process = subprocess.Popen(
        [*BALLOONCTL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temp)},
    )
    assert process.stdout is not None
    process.stdout.readline()

    process.stdout.close()
    _, errors = process.communicate(timeout=HANG_S)

    assert process.returncode == 1
    assert errors == ""
    assert list(temp.iterdir()) == []


def test_demo_killed_outright_takes_its_children_along(
    running: subprocess.Popen[str],
) -> None:
    theirs = children(running)

    running.kill()

    wait_until(
        lambda: not any(is_alive(child.pid) for child in theirs),
        what="its processes end",
    )


# -- the plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vm_bytes", [500 * MIB, GIB, 1536 * MIB, 4 * GIB, 16 * GIB])
def test_plan_frees_enough_within_one_gibibyte_of_real_memory(vm_bytes: int) -> None:
    story = plan(vm_bytes, 10)
    freed_a_step = story.share * story.step_bytes
    calm = story.budget_bytes - story.load_bytes(0) - story.cache_bytes - story.pinned_bytes
    worst = calm - story.peak_load_bytes

    assert story.cache_bytes + story.pinned_bytes <= 704 * MIB
    assert story.cache_bytes >= 5 * freed_a_step
    assert worst + 4 * freed_a_step < MARGIN_BYTES < worst + 5 * freed_a_step
    # The last step down asks for two steps more than the margin.
    assert calm >= MARGIN_BYTES + 2 * story.step_bytes


def test_plan_has_a_load_that_comes_and_goes_without_a_jump() -> None:
    story = plan(4 * GIB, 10)

    loads = [story.load_bytes(tick / 100) for tick in range(2000)]

    assert loads[0] == loads[-1] == min(loads)
    assert max(loads) - min(loads) == story.peak_load_bytes
    assert max(abs(b - a) for a, b in pairwise(loads)) < 16 * MIB


@pytest.mark.parametrize(
    ("vm_bytes", "speed"),
    [(499 * MIB, 10), (17 * GIB, 10), (4 * GIB + 1, 10), (4 * GIB, 9.9), (4 * GIB, 51)],
)
def test_plan_that_would_show_nothing_is_refused(vm_bytes: int, speed: float) -> None:
    with pytest.raises(ConfigError, match="the demo takes"):
        plan(vm_bytes, speed)


# -- the host and the verdict ---------------------------------------------------------------------


def test_low_memory_files_are_never_empty_and_hold_whole_mebibytes(tmp_path: Path) -> None:
    story = plan(4 * GIB, 10)
    host = PretendedHost(tmp_path / "low", story)

    sample = host.sample(0, 0, 704 * MIB, 0)

    assert (tmp_path / "low" / "margin").read_text() == "400\n"
    assert (tmp_path / "low" / "available").read_text() == f"{sample.available_bytes // MIB}\n"
    assert sorted(path.name for path in host.directory.iterdir()) == ["available", "margin"]


def sample(
    at_s: float, phase: Phase, available_mib: int, guest_mib: int, balloon_mib: int = 0
) -> Sample:
    return Sample(at_s, phase, 0, guest_mib * MIB, balloon_mib * MIB, available_mib * MIB)


GOOD = [
    sample(0, Phase.CALM, 900, 700),
    sample(5, Phase.PUSHES, 399, 700),
    sample(6, Phase.PUSHES, 450, 640, 192),
    sample(7, Phase.HOLDS, 410, 640, 192),
    sample(20, Phase.RETURNS, 900, 700),
]
CHECKS = [(1000, 0), (2000, 0)]


def without(phase: Phase) -> list[Sample]:
    return [sample for sample in GOOD if sample.phase is not phase]


def instead(wrong: Sample) -> list[Sample]:
    """The good run with another sample for the one of its phase."""
    return [wrong if sample.phase is wrong.phase else sample for sample in GOOD]


def test_good_run_is_a_success() -> None:
    judge(GOOD, CHECKS)


@pytest.mark.parametrize(
    ("samples", "checks", "complaint"),
    [
        (without(Phase.PUSHES), CHECKS, "never ran low"),
        (without(Phase.HOLDS), CHECKS, "still low"),
        (instead(sample(7, Phase.HOLDS, 399, 640, 192)), CHECKS, "still low"),
        (instead(sample(7, Phase.HOLDS, 410, 700, 192)), CHECKS, "not by pages really freed"),
        (GOOD, [(1000, 0), (2000, 3)], "3 pages that the guest had kept"),
        (GOOD, [(0, 0), (2000, 0)], "no page of the guest's was checked"),
        (GOOD, [], "no page of the guest's was checked"),
        (instead(sample(20, Phase.RETURNS, 900, 640, 192)), CHECKS, "balloon still has 192 MiB"),
    ],
)
def test_run_that_falls_short_is_no_success_and_says_why(
    samples: list[Sample], checks: list[tuple[int, int]], complaint: str
) -> None:
    with pytest.raises(DemoError, match=complaint):
        judge(samples, checks)


def test_relief_counts_the_longest_stretch_and_freed_the_deepest_point() -> None:
    samples = [
        sample(0, Phase.CALM, 500, 700),
        sample(1.0, Phase.PUSHES, 399, 700),
        sample(1.5, Phase.PUSHES, 400, 650),
        sample(2.0, Phase.PUSHES, 300, 600),
        sample(2.2, Phase.PUSHES, 350, 500),
        sample(3.25, Phase.PUSHES, 600, 520),
    ]

    assert seconds_to_relief(samples) == 1.25
    assert freed_bytes(samples) == 200 * MIB


def test_timetable_begins_at_once_and_has_no_gaps() -> None:
    story: Story = plan(4 * GIB, 10)
    table = story.timetable()

    assert table[0][1] == 0
    assert all(end == start for (_, _, end), (_, start, _) in pairwise(table))
    assert story.phase(time.monotonic() + 1e6)[0] is Phase.RETURNS


# -- the charts -----------------------------------------------------------------------------------


def played(story: Story) -> list[Sample]:
    """Samples of a run in which the guest gives 100 MiB whenever the host is low."""
    samples: list[Sample] = []
    given = 0
    for tick in range(300):
        load = story.load_bytes(tick / 10)
        available = story.budget_bytes - load - 704 * MIB + given
        phase, _ = story.phase(tick / 10)
        samples.append(Sample(tick / 10, phase, load, 704 * MIB - given, 2 * given, available))
        given += 100 * MIB if samples[-1].is_low else 0
    return samples


def test_columns_remember_a_low_moment_between_two_that_are_fine() -> None:
    moments = [(0.1, 500), (0.2, 399), (0.3, 500), (3.5, 500)]
    samples = [sample(at_s, Phase.CALM, mib, 0) for at_s, mib in moments]

    columns = columns_of(samples, 5, 5.0)

    assert [column and column.was_low for column in columns] == [True, True, True, False, None]
    assert columns[0] is not None
    assert columns[0].sample.at_s == 0.3


@pytest.mark.parametrize(
    ("upper", "lower", "cell"),
    [
        (None, None, (" ", "")),
        ("red", None, ("▀", "red")),
        (None, "red", ("▄", "red")),
        ("red", "red", ("█", "red")),
        ("red", "blue", ("▀", "red on blue")),
    ],
)
def test_cell_shows_its_two_pixels(
    upper: str | None, lower: str | None, cell: tuple[str, str]
) -> None:
    assert half_blocks(upper, lower) == cell


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (250, 70)])
def test_live_chart_fits_its_terminal_and_names_everything(width: int, height: int) -> None:
    story = plan(4 * GIB, 10)
    written = io.StringIO()
    console = Console(file=written, width=width, height=height, force_terminal=True)

    with LiveChart(story, console) as chart:
        chart.show(played(story))

    # rich draws the frame once more when it ends: the last one counts.
    frame = "A host of" + written.getvalue().rpartition("A host of")[2]
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame).splitlines()
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    seen = "\n".join(lines)
    for name in ("margin", "the guest", "others", "balloon", "available", "▼", "█"):
        assert name in seen


def test_plain_lines_come_once_a_second_and_at_every_turn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    story = plan(4 * GIB, 10)
    samples = played(story)

    with PlainLines(story) as chart:
        for count in range(1, len(samples) + 1):
            chart.show(samples[:count])

    introduction, *lines = capsys.readouterr().out.splitlines()
    assert "VM of 4 GiB" in introduction
    assert 30 <= len(lines) <= 30 + len(Phase)
    assert any("LOW" in line for line in lines)
    assert all("balloon" in line and "margin 400 MiB" in line for line in lines)


def test_picture_of_a_run_without_low_memory_is_still_drawn(tmp_path: Path) -> None:
    samples = [sample(tick / 10, Phase.CALM, 900, 700) for tick in range(20)]

    draw(plan(4 * GIB, 10), samples, tmp_path / "calm.png")

    assert (tmp_path / "calm.png").stat().st_size > 10_000
