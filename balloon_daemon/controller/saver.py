"""Keeps one guest in a store, so that another controller can go on with it.

Each descriptor goes in once, under ``<guest>.<number>``; each state goes in as a new sealed
memfd, ``<guest>.state-<serial>``, and replaces the one before it once it is kept: whenever the
controller dies, the newest state in the store is whole, and all that it names is there.

Where a state finds no room, the one before it stays. It is as good as ever while nothing but
numbers has changed, and worse than none once memory or vrings have: the journal, which needs no
room, says from which state on they are true (``Journal.require``).
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from balloon_daemon.balloon_policy import PolicyState
from balloon_daemon.errors import StateFileError
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.room import SHARE, STATE
from balloon_daemon.handover.state import (
    MAX_STATE_BYTES,
    Beginning,
    GuestState,
    SavedMessage,
    decode_state,
)
from balloon_daemon.handover.store import HasFileno, Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import same_open_file
from balloon_daemon.linux.memory import create_memfd, read_sealed
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import Region
from balloon_daemon.vhost_user.replay import (
    Told,
    replay,
    replay_features,
    replay_memory,
    replay_vrings,
)

NO_ROOM_S, LOST_S, BEHIND_S = 5.0, 1.0, 0.1
"""How long not to try again to keep a guest for which the store, or the keeper, has no room."""

SAID_FOR_S = 60.0
"""So long it has to be kept before it is said anew that it is not."""

_VRING = attrgetter("size", "base", "addr", "kick", "call", "err", "enabled", "unusable")
"""All of a vring that ``replay_vrings`` tells."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A guest at one moment, with its descriptors as objects."""

    handled: int
    vm_mem_bytes: int
    policy: PolicyState | None
    backend: Backend
    connection: HasFileno
    life: OwnedFd | None


class _Encoded:
    """What a fresh back-end must hear, encoded anew only where it is another than last time."""

    def __init__(self) -> None:
        self._told: tuple[list[Told], list[Region]] | None = None
        self._memory = Beginning()
        self._vrings: list[object] | None = None
        self._all = Beginning()

    def messages_of(
        self, backend: Backend, saved: Callable[[list[Told]], tuple[SavedMessage, ...]]
    ) -> Beginning:
        """The messages of a back-end.

        Args:
            backend: the back-end.
            saved: numbers their descriptors, and may raise OSError: nothing is remembered then.
        """
        told = replay_features(backend), backend.memory.regions[:]
        vrings: list[object] = [_VRING(vring) for vring in backend.vrings]
        if told != self._told:
            features, regions = told
            self._vrings = None
            self._memory = Beginning(saved(features + replay_memory(regions)))
            self._told = told
        if vrings != self._vrings:
            self._all = Beginning(saved(replay_vrings(backend)), self._memory)
            self._vrings = vrings
        return self._all


