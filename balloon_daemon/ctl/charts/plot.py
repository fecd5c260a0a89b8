"""The demonstration as a picture, for people who have never heard of a balloon."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from balloon_daemon.ctl.charts.picture import save
from balloon_daemon.ctl.demo.host import Sample
from balloon_daemon.ctl.demo.story import MARGIN_BYTES, Phase, Story
from balloon_daemon.units import MIB, format_size

LOAD = "#b9bec7"
GUEST = "#3f7fca"
FREE = "#dff0dc"
MARGIN = "#c8332b"
BALLOON = "#e39a2d"
INK = "#2b2f36"

# A label for each phase, the longest that fits the phase's width in the picture.
_LABELS = {
    Phase.CALM: "calm",
    Phase.GROWS: "another\nprogram\nstarts",
    Phase.PUSHES: "it needs more\nand more memory",
    Phase.HOLDS: "it works",
    Phase.LEAVES: "it\nends",
    Phase.RETURNS: "the guest gets its memory back, step by step",
}


def draw(story: Story, samples: Sequence[Sample], path: Path) -> None:
    """Draws a whole run.

    Args:
        story: the demonstration's script.
        samples: the samples of the run.
        path: the PNG file to write.

    Raises:
        OSError: the file cannot be written.
    """
    with mpl.rc_context({"font.size": 10, "font.family": "DejaVu Sans", "text.color": INK}):
        figure = Figure(figsize=(11, 7.4), dpi=130, facecolor="white")
        FigureCanvasAgg(figure)
        host, guest = figure.subplots(2, 1, sharex=True, height_ratios=[1.55, 1])
        figure.subplots_adjust(left=0.075, right=0.83, top=0.83, bottom=0.075, hspace=0.13)
        figure.text(
            0.075,
            0.955,
            "A host runs low on memory, and a virtual machine helps out",
            fontsize=16,
            fontweight="bold",
        )
        figure.text(
            0.075,
            0.922,
            f"balloond took {_whole_mib(_freed(samples))} from a {format_size(story.vm_bytes)} "
            f"guest and gave it back; every page that the guest kept is intact. "
            f"Timers run {story.speed:g}× as fast as usual.",
            fontsize=10,
        )
        _draw_host(host, story, samples)
        _draw_guest(guest, story, samples)
        _mark_phases(host, guest, samples)
        save(figure, path)


def _freed(samples: Sequence[Sample]) -> int:
    return samples[0].guest_bytes - min(sample.guest_bytes for sample in samples)


def _whole_mib(size_bytes: int) -> str:
    return format_size(round(size_bytes / MIB) * MIB)


def _tidy(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.margins(x=0)
    axes.set_axisbelow(True)


def _name(axes: Axes, y: float, text: str, colour: str) -> None:
    """Puts a line's legend at the line's own end."""
    axes.annotate(
        text,
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=9.5,
        fontweight="bold",
    )


def _draw_host(axes: Axes, story: Story, samples: Sequence[Sample]) -> None:
    times = [sample.at_s for sample in samples]
    load = [sample.load_bytes / MIB for sample in samples]
    guest = [sample.guest_bytes / MIB for sample in samples]
    free = [sample.available_bytes / MIB for sample in samples]
    budget = story.budget_bytes / MIB
    line = budget - MARGIN_BYTES / MIB
    axes.stackplot(times, load, guest, free, colors=[LOAD, GUEST, FREE], linewidth=0)
    axes.axhline(line, color=MARGIN, linewidth=1.4, linestyle=(0, (5, 3)))
    low = [(s.at_s, s.load_bytes + s.guest_bytes) for s in _low_begins(samples)]
    axes.plot(
        [at_s for at_s, _ in low],
        [used / MIB for _, used in low],
        linestyle="none",
        marker="v",
        markersize=8,
        markerfacecolor=MARGIN,
        markeredgecolor="white",
    )
    axes.set_ylim(0, budget)
    _tidy(axes, "the host's memory (MiB)")
    axes.yaxis.set_major_locator(MultipleLocator(_round_step(budget)))
    _name(axes, load[-1] / 2, "other programs", "#6d737d")
    _name(axes, load[-1] + guest[-1] / 2, "the guest", GUEST)
    _name(axes, (load[-1] + guest[-1] + line) / 2, "available", "#5a9a52")
    _name(axes, line, f"margin: {format_size(MARGIN_BYTES)}\nmust stay available", MARGIN)
    if low:
        axes.annotate(
            f"low memory: balloond takes more from the guest, "
            f"{round(max(s.balloon_bytes for s in samples) / story.step_bytes)} steps in all",
            (low[-1][0], low[-1][1] / MIB),
            xytext=(28, 22),
            textcoords="offset points",
            va="center",
            color=MARGIN,
            fontsize=9.5,
            arrowprops={"arrowstyle": "-", "color": MARGIN, "linewidth": 0.8, "relpos": (0, 0.5)},
        )


def _low_begins(samples: Sequence[Sample]) -> list[Sample]:
    return [now for before, now in pairwise(samples) if now.is_low and not before.is_low]


def _draw_guest(axes: Axes, story: Story, samples: Sequence[Sample]) -> None:
    times = [sample.at_s for sample in samples]
    balloon = [sample.balloon_bytes / MIB for sample in samples]
    held = [sample.guest_bytes / MIB for sample in samples]
    axes.fill_between(times, balloon, color=BALLOON, alpha=0.28, linewidth=0)
    axes.plot(times, balloon, color=BALLOON, linewidth=2)
    axes.plot(times, held, color=GUEST, linewidth=2)
    top = max(*balloon, *held, 1.0)
    axes.set_ylim(0, top * 1.12)
    step = story.step_bytes / MIB
    axes.yaxis.set_major_locator(MultipleLocator(step))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_xlabel("seconds")
    _tidy(axes, "in the guest (MiB)")
    # The two lines are named at their right ends. Keep the two names at least a fifth of the axis
    # apart, even where the lines end at the same height.
    _name(
        axes, max(held[-1], balloon[-1] + 0.2 * top), "memory that the\nguest really holds", GUEST
    )
    _name(axes, balloon[-1], "balloon: memory that\nit does without", "#b87411")
    axes.annotate(
        f"one step: {_whole_mib(story.step_bytes)},\n{story.share:.0%} of it held by the guest",
        (1.0, top),
        xycoords=("axes fraction", "data"),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color="#6d737d",
    )


def _mark_phases(host: Axes, guest: Axes, samples: Sequence[Sample]) -> None:
    for phase, run in groupby(samples, key=lambda sample: sample.phase):
        times = [sample.at_s for sample in run]
        start_s, stop_s = times[0], times[-1]
        if start_s > samples[0].at_s:
            for axes in (host, guest):
                axes.axvline(start_s, color=INK, linewidth=0.7, linestyle=":", alpha=0.6)
        middle = (start_s + stop_s) / 2
        host.annotate(
            _LABELS[phase],
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _round_step(span: float) -> float:
    """A tick distance of which about six fit into a span."""
    return next(step for step in (50, 100, 250, 500, 1000, 2500, 5000) if span / step <= 9)
