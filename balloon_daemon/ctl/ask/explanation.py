"""``balloonctl explain`` and ``events``: why a VM has its size, and what happened.

Pure but for the local time zone, in which times are shown.
"""

from datetime import datetime
from typing import Any

from balloon_daemon.ctl.ask.wording import age, host_line, objection_said, vm_notes, wrapped
from balloon_daemon.errors import printable
from balloon_daemon.units import MIB, format_size


def explained(told: dict[str, Any], columns: int | None) -> list[str]:
    """The lines of an explanation.

    Args:
        told: the answer to ``GET /v1/vms/NAME``.
        columns: the terminal's width; None: lines may be any length.
    """
    vm, host = told["vm"], told["host"]
    lines = [_size(vm), *vm_notes(vm), f"host: {host_line(host)}"]
    if (last := vm["last_decision"]) is not None:
        lines.append(f"last decision, {age(last['age_s'])} ago: {printable(last['message'])}")
    if vm["next"] is not None:
        lines += [_grows(vm, host), _shrinks(vm)]
    shown = wrapped(lines, columns)
    events = [event_line(event, with_vm=False) for event in told["events"]]
    return [*shown, "", "what led there:", *(wrapped(events, columns) or ["nothing so far"])]


def event_line(event: dict[str, Any], *, with_vm: bool = True) -> str:
    """An event as a line: when, of which VM, what.

    Args:
        event: the event.
        with_vm: whether to name its VM.
    """
    when = datetime.fromisoformat(event["time"]).astimezone().strftime("%H:%M:%S")
    name = f"{printable(event['vm'])}: " if with_vm and event.get("vm") else ""
    mark = f"{event['level']}: " if event["level"] in ("error", "warning") else ""
    return f"{when} {mark}{name}{printable(event['message'])}"


def _size(vm: dict[str, Any]) -> str:
    name = printable(vm["name"])
    if vm["memory_bytes"] is None:
        return f"{name}: a VM of {printable(vm['kind'])}"
    size, balloon, most = (
        format_size(vm[key]) for key in ("memory_bytes", "balloon_bytes", "max_balloon_bytes")
    )
    if not vm["max_balloon_bytes"]:
        return f"{name}: VM of {size}, which keeps all of it"
    parts = [
        f"{name}: VM of {size}, balloon {balloon} of at most {most}, level {vm['level']:d} of "
        f"{vm['steps']:d}"
    ]
    if vm["target_bytes"] != vm["balloon_bytes"]:
        parts.append(f"{format_size(vm['target_bytes'])} are wanted")
    if vm["returned_bytes"] is not None and vm["balloon_bytes"]:
        parts.append(f"the host has {format_size(vm['returned_bytes'])} of it")
    if vm["guest_available_bytes"] is not None:
        parts.append(f"the guest has {format_size(vm['guest_available_bytes'])} available")
    return "; ".join(parts)


def _grows(vm: dict[str, Any], host: dict[str, Any]) -> str:
    if not vm["max_balloon_bytes"]:
        return "grows: never, as this VM can have no balloon"
    if vm["level"] == vm["steps"]:
        return "grows: no more, it is at its maximum"
    paused = [each["paused_s"] for each in (vm, host) if each.get("paused_s") is not None]
    if paused:
        return f"grows: not now, as an operator has paused it, for {age(max(paused))} more"
    if vm["protection"] is not None and (why := objection_said(vm["protection"])):
        return f"grows: not now, as {why}"
    recheck_s = vm["next"]["recheck_in_s"]
    when = "at once" if recheck_s is None else f"in {age(recheck_s)} at the earliest"
    if host["margin_mib"] is None:
        return f"grows: {when}, once memory is known to be low"
    if (aim_mib := vm["next"].get("aim_mib")) is not None:
        aim = format_size(aim_mib * MIB)
        return f"grows: within a second, if less than {aim} is available, by what is missing"
    low_mib = host["margin_mib"] + host.get("reserved_mib", 0)
    return f"grows: {when}, if less than {format_size(low_mib * MIB)} is available"


def _shrinks(vm: dict[str, Any]) -> str:
    after = vm["next"]
    if after["release_in_s"] is None or not vm["target_bytes"]:
        return "shrinks: no more, it is empty or was told to be"
    needed = after["needed_mib"]
    if after.get("aim_mib") is not None and needed is not None:
        size = format_size(needed * MIB)
        return f"shrinks: once more than {size} was available for a while, by what is more"
    room = "" if needed is None else f", if {format_size(needed * MIB)} is available"
    return f"shrinks: by a step in {age(after['release_in_s'])}{room}"
