"""``balloonctl plot``: the last day of a host and its guests as a picture."""

import argparse
import sqlite3
import sys
from pathlib import Path

from balloon_daemon.ctl.charts.needed import check_picture
from balloon_daemon.ctl.charts.past import Past, past_of
from balloon_daemon.ctl.history_file import WHERE, read, remedy, usual_place
from balloon_daemon.ctl.times import parse_duration
from balloon_daemon.errors import ConfigError, printable

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``plot``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "plot",
        help="a picture of the last day, of one VM or of all",
        description="Draws what balloond --history FILE has kept: what the host had available, "
        "its margin, and a VM's balloon with its guest's memory, or all balloons, against time; "
        "below that when balloons grew and shrank, and what was found about guests.",
        epilog="TIME is written like 90s, 30m, 2h or 1d. Exit status: 0 drawn, 1 a file cannot be "
        "read or written, 2 an option that makes no sense, or a VM that the file does not have.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", nargs="?", help="this VM (default: all of them)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.png", help="the picture"
    )
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help=f"the file that balloond --history keeps (default: {WHERE})",
    )
    parser.add_argument(
        "--since", default="24h", metavar="TIME", help="the last TIME of what the file has"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws a history.

    Returns:
        The exit status.
    """
    path = args.history or usual_place()
    try:
        check_picture("-o", args.output)
        past = _past(path, _duration(args.since), args.vm)
    except ConfigError as err:
        return _complain(str(err), EXIT_USAGE)
    except OSError as err:
        return _complain(f"{printable(str(path))}: {err.strerror}{remedy(err)}", EXIT_FAILURE)
    except sqlite3.Error as err:
        why = printable(str(err))
        return _complain(
            f"{printable(str(path))}: {why}; is it of balloond --history?", EXIT_FAILURE
        )
    # Imported here: matplotlib takes half a second.
    from balloon_daemon.ctl.charts.picture import not_saved
    from balloon_daemon.ctl.charts.timeline import draw

    try:
        draw(past, args.vm, args.output)
    except OSError as err:
        return _complain(not_saved(args.output, err), EXIT_FAILURE)
    print(f"drawn in {printable(str(args.output))}")
    return EXIT_OK


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ConfigError as err:
        raise ConfigError(f"--since: {err}") from err


def _past(path: Path, length_s: float, vm: str | None) -> Past:
    """The last part of a history. Raises ConfigError: the history has nothing of that VM."""
    samples, events = list(read(path, "samples")), list(read(path, "events"))
    if not samples:
        raise ConfigError(f"{printable(str(path))}: it has no samples yet; wait for a minute")
    # Count back from the history's last sample, not from now: a history that came with a bug
    # report ended long ago.
    since_s = max(float(row["at_s"] or 0) for row in samples) - length_s
    past = past_of(
        [row for row in samples if float(row["at_s"] or 0) >= since_s],
        [row for row in events if float(row["at_s"] or 0) >= since_s],
    )
    if vm is not None and vm not in past.vms:
        names = ", ".join(map(printable, sorted(past.vms)))
        where = printable(str(path))
        if not names:
            raise ConfigError(f"{where} has nothing of any VM in that time; wait for a minute")
        raise ConfigError(f"{where} has nothing of {printable(vm)} in that time, but of: {names}")
    return past


def _complain(text: str, status: int) -> int:
    print(f"balloonctl plot: {text}", file=sys.stderr, flush=True)
    return status
