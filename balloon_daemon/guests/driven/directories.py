"""Notices when names appear in directories or vanish from them, at the cost of a stat a second.

Runs in the controller. A directory's mtime changes with its names. inotify(7) would cost less, but
cannot watch a directory that does not exist yet, and Python has os.stat() but no inotify.

Where every directory above is root's or this process's user's and nobody else may write there, the
stat waits for nobody. Any other directory is looked at by a child (``lookups.py``). A user may
have 768 directories that match a pattern: children look at some of them in each second, in turn
(``LOOKS_OF_ONE_USER``).
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.lookups import Ask

LOOK_S = 1.0

LOOKS_OF_ONE_USER = 64
"""How many of one user's directories that match a wildcard are looked at by children in each
``LOOK_S``; one such look costs 0.15 ms of processor time. All others are looked at in each
``LOOK_S``: directories of root and of this process's user, and those that the configuration
names."""

_FRESH_S = 2.0
"""A directory whose mtime is younger than this counts as changed at each look: two changes within
one tick of the kernel's clock, 4 ms or so, leave the same mtime, so the second would be missed."""


@dataclass(slots=True)
class _Seen:
    """What was seen of a directory.

    Attributes:
        mtime_ns: its mtime; None: it does not exist (yet).
        nearest: the path of the nearest directory that exists, this one or one above it; "" where
            another user can keep a stat(2) of that path waiting.
        nearest_ns: the mtime of ``nearest`` before the directory was looked at.
        look: the task of the last look, done where no look is under way.
    """

    mtime_ns: int | None = None
    nearest: str = ""
    nearest_ns: int | None = None
    look: asyncio.Task[None] | None = None


class Directories:
    """Watches directories.

    Args:
        changed: called with the directories that may have changed since the last call.
        ask: has a child look paths up.
    """

    def __init__(self, changed: Callable[[set[str]], None], ask: Ask) -> None:
        self._changed = changed
        self._ask = ask
        self._seen: dict[str, _Seen] = {}
        """What was seen of each directory. The directory at which a child has looked last is the
        last one, so that those which have waited longest have the next turn."""
        self._owners: Mapping[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, directories: set[str], owners: Mapping[str, int] | None = None) -> None:
        """Watches directories and no others; those that are new count as changed.

        Args:
            directories: all of them.
            owners: the user id of the owner of each directory that a wildcard has matched and that
                the configuration does not name.
        """
        self._owners = owners or {}
        for name in self._seen.keys() - directories:
            _cancel(self._seen.pop(name))
        for name in directories:
            self._seen.setdefault(name, _Seen())

    def look(self) -> None:
        """Looks now, and each second from now on."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_S, self.look)
        fresh_ns = time.time_ns() - int(_FRESH_S * 1e9)
        unbounded, looks = (0, os.geteuid()), Counter[int]()
        for name, seen in list(self._seen.items()):
            owner = self._owners.get(name, 0)
            if looks[owner] >= LOOKS_OF_ONE_USER:
                continue
            nearest_ns = _mtime_ns(seen.nearest) if seen.nearest else None
            quiet = nearest_ns is not None and nearest_ns < fresh_ns
            if (seen.look is None or seen.look.done()) and not (
                quiet and nearest_ns == seen.nearest_ns
            ):
                looks[owner] += owner not in unbounded
                self._seen[name] = self._seen.pop(name)
                seen.nearest_ns = nearest_ns
                seen.look = loop.create_task(self._look_at(name, seen, fresh_ns))

    def stop(self) -> None:
        """Looks at no directory any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for seen in self._seen.values():
            _cancel(seen)

    async def _look_at(self, name: str, seen: _Seen, fresh_ns: int) -> None:
        before_ns = seen.mtime_ns

        def take(part: object) -> None:
            match part:
                case [int() | None as mtime_ns, str(nearest)]:
                    seen.mtime_ns, seen.nearest = mtime_ns, nearest

        try:
            await self._ask(["watch", name], take, -1)
        except (ControlError, OSError):
            return
        if seen.mtime_ns != before_ns or (seen.mtime_ns or 0) >= fresh_ns:
            self._changed({name})


def _mtime_ns(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _cancel(seen: _Seen) -> None:
    if seen.look is not None:
        seen.look.cancel()
