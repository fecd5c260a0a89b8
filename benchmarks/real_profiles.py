"""Three real guests by turns under each profile and without any balloon (``make bench
ARGS=profiles``, ``python -m benchmarks.real_profiles``).

What happens is told in ``real_scene``, what is measured in ``real_scores``. A run takes 80 s. The
simulator plays the same scene (``simulated_scene``), and its order of the profiles stands beside
the real one.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from balloon_daemon.ctl.simulate.contenders import contenders
from benchmarks.c_programs import CompilerError
from benchmarks.figures import Figure, missing, of_samples
from benchmarks.loaded_guest import compile_load
from benchmarks.processes import DaemonError
from benchmarks.rankings import contradictions, order
from benchmarks.real_scene import NO_BALLOON, run
from benchmarks.real_scores import Change, Course, Moment, Spell, scores, work_done
from benchmarks.simulated_scene import simulated
from benchmarks.table import number
from tests.vm.cache import ImagesError
from tests.vm.images import Images, ready_images

RUNS = 5
WIDTH = 150
"""Of the tables, in columns."""

NICE = -15
"""Of all that runs for a measurement (setpriority(2)), as far as the kernel allows it."""

PROFILES = (NO_BALLOON, "seed", "careful", "adaptive")


@dataclass(frozen=True, slots=True)
class Score:
    """One line of the table.

    Attributes:
        unit: of its figures.
        least: the least difference of two figures that counts.
        more_is_better: the greatest figure is the best one.
        simulated: whether the simulator has it, too.
    """

    unit: str
    least: float
    more_is_better: bool = False
    simulated: bool = True


SCORES = {
    "low_s": Score("s", 1.0),
    "least_available_mib": Score("MiB", 25.0, more_is_better=True),
    "unmet_gib_s": Score("GiB s", 0.2),
    "gib_minutes": Score("GiB min", 0.05),
    "need_s": Score("s", 2.0),
    "stall_s": Score("s", 2.0),
    "steps": Score("", 2.0),
    "reversals": Score("", 0.5),
    "oom_kills": Score("", 0.5),
    "works_done": Score("", 0.02, more_is_better=True, simulated=False),
    "burst_done": Score("", 0.02, more_is_better=True, simulated=False),
}
"""The scores, and what of their wishes the two guests that work have done."""

Result = Mapping[str, float]
"""One run's figures, by the names of `SCORES`."""


def measured(
    images: Images, load: Path, profiles: Sequence[str], runs: int, logs: Path
) -> Iterator[tuple[str, Result | str]]:
    """Runs the scene, profile by profile, so often; yields a run's result or why there is none."""
    for turn in range(runs):
        for profile in profiles:
            try:
                course = run(images, load, profile, logs / f"{turn}-{profile}")
            except (DaemonError, AssertionError) as err:
                yield profile, f"{type(err).__name__}: {err}"
                continue
            (logs / f"{turn}-{profile}/course.json").write_text(json.dumps(asdict(course)))
            yield profile, _result(course)


def kept(logs: Path) -> Iterator[tuple[str, Result]]:
    """Scores the runs whose logs are in a directory or below it."""
    for file in sorted(logs.rglob("*-*/course.json")):
        told = json.loads(file.read_text())
        course = Course(
            told["margin_mib"],
            [Moment(**moment) for moment in told["moments"]],
            [Spell(**spell) for spell in told["spells"]],
            [Change(**change) for change in told["changes"]],
        )
        yield file.parent.name.partition("-")[2], _result(course)


def _result(course: Course) -> Result:
    done = {
        f"{vm}_done": work_done(spell for spell in course.spells if spell.vm == vm)
        for vm in ("works", "burst")
    }
    return asdict(scores(course)) | done


def figures() -> Iterator[Figure]:
    """Measures for ``make bench``."""
    results: dict[str, list[Result]] = {profile: [] for profile in PROFILES}
    whys = dict.fromkeys(PROFILES, "")
    _come_first()
    with tempfile.TemporaryDirectory() as directory:
        images, load = ready_images(), compile_load(Path(directory))
        for profile, result in measured(images, load, PROFILES, RUNS, Path(directory)):
            if isinstance(result, str):
                whys[profile] = result
            else:
                results[profile].append(result)
    for name, score in SCORES.items():
        for profile in PROFILES:
            title = f"three real guests, {profile}: {name}"
            samples = [result[name] for result in results[profile]]
            if samples:
                yield of_samples(title, score.unit, samples, None, whys[profile])
            else:
                yield missing(title, score.unit, whys[profile])


