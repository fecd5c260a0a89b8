"""Figures of the API in words, for people. Pure."""

import textwrap
from collections.abc import Iterable
from typing import Any

from balloon_daemon.errors import printable
from balloon_daemon.units import GIB, KIB, MIB, format_size

_STATES = {
    "no-driver": "no balloon driver listens in its guest: it boots, or has none",
    "paused": "its guest stands still",
    "retaking": "its balloon is filled again, after a snapshot or a migration has read its memory",
}
_OBJECTIONS = {
    "in-need": "the guest needs its memory",
    "stalled": "the guest gives no more",
    "contested": "somebody else sets its balloon",
    "fruitless": "the host does not get what it gives",
    "no-fresh-stats": "its statistics have stopped coming",
    "not-running": "it stands still, or has no driver",
    "paused": "an operator has paused it",
    "no-room": "its tmpfs has no room to give more back later",
    "at-maximum": "its balloon is as large as it may be",
    "no-balloon": "it can have no balloon",
    "lower-priority-first": "VMs of a lower priority give first",
}
_ENDED = {
    "time": "the time is over",
    "nobody": "no VM can give more",
    "halted": "balloond ends",
    "switched-off": "low memory is switched off, and nothing is taken",
}


def brief_size(size_bytes: int | None) -> str:
    """A size for a table: ``1.5G``, ``160M``, ``0``; ``-`` where it is not known."""
    if size_bytes is None:
        return "-"
    for factor, unit in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size_bytes >= factor:
            number = size_bytes / factor
            shown = f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else ""
            return f"{shown.rstrip('0').rstrip('.') if shown else round(number)}{unit}"
    return str(size_bytes)


def age(seconds: float) -> str:
    """A time for people: ``0.4 s``, ``12 s``, ``3 min``, ``2 h``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def host_line(host: dict[str, Any]) -> str:
    """The host's memory, and where its figures come from."""
    source = printable(host["source"])
    if host["switched_off"] is not None:
        return f"low memory is switched off ({printable(host['switched_off'])})"
    if host["available_mib"] is None:
        why = host["source_error"] or "nothing was read yet"
        return f"what is available is not known ({source}: {printable(why)})"
    available, margin = (format_size(host[key] * MIB) for key in ("available_mib", "margin_mib"))
    within = f" within {printable(host['within'])}" if host["within"] else ""
    low = "; memory is LOW" if host["low"] else ""
    return f"{available} available{within}, margin {margin} ({source}){low}"


def host_notes(host: dict[str, Any]) -> list[str]:
    """Lines about what operators have asked for: a pause of all VMs, reclaims, reserves. An older
    balloond does not tell of them."""
    paused_s = host.get("paused_s")
    notes = [] if paused_s is None else [f"All VMs: {paused_note(paused_s)}"]
    for reclaim in host.get("reclaims", []):
        came, wanted = (format_size(reclaim[key]) for key in ("came_bytes", "wanted_bytes"))
        left = age(reclaim["left_s"])
        notes.append(f"An operator wants {wanted} from guests: {came} came, {left} are left")
    for reserve in host.get("reserves", []):
        size, left = format_size(reserve["size_bytes"]), age(reserve["left_s"])
        notes.append(f"Reserved above the margin: {size}, for {left} more")
    return notes


def vm_notes(vm: dict[str, Any]) -> list[str]:
    """A line for each thing about a VM that an operator should know, such as a fault."""
    notes = []
    if vm["trouble"]:
        notes.append(f"its balloon cannot be moved: {printable(vm['trouble'])}")
    if vm["memory_bytes"] is None:
        notes.append("its size is not known yet")
    if vm["state"] in _STATES:
        notes.append(_STATES[vm["state"]])
    if vm.get("paused_s") is not None:
        notes.append(paused_note(vm["paused_s"]))
    protection = vm["protection"]
    if protection is None:
        return notes
    if (objection := objection_said(protection)) and vm["state"] == "running":
        notes.append(objection)
    if protection["missing_bytes"]:
        missing = format_size(protection["missing_bytes"])
        notes.append(f"the host has not got {missing} of its balloon")
    return notes


def paused_note(paused_s: float) -> str:
    """The note that an operator has paused a VM, or all VMs."""
    return f"paused by an operator for {age(paused_s)} more: nothing more is taken"


