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
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from balloon_daemon.guests.jailed.kept_fds import KeptFds
from balloon_daemon.handover.journal import Journal, NoJournal, RequestJournal
from balloon_daemon.handover.keys import FdKey, StateKey, group_of, parse_key
from balloon_daemon.handover.room import SHARE
from balloon_daemon.handover.state import (
    EncodedMessages,
    GuestState,
    JailedGuest,
    SavedMessage,
    VmRow,
)
from balloon_daemon.handover.store import HasFileno, Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.units import VmId
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

SAVE_SOON_S = 0.05
"""How long a change that heals with the next one may wait: ``actual`` changes with each buffer."""

SAID_FOR_S = 60.0
"""So long it has to be kept before it is said anew that it is not."""

_VRING = attrgetter("size", "base", "addr", "kick", "call", "err", "enabled", "unusable")
"""All of a vring that ``replay_vrings`` tells."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A guest at one moment, with its descriptors as objects."""

    handled: int
    row: VmRow | None
    backend: Backend
    connection: HasFileno
    stderr_pipe: OwnedFd | None


class _Encoded:
    """What a fresh back-end must hear, encoded anew only where it is another than last time."""

    def __init__(self) -> None:
        self._told: tuple[list[Told], list[Region]] | None = None
        self._memory = EncodedMessages()
        self._vrings: list[object] | None = None
        self._all = EncodedMessages()

    def messages_of(
        self, backend: Backend, saved: Callable[[list[Told]], tuple[SavedMessage, ...]]
    ) -> EncodedMessages:
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
            self._memory = EncodedMessages(saved(features + replay_memory(regions)))
            self._told = told
        if vrings != self._vrings:
            self._all = EncodedMessages(saved(replay_vrings(backend)), self._memory)
            self._vrings = vrings
        return self._all


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


class Saver(Protocol):
    """Keeps a guest in a store.

    Attributes:
        journal: of the request in hand.
    """

    @property
    def journal(self) -> RequestJournal: ...

    def when_not_kept(self, save: Callable[[], None]) -> None:
        """Has ``save`` called whenever the guest is to be saved again by itself."""

    def save(self, snapshot: Snapshot) -> None:
        """Puts the guest as it is now into the store.

        Raises:
            OSError: it is not kept. Raised once for a store without room, and each time for a host
                without. The state of before stays, for as long as it is true of the guest.
        """

    def save_soon(self) -> None:
        """Has the guest saved a little later, with all that changes until then."""

    async def drained(self) -> None:
        """Waits until all is in the store. Raises TimeoutError."""

    def forget(self) -> None:
        """Takes everything of this guest out of the store: it is gone."""

    def close(self) -> None:
        """Closes what is the saver's; what is in the store stays there."""


class NullSaver:
    """Keeps nothing of a guest, whose balloon ends with this controller."""

    def __init__(self) -> None:
        self.journal = NoJournal()

    def when_not_kept(self, save: Callable[[], None]) -> None:
        pass

    def save(self, snapshot: Snapshot) -> None:
        pass

    def save_soon(self) -> None:
        pass

    async def drained(self) -> None:
        pass

    def forget(self) -> None:
        pass

    def close(self) -> None:
        pass


def new_saver(store: Store, vm: VmId) -> Saver:
    """A saver of a guest that is new.

    Raises:
        OSError: there is no descriptor or memory left for its journal.
    """
    if not store.keeps:
        return NullSaver()
    return GuestSaver(store, vm, Journal.create(f"balloond-{vm}"))


