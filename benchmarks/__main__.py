"""``make bench``: runs the benchmarks, prints the table, writes ``build/bench.json``.

Each group measures what belongs together in one go, alternating, so that ratios hold on a noisy
machine. A figure that needs a real guest, root or a kernel setting sets that up, puts it back, or
says why it could not. Nothing here is a test: a goal that is missed is shown, not failed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console

from benchmarks import (
    api,
    compare,
    decisions,
    device_cost,
    driven,
    fake_reclaim,
    footprint,
    huge_pages,
    idle,
    metrics,
    page_reporting,
    reaction,
    real_driven,
    real_guest,
    real_profiles,
    reclaim,
    recovery,
    seccomp_figures,
    startup,
)
from benchmarks.figures import Figure, missing
from benchmarks.processes import ROOT
from benchmarks.table import show

OUTPUT = ROOT / "build/bench.json"

GROUPS: dict[str, Callable[[], Iterator[Figure]]] = {
    "reclaim": reclaim.figures,
    "cost": device_cost.figures,
    "fake-guest": fake_reclaim.figures,
    "huge-pages": huge_pages.figures,
    "page-reporting": page_reporting.figures,
    "reaction": reaction.figures,
    "recovery": recovery.figures,
    "footprint": footprint.figures,
    "driven": driven.figures,
    "startup": startup.figures,
    "api": api.figures,
    "metrics": metrics.figures,
    "decisions": decisions.figures,
    "idle": idle.figures,
    "seccomp": seccomp_figures.figures,
    "real-guest": real_guest.figures,
    "real-driven": real_driven.figures,
    "profiles": real_profiles.figures,
}
SLOW = {"profiles"}
"""Half an hour long: measured only where it is asked for."""


def main() -> int:
    """Runs what was asked for; returns 0, also where goals are missed."""
    if sys.argv[1:2] == ["compare"]:
        return compare.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument(
        "groups",
        nargs="*",
        metavar="GROUP",
        help=f"{', '.join(GROUPS)}; default all but {', '.join(SLOW)}",
    )
    chosen = parser.parse_args().groups or [name for name in GROUPS if name not in SLOW]
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown:
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    console = Console()
    figures: list[Figure] = []
    for name in chosen:
        begun = time.monotonic()
        try:
            figures.extend(GROUPS[name]())
        except Exception as err:
            # What was measured before it stays; what this machine refused is said.
            figures.append(missing(name, "", f"{type(err).__name__}: {err}"))
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        # After each group: whoever ends a long run early keeps what it has.
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps([figure.as_json() for figure in figures], indent=1) + "\n")
    show(figures, console)
    console.print(f"written to {OUTPUT.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
