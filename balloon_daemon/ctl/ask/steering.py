"""``balloonctl pause`` and ``resume``: what operators ask of the policy for a time."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from balloon_daemon.ctl.ask.flag_values import hold

if TYPE_CHECKING:
    from balloon_daemon.ctl.ask.client import Client

Add = Callable[[str, str, "Callable[[Client, Any], None]"], argparse.ArgumentParser]
"""Adds a command: its name, a summary, and what it does."""


def add_steering_parsers(add: Add) -> None:
    """Adds the commands."""
    pause = add("pause", "take nothing more for a time", _pause)
    pause.description = (
        "Takes nothing more from some VMs, or from any, for a time. What is given back, is given "
        "back as ever. A restart of balloond ends it."
    )
    pause.add_argument("vms", metavar="VM", nargs="*", help="only these VMs")
    pause.add_argument(
        "--for",
        dest="for_s",
        type=hold,
        metavar="TIME",
        help="90s, 10m or 2h; a day at most (default: 10m)",
    )
    resume = add("resume", "end pauses", _resume)
    resume.description = "Ends the pauses of some VMs, or all that there are."
    resume.add_argument("vms", metavar="VM", nargs="*", help="only these VMs")


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