def _come_first() -> None:
    """Lets the guests and balloond have the processors before other work, where that is allowed:
    balloons of starved guests move slowly, whatever a policy decides."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)


def show(results: Mapping[str, Sequence[Result]], console: Console) -> None:
    """Prints medians and ranges, then the orders of profiles here and in the simulator."""
    table = Table(title="Three real guests: median (least to most)", title_justify="left")
    table.add_column("score")
    for profile, every in results.items():
        table.add_column(f"{profile}, n={len(every)}", justify="right")
    for name, score in SCORES.items():
        cells = [_cell([result[name] for result in every]) for every in results.values()]
        table.add_row(f"{name} {score.unit}".strip(), *cells)
    console.print(table)
    console.print(_orders(results))


def _orders(results: Mapping[str, Sequence[Result]]) -> Table:
    """Best first; ``=``: too near to each other to tell."""
    contenders_by_name = {each.name: each for each in contenders()}
    model = {
        name: [asdict(simulated(contenders_by_name[name], seed)) for seed in range(RUNS)]
        for name in results
        if name in contenders_by_name
    }
    table = Table(title="The same order in the simulator?", title_justify="left")
    for heading in ("score", "real guests", "simulator", "contradictions"):
        table.add_column(heading)
    for name, score in SCORES.items():
        if not score.simulated:
            continue
        ours = {
            who: median(each[name] for each in every) for who, every in results.items() if every
        }
        theirs = {who: median(each[name] for each in every) for who, every in model.items()}
        differ = contradictions(ours, theirs, least=score.least)
        table.add_row(
            name,
            order(ours, least=score.least, more_is_better=score.more_is_better),
            _with_figures(theirs, score),
            ", ".join(f"{one}, {other}" for one, other in differ) or "none",
        )
    return table


def _with_figures(figures: Mapping[str, float], score: Score) -> str:
    said = order(figures, least=score.least, more_is_better=score.more_is_better)
    return f"{said} ({', '.join(f'{who} {number(figure)}' for who, figure in figures.items())})"


def _cell(samples: Sequence[float]) -> str:
    if not samples:
        return "none"
    return f"{number(median(samples))} ({number(min(samples))} to {number(max(samples))})"


def main() -> int:
    """Measures what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_profiles")
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help=", ".join(PROFILES))
    parser.add_argument("--runs", type=int, default=RUNS, help="of each profile (default 5)")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="keep the logs there")
    parser.add_argument(
        "--kept", type=Path, metavar="DIRECTORY", help="score the runs whose logs are there"
    )
    parser.add_argument("--json", action="store_true", help="print each run as a line instead")
    options = parser.parse_args()
    profiles = options.profiles or PROFILES
    if unknown := [name for name in profiles if name not in PROFILES]:
        parser.error(f"no profile {', '.join(unknown)}; there are {', '.join(PROFILES)}")
    results: dict[str, list[Result]] = {profile: [] for profile in profiles}
    with tempfile.TemporaryDirectory() as directory:
        try:
            runs = kept(options.kept) if options.kept else _runs(options, Path(directory))
            for profile, result in runs:
                if isinstance(result, str):
                    print(f"real_profiles: {profile}: {result}", file=sys.stderr)
                    continue
                results.setdefault(profile, []).append(result)
                if options.json:
                    print(json.dumps({"profile": profile} | dict(result)), flush=True)
        except (ImagesError, CompilerError) as err:
            print(f"real_profiles: {err}", file=sys.stderr)
            return 2
    if not options.json:
        show(results, Console(width=WIDTH))
    return 0


def _runs(options: argparse.Namespace, directory: Path) -> Iterator[tuple[str, Result | str]]:
    _come_first()
    images, load = ready_images(), compile_load(directory)
    profiles = options.profiles or PROFILES
    yield from measured(images, load, profiles, options.runs, options.logs or directory)


if __name__ == "__main__":
    sys.exit(main())
