"""Reloads of the configuration: what is in force where one could not be applied."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from balloon_daemon.commands import NotReloaded, Reloaded
from balloon_daemon.config.model import Config
from balloon_daemon.controller.reload import FAILED, Reloads, Reread
from balloon_daemon.events import CallbackFailed, ConfigReloaded, Event
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.units import GIB

WANTED = replace(Config(), margin_bytes=GIB)


class Files:
    """Files that say the same each time."""

    async def read(self, present: Config) -> Reread:
        return Reread(WANTED, () if present == WANTED else ("margin",))

    def apply(self, config: Config) -> Sequence[GuestDriver]:
        raise NotImplementedError


def test_what_a_bug_has_kept_from_being_applied_is_applied_by_the_next_reload() -> None:
    events: list[Event] = []
    results: list[Reloaded | NotReloaded] = []
    applied: list[Config] = []

    def apply(config: Config) -> None:
        applied.append(config)
        if len(applied) == 1:
            raise KeyError("a bug")

    async def scene() -> None:
        reloads = Reloads(Files(), Config(), apply, events.append)
        for count in range(1, 4):
            reloads.reload(results.append)
            while len(results) < count:
                await asyncio.sleep(0)

    asyncio.run(scene())
    assert results == [NotReloaded((FAILED,)), Reloaded(("margin",)), Reloaded(())]
    assert applied == [WANTED, WANTED]
    assert [type(event) for event in events] == [CallbackFailed, ConfigReloaded, ConfigReloaded]
