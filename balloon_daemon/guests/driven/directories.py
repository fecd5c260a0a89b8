"""Notices when names appear in directories or vanish from them, at the cost of a stat a second.

Runs in the controller. A directory's mtime changes with its names. inotify(7) would cost less, but
cannot watch a directory that does not exist yet, and Python has os.stat() but no inotify.
"""

import asyncio
import os
import time
from collections.abc import Callable

LOOK_S = 1.0

_FRESH_S = 2.0
"""A directory whose mtime is younger than this counts as changed at each look: two changes within
one tick of the kernel's clock, 4 ms or so, leave the same mtime, so the second would be missed."""


class Directories:
    """Watches directories.

    Args:
        changed: called with the directories that may have changed since the last call.
    """

    def __init__(self, changed: Callable[[set[str]], None]) -> None:
        self._changed = changed
        self._mtimes: dict[str, int | None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, directories: set[str]) -> None:
        """Watches these directories and no others; those that are new count as changed."""
        self._mtimes = {name: self._mtimes.get(name) for name in directories}

    def look(self) -> None:
        """Looks now, and each second from now on."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self.look)
        fresh_ns = time.time_ns() - int(_FRESH_S * 1e9)
        changed = set[str]()
        for name, before in self._mtimes.items():
            try:
                mtime = os.stat(name).st_mtime_ns
            except (OSError, ValueError):
                mtime = None  # The directory does not exist (yet).
            if mtime != before or (mtime is not None and mtime >= fresh_ns):
                self._mtimes[name] = mtime
                changed.add(name)
        if changed:
            self._changed(changed)

    def stop(self) -> None:
        """Looks no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
