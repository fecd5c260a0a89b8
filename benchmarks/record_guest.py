"""Records real guests under a balloon, as CSV files: ``python -m benchmarks.record_guest``.

From ``t`` = 0 on the balloon's target grows by a sixteenth of ChromeOS's maximum each second, as
under a host that stays low on memory. ``tests/data/recordings/README.md`` has the columns. A
guest that does not say at once what happened inside leaves those fields empty.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from balloon_daemon.sizing.balloon_policy import max_balloon_bytes
from benchmarks.c_programs import CompilerError
from benchmarks.loaded_guest import LoadedGuest, Outside, compile_load
from tests.vm.cache import ImagesError
from tests.vm.images import Images, ready_images
from tests.vm.qemu import MIB

STEPS = 16
BEFORE_S = 6
"""Seconds that are recorded before the squeeze begins."""

LATE_S = 0.6
"""For so long the answer from inside is waited for."""

_STATS = {
    "free_mib": "free-memory",
    "available_mib": "available-memory",
    "total_mib": "total-memory",
    "caches_mib": "disk-caches",
    "major_faults": "major-faults",
    "minor_faults": "minor-faults",
    "swap_in": "swap-in",
    "swap_out": "swap-out",
    "oom_kills": "oom-kills",
    "alloc_stalls": "alloc-stalls",
    "async_scan": "async-scans",
    "direct_scan": "direct-scans",
    "async_reclaim": "async-reclaims",
    "direct_reclaim": "direct-reclaims",
}
"""Columns, and what QEMU calls them."""

_PAGES = ("swap_in", "swap_out", "async_scan", "direct_scan", "async_reclaim", "direct_reclaim")
"""Those that the device tells in bytes."""

_SUMMED = ("major_faults", "minor_faults", "oom_kills", "alloc_stalls", *_PAGES)
_INSIDE = {
    "in_psi_some_ms": ("psi_some", 1000),
    "in_psi_full_ms": ("psi_full", 1000),
    "in_refault_file": ("workingset_refault_file", 1),
    "in_refault_anon": ("workingset_refault_anon", 1),
    "in_work": ("work", 1),
}
COLUMNS = ["t", "target_mib", "balloon_mib", "age_s", *_STATS, "disk_read_kib", *_INSIDE]
COLUMNS += ["in_op_ms", "in_probe_ms", "need"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A guest and what happens to it.

    Attributes:
        suite: whose kernel the guest runs.
        memory_mib: its memory.
        prepare: starts the loads that run from before the squeeze on.
        release_s: when the whole balloon is given back; None: never.
        then: what is started later, by the second.
        end_s: when the recording ends.
    """

    suite: str
    memory_mib: int
    prepare: Callable[[LoadedGuest], object]
    release_s: int | None = None
    then: Mapping[int, Callable[[LoadedGuest], object]] = field(default_factory=dict)
    end_s: int = 45


def _mixed_small(guest: LoadedGuest) -> None:
    guest.start("map", 120, 0, 300)
    guest.read_once(220, 1024)


def _tight_small(guest: LoadedGuest) -> None:
    guest.start("map", 230, 0, 300)
    guest.read_once(100, 1024)


def _mixed_large(guest: LoadedGuest) -> None:
    guest.start("anon", 450, 300)
    guest.start("read", 300, 0, 40)
    guest.read_once(900, 1024)


SCENARIOS = {
    "k61-512m-mixed": Scenario("bookworm", 512, _mixed_small),
    "k72-512m-tight": Scenario("forky", 512, _tight_small),
    "k72-2g-mixed": Scenario("forky", 2048, _mixed_large, end_s=50),
    "k61-512m-burst-after": Scenario(
        "bookworm",
        512,
        lambda guest: guest.read_once(200, 1024),
        release_s=24,
        then={25: lambda guest: guest.start("burst", 300, 150, 0, 15)},
        end_s=55,
    ),
    "k72-2g-burst-held": Scenario(
        "forky",
        2048,
        lambda guest: guest.start("idle", 500),
        then={26: lambda guest: guest.start("burst", 700, 150, 0, 12)},
        end_s=55,
    ),
}


class Recorder:
    """Makes the rows of one recording: sums begin at its first row."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}

    def row(
        self, t_s: float, target_mib: int, outside: Outside, inside: Mapping[str, int] | None
    ) -> dict[str, object]:
        """One row; a figure that is not known is an empty field."""
        row: dict[str, object] = dict.fromkeys(COLUMNS, "")
        row |= {"t": f"{t_s:.1f}", "target_mib": target_mib}
        row |= {"balloon_mib": outside.balloon_mib, "age_s": outside.age_s}
        for column, name in _STATS.items():
            if name in outside.stats:
                value = outside.stats[name] // _unit(column)
                row[column] = self._since(column, value) if column in _SUMMED else value
        row["disk_read_kib"] = self._since("disk_read_kib", outside.disk_read_kib)
        if inside is None:
            return row
        for column, (name, unit) in _INSIDE.items():
            row[column] = self._since(column, inside[name]) // unit
        row["in_op_ms"] = inside["op_us"] // 1000
        row["in_probe_ms"] = inside["probe_us"] // 1000
        return row

    def _since(self, column: str, value: int) -> int:
        return value - self._first.setdefault(column, value)


def _unit(column: str) -> int:
    if column in _PAGES:
        return 4096
    return MIB if column.endswith("_mib") else 1


def record(
    images: Images, load: Path, scenario: Scenario, log_dir: Path
) -> list[dict[str, object]]:
    """Runs a scenario; returns its rows, about one a second."""
    guest = LoadedGuest(images, load, scenario.suite, scenario.memory_mib, log_dir)
    try:
        scenario.prepare(guest)
        guest.slow_disk()
        guest.poll_statistics()
        guest.look()
        most_mib = max_balloon_bytes(scenario.memory_mib * MIB) // MIB
        rows, recorder, target_mib = [], Recorder(), 0
        begun_s = time.monotonic() + BEFORE_S
        for second in range(-BEFORE_S, scenario.end_s):
            time.sleep(max(0.0, begun_s + second - time.monotonic()))
            t_s = time.monotonic() - begun_s
            outside = guest.outside(time.time())
            rows.append(recorder.row(t_s, target_mib, outside, guest.look(LATE_S)))
            released = scenario.release_s is not None and second >= scenario.release_s
            wanted_mib = 0 if released else most_mib * min(STEPS, max(0, second + 1)) // STEPS
            if wanted_mib != target_mib:
                target_mib = wanted_mib
                guest.set_balloon(target_mib)
            if second in scenario.then:
                scenario.then[second](guest)
        return rows
    finally:
        guest.stop()


def main() -> int:
    """Records what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record_guest", description=__doc__)
    names = ", ".join(SCENARIOS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {names}")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIRECTORY")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in SCENARIOS]:
        parser.error(f"no recording {', '.join(unknown)}; there are {names}")
    with tempfile.TemporaryDirectory() as directory:
        try:
            images, load = ready_images(), compile_load(Path(directory))
        except (ImagesError, CompilerError) as err:
            print(f"record_guest: {err}", file=sys.stderr)
            return 2
        for name in options.names or SCENARIOS:
            rows = record(images, load, SCENARIOS[name], Path(directory) / name)
            _write(options.output, name, rows)
    return 0


def _write(directory: Path, name: str, rows: list[dict[str, object]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / f"own-{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"own-{name}.csv: {len(rows)} rows", flush=True)


if __name__ == "__main__":
    sys.exit(main())
