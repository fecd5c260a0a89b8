"""Flags, output and exit statuses of ``balloonctl doctor``."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balloon_daemon.ctl.ask.main import (
    DEFAULT_API,
    EXIT_NO_DAEMON,
    EXIT_NOT_ALLOWED,
    EXIT_OK,
    EXIT_USAGE,
    terminal_columns,
)
from balloon_daemon.errors import printable

if TYPE_CHECKING:
    from balloon_daemon.ctl.doctor.finding import Finding, HostFacts

EXIT_FOUND = 1

Subparsers = Any  # argparse has no public name for it.


def add_parser(subparsers: Subparsers) -> None:
    """Adds ``doctor``; its ``run`` returns an exit status."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="why balloons do not help this host, and what to do about it",
        description="Looks at the host and at each VM that balloond knows of for known reasons "
        "why balloons do not help, and says of each what to do. Changes nothing.",
        epilog="Exit status: 0 nothing found, 1 something found, 2 a wrong flag or no figures, 3 "
        "nothing found on the host, and no balloond answers, 4 nothing found on the host, and you "
        "may not ask balloond.",
        allow_abbrev=False,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--api",
        type=Path,
        default=argparse.SUPPRESS,  # Keeps the value of ``balloonctl --api``.
        metavar="PATH",
        help=f"the socket of balloond's API (default: {DEFAULT_API})",
    )
    where.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="look at copies of /proc, /sys and /etc in DIR, another host's, and ask no balloond",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object: docs/doctor.md")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Looks at the host, asks balloond, and prints what was found.

    Returns:
        The exit status.
    """
    from balloon_daemon.ctl.ask.client import Client, NoAnswerError, NotAllowedError, RefusedError
    from balloon_daemon.ctl.doctor.host_checks import host_findings
    from balloon_daemon.ctl.doctor.reader import read_host

    root = Path("/") if options.root is None else options.root
    try:
        facts = read_host(root)
    except (OSError, ValueError) as err:
        why = err.strerror or str(err) if isinstance(err, OSError) else str(err)
        name = printable(str(root / "proc/meminfo"))
        print(
            f"balloonctl doctor: {name}: {printable(why)}; mount /proc, or name a directory with "
            "proc/meminfo (--root)",
            file=sys.stderr,
        )
        return EXIT_USAGE
    found, vms, why, status = list(host_findings(facts)), 0, "", EXIT_OK
    if options.root is None:
        try:
            client = Client(options.api)
            with client.understood():
                vms, theirs = _asked(client, facts)
            found += theirs
        except (NoAnswerError, RefusedError) as err:
            why, status = str(err), EXIT_NO_DAEMON
        except NotAllowedError as err:
            why, status = str(err), EXIT_NOT_ALLOWED
    else:
        why = "a directory was looked at (--root)"
    if options.json:
        shown = {"not_asked": why or None, "vms": vms, "findings": [f.as_dict() for f in found]}
        print(json.dumps(shown, ensure_ascii=False))
    else:
        print("\n".join(_said(found, vms, why)))
    return EXIT_FOUND if found else status


def _asked(client: Any, facts: "HostFacts") -> tuple[int, list["Finding"]]:
    """How many VMs a balloond drives, and what is wrong with them and with its margin."""
    from balloon_daemon.ctl.doctor.host_checks import margin_findings
    from balloon_daemon.ctl.doctor.reader import swapped_bytes
    from balloon_daemon.ctl.doctor.vm_checks import undriven_findings, vm_findings

    status = json.loads(client.ask("/v1/status"))
    vms, undriven = status["vms"], status["not_driven"]
    found = list(margin_findings(status["host"], vms, facts))
    events = [json.loads(line) for line in client.lines("/v1/events?follow=false", follow=False)]
    for vm in vms:
        pid = vm.get("vmm_pid")
        swapped = None if pid is None else swapped_bytes(pid)
        theirs = [event for event in events if event.get("vm") == vm["name"]]
        found += vm_findings(vm, theirs, swapped)
    found += undriven_findings(undriven)
    return len(vms), found


def _said(found: list["Finding"], vms: int, not_asked: str) -> Iterator[str]:
    from balloon_daemon.ctl.ask.wording import wrapped

    lines = []
    for finding in found:
        who = "host" if finding.vm is None else printable(finding.vm)
        lines += [f"{who}: {finding.what}", f"  remedy: {finding.remedy}"]
    number = {0: "nothing", 1: "1 thing"}.get(len(found), f"{len(found)} things")
    looked = "the host alone" if not_asked else f"the host and {vms} VM{'' if vms == 1 else 's'}"
    why = f"; no VM was looked at, nor the margin: {not_asked}" if not_asked else ""
    lines.append(f"{number} found; looked at {looked}{why}")
    yield from wrapped(lines, terminal_columns())
