"""The log's sentences for events about the protection of guests. Pure."""

from typing import assert_never

from balloon_daemon.events.protection import (
    BalloonContested,
    BalloonFreed,
    BalloonMissing,
    GuestInNeed,
    ProtectionEvent,
    SqueezeStalled,
)
from balloon_daemon.records.line import Level
from balloon_daemon.sizing.decision import Missing
from balloon_daemon.units import format_size

_MISSING = {
    Missing.NOTHING: "the cause is not known",
    Missing.NEVER_FREED: (
        "its memory is locked (mem-lock=on, <locked/>), not shared with its VMM's file, of huge "
        "pages, or pinned for a device"
    ),
    Missing.REFILLED: (
        "something has read all of its memory in again, as a migration or a snapshot does"
    ),
}


def said_of_protection(event: ProtectionEvent) -> tuple[Level, str]:
    """The level and the sentence of an event."""
    match event:
        case GuestInNeed(_, signs, balloon_bytes, left_alone_s):
            words = ", ".join(sign.value for sign in signs)
            what = f"giving {format_size(balloon_bytes)} back"
            if not balloon_bytes:
                # The guest was asked for memory, but has given none yet or has taken all back.
                what = "its balloon is empty; asking for nothing"
            alone = f"leaving it alone for {left_alone_s:.0f} s"
            return Level.WARNING, f"in need ({words}): {what}, and {alone}"
        case SqueezeStalled(_, target_bytes, balloon_bytes, left_alone_s):
            size, wanted = format_size(balloon_bytes), format_size(target_bytes)
            how = f"asking for no more for {left_alone_s:.0f} s"
            gives = "gives no more" if balloon_bytes else "gives nothing"
            return Level.WARNING, f"{gives}: stopping at {size} of {wanted}, and {how}"
        case BalloonContested(_, target_bytes, balloon_bytes, left_alone_s):
            size, wanted = format_size(balloon_bytes), format_size(target_bytes)
            sizes = f"its balloon is {size}, {wanted} wanted here"
            how = f"sending no target for {left_alone_s:.0f} s"
            return Level.WARNING, f"somebody else sets its balloon ({sizes}): {how}"
        case BalloonMissing(_, cause, missing_bytes, balloon_bytes):
            size, missing = format_size(balloon_bytes), format_size(missing_bytes)
            return Level.WARNING, (
                f"gave {size}, of which the host has not got {missing}: {_MISSING[cause]}; "
                "not asking it for more"
            )
        case BalloonFreed():
            return Level.INFO, "the host has got what was missing of its balloon"
        case _:
            assert_never(event)