class _Numbers:
    """The descriptors of a guest that are in the store, each open file under one number."""

    def __init__(self) -> None:
        # By identity: descriptors are reused as numbers, their owners are not while they are here.
        self._known: dict[int, tuple[HasFileno, int]] = {}
        # By number: a descriptor that comes again must be known as the same even after the first
        # was closed. Whose the first was, closes the copy too: after a while in which nothing was
        # kept it may be the last, as the store lets go of its own when it likes.
        self.kept: dict[int, OwnedFd] = {}
        self._next = 1
        self._settled: tuple[set[int], int] = (set(), 0)

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Knows a descriptor that is in the store already."""
        self._known[id(fd)] = (fd, number)
        self.kept.setdefault(number, _copy_of(fd))
        self._next = max(self._next, number + 1)

    def find(self, fd: HasFileno) -> int | None:
        """The number of a descriptor; None where its file has none yet."""
        known = self._known.get(id(fd))
        if known is not None:
            return known[1]
        for number, kept in self.kept.items():
            # systemd keeps one descriptor of an open file, under the name that came first, and a
            # VMM sends several: one for each region of its memory, and its calls twice.
            if same_open_file(fd.fileno(), kept.fileno()):
                self._known[id(fd)] = (fd, number)
                return number
        return None

    def add(self, fd: HasFileno) -> int:
        """Gives a descriptor the next number. Raises OSError: there is none left for a copy."""
        number, kept = self._next, _copy_of(fd)
        self._next += 1
        self._known[id(fd)], self.kept[number] = (fd, number), kept
        return number

    def drop(self, number: int) -> None:
        """Knows no more of a number, which is not used again."""
        if number in self.kept:
            self.kept.pop(number).close()
        self._known = {key: each for key, each in self._known.items() if each[1] != number}

    def let_go(self, needed: set[int]) -> None:
        """Keeps only what the newest state names."""
        if (needed, len(self._known)) == self._settled:
            return
        for number in self.kept.keys() - needed:
            self.kept.pop(number).close()
        self._known = {
            key: (fd, number)
            for key, (fd, number) in self._known.items()
            if fd.fileno() >= 0 and number in needed
        }
        self._settled = needed, len(self._known)

    def clear(self) -> None:
        """Closes its copies."""
        for fd in self.kept.values():
            fd.close()
        self.kept.clear()
        self._known.clear()


def _copy_of(fd: HasFileno) -> OwnedFd:
    return fd.duplicate() if isinstance(fd, OwnedFd) else OwnedFd(os.dup(fd.fileno()))


class _Again:
    """When to try again to keep a guest that is not kept, and when to say so.

    Attributes:
        save: tries.
    """

    def __init__(self) -> None:
        self.save: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        self._said_at: float | None = None

    @property
    def waits(self) -> bool:
        """Whether it is not to be tried just now."""
        return self._timer is not None

    def later(self, seconds: float) -> bool:
        """Tries some time later. Returns whether it is to be said: not again and again."""
        loop = asyncio.get_running_loop()
        first = self._said_at is None
        self._said_at = loop.time()
        self.soon(seconds)
        return first

    def soon(self, seconds: float) -> None:
        """Tries some time later; nothing is wrong."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._try)

    def kept(self) -> None:
        """It is kept again, as far as is known."""
        if self._said_at is not None:
            now = asyncio.get_running_loop().time()
            self._said_at = None if now - self._said_at > SAID_FOR_S else self._said_at

    def cancel(self) -> None:
        """Tries no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _try(self) -> None:
        self._timer = None
        self.save()


class GuestSaver:
    """What is in the store of one guest.

    Args:
        store: where it is kept.
        name: the guest's.
        journal: of the request in hand; the saver closes it.
    """

    def __init__(self, store: Store, name: str, journal: Journal) -> None:
        self._store = store
        self._name = name
        self.journal = journal
        self._fds = _Numbers()
        self._encoded = _Encoded()
        self._serial = 0
        self._told: tuple[Beginning, int | None] | None = None
        """What the newest state says beside mere numbers."""
        self._true_from = journal.required
        """The oldest state that says it."""
        self.is_kept = False
        """Whether all of it was put into the store when it was last to be."""
        self._losses = 0
        self._resync = False
        self._complaint = ""
        self._again = _Again()
        store.owned(name, self._lost)

    def is_of(self, user: int) -> None:
        """Whose the guest is."""
        self._store.is_of(self._name, user)

    def when_not_kept(self, save: Callable[[], None]) -> None:
        """Has ``save`` called some time after the guest could not be kept."""
        self._again.save = save

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Knows a descriptor that is in the store already."""
        self._fds.adopt(number, fd)

    def adopt_state(self, serial: int) -> None:
        """Knows the newest state in the store."""
        self._serial = serial

    def save(self, snapshot: Snapshot) -> None:
        """Puts the guest as it is now into the store.

        Raises:
            OSError: it is not kept. Raised once for a store without room, and each time for a host
                without. The state of before stays, for as long as it is true of the guest.
        """
        self.is_kept = False
        if self._complaint:
            complaint, self._complaint = self._complaint, ""
            raise OSError(errno.ENOSPC, complaint)
        if self._again.waits:
            # What has changed meanwhile is not looked at.
            self.journal.require(self._serial + 1)
            return
        if self._store.is_behind_with(self._name):
            # Each state that waits takes a descriptor, and only the last one is of use.
            self.journal.require(self._serial + 1)
            self._again.soon(BEHIND_S)
            return
        told = None
        try:
            messages, state = self._state(snapshot)
            told = messages, state.life
            memory = OwnedFd(create_memfd("balloond-state", content=messages.encode(state)))
            try:
                self._put_state(memory, state.fds().union(messages.fds))
            finally:
                memory.close()
        except OSError as err:
            if told is None or told != self._told:
                self.journal.require(self._serial + 1)
            if err.errno != errno.ENOSPC:
                raise
            self._take_out_unused(snapshot)
            if self._again.later(NO_ROOM_S):
                raise
            return
        if told != self._told:
            self._told, self._true_from = told, self._serial
        if self._store.has_all_of(self._name):
            self.journal.require(self._true_from)
        self._again.kept()
        self.is_kept = True

    def _state(self, snapshot: Snapshot) -> tuple[Beginning, GuestState]:
        """The guest's state, all of whose descriptors are in the store by then."""
        new: dict[int, HasFileno] = {}

        def number(fd: HasFileno) -> int:
            found = self._fds.find(fd)
            if found is None:
                fds = len(self._fds.kept) + 1
                if not self._store.room.admits(self._name, fds):
                    capacity = self._store.room.capacity
                    why = f"{fds} descriptors or more are too many for the store"
                    raise OSError(errno.ENOSPC, f"{why} ({capacity:,} in all, {SHARE} for a VM)")
                found = self._fds.add(fd)
                new[found] = fd
            return found

        def saved(told: list[Told]) -> tuple[SavedMessage, ...]:
            return tuple(
                SavedMessage(content, tuple(number(fd) for fd in fds)) for content, fds in told
            )

        backend = snapshot.backend
        try:
            messages = self._encoded.messages_of(backend, saved)
            state = GuestState(
                name=self._name,
                handled=snapshot.handled,
                num_pages=backend.config.num_pages,
                actual=backend.config.actual,
                vm_mem_bytes=snapshot.vm_mem_bytes,
                policy=snapshot.policy,
                connection=number(snapshot.connection),
                journal=number(self.journal.fd),
                life=None if snapshot.life is None else number(snapshot.life),
                messages=(),
            )
            for each in list(new):
                vmm = each == state.connection
                self._store.put(f"{self._name}.{each}", new[each], vmm=vmm)
                del new[each]
        except OSError:
            # Not known as kept, or the next state would name what is not there.
            self._encoded = _Encoded()
            for each in new:
                self._fds.drop(each)
            raise
        return messages, state

    def _take_out_unused(self, snapshot: Snapshot) -> None:
        """Makes room: what the state of before names alone, which is true no more by now."""
        told = [fd for _, fds in replay(snapshot.backend) for fd in fds]
        used = [snapshot.connection, self.journal.fd, *told]
        used += [] if snapshot.life is None else [snapshot.life]
        for number in self._fds.kept.keys() - {self._fds.find(fd) for fd in used}:
            self._store.remove(f"{self._name}.{number}")
            self._fds.drop(number)

    def _put_state(self, memory: OwnedFd, needed: set[int]) -> None:
        numbers = self._fds.kept.keys() - needed
        gone = [f"{self._name}.{number}" for number in sorted(numbers)]
        if self._serial:
            gone.insert(0, f"{self._name}{STATE}{self._serial}")
        stay = [f"{self._name}.{number}" for number in needed] if self._resync else None
        name = f"{self._name}{STATE}{self._serial + 1}"
        self._store.replace(name, memory, gone, losses=self._losses, stay=stay)
        self._serial += 1
        self._resync = False
        self._fds.let_go(needed)

    def _lost(self, name: str, losses: int) -> None:
        """The keeper had no descriptor left for one of this guest's, or for its state."""
        self._losses, self._resync = losses, True
        number = name.rpartition(".")[2]
        if number.isdigit():
            self._fds.drop(int(number))
        self._encoded, self._told = _Encoded(), None
        if self._again.later(LOST_S):
            self._complaint = "what keeps it has no room for a descriptor"
            self._again.save()

    @property
    def has_state(self) -> bool:
        """Whether there is anything in the store for another controller to go on with."""
        return self._serial > 0

    @property
    def store_is_behind(self) -> bool:
        """Whether what can wait should."""
        return self._store.is_behind

    async def drained(self) -> None:
        """Waits until all is in the store. Raises TimeoutError."""
        try:
            await self._store.drained(self._name)
        finally:
            # What its VMM is told next is true of no state of before.
            self.journal.require(self._true_from)

    def forget(self) -> None:
        """Takes everything of this guest out of the store: it is gone."""
        self._store.remove(f"{self._name}{STATE}{self._serial}")
        for number in self._fds.kept:
            self._store.remove(f"{self._name}.{number}")

    def close(self) -> None:
        """Closes what is the saver's; what is in the store stays there."""
        self._store.owned(self._name, None)
        self._store.is_of(self._name, None)
        self._again.cancel()
        self._fds.clear()
        self.journal.close()


