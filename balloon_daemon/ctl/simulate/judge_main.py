"""``balloonctl judge``: each policy on hosts with simulated guests, in one table."""

import argparse
import sys
from pathlib import Path

from balloon_daemon.errors import ConfigError

EXIT_OK, EXIT_USAGE = 0, 2


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``judge``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "judge",
        help="how good the decisions of balloond's profiles and of other rules are",
        description="Lets each profile of balloond, and the rules of other projects, govern the "
        "same hosts, whose guests are simulated, and prints what each host lacked and what each "
        "guest lost. What the model knows and what not is in docs/judgement.md.",
        epilog="Exit status: 0 judged; 2 an option that makes no sense, or a file that is no "
        "recording.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--recordings",
        type=Path,
        metavar="DIR",
        help="judge on the guests that were recorded there (*.csv): each takes the place of the "
        "busy guest on each host",
    )
    what.add_argument(
        "--trace",
        dest="traces",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="judge on a host that was recorded (balloond --record), too; may be repeated",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the policies' random jitter (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judges, and prints the results.

    Returns:
        The exit status.
    """
    # Imported here: balloonctl loads this module at each start, and the rest is for this alone.
    from balloon_daemon.ctl.simulate.judging import print_hosts, print_recordings

    try:
        if args.recordings is not None:
            print_recordings(args.recordings, args.seed, as_json=args.json)
        else:
            print_hosts(args.traces, args.seed, as_json=args.json)
    except ConfigError as err:
        print(f"balloonctl judge: {err}", file=sys.stderr, flush=True)
        return EXIT_USAGE
    return EXIT_OK
