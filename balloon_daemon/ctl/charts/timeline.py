"""A history as a picture: the host and one guest, or all of them, against time, with events."""

import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import accumulate, pairwise
from pathlib import Path
from time import localtime, strftime
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, DateFormatter, SecondLocator
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from balloon_daemon import __version__
from balloon_daemon.ctl.charts.past import Kind, Mark, Past, Row, staircase
from balloon_daemon.ctl.charts.picture import save
from balloon_daemon.errors import printable
from balloon_daemon.units import GIB, MIB, format_size

INK, FAINT = "#2b2f36", "#6d737d"
AVAILABLE, MARGIN = "#5a9a52", "#c8332b"
BALLOON, TARGET, GUEST, HELD = "#e39a2d", "#8a5a0c", "#3f7fca", "#7d5ba6"
OF_VMS = ("#e39a2d", "#3f7fca", "#5a9a52", "#7d5ba6", "#c8675b", "#4fa3a5", "#b58a5e", "#8fa0b8")
"""The colours of VMs' balloons, the largest first."""

OTHERS, GRID = "#b9bec7", "#e6e8eb"

OF_KINDS = {Kind.GROWS: TARGET, Kind.SHRINKS: AVAILABLE, Kind.FINDING: MARGIN}
MOST_FINDINGS = 8
"""How many of the newest findings are listed below a picture; more would be too many to read."""

LEAST_TOP = 16 * MIB
"""The amount of memory that a panel's height shows at least, even if nothing was taken."""

LEFT, RIGHT = 0.085, 0.835
WIDTH, DPI = 11.0, 120


def draw(past: Past, vm: str | None, path: Path) -> None:
    """Draws a history.

    Args:
        past: the samples and events; must not be empty.
        vm: the VM, which must be among its VMs; None: all of them.
        path: the PNG file to write.

    Raises:
        OSError: the file cannot be written.
    """
    marks = [mark for mark in past.marks if vm in (None, mark.vm)]
    findings = told([mark for mark in marks if mark.kind is Kind.FINDING], name_vm=vm is None)
    with plain_text():
        height = 7.5 + 0.2 * len(findings)
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        host, guest, events = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1.35, 0.32])
        bottom = 0.4 + 0.2 * len(findings) + (0.2 if findings else 0)
        figure.subplots_adjust(LEFT, bottom / height, RIGHT, 1 - 1.1 / height, hspace=0.2)
        title = f"{printable(vm)}: the host, its guest and its balloon" if vm else "All balloons"
        entitle(figure, past.span(), title, height)
        draw_host(host, past.host)
        if vm is None:
            _draw_all(guest, past)
        else:
            _draw_guest(guest, past.vms[vm], marks)
        draw_marks(events, marks)
        set_times(events, past.span())
        for number, finding in enumerate(reversed(findings)):
            figure.text(LEFT, (0.15 + 0.2 * number) / height, finding, fontsize=8.5)
        save(figure, path)


