"""The status of the host and of VMs as the API shows it: values of JSON. Pure.

``openapi.yaml`` describes them. A figure that is not known is ``null``, never 0.
"""

import json
from collections.abc import Iterator

from balloon_daemon.commands import Reclaimed, ReserveAnswer
from balloon_daemon.events import Decided
from balloon_daemon.listing import name_order
from balloon_daemon.records.words import worded
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.status import (
    HostStatus,
    LastDecision,
    PolicyStatus,
    ProtectionStatus,
    Undriven,
    VmStatus,
)
from balloon_daemon.units import VmId

Shown = dict[str, object]


def as_json(shown: object) -> bytes:
    """A value as one line of JSON, in UTF-8."""
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def host_shown(status: HostStatus) -> Shown:
    """The host's status."""
    source, seen = status.source, status.source.seen
    reading = seen if isinstance(seen, Reading) else None
    return {
        "available_mib": None if reading is None else reading.available_mib,
        "margin_mib": None if reading is None else reading.margin_mib,
        "within": None if reading is None else reading.within or None,
        "low": None if seen is None else reading is not None and reading.is_low,
        "source": source.name,
        "switched_off": seen.why if isinstance(seen, NeverLow) else None,
        "source_error": source.last_error or None,
        "age_s": seconds(source.age_s),
        "last_decision": _decision(status.decided),
        "next_timer_s": seconds(status.wake_in_s),
        "listens": status.listens,
        "dry_run": status.dry_run,
        "paused_s": seconds(status.paused_s),
        "reclaims": [
            {**reclaim._asdict(), "left_s": seconds(reclaim.left_s)} for reclaim in status.reclaims
        ],
        "reserves": [
            {"size_bytes": size_bytes, "left_s": seconds(left_s)}
            for size_bytes, left_s in status.reserves
        ],
        "reserved_mib": status.reserved_mib,
    }


def key_of(vm: VmId) -> str:
    """The key that tells a VM from others of its name, for as long as the VM is there."""
    return f"#{vm.number}"


def vm_shown(status: VmStatus) -> Shown:
    """A VM's status."""
    policy, stats, trouble = status.policy, status.stats, status.trouble
    return {
        "name": status.vm.name,
        "key": key_of(status.vm),
        "kind": status.kind,
        "profile": status.settings.profile.value,
        "priority": status.settings.priority,
        "floor_bytes": status.settings.floor_bytes,
        "ceiling_bytes": status.settings.ceiling_bytes,
        "state": status.state.value,
        "memory_bytes": None if policy is None else policy.vm_mem_bytes,
        "balloon_bytes": status.balloon_bytes,
        "target_bytes": None if policy is None else policy.target_bytes,
        "max_balloon_bytes": None if policy is None else policy.max_balloon_bytes,
        "level": None if policy is None else policy.level,
        "steps": None if policy is None else policy.steps,
        "guest_available_bytes": None if stats is None else stats.available_bytes,
        "guest_free_bytes": None if stats is None else stats.free_bytes,
        "occupied_bytes": status.held_bytes,
        "returned_bytes": returned_bytes(status),
        "trouble": None if trouble is None else trouble.why,
        "protection": None if status.protection is None else _protection(status.protection),
        "last_decision": _decision(status.decided),
        "next": None if policy is None else _next(policy),
        "vmm_pid": status.vmm_pid,
        "paused_s": seconds(status.paused_s),
    }


def answer_parts(answer: Reclaimed | ReserveAnswer, *, dry_run: bool) -> Iterator[bytes]:
    """The result of a reclaim or a reserve, as JSON in parts: one for each VM, by their names."""
    head: Shown = {"why": answer.why.value}
    match answer:
        case Reclaimed():
            head["wanted_bytes"] = answer.wanted_bytes
            head["came_bytes"] = sum(share.came_bytes for share in answer.shares)
        case ReserveAnswer():
            reading = answer.reading
            head["size_bytes"] = answer.size_bytes
            head["left_s"] = seconds(answer.left_s)
            head["available_mib"] = None if reading is None else reading.available_mib
            head["needed_mib"] = None if reading is None else reading.margin_mib
    head |= {"took_s": seconds(answer.took_s), "dry_run": dry_run}
    yield as_json(head)[:-1] + b',"vms":['
    comma = b""
    for share in sorted(answer.shares, key=lambda share: name_order(share.vm.name)):
        objection = None if share.objection is None else share.objection.value
        shown = {**share._asdict(), "vm": share.vm.name, "objection": objection}
        yield comma + as_json(shown)
        comma = b","
    yield b"]}\n"


def undriven_shown(vm: Undriven) -> Shown:
    """A VM whose balloon balloond cannot drive."""
    return vm._asdict()


def returned_bytes(status: VmStatus) -> int | None:
    """How much of the balloon the host has: what the VM's memory does not occupy, at most all of
    the balloon; None where it is not known how much the VM's memory occupies."""
    if not status.balloon_bytes:
        return 0
    if status.policy is None or status.held_bytes is None:
        return None
    left_bytes = status.policy.vm_mem_bytes - status.held_bytes
    return max(0, min(status.balloon_bytes, left_bytes))


def _protection(protection: ProtectionStatus) -> Shown:
    objection = protection.objection
    return {
        "objection": None if objection is None else objection.value,
        "signs": sorted(sign.value for sign in protection.signs),
        "left_alone_s": seconds(protection.left_alone_s),
        "stats_age_s": seconds(protection.stats_age_s),
        "missing_bytes": protection.missing_bytes,
    }


def _next(policy: PolicyStatus) -> Shown:
    aim = {} if policy.aim_mib is None else {"aim_mib": policy.aim_mib}
    return {
        "recheck_in_s": seconds(policy.recheck_in_s),
        "release_in_s": seconds(policy.release_in_s),
        "needed_mib": policy.needed_mib,
        **aim,
    }


def _decision(last: LastDecision | None) -> Shown | None:
    if last is None:
        return None
    line = worded(Decided(last.vm, last.decision))
    assert line is not None
    return {**line.fields, "message": line.message, "age_s": seconds(last.age_s)}


def seconds(value: float | None) -> float | None:
    """A time as the API shows it; None where there is none."""
    return None if value is None else round(value, 3)
