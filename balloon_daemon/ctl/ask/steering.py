"""``balloonctl pause``, ``resume``, ``reclaim``, ``reserve`` and ``unreserve``: an operator's
commands about what the sizing policy may take from VMs.
"""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from balloon_daemon.ctl.ask.flag_values import hold, positive_size, within

if TYPE_CHECKING:
    from balloon_daemon.ctl.ask.client import Client

WITHIN_S, SPARE_S = 30.0, 10.0
"""How long a reclaim or a reserve waits for memory without ``--within`` (``routes.WITHIN_S``), and
how many seconds after that the answer may still come."""

EXIT_LESS = 1
"""The exit status where less memory came than was asked for."""

Add = Callable[[str, str, "Callable[[Client, Any], int | None]"], argparse.ArgumentParser]
"""Adds a command, by its name, a summary, and the function that carries it out."""


def add_steering_parsers(add: Add) -> None:
    """Adds the commands."""
    pause = add("pause", "take nothing more for a time", _pause)
    pause.description = (
        "Takes nothing more from some VMs, or from any, for a time. What is given back, is given "
        "back as ever. A restart of balloond ends it."
    )
    pause.add_argument("vms", metavar="VM", nargs="*", help="only these VMs")
    _add_time(pause, "--for", hold, "90s, 10m or 2h; a day at most (default: 10m)")
    resume = add("resume", "end pauses", _resume)
    resume.description = "Ends the pauses of some VMs, or all that there are."
    resume.add_argument("vms", metavar="VM", nargs="*", help="only these VMs")
    reclaim = add("reclaim", "take so much memory from guests, now", _reclaim)
    reclaim.description = (
        "Takes so much memory from guests, now, and says how much came, from which VM, in how "
        "long, or why not. As while memory is low, each VM is asked for a step a second, those of "
        "the lowest priority first, and no guest that needs its memory. Ctrl-C withdraws it: what "
        "was taken goes back as after low memory."
    )
    reclaim.add_argument("size", metavar="SIZE", type=positive_size, help="512M, 1.5G")
    reclaim.add_argument(
        "--from",
        dest="vms",
        metavar="VM",
        action="append",
        help="only from this VM; may be repeated",
    )
    _add_time(reclaim, "--within", within, "try for so long; 10m at most (default: 30s)", WITHIN_S)
    text = "give nothing of it back for so long; a day at most (default: 10m)"
    _add_time(reclaim, "--hold", hold, text)
    reserve = add("reserve", "have so much available above the margin for a time", _reserve)
    reserve.description = (
        "Has so much available above the margin for a time, before a VM is started, for example: "
        "with less, memory is low, and is taken step by step. Says once it is there, or how far "
        "it came and why; the reserve goes on for its time. Several add up. A restart of balloond "
        "ends them, and Ctrl-C one that is waited for."
    )
    reserve.add_argument("size", metavar="SIZE", type=positive_size, help="512M, 1.5G")
    _add_time(
        reserve, "--within", within, "wait for so long; 10m at most (default: 30s)", WITHIN_S
    )
    _add_time(reserve, "--for", hold, "90s, 10m or 2h; a day at most (default: 10m)")
    unreserve = add("unreserve", "end all reserves", _unreserve)
    unreserve.description = "Ends all reserves. What was taken goes back step by step."


def _add_time(
    parser: argparse.ArgumentParser,
    flag: str,
    read: Callable[[str], float],
    text: str,
    default_s: float | None = None,
) -> None:
    """Adds a flag with a time; the options have it in seconds, as ``within_s`` for --within."""
    name = f"{flag.removeprefix('--')}_s"
    parser.add_argument(flag, dest=name, type=read, metavar="TIME", default=default_s, help=text)


def _reserve(client: "Client", options: argparse.Namespace) -> int | None:
    asked = {"size_bytes": options.size, "within_s": options.within_s}
    asked |= {} if options.for_s is None else {"for_s": options.for_s}
    answer = client.ask("/v1/reserve", "POST", asked, options.within_s + SPARE_S)
    told = json.loads(answer)
    if options.json:
        print(answer.decode(), end="")
    else:
        from balloon_daemon.ctl.ask.wording import reserved

        print("\n".join(reserved(told)))
    return EXIT_LESS if told["why"] != "complete" else None


def _unreserve(client: "Client", options: argparse.Namespace) -> None:
    answer = client.ask("/v1/unreserve", "POST", {})
    if options.json:
        print(answer.decode(), end="")
        return
    from balloon_daemon.ctl.ask.wording import unreserved

    print(unreserved(json.loads(answer)))


def _reclaim(client: "Client", options: argparse.Namespace) -> int | None:
    asked = {"size_bytes": options.size, "within_s": options.within_s}
    asked |= {"vms": options.vms} if options.vms else {}
    asked |= {} if options.hold_s is None else {"hold_s": options.hold_s}
    answer = client.ask("/v1/reclaim", "POST", asked, options.within_s + SPARE_S)
    told = json.loads(answer)
    if options.json:
        print(answer.decode(), end="")
    else:
        from balloon_daemon.ctl.ask.wording import reclaimed

        print("\n".join(reclaimed(told)))
    return EXIT_LESS if told["came_bytes"] < told["wanted_bytes"] else None


def _pause(client: "Client", options: argparse.Namespace) -> None:
    asked = {"vms": options.vms}
    if options.for_s is not None:
        asked["for_s"] = options.for_s
    _show_pauses(client.ask("/v1/pause", "POST", asked), options)


def _resume(client: "Client", options: argparse.Namespace) -> None:
    _show_pauses(client.ask("/v1/resume", "POST", {"vms": options.vms}), options)


def _show_pauses(answer: bytes, options: argparse.Namespace) -> None:
    if options.json:
        print(answer.decode(), end="")
        return
    from balloon_daemon.ctl.ask.wording import pauses

    print("\n".join(pauses(json.loads(answer))))
