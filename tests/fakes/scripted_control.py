"""A VMM's control interface that a test scripts: a ``Control`` without a VMM."""

import asyncio
from dataclasses import replace

from balloon_daemon.guests.driven.control import ControlError, Found, Noticed, Sample
from balloon_daemon.guests.seam import Ability, GuestState, Stats
from balloon_daemon.units import GIB

FOUND = Found(GIB, 0, GuestState.RUNNING, frozenset([Ability.STATS]))
"""A VM of 1 GiB with an empty balloon, whose process is not known."""


class ScriptedControl:
    """Plays a VMM whose guest follows each target at once.

    Attributes:
        found: what ``open`` finds; ``sample`` says its figures too.
        calls: the names of all calls but samples, and their arguments.
        samples: how many samples were taken.
        follows: whether the guest's balloon follows its target.
        stats: what the next samples say of the guest; None: nothing new.
        fails: the error that the next calls of this name raise.
        hangs: the names of the calls that do not return.
        closed: whether it was closed.
    """

    def __init__(self, found: Found = FOUND) -> None:
        self.found = found
        self.calls: list[tuple[str, object]] = []
        self.samples = 0
        self.follows = True
        self.stats: Stats | None = None
        self.fails: dict[str, Exception] = {}
        self.hangs = set[str]()
        self.closed = False
        self.noticed: Noticed = lambda notice: None
        self._gone = asyncio.Event()
        self._why_gone: ControlError | None = None

    @property
    def targets(self) -> list[object]:
        """All targets that were set."""
        return [argument for name, argument in self.calls if name == "set_balloon"]

    def end(self, why: ControlError | None = None) -> None:
        """Closes the connection as a VMM does that ends, or for another reason."""
        self._why_gone = why
        self._gone.set()

    async def open(self, noticed: Noticed) -> Found:
        self.noticed = noticed
        await self._answer("open")
        return self.found

    async def set_balloon(self, balloon_bytes: int) -> None:
        self.calls.append(("set_balloon", balloon_bytes))
        await self._answer("set_balloon")
        if self.follows:
            self.found = replace(self.found, balloon_bytes=balloon_bytes)

    async def sample(self) -> Sample:
        self.samples += 1
        await self._answer("sample")
        now_s = asyncio.get_running_loop().time()
        found = self.found
        return Sample(found.vm_mem_bytes, found.balloon_bytes, found.state, self.stats, now_s)

    async def watch(self, every_s: float | None) -> None:
        self.calls.append(("watch", every_s))
        await self._answer("watch")

    async def gone(self) -> ControlError | None:
        await self._gone.wait()
        return self._why_gone

    def close(self) -> None:
        self.closed = True

    async def _answer(self, name: str) -> None:
        assert not self.closed
        if (err := self.fails.get(name)) is not None:
            raise err
        if name in self.hangs:
            await asyncio.Event().wait()
