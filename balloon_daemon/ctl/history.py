"""``balloonctl history``: what the file of ``balloond --history`` has of the last day."""

import argparse
import json
import sqlite3
import sys
import time
from pathlib import Path

from balloon_daemon.ctl.ask.main import terminal_columns
from balloon_daemon.ctl.ask.wording import wrapped
from balloon_daemon.ctl.history_file import (
    WHERE,
    HistoryFileError,
    NoVmError,
    Row,
    read,
    remedy,
    usual_place,
)
from balloon_daemon.ctl.times import parse_duration
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.units import format_size

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``history``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "history",
        help="what balloond decided in the last day, and what host and VMs had",
        description="Shows what balloond --history FILE has kept: its decisions, and with "
        "--samples what host and VMs had, minute by minute.",
        epilog="TIME is written like 90s, 2h or 1d. Exit status: 0 shown, 1 the file cannot be "
        "read, 2 an option that makes no sense.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help=f"the file that balloond --history keeps (default: {WHERE})",
    )
    parser.add_argument("--vm", metavar="NAME", help="this VM alone")
    parser.add_argument("--since", default="24h", metavar="TIME", help="the last TIME alone")
    parser.add_argument("--samples", action="store_true", help="samples in place of decisions")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Shows a history.

    Returns:
        The exit status.
    """
    try:
        since_s = time.time() - parse_duration(args.since)
    except ConfigError as err:
        _complain(f"--since: {err}")
        return EXIT_USAGE
    path = args.file or usual_place()
    table = "samples" if args.samples else "events"
    name = printable(str(path))
    columns = terminal_columns()
    try:
        for row in read(path, table, since_s, args.vm):
            print(json.dumps(row) if args.json else "\n".join(wrapped([_said(row)], columns)))
    except HistoryFileError as err:
        _complain(f"{name}: {err.strerror}{remedy(err)}")
        return EXIT_FAILURE
    except NoVmError as err:
        _complain(f"--vm {printable(args.vm)}: {name} has {err}")
        return EXIT_USAGE
    except sqlite3.Error as err:
        _complain(f"{name}: {printable(str(err))}; is it of balloond --history?")
        return EXIT_FAILURE
    return EXIT_OK


def _said(row: Row) -> str:
    at_s = row.pop("at_s")
    assert isinstance(at_s, float)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
    vm = printable(str(row.pop("vm")))
    if "message" in row:
        return f"{when} {vm}: {printable(str(row['message']))}"
    sizes = (f"{name} {format_size(int(size))}" for name, size in row.items() if size is not None)
    return f"{when} {vm or 'host'}: {', '.join(sizes)}"


def _complain(text: str) -> None:
    print(f"balloonctl history: {text}", file=sys.stderr, flush=True)
