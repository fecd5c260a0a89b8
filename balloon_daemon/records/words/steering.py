"""The log's sentences for events about operators' pauses, reclaims and reserves. Pure."""

from typing import assert_never

from balloon_daemon.events import (
    ReclaimBegan,
    ReclaimEnded,
    ReserveBegan,
    ReserveEnded,
    ReserveMet,
    ReserveNotMet,
    SteeringEvent,
    TakingPaused,
    TakingResumed,
)
from balloon_daemon.records.line import Level
from balloon_daemon.sizing.decision import Ended
from balloon_daemon.units import format_size

_ENDED = {
    Ended.COMPLETE: "that is all",
    Ended.TIME: "the time is over",
    Ended.NOBODY: "no VM can give more",
    Ended.WITHDRAWN: "who had asked waits no longer, and it goes back",
    Ended.HALTED: "balloond ends",
    Ended.SWITCHED_OFF: "low memory is switched off, and nothing is taken",
}


def said_of_steering(event: SteeringEvent) -> tuple[Level, str]:
    """The level and the sentence of an event."""
    match event:
        case TakingPaused(vm, uid, for_s):
            whom = "any VM" if vm is None else "this VM"
            message = f"user {uid} pauses: nothing more is taken from {whom} for {for_s:.0f} s"
            return Level.INFO, message
        case TakingResumed(vm, uid):
            who = "its time is over" if uid is None else f"user {uid} ends it"
            pause = "the pause of all VMs" if vm is None else "the pause"
            return Level.INFO, f"{pause} is over: {who}"
        case ReclaimBegan(uid, wanted_bytes, vms, within_s):
            message = (
                f"user {uid} asks for {format_size(wanted_bytes)} from {vms or 'any VM'} within "
                f"{within_s:.0f} s"
            )
            return Level.INFO, message
        case ReclaimEnded(_, wanted_bytes, came_bytes, took_s, why):
            came = f"{format_size(came_bytes)} of {format_size(wanted_bytes)}"
            return Level.INFO, f"{came} came in {took_s:.1f} s: {_ENDED[why]}"
        case ReserveBegan(uid, size_bytes, for_s):
            message = (
                f"user {uid} reserves {format_size(size_bytes)} above the margin for {for_s:.0f} s"
            )
            return Level.INFO, message
        case ReserveMet(_, size_bytes, took_s):
            message = (
                f"{format_size(size_bytes)} that were reserved are there after {took_s:.1f} s"
            )
            return Level.INFO, message
        case ReserveNotMet(_, size_bytes, available_mib, needed_mib, why):
            there = ""
            if available_mib is not None and needed_mib is not None:
                there = f", {available_mib:,} of {needed_mib:,} MiB are available"
            size = format_size(size_bytes)
            return Level.WARNING, f"{size} that were reserved are not there{there}: {_ENDED[why]}"
        case ReserveEnded(_, size_bytes, why):
            ended = "it was ended" if why is Ended.WITHDRAWN else _ENDED[why]
            return Level.INFO, f"the reserve of {format_size(size_bytes)} is over: {ended}"
        case _:
            assert_never(event)
