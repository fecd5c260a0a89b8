"""The recording of ``test_together.py``, and its chart: four kinds of VM and their one host.

    python -m tests.vm.together_chart RECORDING.csv CHART.png

draws a recording; the test leaves one in ``build/together.csv``.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NAMES = {
    "device": "balloond's own device",
    "qmp": "QEMU's balloon",
    "libvirt": "libvirt's domain",
    "fire": "Firecracker's microVM",
}
"""The VMs' names in a recording, in the order in which they are squeezed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The host at one moment, in MiB; targets and balloons by the VMs' names."""

    seconds: float
    available_mib: int
    margin_mib: int
    targets_mib: Mapping[str, int]
    balloons_mib: Mapping[str, int]


def write(samples: Sequence[Sample], path: Path) -> None:
    """Writes a recording: a line for each sample, in the order of time."""
    names = list(samples[0].targets_mib)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        sizes = [f"{name}_{what}_mib" for name in names for what in ("target", "balloon")]
        writer.writerow(["seconds", "available_mib", "margin_mib", *sizes])
        for sample in samples:
            sizes_mib = [
                size[name] for name in names for size in (sample.targets_mib, sample.balloons_mib)
            ]
            host = (f"{sample.seconds:.2f}", sample.available_mib, sample.margin_mib)
            writer.writerow([*host, *sizes_mib])


def read(path: Path) -> list[Sample]:
    """Reads what `write` wrote.

    Raises:
        KeyError, ValueError: it is no recording.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    suffix = "_target_mib"
    names = [word.removesuffix(suffix) for word in rows[0] if word.endswith(suffix)]
    return [
        Sample(
            float(row["seconds"]),
            int(row["available_mib"]),
            int(row["margin_mib"]),
            {name: int(row[f"{name}_target_mib"]) for name in names},
            {name: int(row[f"{name}_balloon_mib"]) for name in names},
        )
        for row in rows
    ]


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Draws a recording into a PNG."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    host, guests = figure.subplots(2, sharex=True)
    seconds = [sample.seconds for sample in samples]

    host.plot(seconds, [sample.available_mib for sample in samples], label="available")
    margin = [sample.margin_mib for sample in samples]
    host.plot(seconds, margin, color="tab:red", linestyle="--", label="margin")
    host.set_ylabel("host, MiB")
    for number, name in enumerate(samples[0].targets_mib, start=1):
        balloon = [sample.balloons_mib[name] for sample in samples]
        target = [sample.targets_mib[name] for sample in samples]
        guests.plot(seconds, balloon, color=f"C{number}", label=NAMES.get(name, name))
        guests.plot(seconds, target, color=f"C{number}", linestyle=":")
    guests.set_ylabel("balloons (dotted: targets), MiB")
    guests.set_xlabel("seconds")
    for axes in (host, guests):
        # Room for the legend above the curves.
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", ncols=2, fontsize="small")
    figure.suptitle("One balloond, four kinds of VM, squeezed in the order of their priority")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(read(Path(sys.argv[1])), Path(sys.argv[2]))
