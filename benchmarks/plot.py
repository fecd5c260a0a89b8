"""Draws ``docs/img/performance.png`` from ``build/bench.json``: where a buffer's time goes."""

import json
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from benchmarks.processes import ROOT

PICTURE = ROOT / "docs/img/performance.png"
BUFFERS_A_GIB = 1024
"""Buffers of 256 pages in one GiB."""

KERNEL, OWN, CALLS, CONTROLLER, PAGES = "#4c72b0", "#dd8452", "#f2c14e", "#55a868", "#c8c8c8"
_END = ": speed to the floor"


def main() -> int:
    """Draws; returns 1 where the figures are not there."""
    try:
        records = json.loads((ROOT / "build/bench.json").read_text())
        values = {record["name"]: record["value"] for record in records}
        draw(values, PICTURE)
    except (OSError, KeyError, TypeError) as err:
        print(f"run make bench first: {err}", file=sys.stderr)
        return 1
    return 0


def draw(values: dict[str, float], path: Path) -> None:
    """One bar a trace, in µs of CPU for each buffer of 256 pages.

    Args:
        values: every figure's value by its name.
        path: the picture's.
    """
    traces = [
        name.removeprefix("reclaim, ").removesuffix(_END)
        for name in values
        if name.startswith("reclaim, ") and name.endswith(_END) and "elapsed" not in name
    ]
    canvas = Canvas(figsize=(9, 5.4), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    for place, trace in enumerate(traces):
        whole = values[f"reclaim, {trace}: CPU"] * 1e6 / BUFFERS_A_GIB
        kernel = whole * values[f"reclaim, {trace}{_END}"]
        own = values[f"device, {trace}: cost of a buffer"]
        pages = whole * values[f"reclaim, {trace}: speed to page by page"]
        config = values["1 GiB from the fake guest: CPU, controller"] * 1e6 / BUFFERS_A_GIB
        parts = [(kernel, KERNEL), (own, OWN), (max(0.0, whole - kernel - own), CALLS)]
        left = 0.0
        for width, colour in [*parts, (config, CONTROLLER)]:
            axes.barh(place - 0.18, width, 0.36, left=left, color=colour)
            left += width
        axes.barh(place + 0.22, pages, 0.28, color=PAGES)
        text = f"{kernel:.0f} + {own:.0f} + {max(0.0, whole - kernel - own):.0f} + {config:.0f}"
        axes.text(left + 8, place - 0.18, text, va="center", fontsize=8)
    for label, colour in (
        ("kernel: the same calls from C", KERNEL),
        ("device: ring, read, sort, merge, used, call", OWN),
        ("what the calls cost more from Python, jailed", CALLS),
        ("controller: one read and one write of the config space", CONTROLLER),
        ("a simple device in C: page by page", PAGES),
    ):
        axes.barh(0, 0, color=colour, label=label)
    axes.set_yticks(range(len(traces)), traces)
    axes.invert_yaxis()
    axes.set_xlabel("µs of CPU for one buffer of 256 pages (1 MiB)")
    axes.set_title("Where each microsecond goes", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.15)
    canvas.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
