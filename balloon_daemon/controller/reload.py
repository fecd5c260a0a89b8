"""Applies a configuration that is read anew, or refuses it whole.

Runs in the controller. A child reads the files (``Files``), because read(2) may wait for ever on
some file systems; the old settings stay in force meanwhile. A request to reload that comes during
a reading causes another reading, because the files may have changed since.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from balloon_daemon.commands import NotReloaded, Reloaded
from balloon_daemon.config.model import Config
from balloon_daemon.events import (
    CallbackFailed,
    ConfigMistake,
    ConfigRefused,
    ConfigReloaded,
    Publish,
)
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.linux.systemd import notify
from balloon_daemon.named_tuple import NamedTuple

MISTAKES_SAID = 100
"""How many mistakes are published, a line each; a client of the API that has asked for the reload
gets all of them."""

READY_AGAIN_S = 0.1
"""How soon READY=1 is sent again if the service manager's socket queue is full."""


FAILED = "it could not be applied, which is a bug of balloond's: look at its log, and try again"


class Reread(NamedTuple):
    """A configuration that was read anew.

    Attributes:
        config: the settings; None: there are mistakes.
        changed: the settings that differ from those before, a line each.
        mistakes: all mistakes, a line each.
    """

    config: Config | None
    changed: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()


class Files(Protocol):
    """Reads the files of the configuration, and makes the drivers for the VMs in it."""

    async def read(self, present: Config) -> Reread:
        """Reads the configuration anew; changes nothing.

        Args:
            present: the settings in force.
        """

    def apply(self, config: Config) -> Sequence[GuestDriver]:
        """Tells all drivers which VMs are wanted now; returns new drivers, to be started."""


Done = Callable[[Reloaded | NotReloaded], None]
"""Called with the result of a reload."""


class Reloads:
    """Reloads the configuration when asked, one reload at a time.

    Args:
        files: reads the files.
        present: the settings in force.
        apply: applies other settings.
        publish: called with each event to be published.
    """

    def __init__(
        self,
        files: Files,
        present: Config,
        apply: Callable[[Config], None],
        publish: Publish,
    ) -> None:
        self._files = files
        self._present = present
        self._apply = apply
        self._publish = publish
        self._waiting: list[Done] = []
        self._task: asyncio.Task[None] | None = None

    def reload(self, done: Done = lambda result: None) -> None:
        """Begins a reload, and returns before it is done.

        Args:
            done: called with the result; never called if balloond ends before there is one.
        """
        self._waiting.append(done)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._reload())

    def close(self) -> None:
        """Ends a reload that is under way: nothing is applied any more."""
        if self._task is not None:
            self._task.cancel()

    async def _reload(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            told = notify("RELOADING=1", f"MONOTONIC_USEC={now_us}", within_s=0)
            try:
                result = self._take(await self._files.read(self._present))
            except Exception as err:
                # A bug: answer the clients that wait for the reload, and go on serving VMs.
                self._publish(CallbackFailed(f"{type(err).__name__}: {err}"))
                result = NotReloaded((FAILED,))
            finally:
                # After RELOADING=1, systemd shows the service as reloading until READY=1 comes.
                while told and not notify("READY=1", within_s=0):
                    await asyncio.sleep(READY_AGAIN_S)
            for done in waiting:
                done(result)

    def _take(self, read: Reread) -> Reloaded | NotReloaded:
        if read.config is None:
            for mistake in read.mistakes[:MISTAKES_SAID]:
                self._publish(ConfigMistake(mistake))
            self._publish(ConfigRefused(len(read.mistakes)))
            return NotReloaded(read.mistakes)
        if read.config != self._present:
            self._apply(read.config)
            # Note the settings only once they are applied: a setting that a bug has kept from
            # being applied then counts as changed at the next reload, too.
            self._present = read.config
        self._publish(ConfigReloaded(read.changed))
        return Reloaded(read.changed)
