"""Finds the sockets of VMs that match the configured patterns, as they come and go.

Runs in the controller. No path is looked up in this process: children list the directories
(``lookups.py``), and ``finder.py`` finds out which VMM listens at a socket. A user who may write
to a directory can make any number of sockets there, so only a limited number of sockets of one
user is found.
"""

import asyncio
import fnmatch
import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.lookups import Ask, ask_here
from balloon_daemon.guests.driven.path_orders import Match
from balloon_daemon.guests.driven.unix_socket import socket_at
from balloon_daemon.guests.driven.waking import Bell
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.rate_limit import LineBudget

MOST_SOCKETS, MOST_OF_ONE_USER = 1024, 768
"""The most sockets that are found, and the most that belong to one user; the same limits hold for
directories that match a wildcard in a directory's name."""

MOST_OTHERS = 1024
"""The most files that match a pattern but are no sockets, and are listed in ``Search.others``."""

AGAIN_S = 10.0
"""Seconds from a search to the next one, where a directory could not be looked at, or sockets were
left out. Otherwise a search begins only when a directory's mtime has changed."""

NEW_AT_ONCE, NEW_A_SECOND = MOST_OF_ONE_USER, 4.0
"""How many new sockets of one user are looked at: ``NEW_AT_ONCE`` at first, then ``NEW_A_SECOND``
each second. Each takes a millisecond or so of the thread that serves all VMs, and some lines of
the log; whoever may write to a directory can make thousands a second. The same limit holds, apart
from that, for sockets that are tried again as something in their directory has changed."""

REST_S = 0.005
"""How long after a search the next one begins at the earliest, in seconds for each directory that
the search has listed. Listing a directory takes this process and a child some 0.3 ms of processor
time together, and whoever may write to a directory can cause a search each second."""

_MOST_USERS = 1024


class Socket(NamedTuple):
    """A socket whose path matches a pattern of ``[discover]``.

    Attributes:
        path: its path, as the pattern has it.
        identity: its device and inode numbers.
        owner: the user who owns the socket's file.
    """

    path: str
    identity: SocketId
    owner: int


class UserShares:
    """How many sockets of each user may be looked at by now. Root's are not limited, nor are those
    of the user that balloond runs as."""

    def __init__(self) -> None:
        self._budgets: dict[tuple[int, bool], LineBudget] = {}

    def admits(self, user: int, now_s: float, *, again: bool = False) -> bool:
        """Whether one more socket of a user may be looked at; if so, it counts against the share.

        Args:
            user: the user.
            now_s: the time.
            again: the socket is not new; such sockets have a share of their own.
        """
        if user in (0, os.geteuid()):
            return True
        key = (user, again)
        budget = self._budgets.pop(key, None) or LineBudget(NEW_AT_ONCE, NEW_A_SECOND)
        self._budgets[key] = budget
        if len(self._budgets) > _MOST_USERS:
            del self._budgets[next(iter(self._budgets))]
        return budget.has_one(now_s)


class _Counts(NamedTuple):
    """How many sockets and directories of each user were found, and the user id of each
    directory's owner."""

    sockets: Counter[int]
    directories: Counter[int]
    owners: dict[str, int]