def objection_said(protection: dict[str, Any]) -> str:
    """Why a guest is not asked for more, and for how long; "" where nothing is against it."""
    objection = protection["objection"]
    if objection is None:
        return ""
    why = _OBJECTIONS.get(objection, printable(objection))
    if protection["signs"]:
        why += f" ({', '.join(map(printable, protection['signs']))})"
    if protection["left_alone_s"]:
        why += f": not asked for more for {age(protection['left_alone_s'])}"
    return why


def released(vms: list[dict[str, Any]]) -> list[str]:
    """For each VM, a line with the memory that it gets back."""
    if not vms:
        return ["nothing is taken from any VM"]
    return [
        f"{printable(vm['vm'])}: gets {format_size(vm['balloon_bytes'])} back"
        if vm["balloon_bytes"]
        else f"{printable(vm['vm'])}: needs to give nothing any more"
        for vm in vms
    ]


def pauses(told: dict[str, Any]) -> list[str]:
    """A line for each VM that the command named: how long it is paused; else one for all VMs."""
    everything = told["paused_s"]
    if not told["vms"]:
        if everything is None:
            return ["no VM is paused now"]
        return [f"all VMs: paused for {age(everything)}, nothing more is taken from any"]
    return [
        f"{printable(vm['vm'])}: not paused now"
        if vm["paused_s"] is None
        else f"{printable(vm['vm'])}: paused for {age(vm['paused_s'])}, nothing more is taken"
        for vm in told["vms"]
    ]


def reclaimed(told: dict[str, Any]) -> list[str]:
    """How much memory a reclaim brought, and how much each VM gave, or why it gave nothing."""
    came, wanted = (format_size(told[key]) for key in ("came_bytes", "wanted_bytes"))
    why = _ENDED.get(told["why"])
    dry_run = "; a dry run: no VM was told" if told["dry_run"] else ""
    lines = [
        f"{came} came in {age(told['took_s'])}{dry_run}"
        if why is None
        else f"{came} of {wanted} came in {age(told['took_s'])}: {why}{dry_run}"
    ]
    # If all of the memory came, leave out VMs that were asked for nothing.
    lines += [_share(vm) for vm in told["vms"] if vm["asked_bytes"] or why is not None]
    return lines


def reserved(told: dict[str, Any]) -> list[str]:
    """Whether the memory of a reserve is available, or why it is not."""
    size, left = format_size(told["size_bytes"]), age(told["left_s"])
    why = _ENDED.get(told["why"])
    dry_run = "; a dry run: no VM is told" if told["dry_run"] else ""
    figures = ""
    if told["available_mib"] is not None:
        available, needed = (
            format_size(told[key] * MIB) for key in ("available_mib", "needed_mib")
        )
        figures = f" ({available} available, {needed} with the margin and all reserves)"
    if why is None:
        return [f"{size} reserved for {left}{figures}{dry_run}"]
    first = f"{size} not there yet{figures}: {why}; reserved for {left} more{dry_run}"
    return [first, *(_share(vm) for vm in told["vms"] if vm["objection"] is not None)]


def unreserved(told: dict[str, Any]) -> str:
    """A line with the sum of the reserves that the command has ended."""
    if not told["ended_mib"]:
        return "nothing was reserved"
    return f"{format_size(told['ended_mib'] * MIB)} are not reserved any more"


def _share(vm: dict[str, Any]) -> str:
    came, asked = (format_size(vm[key]) for key in ("came_bytes", "asked_bytes"))
    of = "" if vm["came_bytes"] == vm["asked_bytes"] else f" of {asked}"
    line = f"{printable(vm['vm'])}: {came}{of}" if vm["asked_bytes"] else printable(vm["vm"])
    objection = vm["objection"]
    why = "" if objection is None else _OBJECTIONS.get(objection, printable(objection))
    parts = [line, *([why] if why else []), *(["it has gone"] if vm["gone"] else [])]
    return f"  {parts[0]}: {', '.join(parts[1:])}" if parts[1:] else f"  {parts[0]}"


def told(vm: dict[str, Any]) -> str:
    """A line with the size that a VM's balloon is to have now, by an operator's command."""
    target, balloon = (format_size(vm[key]) for key in ("target_bytes", "balloon_bytes"))
    dry_run = "; a dry run: its VM is not told" if vm.get("dry_run") else ""
    return f"{printable(vm['vm'])}: its balloon is to be {target}, and is {balloon} now{dry_run}"


def wrapped(lines: Iterable[str], columns: int | None) -> list[str]:
    """Lines cut to a terminal's width, their continuations indented; None: the lines as they
    are."""
    if columns is None:
        return list(lines)
    return [
        part for line in lines for part in textwrap.wrap(line, columns, subsequent_indent="  ")
    ]
