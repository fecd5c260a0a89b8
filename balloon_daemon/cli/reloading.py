"""Reads the configuration anew for a balloond that runs, and hands it to the drivers.

Runs in the controller. A child reads the files, because a file system (FUSE or NFS, for example)
may let read(2) wait for ever. The child also compares what it has read with the settings in force,
and finds the lines of mistakes: for a file of a megabyte that takes a second.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from balloon_daemon.cli.asyncio_lean import asyncio
from balloon_daemon.cli.flags import read_settings
from balloon_daemon.cli.late_modules import carried_modules, run_modules
from balloon_daemon.config.carried import config_of
from balloon_daemon.config.model import Config
from balloon_daemon.controller.reload import Reread
from balloon_daemon.errors import ConfigError, ConfigFileError
from balloon_daemon.guests.open_guest import Drivers, Low, load
from balloon_daemon.guests.seam import GuestDriver
from balloon_daemon.guests.waiting import is_done_within
from balloon_daemon.host.low_memory import choose_source
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.asked_child import AskedChild

if TYPE_CHECKING:
    from balloon_daemon.guests.jailed.listener import VhostUserGuests

READ_WITHIN_S = 10.0
"""How long the files may take to read; the largest, with a mistake in each line, takes 2 s."""

REAPED_WITHIN_S = 1.0
"""How long to wait until a killed child has ended. A child that hangs in a system call is reaped
at a later reload, when it has ended."""

MOST_MISTAKES = 1000
"""The most mistakes that are reported, as many as at a start: no file that was written by hand has
more."""

_PARTS_AT_ONCE = 16
"""How many parts of the child's answer are handled in one turn of the event loop."""

_MOST_CHARACTERS = 4096
"""How much of a mistake's text is reported: the text may show a path of any length."""


class ConfigFiles:
    """The files of the configuration, and the drivers that their settings concern. Implements
    ``Files`` (``controller/reload.py``), by which the controller reloads the configuration.

    Args:
        args: the flags, which override the files.
        low: makes a ``LowNumbers``, with which the children are forked.
        drivers: the drivers of VMs that have a balloon of their own.
        own_vms: the VMs on balloond's own device; None: there is no such device.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        low: Low,
        drivers: Drivers,
        own_vms: "VhostUserGuests | None",
    ) -> None:
        self._args = args
        self._new_low = low
        self._low: LowNumbers | None = None
        self._drivers = drivers
        self._own_vms = own_vms
        self._ended: list[AskedChild] = []

    async def read(self, present: Config) -> Reread:
        """Reads the configuration anew; changes nothing.

        Args:
            present: the settings in force.
        """
        self._ended = [child for child in self._ended if not child.is_gone()]
        if self._low is None:
            self._low = self._new_low()
        try:
            child = AskedChild(partial(_answers, self._args, present), self._low)
        except OSError as err:
            return _refused(f"no process can be started that reads the files: {err.strerror}")
        reading = asyncio.get_running_loop().create_task(_read(child, present))
        try:
            if await is_done_within(reading, READ_WITHIN_S):
                return reading.result()
            return _refused(
                f"the files are not read within {READ_WITHIN_S:g} s; are they on a server that "
                "does not answer?"
            )
        except OSError as err:
            return _refused(f"the files cannot be read: {err.strerror or err}; try again")
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            child.end()
            self._ended.append(child)
            await self._reap()

    def apply(self, config: Config) -> Sequence[GuestDriver]:
        """Tells all drivers which VMs are wanted now; returns new drivers, to be started."""
        if self._own_vms is not None:
            self._own_vms.change(config)
        return self._drivers.open(config)

    async def _reap(self) -> None:
        """Waits for the child that was killed last, ``REAPED_WITHIN_S`` at most."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + REAPED_WITHIN_S
        while not self._ended[-1].is_gone():
            if loop.time() > until_s:
                return
            await asyncio.sleep(0.01)
        self._ended.pop()


def _refused(mistake: str) -> Reread:
    return Reread(None, mistakes=(mistake,))


async def _read(child: AskedChild, present: Config) -> Reread:
    """Asks a child for the configuration.

    Raises:
        OSError: the child has failed or ended.
    """
    await _parts(child, lambda part: None)  # Its first message says that it can be asked.
    child.began()
    child.ask(["read"])
    mistakes, changed, settings = list[str](), list[str](), list[object]()
    modules = list[object]()

    def take(part: object) -> None:
        match part:
            case ["mistake", str(mistake)]:
                mistakes.append(mistake)
            case ["changed", str(change)]:
                changed.append(change)
            case ["module" | "extension", *_]:
                modules.append(part)
            case _:
                settings.append(part)

    await _parts(child, take)
    if mistakes:
        return Reread(None, mistakes=tuple(mistakes))
    await run_modules(modules)
    return Reread(config_of(present, settings), tuple(changed))


async def _parts(child: AskedChild, take: Callable[[object], None]) -> None:
    """Calls ``take`` with each part of a child's answer. Raises OSError: the child has failed."""
    for count in itertools.count(1):
        try:
            part = child.part()
        except BlockingIOError:
            await _readable(child)
            continue
        if count % _PARTS_AT_ONCE == 0:
            await asyncio.sleep(0)
        match part:
            case [int(number), str(why), *_]:
                if number:
                    raise OSError(number, why)
                return
            case [value]:
                take(value)


async def _readable(child: AskedChild) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(child, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(child)


# --- in the child -------------------------------------------------------------------------------


def _answers(
    args: argparse.Namespace,
    present: Config,
    _order: Sequence[object],
    _fd: int,
    _owned: Callable[[int], None],
) -> Iterator[object]:
    """The parts of the child's answer: the files' mistakes, or the settings that were read and how
    they differ from those in force."""
    # Imported here, in the child: the controller does without them.
    from balloon_daemon.config.carried import parts_of
    from balloon_daemon.config.changes import changes, keep_default_socket, takes_restart

    try:
        read = read_settings(args, with_origins=True)
        wanted = keep_default_socket(present, read.config)
        if wanted.margin_bytes != present.margin_bytes:
            choose_source(low_mem_dir=wanted.low_mem_dir, margin_bytes=wanted.margin_bytes).close()
        file = (args.config or "").removeprefix("-")
        mistakes = tuple(takes_restart(present, wanted, read.origins, file))
    except ConfigFileError as err:
        mistakes = err.mistakes
    except ConfigError as err:
        mistakes = (str(err),)
    if mistakes:
        for mistake in mistakes[:MOST_MISTAKES]:
            yield ["mistake", mistake[:_MOST_CHARACTERS]]
        return
    for change in changes(present, wanted):
        yield ["changed", change[:_MOST_CHARACTERS]]
    yield from parts_of(wanted)
    yield from carried_modules(partial(load, wanted))
