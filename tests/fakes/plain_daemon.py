"""A whole controller, in a process of its own, with guests that know no protocol.

``python -m tests.fakes.plain_daemon COUNT KIND`` prints events, one line each, and ends as the
daemon does: on a signal. KIND is ``plain``, ``keeps`` (guests can be left to another balloond),
``hangs`` (one guest's task does not end), ``fails`` (one guest has a bug), or two of these with a
comma: two drivers, each with COUNT guests.
"""

import asyncio
import sys

from balloon_daemon.config.model import Config
from balloon_daemon.controller import ending
from balloon_daemon.controller.loop import Controller
from balloon_daemon.events import Event
from balloon_daemon.guests.seam import Attached, VmRegistry
from balloon_daemon.linux.signals import hold_end_signals
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.units import GIB, VmId
from tests.fakes.plain_guest import PlainGuest
from tests.fakes.told_memory import ToldMemory


def say(*words: object) -> None:
    print(*words, flush=True)


class Guest(PlainGuest):
    """Serves until it is cancelled, and prints the calls that it gets."""

    kind = "plain"

    async def serve(self) -> None:
        try:
            if self.kind == "fails":
                raise ValueError("a bug")
            await asyncio.Event().wait()
        finally:
            while self.kind == "hangs":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue
            say(self.vm, "ended")

    def set_target(self, target_bytes: int) -> None:
        super().set_target(target_bytes)
        say(self.vm, "target", target_bytes)

    def leave(self) -> None:
        if self.kind == "hangs":
            raise ValueError("a bug")
        say(self.vm, "left")


class Driver:
    """Finds its guests at once."""

    def __init__(self, count: int, kind: str) -> None:
        self.count, self.kind = count, kind
        self.keeps = kind == "keeps"

    def start(self, registry: VmRegistry) -> None:
        for number in range(self.count):
            vm: VmId = registry.next_vm()
            guest = Guest(vm, [], registry.report)
            guest.kind = self.kind if number == 0 else "plain"
            registry.add(guest)
            registry.serve(guest)
            registry.report(vm, Attached(GIB))

    def stop(self, *, leaving: bool) -> None:
        say("stop", leaving)

    async def close(self, *, leaving: bool) -> None:
        say("close", leaving)


def main(count: int, kind: str) -> None:
    """Runs it."""
    hold_end_signals()
    ending.END_WITHIN_S = 0.2
    memory = ToldMemory()
    memory.seen = Reading(available_mib=10, margin_mib=400)

    def publish(event: Event) -> None:
        say(event)

    drivers = [Driver(count, each) for each in kind.split(",")]
    controller = Controller(Config(), memory, drivers, publish, lambda: say("drained"))
    asyncio.run(controller.run())
    say("over")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