@dataclass(frozen=True, slots=True)
class KeptGuest:
    """A guest that another controller left.

    Attributes:
        name: its name.
        serial: of its newest state.
        state: that state; or why it cannot be used.
        fds: its descriptors by number.
    """

    name: str
    serial: int
    state: GuestState | StateFileError
    fds: dict[int, OwnedFd]


def find_guests(store: Store) -> Iterator[KeptGuest]:
    """Takes every guest out of what a store has kept, in the order of their names."""
    names = {name.partition(".")[0] for name in store.kept if "." in name}
    for name in sorted(names, key=lambda name: (len(name), name)):
        fds: dict[int, OwnedFd] = {}
        states: dict[int, OwnedFd] = {}
        for key in [key for key in store.kept if key.startswith(f"{name}.")]:
            fd = store.kept.pop(key)
            kind, _, number = key.rpartition("-") if STATE in key else key.rpartition(".")
            if number.isascii() and number.isdigit():
                (states if kind == f"{name}{STATE[:-1]}" else fds)[int(number)] = fd
            else:
                store.remove(key)
        newest = max(states, default=0)
        state = _decode(name, states.get(newest), fds)
        for serial, fd in states.items():
            fd.close()
            if serial != newest:
                store.remove(f"{name}{STATE}{serial}")
        yield KeptGuest(name, newest, state, fds)


def discard(store: Store, guest: KeptGuest) -> None:
    """Closes a guest that cannot be gone on with: its VMM sees its connection end."""
    store.remove(f"{guest.name}{STATE}{guest.serial}")
    for number, fd in guest.fds.items():
        store.remove(f"{guest.name}.{number}")
        fd.close()


def _decode(
    name: str, memory: OwnedFd | None, fds: dict[int, OwnedFd]
) -> GuestState | StateFileError:
    if memory is None:
        return StateFileError("is not there")
    try:
        state = decode_state(read_sealed(memory.fileno(), MAX_STATE_BYTES))
    except (OSError, ValueError) as err:
        return StateFileError(f"cannot be read: {err}")
    except StateFileError as err:
        return err
    missing = state.fds() - fds.keys()
    if missing:
        return StateFileError(f"names {len(missing)} descriptors that were not kept")
    return state if state.name == name else StateFileError(f"is that of {state.name!r}")
