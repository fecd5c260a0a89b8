"""Flags and exit statuses of ``balloonctl status``, ``top``, ``explain``, ``events``, ``record``,
``reload``, ``release`` and ``set``; the module ``steering`` adds the other commands.

The modules that these commands need are imported when one of the commands runs.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from balloon_daemon.ctl.ask.flag_values import hold, pause, recording, size
from balloon_daemon.ctl.ask.steering import add_steering_parsers

if TYPE_CHECKING:
    from balloon_daemon.ctl.ask.client import Client

DEFAULT_API = Path("/run/balloond/api.sock")
EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_NO_DAEMON, EXIT_NOT_ALLOWED = 0, 1, 2, 3, 4

RELOADED_WITHIN_S = 30.0
"""How long to wait for a reload's answer: balloond gives up on files that are not read within 10
s, and may have to end another reload first."""

_EPILOG = (
    "exit status: 0 answered, 1 the output cannot be written, or less memory came than was asked "
    "for, 2 a wrong flag or something that balloond refuses, such as a VM that there is not, 3 no "
    "balloond answers, 4 you may not ask"
)

Subparsers = Any  # argparse has no public name for it.


def add_parsers(subparsers: Subparsers) -> None:
    """Adds the commands."""
    status = _command(subparsers, "status", "the host and all VMs at a glance", _status)
    status.description = (
        "Shows each VM: its memory, its balloon now, as it is to be and at most, what its guest "
        "has available, and how much of the balloon the host has; below that the host."
    )
    top = _command(subparsers, "top", "the host and all VMs, live", _top)
    top.description = (
        "Shows the host and each VM live, the largest balloon first, how they went, and what was "
        "decided. q ends it. Where the output is no terminal it prints the table of balloonctl "
        "status once."
    )
    top.add_argument(
        "--every", type=pause, default=1.0, metavar="TIME", help="look so often (default: 1s)"
    )
    explain = _command(subparsers, "explain", "why a VM has its size", _explain)
    explain.description = (
        "Says why a VM's balloon has its size, when it grows or shrinks next, and which events "
        "led there."
    )
    explain.add_argument("vm", metavar="VM", help="the VM's name, as balloonctl status has it")
    events = _command(subparsers, "events", "the last events, and those to come", _events)
    events.description = "Prints the last events, as balloond logs them."
    events.add_argument("vm", metavar="VM", nargs="?", help="only events about this VM")
    events.add_argument(
        "-f", "--follow", action="store_true", help="go on with each event as it comes"
    )
    record = _command(subparsers, "record", "a trace of what the policy is told", _record)
    record.description = (
        "Writes a trace of what the policy is told from now on, and what it decides, for "
        "balloonctl simulate, until Ctrl-C, or for a time. FILE must not be there yet."
    )
    record.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the trace; - is standard output (default: balloond-DATE-TIME.trace, here)",
    )
    record.add_argument(
        "--for", dest="for_s", type=recording, metavar="TIME", help="how long: 90s, 10m, 2h or 1d"
    )
    reload = _command(subparsers, "reload", "have the configuration read anew", _reload)
    reload.description = (
        "Has balloond read its configuration anew and apply all of it, or nothing: mistakes, and "
        "what takes a restart, are printed. SIGHUP does the same."
    )
    release = _command(subparsers, "release", "give memory back, now", _release)
    release.description = (
        "Gives one VM or all of them all of their balloons back. Where the host is low, memory is "
        "taken again, step by step."
    )
    release.add_argument("vm", metavar="VM", nargs="?", help="only this VM")
    setting = _command(subparsers, "set", "set a VM's balloon for a time", _set)
    setting.description = (
        "Makes a VM's balloon this large at once, and gives nothing of it back for a time. Low "
        "memory takes more, and a guest in need gets all back; both end it."
    )
    setting.add_argument("vm", metavar="VM", help="the VM's name, as balloonctl status has it")
    setting.add_argument("size", metavar="SIZE", type=size, help="of the balloon: 512M, 1.5G, 0")
    setting.add_argument(
        "--for",
        dest="for_s",
        type=hold,
        metavar="TIME",
        help="90s, 10m or 1d; a day at most (default: 10m)",
    )
    add_steering_parsers(partial(_command, subparsers))


def _command(
    subparsers: Subparsers, name: str, summary: str, run: "Callable[[Client, Any], int | None]"
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        epilog=_EPILOG,
    )
    # SUPPRESS: a default of the command's own --api would replace the value of an --api that
    # stands before the command.
    add_api_flag(parser, argparse.SUPPRESS)
    if run is not _record:
        parser.add_argument("--json", action="store_true", help="as balloond answers: docs/api.md")
    parser.set_defaults(run=lambda options: _asked(run, options))
    return parser


def add_api_flag(parser: argparse.ArgumentParser, default: "Path | str" = DEFAULT_API) -> None:
    """Adds ``--api``, which may stand before a command and after it."""
    parser.add_argument(
        "--api",
        type=Path,
        default=default,
        metavar="PATH",
        help=f"the socket of balloond's API (default: {DEFAULT_API})",
    )


def _asked(run: "Callable[[Client, Any], int | None]", options: argparse.Namespace) -> int:
    from balloon_daemon.ctl.ask.client import (
        Client,
        NoAnswerError,
        NotAllowedError,
        RefusedError,
    )

    try:
        client = Client(options.api)
        with client.understood():
            return run(client, options) or EXIT_OK
    except NoAnswerError as err:
        return _complain(err, EXIT_NO_DAEMON)
    except NotAllowedError as err:
        return _complain(err, EXIT_NOT_ALLOWED)
    except RefusedError as err:
        return _complain(err, EXIT_USAGE)


def _complain(err: Exception, status: int) -> int:
    sys.stdout.flush()
    lines = str(err).splitlines()
    print("\n".join(f"balloonctl: {line}" for line in lines), file=sys.stderr)
    return status


def _status(client: "Client", options: argparse.Namespace) -> None:
    answer = client.ask("/v1/status")
    if options.json:
        print(answer.decode(), end="")
        return
    from balloon_daemon.ctl.ask.tables import status_table

    print("\n".join(status_table(json.loads(answer), terminal_columns())))


def _top(client: "Client", options: argparse.Namespace) -> None:
    from balloon_daemon.ctl.ask.top import is_possible, watch

    if options.json or not is_possible():
        _status(client, options)
    else:
        watch(client, options.every)


def _explain(client: "Client", options: argparse.Namespace) -> None:
    answer = client.ask(f"/v1/vms/{quote(options.vm, safe='')}")
    if options.json:
        print(answer.decode(), end="")
        return
    from balloon_daemon.ctl.ask.explanation import explained

    print("\n".join(explained(json.loads(answer), terminal_columns())))


def _events(client: "Client", options: argparse.Namespace) -> None:
    from balloon_daemon.ctl.ask.explanation import event_line
    from balloon_daemon.ctl.ask.wording import wrapped

    asked = {"follow": "true" if options.follow else "false"}
    columns = terminal_columns()
    if options.vm is not None:
        asked["vm"] = options.vm
    for line in client.lines(f"/v1/events?{urlencode(asked)}", follow=options.follow):
        # Flush each line: a reader of a pipe wants each event when it comes.
        if options.json:
            print(line.decode(), flush=True)
        else:
            print("\n".join(wrapped([event_line(json.loads(line))], columns)), flush=True)


def _record(client: "Client", options: argparse.Namespace) -> int:
    from balloon_daemon.ctl.ask.record import record

    return record(client, options.output, options.for_s)


def _release(client: "Client", options: argparse.Namespace) -> None:
    asked = {} if options.vm is None else {"vm": options.vm}
    answer = client.ask("/v1/release", "POST", asked)
    if options.json:
        print(answer.decode(), end="")
        return
    from balloon_daemon.ctl.ask.wording import released

    print("\n".join(released(json.loads(answer)["vms"])))


def _reload(client: "Client", options: argparse.Namespace) -> None:
    answer = client.ask("/v1/reload", "POST", within_s=RELOADED_WITHIN_S)
    if options.json:
        print(answer.decode(), end="")
        return
    print("\n".join(json.loads(answer)["changed"]) or "nothing has changed")


def _set(client: "Client", options: argparse.Namespace) -> None:
    asked = {"size_bytes": options.size}
    if options.for_s is not None:
        asked["for_s"] = options.for_s
    answer = client.ask(f"/v1/vms/{quote(options.vm, safe='')}/balloon", "PUT", asked)
    if options.json:
        print(answer.decode(), end="")
        return
    from balloon_daemon.ctl.ask.wording import told

    print(told(json.loads(answer)))


def terminal_columns() -> int | None:
    """The terminal's width; None where the output is no terminal, and lines may be any length."""
    if not os.isatty(sys.stdout.fileno()):
        return None
    # A terminal that does not know its size, as a serial line, says 0.
    return max(os.get_terminal_size(sys.stdout.fileno()).columns or 80, 40)
