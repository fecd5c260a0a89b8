"""Finds the sockets of VMs that patterns describe, as they come and go.

Runs in the controller. Nothing is opened here: a socket is told from other files by stat(2), and
``finder.py`` finds out what listens there. Whoever may write to a directory may make any number of
names there: so a search goes on in many turns of the event loop, and one user has a share of the
sockets that are found.
"""

import asyncio
import fnmatch
import glob
import math
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

MOST_SOCKETS, MOST_OF_ONE_USER = 1024, 768
"""How many sockets are found at most, and how many that belong to one user."""

MOST_OTHERS = 1024
"""How many files that are no sockets are told at most."""

LOOK_FOR_S, PAUSE_S = 0.001, 0.02
"""How long a search may take in one turn of the event loop, and the pause until the next turn."""


class Search:
    """One search for the sockets that match patterns.

    Args:
        patterns: absolute paths with wildcards, as of glob(7).
        known: resolved paths that an earlier search has found: they are found again, however many
            there are by now.

    Attributes:
        found: each socket's path by its resolved path, so that a socket with two names is found
            once: by its own, where that matches.
        others: paths of files that are no sockets.
    """

    def __init__(self, patterns: Iterable[str], known: Collection[str] = ()) -> None:
        self.found = dict[str, str]()
        self.others = set[str]()
        self._known = known
        self._of_users = Counter[int]()
        self._names = (path for pattern in patterns for path in _matches(pattern))

    def go_on(self, for_s: float) -> bool:
        """Looks at more names for so many seconds; whether that were all."""
        ends_s = time.monotonic() + for_s
        for path in self._names:
            if path:
                self._look_at(path)
            if time.monotonic() >= ends_s:
                return False
        return True

    def _look_at(self, path: str) -> None:
        try:
            status = os.stat(path)
        except OSError:
            return  # Gone meanwhile, or out of reach.
        if not stat.S_ISSOCK(status.st_mode):
            if len(self.others) < MOST_OTHERS:
                self.others.add(path)
            return
        resolved, user = os.path.realpath(path), status.st_uid
        if resolved in self.found:
            if path == resolved:
                # Another name may be led elsewhere by whoever made it.
                self.found[resolved] = path
            return
        room = len(self.found) < MOST_SOCKETS and self._of_users[user] < MOST_OF_ONE_USER
        if room or resolved in self._known:
            self.found[resolved] = path
            self._of_users[user] += 1


class Searches:
    """Searches for the sockets that match patterns, one search at a time.

    Args:
        patterns: as ``Search``.
        done: takes each search that is over.
    """

    def __init__(self, patterns: Collection[str], done: Callable[[Search], None]) -> None:
        self._patterns = patterns
        self._done = done
        self._search: Search | None = None
        self._again: Collection[str] | None = None
        self._pause: asyncio.TimerHandle | None = None

    def begin(self, known: Collection[str]) -> None:
        """Begins a search, or another one when this one is over; ``known`` as in ``Search``."""
        if self._search is not None:
            self._again = known
            return
        self._search = Search(self._patterns, known)
        self._go_on()

    def stop(self) -> None:
        """Ends the search that is under way."""
        if self._pause is not None:
            self._pause.cancel()

    def _go_on(self) -> None:
        search = self._search
        assert search is not None
        if not search.go_on(LOOK_FOR_S):
            self._pause = asyncio.get_running_loop().call_later(PAUSE_S, self._go_on)
            return
        self._search = None
        self._done(search)
        if (known := self._again) is not None:
            self._again = None
            self.begin(known)


def search_all(patterns: Iterable[str]) -> Search:
    """A search that is over; for a process that serves no VMs."""
    search = Search(patterns)
    search.go_on(math.inf)
    return search


def _matches(pattern: str) -> Iterator[str]:
    """The paths that match a pattern, and "" for each name that does not match.

    The kernel lists a directory's names some 1,000 at a time, as they are asked for; glob.iglob()
    makes a list of all.
    """
    head, name = os.path.split(pattern)
    for directory in _matches(head) if glob.has_magic(head) else (head,):
        if not directory or not glob.has_magic(name):
            yield directory and os.path.join(directory, name)
            continue
        matches = re.compile(fnmatch.translate(name)).match
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    is_hidden = entry.name.startswith(".") and not name.startswith(".")
                    yield entry.path if not is_hidden and matches(entry.name) else ""
        except OSError:
            continue  # Gone meanwhile, out of reach, or no directory.


def directories(patterns: Iterable[str]) -> set[str]:
    """The directories in which a new name could make a new match of a pattern."""
    return {directory for pattern in patterns for directory in _directories(pattern)}


def _directories(pattern: str) -> Iterator[str]:
    head, name = os.path.split(pattern)
    if not glob.has_magic(head):
        yield head
    elif name:
        yield from filter(os.path.isdir, glob.iglob(head))
        yield from _directories(head)


def name_of(path: str, taken: Iterable[str]) -> str:
    """A name for the VM behind a socket: the file's name without its ending, such as ``web`` for
    ``/run/qemu/web.qmp``; the whole path where that name is taken."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return path if not stem or stem in taken else stem
