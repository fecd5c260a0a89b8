"""``balloonctl history``: what the file of ``balloond --history`` has of the last day."""

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from balloon_daemon.ctl.simulate.overrides import parse_duration
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.units import format_size

EXIT_OK, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2

VERSION, APPLICATION_ID = 1, 0x626C6E64
"""Those of ``records/history_writer.py``."""

_QUERIES = {
    "events": "SELECT at_s, vm, event, message FROM events",
    "samples": "SELECT at_s, vm, memory, balloon, target, available, margin, held FROM samples",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``history``; its ``run`` returns an exit status."""
    parser = subparsers.add_parser(
        "history",
        help="what balloond decided in the last day, and what host and VMs had",
        description="Shows what balloond --history FILE has kept: its decisions, and with "
        "--samples what host and VMs had, minute by minute.",
        epilog="TIME is written like 90s, 30m or 2h. Exit status: 0 shown, 1 the file cannot be "
        "read, 2 an option that makes no sense.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="the file that balloond --history keeps")
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
    table = "samples" if args.samples else "events"
    name = printable(args.file)
    try:
        for row in _rows(Path(args.file), table, since_s, args.vm):
            print(json.dumps(row) if args.json else _said(row))
    except _FileError as err:
        _complain(f"{name}: {err}")
        return EXIT_FAILURE
    except _NoVmError as err:
        _complain(f"--vm {printable(args.vm)}: {name} has {err}")
        return EXIT_USAGE
    except sqlite3.Error as err:
        _complain(f"{name}: {printable(str(err))}; is it of balloond --history?")
        return EXIT_FAILURE
    return EXIT_OK


class _FileError(Exception):
    """The file cannot be opened. An OSError would be the output's as well."""


class _NoVmError(Exception):
    """The history has nothing of a VM: says which VMs it has."""


def _rows(
    path: Path, table: str, since_s: float, vm: str | None
) -> Iterator[dict[str, float | str | None]]:
    try:
        os.stat(path)  # for an error with the kernel's words
    except OSError as err:
        raise _FileError(err.strerror) from err
    history = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    try:
        history.row_factory = sqlite3.Row
        (mark,) = history.execute("PRAGMA application_id").fetchone()
        if mark != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is another database")
        (version,) = history.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
        if vm is not None:
            _check_vm(history, vm)
        query = f"{_QUERIES[table]} WHERE at_s >= ? AND (? IS NULL OR vm = ?) ORDER BY rowid"
        for row in history.execute(query, (since_s, vm, vm)):
            yield dict(row)
    finally:
        history.close()


def _check_vm(history: sqlite3.Connection, vm: str) -> None:
    query = "SELECT vm FROM events UNION SELECT vm FROM samples ORDER BY vm"
    names = [name for (name,) in history.execute(query)]
    if vm not in names:
        shown = ", ".join(printable(name) for name in names if name)
        raise _NoVmError(f"only {shown}" if shown else "no VM yet")


def _said(row: dict[str, float | str | None]) -> str:
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