class Search:
    """One search for the sockets that match patterns.

    Args:
        patterns: absolute paths with wildcards, as of glob(7).
        ask: looks paths up.
        known: the sockets that an earlier search has found. The limits on numbers
            (``MOST_SOCKETS``, ``MOST_OF_ONE_USER``) leave out none of them, and they are kept if
            their directory cannot be listed now.
        named: paths of sockets that are left out of what is found.
        admits: whether one more new socket of this user may be found now; it then counts.

    Attributes:
        patterns: the patterns.
        found: each socket by its resolved path, so that a socket with two paths is found once. Its
            ``path`` is the resolved one, where that matches a pattern.
        others: paths of files that are no sockets.
        directories: where a new name could make a new match of a pattern.
        unseen: those of ``directories`` that cannot be listed now.
        named: the resolved paths of the sockets that were left out.
        left_out: whether a new socket was left out that ``admits`` did not admit.
    """

    def __init__(
        self,
        patterns: Iterable[str],
        ask: Ask,
        known: Mapping[str, Socket] | None = None,
        named: Iterable[str] = (),
        admits: Callable[[int], bool] = lambda user: True,
    ) -> None:
        self.found = dict[str, Socket]()
        self.others = set[str]()
        self.directories = set[str]()
        self.named = set[str]()
        self.left_out = False
        self.patterns, self._ask, self._named = patterns, ask, named
        self._admits = admits
        self._known = known or {}
        self.unseen = set[str]()
        self._counts = _Counts(Counter(), Counter(), {})

    @property
    def owners(self) -> Mapping[str, int]:
        """The user ids of the owners of those of ``directories`` that match a wildcard."""
        return self._counts.owners

    async def run(self) -> "Search":
        """Searches; returns this object."""
        for pattern in self.patterns:
            head, name = os.path.split(pattern)
            for directory in await self._matching_directories(head):
                await self._match(directory, name, self._take)
        for resolved, known in self._known.items():
            if not self.unseen.isdisjoint(_directories_above(known.path)):
                self.found.setdefault(resolved, known)
        for path in self._named:
            await self._leave_out(path)
        return self

    async def _matching_directories(self, pattern: str) -> list[str]:
        if not glob.has_magic(pattern):
            return [pattern]
        found = dict[str, None]()
        # A set of them: whoever may write to a directory can make a million that match, each of
        # which is looked for in here.
        with_known_sockets = {
            directory
            for known in self._known.values()
            for directory in _directories_above(known.path)
        }

        def take(match: Match) -> None:
            user = match.owner
            room = (
                self._counts.directories.total() < MOST_SOCKETS
                and self._counts.directories[user] < MOST_OF_ONE_USER
            )
            if stat.S_ISDIR(match.mode) and (room or match.path in with_known_sockets):
                found[match.path] = None
                self._counts.owners[match.path] = user
                self._counts.directories[user] += 1

        head, name = os.path.split(pattern)
        for directory in await self._matching_directories(head):
            await self._match(directory, name, take)
        return list(found)

    async def _match(self, directory: str, name: str, take: Callable[[Match], None]) -> None:
        self.directories.add(directory)

        def take_batch(batch: object) -> None:
            assert isinstance(batch, list)
            for path, resolved, mode, owner, (device, inode) in batch:
                take(Match(path, resolved, mode, owner, (device, inode)))

        try:
            await self._ask(["match", directory, name], take_batch, -1)
        except (ControlError, OSError):
            self.unseen.add(directory)

    def _take(self, match: Match) -> None:
        if not stat.S_ISSOCK(match.mode):
            if len(self.others) < MOST_OTHERS:
                self.others.add(match.path)
            return
        resolved, user = match.resolved, match.owner
        socket = Socket(match.path, match.identity, user)
        if resolved in self.found:
            if match.path == resolved:
                # Prefer the socket's own path: a symbolic link to it may be changed by its maker.
                self.found[resolved] = socket
            return
        known = self._known.get(resolved)
        room = len(self.found) < MOST_SOCKETS and self._counts.sockets[user] < MOST_OF_ONE_USER
        if known is None and not room:
            return
        if (known is None or known.identity != match.identity) and not self._admits(user):
            self.left_out = True
            if known is None:
                return
            # Keep the known socket, so that nothing connects to the new one.
            socket = known
        self.found[resolved] = socket
        self._counts.sockets[user] += 1

    async def _leave_out(self, path: str) -> None:
        try:
            named, identity = await socket_at(path, self._ask)
        except ControlError:
            named, identity = path, None
        for resolved, found in list(self.found.items()):
            if resolved == named or found.identity == identity:
                del self.found[resolved]
                self.named.add(resolved)


class Searches:
    """Runs searches, one after another.

    Args:
        new: makes a search.
        done: takes each search that is over.

    Attributes:
        shares: how many sockets of each user may be looked at.
    """

    def __init__(self, new: Callable[[], Search], done: Callable[[Search], None]) -> None:
        self.shares = UserShares()
        self._new = new
        self._done = done
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._rests_until_s = 0.0
        self._bell = Bell()

    def begin(self) -> None:
        """Begins a search, or another one when this one is over."""
        self._again = True
        self._bell.ring()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._search())

    def stop(self) -> None:
        """Ends the search that is under way."""
        if self._task is not None:
            self._task.cancel()

    async def _search(self) -> None:
        loop = asyncio.get_running_loop()
        while self._again:
            if (rest_s := self._rests_until_s - loop.time()) > 0:
                await asyncio.sleep(rest_s)
            self._again = False
            search = await self._new().run()
            self._rests_until_s = loop.time() + REST_S * len(search.directories)
            self._done(search)
            if (search.unseen or search.left_out) and not self._again:
                # Search again after a while, without any change of a directory's mtime that would
                # begin a search: a directory that could not be listed may be listed by then, and
                # sockets that were left out may be found.
                await self._bell.wait_until(loop.time() + AGAIN_S)
                self._again = True


async def search_all(patterns: Iterable[str], named: Iterable[str] = ()) -> Search:
    """Runs one search to its end; for a process that serves no VMs."""
    return await Search(patterns, ask_here, named=named).run()


def _directories_above(path: str) -> list[str]:
    """The directories that a path leads through, by its text, the nearest first."""
    found = []
    while (above := os.path.dirname(path)) != path:
        found.append(above)
        path = above
    return found


def nearest_directory(pattern: str) -> str:
    """The directory of a pattern in which no directory's name has a wildcard."""
    directory = os.path.dirname(pattern)
    while glob.has_magic(directory):
        directory = os.path.dirname(directory)
    return directory


def is_matched(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches a pattern, by its text alone."""
    names = path.split("/")
    for pattern in patterns:
        parts = pattern.split("/")
        if len(parts) == len(names) and all(map(_is_name_matched, names, parts)):
            return True
    return False


def _is_name_matched(name: str, pattern: str) -> bool:
    # As of glob(7): a name that begins with a dot needs a pattern that does.
    hidden = name.startswith(".") and not pattern.startswith(".")
    return not hidden and fnmatch.fnmatchcase(name, pattern)


def name_of(path: str, taken: Iterable[str]) -> str:
    """A name for the VM behind a socket: the file's name without its ending, such as ``web`` for
    ``/run/qemu/web.qmp``; the whole path where that name is taken."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return path if not stem or stem in taken else stem
