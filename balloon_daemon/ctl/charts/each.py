"""A trace as a picture: the host's memory against time, and below it each VM's balloon."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from balloon_daemon.ctl.charts.past import Kind, Mark, Past, Row
from balloon_daemon.ctl.charts.picture import save
from balloon_daemon.ctl.charts.timeline import (
    BALLOON,
    DPI,
    LEFT,
    MARGIN,
    RIGHT,
    TARGET,
    WIDTH,
    draw_host,
    draw_marks,
    entitle,
    finish,
    plain_text,
    set_times,
    times_of,
    told,
)
from balloon_daemon.errors import printable
from balloon_daemon.units import MIB, format_size

MOST_VMS = 8
"""The VMs with the largest balloons are drawn; with more of them a picture is too high to read."""

ABOVE, HOST, VM, MARKS, BETWEEN, AXIS, LINE = 1.15, 2.2, 1.35, 0.75, 0.45, 0.4, 0.2
"""Heights in inches: of the title; of the panels for the host, for one VM and for the events; of
the space between two panels; of the axis with the times; and of each line of text at the end."""


def draw_each(past: Past, title: str, path: Path) -> None:
    """Draws host and VMs.

    Args:
        past: the samples and events of the trace; it must not be empty.
        title: the picture's title.
        path: the PNG file to write.

    Raises:
        OSError: the file cannot be written.
    """
    most = {
        name: max((row["balloon"] for run in runs for row in run), default=0)
        for name, runs in past.vms.items()
    }
    names = sorted(sorted(most), key=lambda name: -most[name])[:MOST_VMS]
    below = told([mark for mark in past.marks if mark.kind is Kind.FINDING], name_vm=True)
    if (others := len(most) - len(names)) > 0:
        below.append(f"{others} more VMs, whose balloons were smaller, are not drawn")
    heights = [HOST, *(VM for _ in names), MARKS]
    foot = AXIS + LINE * len(below) + (LINE if below else 0)
    height = ABOVE + sum(heights) + BETWEEN * (len(heights) - 1) + foot
    with plain_text():
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        entitle(figure, past.span(), title, height)
        panels: list[Axes] = []
        top = height - ABOVE
        for size in heights:
            place = (LEFT, (top - size) / height, RIGHT - LEFT, size / height)
            panels.append(figure.add_axes(place, sharex=panels[0] if panels else None))
            top -= size + BETWEEN
        draw_host(panels[0], past.host)
        for axes, name in zip(panels[1:-1], names, strict=True):
            found = [m for m in past.marks if m.vm == name and m.kind is Kind.FINDING]
            _draw_vm(axes, name, past.vms[name], found)
        draw_marks(panels[-1], past.marks)
        set_times(panels[-1], past.span())
        for axes in panels[:-1]:
            axes.tick_params(labelbottom=False)
        for number, line in enumerate(reversed(below)):
            figure.text(LEFT, (0.15 + LINE * number) / height, line, fontsize=8.5)
        save(figure, path)


def _draw_vm(axes: Axes, name: str, runs: Sequence[Sequence[Row]], found: Sequence[Mark]) -> None:
    ends: list[tuple[float, str, str]] = []
    for run in runs:
        times = times_of(row["at_s"] for row in run)
        balloon, target = ([row[what] for row in run] for what in ("balloon", "target"))
        axes.fill_between(times, balloon, color=BALLOON, alpha=0.3, linewidth=0, step="post")
        axes.plot(times, balloon, color=BALLOON, linewidth=1.8, drawstyle="steps-post")
        axes.plot(
            times,
            target,
            color=TARGET,
            linewidth=1.1,
            linestyle=(0, (3, 2)),
            drawstyle="steps-post",
        )
        ends = [
            (balloon[-1], f"balloon\n{_size(balloon[-1])}", "#b87411"),
            (target[-1], f"its target\n{_size(target[-1])}", TARGET),
        ]
    for at in times_of(mark.at_s for mark in found):
        axes.axvline(at, color=MARGIN, linewidth=1.2, alpha=0.8)
    memory = f", a VM of {_size(runs[-1][-1]['memory'])}" if runs else ""
    finish(axes, f"{printable(name)}{memory}", ends)


def _size(size_bytes: float) -> str:
    return format_size(round(size_bytes / MIB) * MIB)
