"""Draws what must stay flat: memory and file descriptors of each process that lasts over time."""

from pathlib import Path

import matplotlib as mpl

from tests.soak.gauges import Gauge

mpl.use("Agg")

from matplotlib import pyplot as plt  # the backend has to be chosen first

_COLOURS = ("#1f77b4", "#d6604d", "#b07aa1", "#4d9221")


def draw(path: Path, gauges: list[Gauge], kill_times: list[float], title: str) -> None:
    """Writes a PNG: a line for each process, broken where a controller was killed."""
    figure, (memory, fds) = plt.subplots(2, 1, sharex=True, figsize=(11, 6), layout="constrained")
    for gauge, colour in zip(gauges, _COLOURS, strict=True):
        label: str | None = gauge.name
        for life in sorted({sample.life for sample in gauge.samples}):
            part = [sample for sample in gauge.samples if sample.life == life]
            times = [sample.at_s for sample in part]
            style = {"color": colour, "marker": "." if len(part) < 3 else "", "linewidth": 1.2}
            memory.plot(times, [s.rss_bytes / 2**20 for s in part], label=label, **style)
            fds.plot(times, [s.fds for s in part], label=label, **style)
            label = None
    for axes in (memory, fds):
        for at_s in kill_times:
            axes.axvline(at_s, color=_COLOURS[1], alpha=0.15, linewidth=0.8)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    memory.set_ylabel("resident memory (MiB)")
    fds.set_ylabel("file descriptors")
    fds.set_xlabel("seconds; vertical lines: the mortal controller is killed")
    memory.legend(loc="lower right")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
