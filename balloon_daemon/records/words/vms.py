"""The log's sentences for events about VMs, without those about their memory and devices. Pure."""

from typing import assert_never

from balloon_daemon.events import (
    AlreadyConnected,
    BalloonFound,
    BalloonSought,
    Connected,
    ConnectionClosed,
    ConnectionFailed,
    Decided,
    Disconnected,
    GivingBack,
    NoBackendChannel,
    NotGivenBack,
    NotStored,
    RequestNotServed,
    SizeAsked,
    StateRefused,
    StillToGiveBack,
    StoreShareUsed,
    StoreStalled,
    TakenOver,
    TargetReached,
    TargetWithheld,
    VmAttached,
    VmDoesNotEnd,
    VmEvent,
    VmFailed,
    VmmHungUp,
    VmNotServed,
    VmResized,
)
from balloon_daemon.records.line import Level, more, unless
from balloon_daemon.sizing.decision import Decision, Reason
from balloon_daemon.units import format_size

_WHY = {
    Reason.LOW_MEMORY: "low memory",
    Reason.RUNNING_LOW: "memory is about to be low",
    Reason.UNUSED: "less is available than wanted, and the guest does not use this memory",
    Reason.AT_MAXIMUM: "low memory, but the balloon is at its maximum",
    Reason.NO_BALLOON: "low memory, but this VM can have no balloon",
    Reason.RECHECK: "time to look again",
    Reason.MEMORY_BACK: "memory is back",
    Reason.NOT_ENOUGH_BACK: "not enough memory is back yet",
    Reason.UNKNOWN: "available memory is unknown",
    Reason.SWITCHED_OFF: "low memory is switched off",
    Reason.ALL_RETURNED: "all memory was given back",
    Reason.RESTORED: "taken over from an earlier process",
    Reason.RESIZED: "the VM's memory has changed",
    Reason.ADOPTED: "the guest has this balloon already",
    Reason.FRUITLESS: "low memory, but what this VM gives does not come back to the host",
    Reason.NO_ROOM: "low memory, but the VM's tmpfs has no room to give this back later",
    Reason.LOWER_FIRST: "low memory, but VMs of a lower priority can give more first",
    Reason.NOTHING_TO_SPARE: "low memory, but the guest has nothing to spare",
    Reason.ENOUGH_ASKED: "low memory, but enough has been asked for, and is still to come",
    Reason.JUST_LOWERED: "low memory, but the balloon has just been made smaller",
    Reason.IN_NEED: "the guest needs its memory",
    Reason.STALLED: "the guest gives no more",
    Reason.CONTESTED: "somebody else sets this VM's balloon",
    Reason.NO_FRESH_STATS: "low memory, but the guest's statistics have stopped coming",
    Reason.NOT_RUNNING: "low memory, but the guest stands still or has no balloon driver",
    Reason.LIMITS_CHANGED: "the limits of the VM's balloon have changed",
    Reason.ASKED: "an operator has asked for it",
    Reason.RECLAIMED: "an operator has asked for memory",
    Reason.WITHDRAWN: "the operator who had asked for memory waits no longer",
    Reason.PAUSED: "an operator has paused it, nothing more is taken",
}


