"""The balloons that VMs had before balloond, kept in a file for the next balloond.

Runs in the controller. A VM's *base* is the balloon that it had when balloond first changed it,
such as the one that libvirt's ``currentMemory`` makes. balloond gives back only what it took
beyond the base, even where a balloond was killed in between: so the base is written to the file
before the VM's first target is sent.

An entry is valid for one process of a VMM (its id and its start time): a VM that was started anew
has another balloon. Only a VM that was saved and restored has the same balloon in the next
process: if the VMM tells that it has restored the VM, the entry moves to that process. A file that
is missing, truncated or corrupt counts as empty, and a VM without an entry keeps the balloon that
it has.

An entry is not found by its VM's name alone: a VM that a pattern finds has the name of its
socket's file, or the whole path if another VM has that name already, so whoever makes a socket
where a pattern looks may have the VM's name under the next balloond. The name and address that are
stored with an entry (``Place``) tell the next balloond only where to connect, if its configuration
does not have the VM any more.
"""

import contextlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from time import monotonic

from balloon_daemon.config.vms import Kind
from balloon_daemon.errors import printable
from balloon_daemon.events import BasesNotStored, BasesPathTaken, Event, Publish
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import MIB, MOST_MEMORY_BYTES

_VERSION = 1
_MOST_BYTES = 8 * MIB
"""A larger file was not written by balloond. An entry without its ``Place`` has some 60 bytes, and
at most 840: its key has at most ``MOST_LETTERS`` letters, each at most 12 bytes of JSON. Its
``Place`` has ``_MOST_PLACE`` bytes at most."""

_MOST_PLACE = 512
"""How many bytes a VM's ``Place`` has at most in the file; a longer ``Place`` is not stored."""

MOST_LETTERS = 64
"""How many letters a VM's ``BaseKey`` has at most; a UUID has 36."""

_MOST_ENTRIES, _AT_ONCE = 4096, 256
"""The most entries, and how many are dropped together when there are more: it takes some
milliseconds to find out which ones to drop, so that is not done for each new entry."""

AGAIN_AFTER_S = 5.0
"""After a failure ``store`` writes the file again, without a change, once so many seconds have
passed: each VM that gets a target calls ``store``, and thousands of entries take milliseconds."""


SOON_S = 1.0
"""``store_soon`` writes the file at most once in so many seconds: a user may have thousands of VMs
whose entries change one after another."""


class BaseKey(NamedTuple):
    """Identifies a VM for as long as its VMM's process lives.

    Attributes:
        name: its UUID where that is known, and its VMM tells whether the VM was restored or the
            VMM's process is known; else the device and inode numbers of its VMM's socket; else the
            VM's name.
        pid: its VMM's process; 0: unknown.
        start_time: when that process started, in clock ticks since boot; 0: unknown.
    """

    name: str
    pid: int
    start_time: int


class Place(NamedTuple):
    """Where balloond was connected to a VM when it changed the VM's balloon.

    Attributes:
        kind: how its balloon is reached.
        name: its name; that of one of libvirt's domains is also the domain's name at libvirt.
        address: the path of its VMM's socket, as the configuration names it or as it matches a
            pattern; for libvirt a connection URI.
    """

    kind: Kind
    name: str
    address: str


def base_keys(
    name: str, socket: SocketId | None, vm_uuid: str, pid: int, start_time: int, *, saves: bool
) -> list[BaseKey]:
    """A VM's key, followed by the keys under which another balloond may have noted the VM: an
    earlier version, or a balloond that was not allowed to look at the VMM's process.

    Args:
        name: the VM's name.
        socket: its VMM's socket; None: unknown.
        vm_uuid: the VM's UUID; "": unknown.
        pid: its VMM's process; 0: unknown.
        start_time: as in ``BaseKey``.
        saves: whether its VMM tells whether the VM was restored: the UUID then identifies the VM
            even where the process is not known.
    """
    # Prefer the UUID to the socket: a VM may have several sockets, and the next balloond may drive
    # it by another one of them. A process's id alone would not do: one process may run several
    # VMs, each with a socket of its own.
    names = [vm_uuid] if vm_uuid and (saves or start_time) else []
    if socket is not None:
        names.append(f"{socket[0]}:{socket[1]}")
    keys = [BaseKey(each[:MOST_LETTERS], pid, start_time) for each in (*names, name)]
    return keys + [BaseKey(each[:MOST_LETTERS], 0, 0) for each in names if pid]


