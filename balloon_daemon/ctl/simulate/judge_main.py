"""``balloonctl judge``: each policy on hosts with simulated guests, in one table."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from balloon_daemon.ctl.charts.needed import check_picture
from balloon_daemon.errors import ConfigError, printable

if TYPE_CHECKING:
    from balloon_daemon.ctl.simulate.judging import Judged

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``judge``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "judge",
        help="how good the decisions of balloond's profiles and of other rules are",
        description="Lets each profile of balloond, and the rules of other projects, govern the "
        "same hosts, whose guests are simulated, and prints what each host lacked and what each "
        "guest lost. What the model knows and what not is in docs/judgement.md.",
        epilog="Exit status: 0 judged; 1 the picture cannot be written; 2 an option that makes no "
        "sense, or a file that is no recording.",
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
    what.add_argument(
        "--drawn",
        type=_number,
        metavar="N",
        help="judge on so many hosts that are drawn by lot (--seed), which nobody has tuned a "
        "policy to",
    )
    parser.add_argument(
        "--margins",
        action="store_true",
        help="judge balloond's profiles alone, each with larger and larger margins",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of the policies' random jitter, and of --drawn (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw one host's course, and what each policy cost hosts and guests, too",
    )
    parser.set_defaults(run=run)


def _number(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,3}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is no number from 1 to 9999")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Judges, and prints the results.

    Returns:
        The exit status.
    """
    # Imported here: balloonctl loads this module at each start, and only judge needs ``judging``.
    from balloon_daemon.ctl.simulate import judging

    try:
        if args.margins and (args.recordings or args.traces or args.drawn):
            raise ConfigError("--margins goes with standard hosts alone")
        if args.plot is not None:
            if args.recordings is not None or args.margins or args.drawn:
                raise ConfigError("--plot goes with standard hosts and --trace alone")
            check_picture("--plot", args.plot)
        if args.drawn:
            judging.print_drawn(args.drawn, args.seed, as_json=args.json)
            return EXIT_OK
        if args.margins:
            judging.print_margins(args.seed, as_json=args.json)
            return EXIT_OK
        if args.recordings is not None:
            judging.print_recordings(args.recordings, args.seed, as_json=args.json)
            return EXIT_OK
        judged = judging.judge_hosts(args.traces, args.seed)
    except ConfigError as err:
        print(f"balloonctl judge: {err}", file=sys.stderr, flush=True)
        return EXIT_USAGE
    judging.print_hosts(judged, as_json=args.json)
    return EXIT_OK if args.plot is None else _draw(judged, args.plot)


def _draw(judged: "Judged", path: Path) -> int:
    from balloon_daemon.ctl.charts.judged import draw_judged

    try:
        draw_judged(judged, path)
    except OSError as err:
        why = f"{printable(str(path))}: {err.strerror or err}"
        print(f"balloonctl judge: {why}", file=sys.stderr, flush=True)
        return EXIT_FAILURE
    return EXIT_OK
