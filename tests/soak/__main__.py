"""``python -m tests.soak --time SECONDS``: its last line is a JSON object."""

import argparse
import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from random import Random

from tests.soak.chaos import Chaos
from tests.soak.picture import draw
from tests.soak.world import Host, can_keep_fds

BUILD = Path(__file__).parents[2] / "build"
LASTING_GUESTS, MORTAL_GUESTS = 4, 2


def main() -> int:
    """Returns 0 where nothing was lost and nothing grew, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--time", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=int(time.time()), metavar="N")
    parser.add_argument("--dir", type=Path, default=BUILD / "soak", metavar="DIR")
    parser.add_argument(
        "--reconnect", action="store_true", help="do not keep VMs over a controller's death"
    )
    args = parser.parse_args()
    shutil.rmtree(args.dir, ignore_errors=True)
    keeps = can_keep_fds() and not args.reconnect
    after = "keep their balloons" if keeps else "connect again"
    print(f"seed {args.seed}, {args.time:.0f} s; VMs of a killed controller {after}", flush=True)
    with contextlib.ExitStack() as stack:
        lasting = Host("lasting", args.dir / "a", LASTING_GUESTS, keep_fds=False)
        stack.callback(lasting.close)
        mortal = Host("mortal", args.dir / "b", MORTAL_GUESTS, keep_fds=keeps)
        stack.callback(mortal.close)
        chaos = Chaos(lasting, mortal, Random(args.seed))
        chaos.run(args.time)
    for failure in chaos.tally.failures:
        print(failure)
    verdict = chaos.verdict()
    picture = BUILD / "soak.png"
    title = (
        f"{args.time:.0f} s: {verdict['device_kills']:,} devices and "
        f"{verdict['controller_kills']:,} controllers killed, "
        f"{verdict['pages_checked']:,} pages checked, {verdict['pages_lost']} lost"
    )
    draw(picture, chaos.gauges, chaos.tally.kill_times, title)
    print(f"{picture}; logs in {args.dir}")
    print(json.dumps(verdict), flush=True)
    return not verdict["ok"]


if __name__ == "__main__":
    sys.exit(main())