class Bases:
    """The bases (the balloons from before balloond) of all VMs whose balloon balloond has changed.

    Args:
        path: the file.
        publish: takes events.
        clock: gives seconds.
    """

    def __init__(
        self, path: Path, publish: Publish, clock: Callable[[], float] = monotonic
    ) -> None:
        self._path = path
        self._publish = publish
        self._clock = clock
        self.others: list[Bases] = []
        """The ``Bases`` of other kinds of VMs, each with a file of its own: a VM that is driven by
        its QEMU's monitor now, and was driven by libvirt before, has its entry there."""
        self._users: dict[BaseKey, int] = {}
        """The user id of each VMM's process, as far as it is known."""
        self._places: dict[BaseKey, list[str]] = {}
        """Where balloond was connected to each VM, as far as it is known, as the file has it
        (``_row_of``)."""
        self._bases = _read(path, self._users, self._places)
        self._held: Counter[BaseKey] = Counter()
        self._changed = False
        """Whether an entry has changed since ``store`` last tried to write the file."""
        self._stored_at_s = -math.inf
        """When ``store`` last tried to write the file."""
        self._again_at_s = math.inf
        """When ``store`` tries again without a change; infinity: it has not failed."""

    def get(self, key: BaseKey) -> int | None:
        """The VM's base, in bytes of balloon; None: balloond has not changed its balloon."""
        return self._bases.get(key)

    def hold(self, key: BaseKey, user: int = -1) -> None:
        """Notes that a VM is driven from now on, so that its entry is not dropped before
        ``release``.

        Args:
            key: the VM.
            user: the user of its VMM's process; -1: unknown.
        """
        self._held[key] += 1
        self._users[key] = user

    def reached(self, key: BaseKey, place: Place) -> None:
        """Notes where balloond is connected to a VM that it drives. ``store_soon`` writes that to
        the file."""
        # Made here and not by ``store``, which the event loop waits for: of thousands of places
        # that takes some milliseconds.
        row = _row_of(place)
        if row is not None and self._places.get(key) != row:
            self._places[key] = row
            # An earlier version has noted the VM without its place, or the configuration has
            # changed.
            self._changed |= key in self._bases

    def places(self) -> list[Place]:
        """Where balloond was connected to the VMs that have entries; VMs whose process is gone are
        left out."""
        kept = [key for key in self._bases if not key.pid or _exists(key.pid)]
        found = [_place(self._places[key]) for key in kept if key in self._places]
        return [place for place in found if place is not None]

    def release(self, key: BaseKey) -> None:
        """Notes that a VM is driven no more. Its entry stays, as it may be driven again."""
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self._forget_user(key)

    def note(self, key: BaseKey, base_bytes: int) -> None:
        """Notes a VM's base, the balloon from before balloond; ``store`` writes it to the file."""
        self._bases[key] = base_bytes
        self._changed = True
        if len(self._bases) > _MOST_ENTRIES:
            self._drop()

    def know(self, key: BaseKey, earlier: Iterable[BaseKey]) -> BaseKey:
        """Gives a VM's entry the key ``key``, if the entry was noted under one of ``earlier``, or
        under ``key`` in one of ``others`` (if the VMM's process is known).

        Args:
            key: the VM's key.
            earlier: the other keys that ``base_keys`` returns.

        Returns:
            The key under which the entry was noted; ``key`` where there is no entry.
        """
        if key in self._bases:
            return key
        for other in earlier:
            if other in self._bases and other not in self._held:
                self.note(key, self._bases.pop(other))
                self._forget_user(other)
                return other
        if key.start_time:
            self._take_from_others(key)
        return key

    def _take_from_others(self, key: BaseKey) -> None:
        for bases in self.others:
            if (base_bytes := bases.get(key)) is not None and key not in bases._held:
                self.note(key, base_bytes)
                self.store()
                if self._again_at_s == math.inf:  # The entry is in this file now.
                    bases.forget(key)
                    bases.store()
                return

    def forget(self, key: BaseKey) -> None:
        """Forgets a VM's base, because balloond has given back all that it took."""
        self._changed |= self._bases.pop(key, None) is not None
        self._forget_user(key)

    def _forget_user(self, key: BaseKey) -> None:
        if key not in self._bases and key not in self._held:
            self._users.pop(key, None)
            self._places.pop(key, None)

    def _drop(self) -> None:
        """Drops entries of VMs that are not driven now: first those whose process is gone, then
        those of the users with the most entries; of several the oldest first."""
        over = len(self._bases) - _MOST_ENTRIES + _AT_ONCE
        # Check only whether a process of this number exists. To tell whether it is still the same
        # process, its start time would be needed, and the event loop might have to wait for that
        # file.
        gone = (key for key in self._free() if key.pid and not _exists(key.pid))
        dropped = set(islice(gone, over))
        if len(dropped) < over:
            left = (key for key in self._of_users_with_most() if key not in dropped)
            dropped |= set(islice(left, over - len(dropped)))
        for key in dropped:
            del self._bases[key]
            self._forget_user(key)

    def _of_users_with_most(self) -> list[BaseKey]:
        counts: Counter[int] = Counter()
        ranks: dict[BaseKey, int] = {}
        for key in reversed(list(self._free())):
            user = self._users.get(key, -1)
            counts[user] += 1
            ranks[key] = counts[user]
        return sorted(ranks, key=ranks.__getitem__, reverse=True)

    def _free(self) -> Iterator[BaseKey]:
        return (key for key in self._bases if key not in self._held)

    def move(self, key: BaseKey, user: int, *, restored: bool) -> None:
        """Moves or forgets the entry that belongs to the VM's earlier process.

        Args:
            key: the VM and its present process, which gets the entry if the VM was restored.
            user: the user of that process; -1: unknown.
            restored: False: the VM was started anew, and the entry is forgotten.
        """
        # Users of two libvirts may give their domains one UUID. So an entry that is held is not
        # taken, as it is another VM's that is driven now, nor an entry of another user's process:
        # that VM may only not have been found yet by this balloond.
        earlier = [
            each
            for each in self._bases
            if each.name == key.name
            and each != key
            and each not in self._held
            and self._users.get(each, -1) in (-1, user)
        ]
        moved = [self._bases.pop(each) for each in earlier]
        self._changed |= bool(moved)
        for each in earlier:
            self._forget_user(each)
        if restored and moved and key not in self._bases:
            self.note(key, moved[-1])

    def store(self, *, last: bool = False) -> None:
        """Writes the file, if an entry has changed, or if the last try has failed some time ago.

        A failure is published once; the entries stay in memory.

        Args:
            last: True: nobody calls this again, so try even if the last try has just failed.
        """
        failed = self._again_at_s < math.inf
        if not self._changed and not (failed and (last or self._clock() >= self._again_at_s)):
            return
        self._changed, self._again_at_s = False, math.inf
        self._stored_at_s = self._clock()
        rows = [[*key, base_bytes] for key, base_bytes in self._bases.items()]
        users = [self._users.get(key, -1) for key in self._bases]
        places = [self._places.get(key) for key in self._bases]
        stored = {"version": _VERSION, "bases": rows, "users": users, "places": places}
        content = json.dumps(stored).encode()
        try:
            if _is_taken(self._path):
                self._not_stored(BasesPathTaken(printable(str(self._path))), quiet=failed)
            elif rows:
                _write(self._path, content)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as err:
            self._not_stored(BasesNotStored(err.strerror or str(err)), quiet=failed)

    def store_soon(self) -> None:
        """Writes the file if an entry has changed, and the last write was at least ``SOON_S`` ago;
        to be called again and again.

        The entry of a VM that has got all back must not stay in the file: if somebody else
        inflates the VM's balloon later, the next balloond would take that balloon for memory that
        balloond has taken, and deflate it to the base.
        """
        if self._changed and self._clock() - self._stored_at_s >= SOON_S:
            self.store()

    def _not_stored(self, why: Event, *, quiet: bool) -> None:
        self._again_at_s = self._clock() + AGAIN_AFTER_S
        if not quiet:
            self._publish(why)


