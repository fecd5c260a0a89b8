"""The result of ``balloonctl judge`` as a picture: one host against time, and what each policy
costs hosts and guests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from balloon_daemon import __version__
from balloon_daemon.ctl.charts.timeline import DPI, FAINT, GRID, INK, MARGIN, plain_text
from balloon_daemon.ctl.simulate.judge import sums
from balloon_daemon.ctl.simulate.judging import Judged
from balloon_daemon.ctl.simulate.scenario import Moment, Scenario
from balloon_daemon.ctl.simulate.scores import Scores
from balloon_daemon.sizing.vm_settings import Profile

HOST = "lasting"
"""The simulated host of docs/judgement.md whose course is drawn: on it policies differ most."""

SHOWN_MINUTES = 18

OURS = {"seed": "#6d737d", "careful": "#3f7fca", "adaptive": "#5a9a52"}
PEER = "#e39a2d"
"""The colours of balloond's profiles, and of other projects' rules."""

ABOVE, OFFSETS = (0, 13), {"proxmox": (20, -20), "squeezed": (-12, -20), "careful": (14, -20)}
"""How far a policy's name stands from its dot in the picture, to the right and up, in typographic
points (1/72 inch)."""

WIDTH, HEIGHT = 11.0, 6.6
LEFT, RIGHT, MIDDLE = 0.06, 0.98, 0.54


def draw_judged(judged: Judged, path: Path) -> None:
    """Draws the picture.

    Args:
        judged: the scores and courses of each policy on each host.
        path: the PNG file to write.

    Raises:
        OSError: the file cannot be written.
    """
    host, courses = judged.hosts[HOST], judged.courses[HOST]
    total = sums(list(judged.scores.values()))
    peer = _best_peer(judged.scores[HOST])
    shown = {name: colour for name, colour in OURS.items() if name in courses} | {peer: PEER}
    with plain_text():
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        figure.text(LEFT, 0.945, "Who pays for low memory?", fontsize=16, fontweight="bold")
        figure.text(
            LEFT,
            0.91,
            f"simulated guests, fitted to recorded ones; balloond {__version__}",
            color=FAINT,
        )
        _draw_course(figure, host, courses, shown)
        axes = figure.add_axes((MIDDLE + 0.09, 0.1, RIGHT - MIDDLE - 0.09, 0.72))
        _draw_costs(axes, total, len(judged.scores))
        figure.savefig(path)


def _best_peer(scores: Mapping[str, Scores]) -> str:
    ours = {profile.value for profile in Profile}
    peers = [name for name in scores if name not in ours]
    return min(peers, key=lambda name: scores[name].low_s + scores[name].need_s)


def _draw_course(
    figure: Figure,
    host: Scenario,
    courses: Mapping[str, Sequence[Moment]],
    shown: Mapping[str, str],
) -> None:
    first = figure.add_axes((LEFT, 0.59, MIDDLE - LEFT, 0.23))
    second = figure.add_axes((LEFT, 0.345, MIDDLE - LEFT, 0.17), sharex=first)
    third = figure.add_axes((LEFT, 0.1, MIDDLE - LEFT, 0.17), sharex=first)
    for name, colour in shown.items():
        course = courses[name]
        minutes = [each.at_s / 60 for each in course]
        look: Any = {"color": colour, "linewidth": 1.5, "label": name}
        first.plot(minutes, [each.available_mib / 1024 for each in course], **look)
        second.plot(minutes, [each.balloons_mib / 1024 for each in course], **look)
        lost, sum_s = [], 0.0
        for each in course:
            sum_s += each.stall
            lost.append(sum_s)
        third.plot(minutes, lost, **look)
    first.axhline(host.margin_mib / 1024, color=MARGIN, linewidth=1, linestyle=(0, (4, 3)))
    first.text(
        SHOWN_MINUTES, host.margin_mib / 1024, "margin ", color=MARGIN, fontsize=8.5,
        ha="right", va="bottom",
    )  # fmt: skip
    first.set_ylim(0, 1.9)
    for axes, title in (
        (first, f"the host {host.name!r}: available, GiB"),
        (second, "in balloons, GiB"),
        (third, "lost by guests so far, s"),
    ):
        _finish(axes, title)
        axes.set_xlim(0, SHOWN_MINUTES)
        axes.xaxis.set_major_locator(MultipleLocator(5))
    for axes in (first, second):
        axes.tick_params(labelbottom=False)
    third.set_xlabel("minutes", color=INK)
    first.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.13), ncols=len(shown), frameon=False,
        handlelength=1.4, columnspacing=1.2, borderaxespad=0.1,
    )  # fmt: skip


def _draw_costs(axes: Axes, total: Mapping[str, Scores], hosts: int) -> None:
    for name, scores in total.items():
        colour = OURS.get(name, PEER)
        at = (scores.low_s, scores.stall_s)
        axes.scatter(*at, s=20 + scores.gib_minutes, color=colour, alpha=0.75, linewidth=0)
        axes.annotate(
            name, at, xytext=OFFSETS.get(name, ABOVE), textcoords="offset points", ha="center",
            fontsize=9,
            fontweight="bold" if name in OURS else "normal",
        )  # fmt: skip
    axes.set_xscale("symlog", linthresh=10)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlim(-2, 12_000)
    axes.set_ylim(-2, 3_000)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _finish(axes, f"all {hosts} hosts: best is at the lower left")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel("seconds below the margin", color=INK)
    axes.set_ylabel("seconds that guests lost", color=INK)
    axes.text(
        0.98, 0.02, "area: GiB x minutes taken", transform=axes.transAxes, ha="right",
        fontsize=8.5, color=FAINT,
    )  # fmt: skip


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