def said_of_vm(event: VmEvent) -> tuple[Level, str] | None:
    """The level and the sentence of an event; None where the log has no line for it."""
    match event:
        case Decided(_, decision, quiet):
            return unless(quiet), _decision(decision)
        case SizeAsked(_, uid, balloon_bytes, for_s):
            if not balloon_bytes:
                return Level.INFO, f"user {uid} asks for all of its memory back"
            size = format_size(balloon_bytes)
            return Level.INFO, f"user {uid} asks for a balloon of {size} for {for_s:.0f} s"
        case TargetReached(_, actual_bytes, missing_bytes, quiet):
            got = format_size(max(0, actual_bytes - missing_bytes))
            host = f", of which the host has {got}" if missing_bytes else ""
            return unless(quiet), f"balloon is {format_size(actual_bytes)}{host}"
        case TargetWithheld(_, target_bytes):
            return Level.INFO, f"dry run: a target of {format_size(target_bytes)} is not sent"
        case Connected() | Disconnected():
            return None
        case VmmHungUp(_, suppressed):
            message = "the VMM has closed its connection; its balloon is forgotten"
            return Level.INFO, message + _more_ended(suppressed)
        case ConnectionClosed(_, why, suppressed):
            return Level.ERROR, f"{why}; closing this connection{_more_ended(suppressed)}"
        case ConnectionFailed(_, error, suppressed):
            message = f"the VMM's connection failed: {error}"
            return Level.ERROR, message + _more_ended(suppressed)
        case AlreadyConnected(_, uid, suppressed):
            message = (
                f"a connection of user {uid} is refused, as the VM is connected already: give "
                "each VM a socket of its own"
            )
            return Level.ERROR, message + more(suppressed)
        case RequestNotServed(_, why):
            return Level.WARNING, why
        case VmNotServed(_, why):
            return Level.ERROR, f"{why}: this VM gets no balloon"
        case NoBackendChannel():
            return Level.WARNING, (
                "the VMM gives no back-end channel (SET_BACKEND_REQ_FD), by which its guest would "
                "be told of a new target: use a VMM that gives one"
            )
        case VmAttached(_, vm_mem_bytes, max_balloon_bytes, steps):
            return Level.INFO, _size(vm_mem_bytes, max_balloon_bytes, steps)
        case VmResized(_, vm_mem_bytes, max_balloon_bytes, steps, quiet):
            return unless(quiet), _size(vm_mem_bytes, max_balloon_bytes, steps)
        case BalloonSought():
            return Level.INFO, "its driver ran before balloond did: finding out its balloon's size"
        case BalloonFound(_, actual_bytes):
            return Level.INFO, f"its balloon is {format_size(actual_bytes)}"
        case TakenOver():
            return Level.INFO, "goes on where another balloond left"
        case StateRefused(_, why):
            return Level.ERROR, (
                f"the state that another balloond left {why}; closing its VMM's connection: it "
                "has no balloon until it is started again"
            )
        case NotStored(_, error, suppressed):
            message = f"cannot be kept for a later balloond: {error}"
            return Level.ERROR, message + more(suppressed)
        case StoreShareUsed(_, uid, vms, suppressed):
            message = (
                f"is not kept for a later balloond: {vms} VMs of user {uid} are, as many as one "
                "user's may"
            )
            return Level.ERROR, message + more(suppressed)
        case StoreStalled(_, why):
            return Level.ERROR, (
                f"{why}; its VMM is answered all the same: should balloond be killed now, this VM "
                "may lose its balloon"
            )
        case GivingBack(_, balloon_bytes):
            return Level.INFO, _giving_back(balloon_bytes)
        case StillToGiveBack(_, left_bytes):
            return Level.INFO, f"{format_size(left_bytes)} are still to be given back"
        case NotGivenBack(_, left_bytes):
            size = format_size(left_bytes)
            message = f"{size} were not taken back, and stay in a balloon that nobody serves now"
            return Level.WARNING, message
        case VmDoesNotEnd():
            return Level.ERROR, "its task in balloond does not end: ending without it"
        case VmFailed(_, error):
            return Level.ERROR, f"unexpected error in balloond: {error}"
        case _:
            assert_never(event)


def _more_ended(suppressed: int) -> str:
    return f" ({suppressed} more connections have ended)" if suppressed else ""


def _size(vm_mem_bytes: int, max_balloon_bytes: int, steps: int) -> str:
    if not vm_mem_bytes:
        return "VM without a balloon"
    size, most = format_size(vm_mem_bytes), format_size(max_balloon_bytes)
    return f"VM of {size}, balloon of at most {most} in {steps} steps"


def _giving_back(balloon_bytes: int | None) -> str:
    if balloon_bytes is None:
        return "giving all of a balloon of unknown size back to the guest"
    if not balloon_bytes:
        return "its balloon is empty: the guest is asked for nothing any more"
    return f"giving {format_size(balloon_bytes)} back to the guest"


def _decision(decision: Decision) -> str:
    """A decision in words: its reason, its reading, its result."""
    line = _WHY[decision.reason]
    reading = decision.reading
    if reading is not None:
        needed = "" if decision.needed_mib is None else f", {decision.needed_mib:,} MiB needed"
        within = f" within {reading.within}" if reading.within else ""
        reserved_mib = reading.reserved_mib
        reserved = f", {reserved_mib:,} MiB reserved" if reserved_mib else ""
        aim = "" if decision.aim_mib is None else f", {decision.aim_mib:,} MiB aimed at"
        line += (
            f" ({reading.available_mib:,} MiB available{within}, "
            f"margin {reading.margin_mib - reserved_mib:,} MiB{reserved}{aim}{needed})"
        )
    size = format_size(decision.target_bytes)
    level = f"level {decision.level}/{decision.steps}, {size}"
    if decision.reason is Reason.LIMITS_CHANGED:
        # The levels before and after are shares of different maximums: they cannot be compared.
        return f"{line}: balloon is to be at {level}"
    if decision.reason is Reason.ADOPTED:
        # Nothing was asked of the guest: it has this balloon already.
        return f"{line}: balloon goes on from {level}"
    before, after = decision.level_before, decision.level
    if decision.before_bytes is not None:
        before, after = decision.before_bytes, decision.target_bytes
    if before == after:
        return f"{line}: balloon stays at {level}"
    verb = "grows" if after > before else "shrinks"
    return f"{line}: balloon {verb} to {level}"


def decision_fields(decision: Decision) -> dict[str, object]:
    """A decision's fields for machines, without figures that are unknown."""
    fields: dict[str, object] = {
        "reason": decision.reason.value,
        "balloon_level": decision.level,
        "target_bytes": decision.target_bytes,
    }
    if decision.reading is not None:
        fields["available_mib"] = decision.reading.available_mib
        fields["margin_mib"] = decision.reading.margin_mib - decision.reading.reserved_mib
        if decision.reading.reserved_mib:
            fields["reserved_mib"] = decision.reading.reserved_mib
        if decision.aim_mib is not None:
            fields["aim_mib"] = decision.aim_mib
        if decision.reading.within:
            fields["within"] = decision.reading.within
    return fields