def _is_taken(path: Path) -> bool:
    """Whether something else than a regular file is at the path. An administrator may have put a
    directory, a link or a FIFO there; rename(2) to the path, or unlink(2), would remove the link
    or the FIFO.

    Raises:
        OSError: the kernel's reason why that cannot be told.
    """
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _write(path: Path, content: bytes) -> None:
    """Replaces the file in one step, so that no balloond ever finds half of it."""
    new = path.with_name(path.name + ".new")
    # Others may be able to write to the directory: remove a link of theirs instead of writing to
    # the file that the link names. O_EXCL fails if they have made another link since.
    with contextlib.suppress(FileNotFoundError):
        new.unlink()
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()  # A part of the file would take room on a disk that is full.
        raise
    finally:
        os.close(fd)


def _exists(pid: int) -> bool:
    """Whether there is a process of this number; looks nothing up in /proc."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # EPERM: it is another user's process.
    return True


def _row_of(place: Place) -> list[str] | None:
    """A ``Place`` as the file has it; None: it is longer than ``_MOST_PLACE``."""
    row = [place.kind.value, place.name, place.address]
    return row if len(json.dumps(row)) <= _MOST_PLACE else None


def _place(row: object) -> Place | None:
    match row:
        case [str(kind), str(name), str(address)] if kind in _KINDS:
            return Place(_KINDS[kind], name, address)
    return None


_KINDS = {kind.value: kind for kind in Kind}


def _read(
    path: Path, users: dict[BaseKey, int], places: dict[BaseKey, list[str]]
) -> dict[BaseKey, int]:
    """The file's entries; no entries where any part of the file is wrong.

    Args:
        path: the file.
        users: gets the users of VMMs' processes. Files of earlier versions do not have them.
        places: gets where balloond was connected to the VMs. Files of earlier versions do not have
            these either.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        status = os.fstat(fd)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or status.st_size > _MOST_BYTES:
            return {}
        content = json.loads(os.read(fd, _MOST_BYTES))
        if content["version"] != _VERSION:
            return {}
        entries = [_entry(row) for row in content["bases"]]
        found = zip(entries, content.get("users", ()), strict=False)
        users.update({key: user for (key, _), user in found if type(user) is int})
        rows = zip(entries, content.get("places", ()), strict=False)
        known = [(key, _place(row)) for (key, _), row in rows]
        stored = {key: _row_of(place) for key, place in known if place is not None}
        places.update({key: row for key, row in stored.items() if row is not None})
        return dict(entries)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    finally:
        os.close(fd)


def _entry(row: object) -> tuple[BaseKey, int]:
    """An entry of the file. Raises ValueError: the row is no entry."""
    match row:
        case [str(name), int(pid), int(start_time), int(base_bytes)] if (
            bool not in map(type, row)
            and min(pid, start_time, base_bytes) >= 0
            and base_bytes <= MOST_MEMORY_BYTES
        ):
            return BaseKey(name, pid, start_time), base_bytes
    raise ValueError(row)