@contextmanager
def plain_text() -> Iterator[None]:
    """Sets the font, and has texts drawn as they are: a VM's name may have characters that
    matplotlib's font lacks, or dollar signs, between which matplotlib sets a formula."""
    settings: Any = {
        "font.size": 10,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "text.parse_math": False,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def entitle(figure: Figure, span: tuple[float, float], title: str, height: float) -> None:
    """Writes the title, and below it the time that a picture shows."""
    begin, end = (strftime("%Y-%m-%d %H:%M:%S", localtime(at_s)) for at_s in span)
    figure.text(LEFT, 1 - 0.42 / height, title, fontsize=16, fontweight="bold")
    when = f"{begin} to {end}, {strftime('UTC%z', localtime(span[0]))}; balloond {__version__}"
    figure.text(LEFT, 1 - 0.68 / height, when, color=FAINT)


def draw_host(axes: Axes, runs: Sequence[Sequence[Row]]) -> None:
    """Draws what the host had available, and its margin; red where less was available than the
    margin."""
    ends: list[tuple[float, str, str]] = []
    for run in runs:
        times = times_of(row["at_s"] for row in run)
        available, margin = ([row[name] for row in run] for name in ("available", "margin"))
        low = [has < wants for has, wants in zip(available, margin, strict=True)]
        axes.fill_between(times, available, color=AVAILABLE, alpha=0.2, linewidth=0)
        axes.fill_between(
            times, available, margin, where=low, interpolate=True, color=MARGIN, alpha=0.45, lw=0
        )
        dot = lone(run)
        axes.plot(times, available, color=AVAILABLE, linewidth=1.6, marker=dot)
        axes.plot(times, margin, color=MARGIN, linewidth=1.2, linestyle=(0, (5, 3)), marker=dot)
        ends = [
            (available[-1], f"available\n{_size(available[-1])}", AVAILABLE),
            (margin[-1], f"margin\n{_size(margin[-1])}", MARGIN),
        ]
    finish(axes, "The host's memory", ends)


def lone(run: Sequence[object]) -> str | None:
    """The marker of a run's lines: a dot for a single sample, as a line through it has no length;
    else None. A young history has a single sample for its first minutes."""
    return "o" if len(run) == 1 else None


def _draw_guest(axes: Axes, runs: list[list[Row]], marks: Iterable[Mark]) -> None:
    for run in runs:
        times = times_of(row["at_s"] for row in run)
        balloon = [_or_nan(row["balloon"]) for row in run]
        axes.fill_between(times, balloon, color=BALLOON, alpha=0.3, linewidth=0)
        for name, colour in (
            ("memory", FAINT),
            ("held", HELD),
            ("available", GUEST),
            ("balloon", BALLOON),
        ):
            sizes = [_or_nan(row[name]) for row in run]
            axes.plot(times, sizes, color=colour, linewidth=1.8, marker=lone(run))
    for stairs in staircase(runs, marks):
        axes.plot(
            times_of(at_s for at_s, _ in stairs),
            [target for _, target in stairs],
            color=TARGET,
            linewidth=1.1,
            linestyle=(0, (3, 2)),
            drawstyle="steps-post",
        )
    last = runs[-1][-1]
    names = {
        "memory": ("VM's memory", FAINT),
        "held": ("host memory held", HELD),
        "available": ("guest has available", GUEST),
        "balloon": ("balloon", "#b87411"),
        "target": ("its target", TARGET),
    }
    ends = [
        (last[name], f"{label}\n{_size(last[name])}", colour)
        for name, (label, colour) in names.items()
        if last[name] is not None
    ]
    finish(axes, "The guest's memory", ends)


def _draw_all(axes: Axes, past: Past) -> None:
    most = {
        vm: max(row["balloon"] or 0 for run in runs for row in run)
        for vm, runs in past.vms.items()
    }
    ranked = sorted(most, key=lambda vm: (-most[vm], vm))
    named = ranked if len(ranked) <= len(OF_VMS) else ranked[: len(OF_VMS) - 1]
    # balloond writes the samples of one moment, of the host and all VMs, with the same time.
    balloons: dict[float, Counter[str]] = {}
    for vm, runs in past.vms.items():
        for row in (row for run in runs for row in run):
            at = balloons.setdefault(row["at_s"], Counter())
            at[vm if vm in named else ""] += row["balloon"] or 0
    names = [*named, *([""] if len(named) < len(ranked) else [])]
    colours = [*OF_VMS[: len(named)], *([OTHERS] if len(named) < len(ranked) else [])]
    points = [(at_s, [float(balloons[at_s][name]) for name in names]) for at_s in balloons]
    # Add NaN after each run of samples: it leaves a gap in the area for the time without balloond.
    points += [(run[-1]["at_s"] + 0.001, [float("nan")] * len(names)) for run in past.host[:-1]]
    points.sort()
    heights = list(zip(*(sizes for _, sizes in points), strict=True))
    times = times_of(at_s for at_s, _ in points)
    if heights:
        axes.stackplot(times, *heights, colors=colours, linewidth=0)
    runs = [run for of_vm in past.vms.values() for run in of_vm]
    for at_s in {run[0]["at_s"] for run in runs if lone(run)}:
        tops = accumulate(balloons[at_s][name] for name in names)
        for top, colour in zip(tops, colours, strict=True):
            axes.plot(times_of([at_s]), [top], color=colour, marker=lone([at_s]))
    ends, below = [], 0.0
    for name, colour, line in zip(names, colours, heights, strict=True):
        label = f"{len(ranked) - len(named)} others"
        if name:
            label = f"{_shortened(printable(name))}, most {_size(most[name])}"
        ends.append((below + line[-1] / 2, label, colour))
        below += line[-1]
    finish(axes, "The balloons of all VMs", ends)


def draw_marks(axes: Axes, marks: Sequence[Mark]) -> None:
    """Draws three lanes of marks: balloons grew, balloons shrank, and what the guests' protection
    found (``Kind.FINDING``), such as a guest in need."""
    kinds = list(reversed(Kind))
    for lane, kind in enumerate(kinds):
        times = times_of(mark.at_s for mark in marks if mark.kind is kind)
        axes.vlines(times, lane - 0.38, lane + 0.38, color=OF_KINDS[kind], linewidth=1.2)
        _name(axes, (lane + 0.7) / (len(kinds) + 0.4), f"{len(times):,}", OF_KINDS[kind])
    axes.set_ylim(-0.7, len(kinds) - 0.3)
    axes.set_yticks(range(len(kinds)), [kind.value for kind in kinds])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0, colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def told(findings: Sequence[Mark], *, name_vm: bool) -> list[str]:
    """The newest findings as lines."""
    lines = []
    if (earlier := len(findings) - MOST_FINDINGS) > 0:
        lines.append(f"{earlier} earlier: balloonctl history")
    for mark in findings[-MOST_FINDINGS:]:
        name = f"{printable(mark.vm)}: " if name_vm else ""
        line = f"{strftime('%H:%M:%S', localtime(mark.at_s))}  {name}{printable(mark.message)}"
        lines.append(textwrap.shorten(line, 150, placeholder=" …"))
    return lines


def finish(axes: Axes, label: str, ends: Sequence[tuple[float, str, str]]) -> None:
    """Gives a panel its title and its ticks, and names each line at its right end.

    Args:
        axes: the panel, whose lines are sizes in bytes.
        label: its title.
        ends: height, name and colour of each line.
    """
    axes.set_title(label, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylim(0, max(axes.get_ylim()[1], LEAST_TOP))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    top = axes.get_ylim()[1]
    unit, name = (GIB, "GiB") if top >= 2 * GIB else (MIB, "MiB")
    axes.yaxis.set_major_locator(_Round(unit))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda y, _: f"{y / unit:g} {name}" if y else "0")
    )
    if not ends:
        axes.text(0.5, 0.5, "no figures", transform=axes.transAxes, ha="center", color=FAINT)
    # Write each line's name at its right end; keep the names far enough apart to be read.
    lines = max((text.count("\n") + 1 for _, text, _ in ends), default=1)
    apart = 13.5 * lines / (axes.bbox.height * 72 / axes.figure.dpi)
    heights = _spread([y / top for y, _, _ in ends], apart)
    for height, (_, text, colour) in zip(heights, ends, strict=True):
        _name(axes, height, text, colour)


