"""``balloonctl plot`` of a history that a real balloond has kept."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from balloon_daemon.ctl.charts import timeline
from balloon_daemon.ctl.charts.past import Kind
from balloon_daemon.records.history_writer import open_history, write
from tests.harness.daemon import ROOT
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.small_tmpfs import SmallTmpfs
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import attach, balloon_bytes, run_until

PLOT = ("balloon_daemon.ctl.main", "plot")
NONE = (
    "{t}/none: No such file or directory; name the file that balloond --history keeps, or have "
    "balloond keep one"
)


def plot(*arguments: object, python: tuple[str, ...] = ("-m", *PLOT)) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, *python, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    return done.returncode, done.stdout, done.stderr


def pixels(picture: Path, colour: str, *, dots_alone: bool = False) -> int:
    """How many pixels have exactly this colour; without those of the names at the right."""
    values = imread(picture)[:, :, :3]
    if dots_alone:
        values = values[:, : round(values.shape[1] * timeline.RIGHT) + 4]
    return int((abs(values - to_rgb(colour)) < 0.003).all(axis=2).sum())


def made_history(path: Path, *, vms: int = 1, version: int = 1) -> Path:
    """A history of ten minutes in which the host was low and one guest in need."""
    history, _ = open_history(str(path))
    rows: list[tuple[str, list[object]]] = []
    for minute in range(10):
        at_s = 1e9 + 60 * minute
        available = (100 if 3 < minute < 6 else 900) << 20
        rows.append(("samples", [at_s, "", None, None, None, available, 400 << 20, None]))
        for vm in range(vms):
            sizes = [4 << 30, minute << 28, minute << 28, 1 << 30, None, 3 << 30]
            rows.append(("samples", [at_s, f"vm{vm}", *sizes]))
    message = "low memory: balloon grows to level 1/16, 256 MiB"
    rows.append(("events", [1e9 + 70, "vm0", "decided", message]))
    rows.append(("events", [1e9 + 80, "vm0", "guest-in-need", "in need (swaps-in)"]))
    write(history, rows)
    history.execute(f"PRAGMA user_version={version}")
    history.close()
    return path


def test_real_squeeze_is_drawn_with_host_guest_and_steps(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    daemon = start_daemon("--history", str(path), "--speed", "200")
    guest = attach(make_guest(), daemon)
    low_mem.set_available(50)
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    picture, all_vms = tmp_path / "vm1.png", tmp_path / "all.png"
    daemon.wait(
        lambda: (
            plot("vm1", "-o", picture, "--history", path)[0] == 0
            and pixels(picture, timeline.BALLOON) > 300
        ),
        what="the balloon is in the picture",
    )
    for colour in (timeline.AVAILABLE, timeline.MARGIN, timeline.GUEST, timeline.FAINT):
        assert pixels(picture, colour) > 100
    # Sixteen steps up, each a line of 18 pixels.
    assert pixels(picture, timeline.TARGET) > 16 * 10
    assert plot("-o", all_vms, "--history", path) == (0, f"drawn in {all_vms}\n", "")
    assert pixels(all_vms, timeline.OF_VMS[0]) > 3000
    assert picture.stat().st_size < 200_000


def test_first_sample_of_a_young_history_is_seen(tmp_path: Path) -> None:
    path, picture = tmp_path / "h.db", tmp_path / "picture.png"
    history, _ = open_history(str(path))
    write(
        history,
        [
            ("samples", [1e9, "", None, None, None, 900 << 20, 400 << 20, None]),
            ("samples", [1e9 + 60, "", None, None, None, 900 << 20, 400 << 20, None]),
            ("samples", [1e9 + 60, "a", 4 << 30, 1 << 30, 1 << 30, 2 << 30, None, 3 << 30]),
            ("samples", [1e9 + 60, "b", 4 << 30, 1 << 29, 1 << 29, 2 << 30, None, 3 << 30]),
        ],
    )
    history.close()
    assert plot("a", "-o", picture, "--history", path)[0] == 0
    # A dot at the right edge, besides the name of the line.
    for colour in (timeline.BALLOON, timeline.GUEST, timeline.HELD, timeline.FAINT):
        assert pixels(picture, colour, dots_alone=True) > 20
    assert plot("-o", picture, "--history", path)[0] == 0
    for colour in timeline.OF_VMS[:2]:
        assert pixels(picture, colour, dots_alone=True) > 20


@pytest.mark.parametrize("length_s", [0.0, 0.4, 1.0, 3.6, 5.9, 6.0, 9.0, 61.0, 599.0, 86400.0])
def test_no_two_ticks_of_the_clock_read_the_same(length_s: float) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    timeline.set_times(axes, (1e9 + 0.3, 1e9 + 0.3 + length_s))
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels
    assert len(set(labels)) == len(labels)


def test_more_vms_than_colours_are_drawn_together_as_others(tmp_path: Path) -> None:
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    for picture, vms in ((few, len(timeline.OF_VMS)), (many, len(timeline.OF_VMS) + 5)):
        path = made_history(tmp_path / f"{vms}.db", vms=vms)
        assert plot("-o", picture, "--history", path)[::2] == (0, "")
    assert pixels(few, timeline.OTHERS) < 100 < pixels(few, timeline.OF_VMS[-1])
    assert pixels(many, timeline.OTHERS) > 3000
    assert pixels(many, timeline.OF_VMS[-1]) == 0


def test_finding_makes_the_picture_higher_as_its_sentence_is_below(tmp_path: Path) -> None:
    path = made_history(tmp_path / "h.db", vms=2)
    heights = []
    for vm in ("vm0", "vm1"):
        picture = tmp_path / f"{vm}.png"
        assert plot(vm, "-o", picture, "--history", path)[::2] == (0, "")
        heights.append(imread(picture).shape[0])
    assert heights[0] - heights[1] == round(0.2 * timeline.DPI)


def test_picture_grows_by_no_more_than_the_newest_findings(tmp_path: Path) -> None:
    heights = []
    for findings in (9, 100):
        path, picture = made_history(tmp_path / f"{findings}.db", vms=2), tmp_path / "x.png"
        history, _ = open_history(str(path))
        write(history, [("events", [1e9, "vm1", "guest-in-need", "in need"])] * findings)
        history.close()
        assert plot("vm1", "-o", picture, "--history", path)[::2] == (0, "")
        heights.append(imread(picture).shape[0])
    assert heights[0] == heights[1]


def test_balloon_that_was_always_empty_has_an_axis_to_read(tmp_path: Path) -> None:
    path, picture = tmp_path / "h.db", tmp_path / "x.png"
    history, _ = open_history(str(path))
    sample = ["web", 1 << 30, 0, 0, None, None, None]
    write(history, [("samples", [1e9 + 60 * n, *sample]) for n in range(3)])
    history.close()
    assert plot("-o", picture, "--history", path) == (0, f"drawn in {picture}\n", "")
    # A label such as 8e-07 MiB would reach into the first 30 columns.
    assert (imread(picture)[:, :30, :3] == 1).all()


def test_name_that_the_font_or_tex_cannot_is_drawn_without_a_warning(tmp_path: Path) -> None:
    path, picture = tmp_path / "h.db", tmp_path / "x.png"
    history, _ = open_history(str(path))
    name = "$\\frac{1$ 虚拟机"
    write(history, [("samples", [1e9, name, 1 << 30, 1 << 20, 1 << 20, None, None, None])])
    history.close()
    assert plot(name, "-o", picture, "--history", path) == (0, f"drawn in {picture}\n", "")


def test_since_counts_from_the_end_of_the_file(tmp_path: Path) -> None:
    path, picture = made_history(tmp_path / "h.db"), tmp_path / "x.png"
    assert plot("vm0", "-o", picture, "--history", path, "--since", "90s")[0] == 0
    # The host was low before that time.
    short = pixels(picture, timeline.OF_KINDS[Kind.GROWS])
    assert plot("vm0", "-o", picture, "--history", path)[0] == 0
    assert pixels(picture, timeline.OF_KINDS[Kind.GROWS]) > short + 10


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        ("no -o {t}/x.png --history {t}/h.db", 2, "{t}/h.db has nothing of no in that time, but "
         "of: vm0"),
        ("vm0 -o {t}/x.jpg --history {t}/h.db", 2, "-o {t}/x.jpg: the file's name must end in "
         ".png"),
        ("vm0 -o {t}/no/x.png --history {t}/h.db", 2, "-o {t}/no/x.png: {t}/no is no directory"),
        ("vm0 -o {t}/x.png --history {t}/h.db --since 1y", 2, "--since: '1y' is no time; write it "
         "like 500ms, 90s, 10m, 2h or 1d"),
        ("vm0 -o {t}/x.png --history {t}/new.db", 2, "{t}/new.db: it has no samples yet; wait for "
         "a minute"),
        ("vm0 -o {t}/x.png --history {t}/host.db", 2, "{t}/host.db has nothing of any VM in that "
         "time; wait for a minute"),
        ("vm0 -o {t}/x.png --history {t}/none", 1, NONE),
        ("vm0 -o {t}/x.png --history {t}/other", 1, "{t}/other: file is not a database; is it of "
         "balloond --history?"),
        ("vm0 -o {t}/x.png --history {t}/v7.db", 1, "{t}/v7.db: it is of version 7, not 1; is it "
         "of balloond --history?"),
        ("vm0 -o {t}/dir.png --history {t}/h.db", 1, "{t}/dir.png: Is a directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(
    arguments: str, status: int, complaint: str, tmp_path: Path
) -> None:
    made_history(tmp_path / "h.db")
    made_history(tmp_path / "v7.db", version=7)
    open_history(str(tmp_path / "new.db"))[0].close()
    made_history(tmp_path / "host.db", vms=0)
    (tmp_path / "other").write_bytes(b"no database at all\n" * 100)
    (tmp_path / "dir.png").mkdir()
    said = plot(*arguments.format(t=tmp_path).split())
    assert said == (status, "", f"balloonctl plot: {complaint.format(t=tmp_path)}\n")


def test_lack_of_matplotlib_is_told_with_the_remedy(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None; from balloon_daemon.ctl.main import main; "
        "sys.exit(main(['plot', '-o', 'x.png', '--history', 'x']))"
    )
    status, out, err = plot(python=("-c", program))
    assert (status, out) == (2, "")
    assert err.startswith("balloonctl plot: -o needs matplotlib: run make wheels EXTRA=ctl && ")
    assert err.count("\n") == 1


def test_other_commands_load_no_library_for_pictures() -> None:
    program = (
        "import sys; from balloon_daemon.ctl.main import build_parser; build_parser(); "
        "print(*{'matplotlib', 'numpy', 'rich', 'h11'} & {*sys.modules})"
    )
    assert plot(python=("-c", program)) == (0, "\n", "")


def test_picture_on_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    disk = SmallTmpfs(tmp_path / "small", 1)
    try:
        picture = disk.root / "web.png"
        picture.write_bytes(b"before")
        disk.fill(but_bytes=8 << 10)
        status, output, error = plot("--history", made_history(tmp_path / "day"), "-o", picture)
        assert (status, output) == (1, "")
        full = "No space left on device; write it to another place"
        assert error == f"balloonctl plot: {picture}: {full}\n"
        assert picture.read_bytes() == b"before"
        assert sorted(entry.name for entry in disk.root.iterdir()) == ["other", "web.png"]
    finally:
        disk.close()
