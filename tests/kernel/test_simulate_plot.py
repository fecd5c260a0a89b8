"""``balloonctl simulate --plot``: the picture's file, and what is said where there can be none."""

import struct
import subprocess
from pathlib import Path

import pytest

from balloon_daemon.records.trace import Entry, Header, encode_entry, encode_header
from balloon_daemon.records.trace_values import MOST_BEGAN_S, MOST_CLOCK_S
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import Added, Looked
from balloon_daemon.units import VmId
from tests.harness.daemon import ROOT
from tests.harness.waiting import HANG_S

BALLOONCTL = str(ROOT / ".venv/bin/balloonctl")


def simulate(trace: Path, picture: Path) -> "subprocess.CompletedProcess[str]":
    command = [BALLOONCTL, "simulate", str(trace), "--plot", str(picture)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


def test_picture_has_a_panel_for_each_vm(tmp_path: Path) -> None:
    sizes = {}
    for name in ("need", "evening"):
        path = tmp_path / f"{name}.png"
        done = simulate(ROOT / f"docs/traces/{name}.trace", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "guests found in need" in done.stdout
        # The signature, and the first chunk's width and height (PNG, 11.2.1).
        sizes[name] = struct.unpack(">8s8xII", path.read_bytes()[:24])
    assert all(size[0] == b"\x89PNG\r\n\x1a\n" for size in sizes.values())
    # Two VMs and a line about the one in need, and three VMs.
    assert sizes["need"][1] == sizes["evening"][1]
    assert sizes["need"][2] < sizes["evening"][2]


@pytest.mark.parametrize(
    ("name", "status", "complaint"),
    [
        ("a.jpg", 2, "--plot {path}: the file's name must end in .png"),
        ("none/a.png", 2, "--plot {path}: {path.parent} is no directory"),
        ("there.png", 1, "{path}: Is a directory"),
    ],
)
def test_place_without_room_for_a_picture_is_one_line(
    name: str, status: int, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "there.png").mkdir()
    path = tmp_path / name
    done = simulate(ROOT / "docs/traces/need.trace", path)
    assert (done.returncode, done.stderr) == (
        status,
        f"balloonctl simulate: {complaint.format(path=path)}\n",
    )


def test_figures_and_times_beyond_all_measure_are_drawn(tmp_path: Path) -> None:
    header = Header(float(MOST_BEGAN_S - 1), PolicySettings())
    seen = Reading(1 << 63, 1 << 63)
    entries = [
        Entry(1.0, Looked(seen)),
        Entry(1.0, Added(VmId(1, "web"), 1 << 63)),
        Entry(float(MOST_CLOCK_S - 1), Looked(seen)),
    ]
    trace = tmp_path / "a.trace"
    trace.write_bytes(encode_header(header) + b"".join(map(encode_entry, entries)))
    done = simulate(trace, tmp_path / "a.png")
    assert (done.returncode, done.stderr) == (0, "")
