"""The chart of ``test_seed.py``: available memory, and each guest's memory, over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Sample:
    """The host at one moment; the lists have one entry for each guest."""

    seconds: float
    available_mib: int
    guests_mib: Sequence[int]
    targets_mib: Sequence[int]


def draw(
    samples: Sequence[Sample], names: Sequence[str], margin_mib: int, title: str, path: Path
) -> None:
    """Draws the samples into a PNG.

    Args:
        samples: in the order of time.
        names: the guests'.
        margin_mib: below this the host is low on memory.
        title: what the chart shows.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    host, guests = figure.subplots(2, sharex=True)
    seconds = [sample.seconds for sample in samples]

    host.plot(seconds, [sample.available_mib for sample in samples], label="available")
    host.axhline(margin_mib, color="tab:red", linestyle="--", label="margin")
    host.set_ylabel("host, MiB")
    for number, name in enumerate(names):
        color = f"C{number + 1}"
        held = [sample.guests_mib[number] for sample in samples]
        wanted = [sample.targets_mib[number] for sample in samples]
        guests.plot(seconds, held, color=color, label=f"{name}: memory held")
        guests.plot(seconds, wanted, color=color, linestyle=":", label=f"{name}: balloon target")
    guests.set_ylabel("guests, MiB")
    guests.set_xlabel("seconds")
    for axes in (host, guests):
        # Room for the legend above the curves.
        axes.set_ylim(0, axes.get_ylim()[1] * 1.2)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", ncols=2, fontsize="small")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