def _name(axes: Axes, height: float, text: str, colour: str) -> None:
    """Writes a line's name at the right edge, at a height from 0 to 1."""
    axes.annotate(
        text,
        (1.0, height),
        xycoords="axes fraction",
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=8.5,
        fontweight="bold",
    )


class _Round(MaxNLocator):
    """Ticks at round numbers of a unit."""

    def __init__(self, unit: int) -> None:
        super().__init__(nbins=6, steps=[1, 2, 2.5, 5, 10])
        self._unit = unit

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """The ticks between two values."""
        return [
            self._unit * float(tick)
            for tick in super().tick_values(vmin / self._unit, vmax / self._unit)
        ]


def _spread(heights: Sequence[float], apart: float) -> list[float]:
    """Heights that are at least this far apart, in the same order and near the given ones."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    spread = list(heights)
    for before, number in pairwise(order):
        spread[number] = max(spread[number], spread[before] + apart)
    if order and spread[order[-1]] > 1:
        spread[order[-1]] = 1.0
        for after, number in pairwise(reversed(order)):
            spread[number] = min(spread[number], spread[after] - apart)
    return spread


def set_times(axes: Axes, span: tuple[float, float]) -> None:
    """Gives the lowest panel an axis with times of the clock."""
    zone = datetime.fromtimestamp(span[0]).astimezone().tzinfo
    # In a span of a few seconds AutoDateLocator sets ticks between whole seconds too.
    seconds = span[1] - span[0] < 6
    locator: Any = (
        SecondLocator(tz=zone) if seconds else AutoDateLocator(tz=zone, minticks=5, maxticks=10)  # type: ignore[no-untyped-call] # matplotlib's
    )
    axes.xaxis.set_major_locator(locator)
    clock = "%H:%M" if span[1] - span[0] > 600 else "%H:%M:%S"
    axes.xaxis.set_major_formatter(DateFormatter(clock, tz=zone))  # type: ignore[no-untyped-call] # matplotlib's
    begin, end = times_of(span)
    axes.set_xlim(begin, max(end, begin + 1 / 86400))


def times_of(seconds: Iterable[float]) -> list[float]:
    """Times as matplotlib has them: in days since the epoch."""
    return [at_s / 86400 for at_s in seconds]


def _or_nan(size_bytes: int | None) -> float:
    return float("nan") if size_bytes is None else size_bytes


def _size(size_bytes: float) -> str:
    return format_size(round(size_bytes / MIB) * MIB)


def _shortened(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
