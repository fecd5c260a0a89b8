"""The log's sentences for events about what operators ask of the policy for a time. Pure."""

from typing import assert_never

from balloon_daemon.events import SteeringEvent, TakingPaused, TakingResumed
from balloon_daemon.records.line import Level


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
        case _:
            assert_never(event)
