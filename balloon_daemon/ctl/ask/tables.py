"""``balloonctl status``: a table that fits 80 columns, and the host below it. Pure."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from balloon_daemon.ctl.ask.wording import (
    age,
    brief_size,
    host_line,
    host_notes,
    vm_notes,
    wrapped,
)
from balloon_daemon.errors import printable
from balloon_daemon.units import MIB, format_size

HEADS = ("VM", "KIND", "MEMORY", "BALLOON", "TARGET", "MOST", "GUEST HAS", "RETURNED")
"""GUEST HAS: the memory that the guest has available. RETURNED: the part of the balloon that the
host has got back."""

LEAST_NAME = 8
"""A name is cut to no fewer characters, however narrow the terminal is."""

_LEFT_OUT = ("KIND", "MOST", "TARGET", "RETURNED")
"""The columns that a narrow terminal has no room for, the first one first."""

_KINDS = {"vhost_user": "vhost-user", "cloud_hypervisor": "cloud-hyp."}
_LEFT = 2
"""How many columns are aligned at their left; the others are numbers."""


def status_table(status: dict[str, Any], columns: int | None) -> list[str]:
    """The lines of the table.

    Args:
        status: the answer to ``GET /v1/status``.
        columns: the terminal's width; None: lines may be any length.
    """
    vms, host = status["vms"], status["host"]
    lines = _table([HEADS, *(_row(vm) for vm in vms)], columns) if vms else ["no VM is driven"]
    notes = [f"{printable(vm['name'])}: {note}" for vm in vms for note in vm_notes(vm)]
    below = [f"Host: {host_line(host)}"]
    if host.get("dry_run"):  # An older balloond does not send this member.
        below.append("Dry run: no VM's balloon is changed")
    below += host_notes(host)
    if (last := host["last_decision"]) is not None:
        name, message = printable(last["vm"]), printable(last["message"])
        below.append(f"Last decision: {age(last['age_s'])} ago, {name}: {message}")
    below += _next_said(vms)
    if notes:
        lines += ["", *wrapped(notes, columns)]
    lines += ["", *wrapped(below, columns)]
    if undriven := [printable(vm["why"]) for vm in status["not_driven"]]:
        lines += ["", "Not driven:", *wrapped(undriven, columns)]
    return lines


def _next_said(vms: Sequence[dict[str, Any]]) -> list[str]:
    """When a VM's balloon may change next, and why; nothing where no VM's policy has a deadline.

    Other deadlines, such as the end of a pause, have lines of their own.
    """
    timers: list[tuple[float, str, dict[str, Any]]] = [
        (vm["next"][timer], timer, vm)
        for vm in vms
        if vm["next"] is not None
        for timer in ("recheck_in_s", "release_in_s")
        if vm["next"][timer] is not None
    ]
    if not timers:
        return []
    first_s, timer, vm = min(timers, key=itemgetter(0))
    said = f"Next: in {age(first_s)}, to "
    if timer == "recheck_in_s":
        return [f"{said}see whether memory is still low"]
    needed = vm["next"]["needed_mib"]
    room = "" if needed is None else f" if {format_size(needed * MIB)} is available"
    return [f"{said}give {printable(vm['name'])} a step back{room}"]


def _row(vm: dict[str, Any]) -> tuple[str, ...]:
    sizes = (
        "memory_bytes",
        "balloon_bytes",
        "target_bytes",
        "max_balloon_bytes",
        "guest_available_bytes",
        "returned_bytes",
    )
    kind = _KINDS.get(vm["kind"], vm["kind"])
    return (printable(vm["name"]), printable(kind), *(brief_size(vm[size]) for size in sizes))


def _table(rows: Sequence[tuple[str, ...]], columns: int | None) -> list[str]:
    left = _LEFT
    for head in _LEFT_OUT:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        least = sum(widths[1:]) + 2 * (len(widths) - 1) + min(widths[0], LEAST_NAME)
        if columns is None or least <= columns:
            break
        at = rows[0].index(head)
        left -= at < left
        rows = [(*row[:at], *row[at + 1 :]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if columns is not None:
        others = sum(widths[1:]) + 2 * (len(widths) - 1)
        widths[0] = min(widths[0], max(columns - others, LEAST_NAME))
    lines = []
    for row in rows:
        name = row[0] if len(row[0]) <= widths[0] else f"{row[0][: widths[0] - 1]}…"
        cells = [name, *row[1:]]
        lines.append(
            "  ".join(
                cell.ljust(width) if number < left else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
        )
    return lines