class GuestSaver:
    """What is in the store of one guest.

    Args:
        store: where it is kept.
        vm: which guest it is.
        journal: of the request in hand; the saver closes it.
    """

    def __init__(self, store: Store, vm: VmId, journal: Journal) -> None:
        self._store = store
        self._vm = vm
        self._group = group_of(vm.number)
        self.journal = journal
        self._fds = KeptFds()
        self._encoded = _Encoded()
        self._serial = 0
        self._told: tuple[EncodedMessages, int | None] | None = None
        """What the newest state says beside mere numbers."""
        self._true_from = journal.required
        """The oldest state that says it."""
        self._losses = 0
        self._resync = False
        self._complaint = ""
        self._again = _Again()
        self._soon: asyncio.TimerHandle | None = None
        store.on_loss(self._group, self._lost)

    def when_not_kept(self, save: Callable[[], None]) -> None:
        self._again.save = save

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Knows a descriptor that is in the store already."""
        self._fds.adopt(number, fd)

    def adopt_state(self, serial: int) -> None:
        """Knows the newest state in the store."""
        self._serial = serial

    def save(self, snapshot: Snapshot) -> None:
        self._cancel_soon()
        if self._complaint:
            complaint, self._complaint = self._complaint, ""
            raise OSError(errno.ENOSPC, complaint)
        if self._again.waits:
            # What has changed meanwhile is not looked at.
            self.journal.require(self._serial + 1)
            return
        if self._store.is_behind_with(self._group):
            # Each state that waits takes a descriptor, and only the last one is of use.
            self.journal.require(self._serial + 1)
            self._again.soon(BEHIND_S)
            return
        told = None
        try:
            messages, state = self._state(snapshot)
            told = messages, state.jailed.stderr_pipe
            memory = OwnedFd(create_memfd("balloond-state", content=messages.encode(state)))
            try:
                self._put_state(memory, state.jailed.fds().union(messages.fds))
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
        if self._store.has_all:
            self.journal.require(self._true_from)
        self._again.kept()

    def _state(self, snapshot: Snapshot) -> tuple[EncodedMessages, GuestState]:
        """The guest's state, all of whose descriptors are in the store by then."""
        new: dict[int, HasFileno] = {}

        def number(fd: HasFileno) -> int:
            found = self._fds.find(fd)
            if found is None:
                fds = len(self._fds.kept) + 1
                if not self._store.room.admits(self._group, fds):
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
            pipe = snapshot.stderr_pipe
            jailed = JailedGuest(
                handled=snapshot.handled,
                num_pages=backend.config.num_pages,
                actual=backend.config.actual,
                connection=number(snapshot.connection),
                journal=number(self.journal.fd),
                stderr_pipe=None if pipe is None else number(pipe),
                messages=(),
            )
            for each in list(new):
                self._store.put(self._fd_name(each), new[each], vmm=each == jailed.connection)
                del new[each]
        except OSError:
            # Not known as kept, or the next state would name what is not there.
            self._encoded = _Encoded()
            for each in new:
                self._fds.drop(each)
            raise
        return messages, GuestState(self._vm, snapshot.row, jailed)

    def _take_out_unused(self, snapshot: Snapshot) -> None:
        """Makes room: what the state of before names alone, which is true no more by now."""
        told = [fd for _, fds in replay(snapshot.backend) for fd in fds]
        used = [snapshot.connection, self.journal.fd, *told]
        used += [] if snapshot.stderr_pipe is None else [snapshot.stderr_pipe]
        for number in self._fds.kept.keys() - {self._fds.find(fd) for fd in used}:
            self._store.remove(self._fd_name(number))
            self._fds.drop(number)

    def _put_state(self, memory: OwnedFd, needed: set[int]) -> None:
        numbers = self._fds.kept.keys() - needed
        gone = [self._fd_name(number) for number in sorted(numbers)]
        if self._serial:
            gone.insert(0, self._state_name(self._serial))
        stay = [self._fd_name(number) for number in needed] if self._resync else None
        name = self._state_name(self._serial + 1)
        self._store.replace(name, memory, gone, losses=self._losses, stay=stay)
        self._serial += 1
        self._resync = False
        self._fds.let_go(needed)

    def _lost(self, name: str, losses: int) -> None:
        """The keeper had no descriptor left for one of this guest's, or for its state."""
        self._losses, self._resync = losses, True
        key = parse_key(name)
        if isinstance(key, FdKey):
            self._fds.drop(key.fd_number)
        self._encoded, self._told = _Encoded(), None
        if self._again.later(LOST_S):
            self._complaint = "what keeps it has no room for a descriptor"
            self._again.save()

    def save_soon(self) -> None:
        if self._soon is None:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(SAVE_SOON_S, self._save_late)

    def _save_late(self) -> None:
        self._soon = None
        if self._store.is_behind:
            # The store has more important things to take, and the next state says the same.
            self.save_soon()
        else:
            self._again.save()

    def _cancel_soon(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    async def drained(self) -> None:
        try:
            await self._store.drained()
        finally:
            # What its VMM is told next is true of no state of before.
            self.journal.require(self._true_from)

    def forget(self) -> None:
        self._store.remove(self._state_name(self._serial))
        for number in self._fds.kept:
            self._store.remove(self._fd_name(number))

    def close(self) -> None:
        self._cancel_soon()
        self._store.on_loss(self._group, None)
        self._again.cancel()
        self._fds.clear()
        self.journal.close()

    def _fd_name(self, number: int) -> str:
        return str(FdKey(self._vm.number, number))

    def _state_name(self, serial: int) -> str:
        return str(StateKey(self._vm.number, serial))
