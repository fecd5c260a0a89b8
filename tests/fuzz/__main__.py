"""``python -m tests.fuzz --time SECONDS``: a campaign; its last line is a JSON object."""

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import ALL, ROOT, Campaign


def main() -> int:
    """Returns 0 where nothing was found, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--time", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=int(time.time()), metavar="N")
    parser.add_argument(
        "--only", action="append", choices=ALL, metavar="NAME", help=", ".join(ALL)
    )
    parser.add_argument("--dir", type=Path, default=ROOT / "build" / "fuzz", metavar="DIR")
    args = parser.parse_args()
    names = args.only or ALL
    print(f"seed {args.seed}, {args.time:.0f} s: {', '.join(names)}", flush=True)
    outcome = Campaign(args.seed, args.dir).run(args.time, names)
    for finding in outcome.findings:
        print(f"{finding.target}: {finding.kind}: {finding.what}\n{finding.details}")
        print(f"  again: {finding.reproduce}")
    print(outcome.summary(), flush=True)
    return bool(outcome.findings) or outcome.executions == 0


if __name__ == "__main__":
    sys.exit(main())
