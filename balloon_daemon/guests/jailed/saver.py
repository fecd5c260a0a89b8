"""Puts one guest into a store (systemd's, or a keeper process), for another controller to go on.

Each descriptor is stored once, under its number (``keys.FdKey``). Each state is stored as a new
sealed memfd, under its serial number (``keys.StateKey``), and then replaces the state before it:
so whenever the controller dies, the newest state in the store is complete, and the store has all
descriptors that it names.

If there is no room for a state, the state before it stays. That state is still usable while only
numbers have changed since, and must not be used once memory or vrings have changed. The journal,
which needs no room in the store, says from which serial number on states are valid
(``Journal.require``).
"""

import contextlib
import errno
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol

from balloon_daemon.guests.jailed.kept_fds import KeptFds
from balloon_daemon.guests.jailed.save_schedule import SaveSchedule
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.journal import Journal, NoJournal, RequestJournal
from balloon_daemon.handover.keys import FdKey, StateKey, group_of, parse_key
from balloon_daemon.handover.room import SHARE
from balloon_daemon.handover.state import (
    EncodedMessages,
    GuestState,
    JailedGuest,
    SavedMessage,
)
from balloon_daemon.handover.store import HasFileno, Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import Region
from balloon_daemon.vhost_user.replay import (
    ReplayMessage,
    replay,
    replay_features,
    replay_memory,
    replay_vrings,
)

NO_ROOM_S, LOST_S, BEHIND_S = 5.0, 1.0, 0.1
"""After how long a guest is saved again: when the store had no room for it, when the keeper has
lost one of its descriptors, and when many of its messages are still queued."""

_VRING = attrgetter("size", "base", "addr", "kick", "call", "err", "enabled", "unusable")
"""All fields of a vring that ``replay_vrings`` encodes."""


class Snapshot(NamedTuple):
    """A guest's state at one moment, with its descriptors as objects."""

    handled: int
    row: VmRow | None
    backend: Backend
    connection: HasFileno
    stderr_pipe: OwnedFd | None


class _ReplayCache:
    """A back-end's encoded messages; only those that have changed are encoded anew."""

    def __init__(self) -> None:
        self._features: list[ReplayMessage] | None = None
        self._regions: list[Region] = []
        self._memory = EncodedMessages()
        """The encoded messages of ``_features`` and ``_regions``."""
        self._vrings_key: list[object] | None = None
        self._all = EncodedMessages()

    def messages_of(
        self,
        backend: Backend,
        numbered: Callable[[list[ReplayMessage]], tuple[SavedMessage, ...]],
    ) -> EncodedMessages:
        """The messages that bring a fresh back-end to the state of ``backend``.

        Args:
            backend: the back-end.
            numbered: numbers the messages' descriptors; may raise OSError, and then nothing is
                cached.
        """
        features, regions = replay_features(backend), backend.memory.regions[:]
        known = len(self._regions)
        if features != self._features or regions[:known] != self._regions:
            self._features = self._vrings_key = None
            self._memory = EncodedMessages(numbered(features + replay_memory(regions)))
            self._features, self._regions = features, regions
        elif len(regions) > known:
            # A VMM adds its regions one by one (ADD_MEM_REG), and the guest is saved after each
            # region: encode only the added regions.
            self._vrings_key = None
            added = EncodedMessages(numbered(replay_memory(regions[known:])), self._memory)
            self._memory, self._regions = added, regions
        vrings_key: list[object] = [_VRING(vring) for vring in backend.vrings]
        if vrings_key != self._vrings_key:
            self._all = EncodedMessages(numbered(replay_vrings(backend)), self._memory)
            self._vrings_key = vrings_key
        return self._all


class Saver(Protocol):
    """Puts a guest's state, with its descriptors, into a store for another controller.

    Attributes:
        journal: the journal of the request in hand.
        is_kept: whether the last ``save`` has put all of the guest into the store.
    """

    is_kept: bool

    @property
    def journal(self) -> RequestJournal: ...

    @property
    def has_state(self) -> bool:
        """Whether the store has a state."""

    @property
    def has_valid_state(self) -> bool:
        """Whether the store has a state with which another controller can go on."""

    def set_user(self, user: int, charge: Callable[[float], float]) -> None:
        """Sets the user who runs the guest's VMM (``Store.set_user``).

        Args:
            user: the user's id.
            charge: charges the user for the time that ``save_soon`` takes
                (``Peer.charge_saving``).
        """

    def when_not_kept(self, save: Callable[[], object]) -> None:
        """Calls ``save`` whenever the guest has to be saved again although it has not changed."""

    def save(self, snapshot: Snapshot) -> None:
        """Puts the guest's present state into the store.

        Raises:
            OSError: the state was not stored. Raised once for a store without room, and each time
                for a host without memory or descriptors. The state that was stored last stays in
                the store while it is valid.
        """

    def save_soon(self) -> None:
        """Saves the guest a little later, with all changes until then."""

    async def drained(self) -> None:
        """Waits until all messages have been sent to the store. Raises TimeoutError."""

    def forget(self) -> None:
        """Removes all of this guest from the store, because it is gone."""

    def close(self) -> None:
        """Closes the saver's own descriptors; the store's content stays."""


class NullSaver:
    """Keeps nothing of a guest, whose balloon ends with this controller."""

    is_kept = has_state = has_valid_state = False

    def __init__(self) -> None:
        self.journal = NoJournal()

    def set_user(self, user: int, charge: Callable[[float], float]) -> None:
        pass

    def when_not_kept(self, save: Callable[[], object]) -> None:
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
    """A saver for a new guest.

    Raises:
        OSError: no descriptor or memory is free for its journal.
    """
    if not store.keeps:
        return NullSaver()
    return GuestSaver(store, vm, Journal.create(f"balloond-{vm}"))


class GuestSaver:
    """Puts one guest's state and descriptors into a store, and knows which descriptors are there.

    Args:
        store: the store.
        vm: the guest's VM.
        journal: the journal of the request in hand; the saver closes it.
    """

    def __init__(self, store: Store, vm: VmId, journal: Journal) -> None:
        self._store = store
        self._vm = vm
        self.journal = journal
        self._fds = KeptFds()
        self._replay = _ReplayCache()
        self._schedule = SaveSchedule()
        self.is_kept = False
        self._serial = 0
        """The serial number of the newest state in the store."""
        self._contents: tuple[EncodedMessages, int | None] | None = None
        """The newest state's messages and stderr pipe. The rest of a state is only numbers, and an
        earlier state is still usable after a change of those."""
        self._valid_from = journal.required
        """The serial number of the oldest state with the same ``_contents``."""
        self._losses, self._is_store_known = 0, True
        """How many descriptors of this guest the keeper has lost; and whether it is known which
        descriptors the keeper has: after a loss not until the next state is stored."""
        store.on_loss(self._group, self._lost)

    @property
    def _group(self) -> str:
        return group_of(self._vm.number)

    @property
    def has_state(self) -> bool:
        return self._serial > 0

    @property
    def has_valid_state(self) -> bool:
        return self.has_state and self.journal.required <= self._serial

    def set_user(self, user: int, charge: Callable[[float], float]) -> None:
        self._schedule.user, self._schedule.charge = user, charge
        self._store.set_user(self._group, user)

    def when_not_kept(self, save: Callable[[], object]) -> None:
        self._schedule.save = save

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Notes a descriptor that is in the store already."""
        self._fds.adopt(number, fd)

    def adopt_state(self, serial: int) -> None:
        """Notes the newest state in the store."""
        self._serial = serial

    def save(self, snapshot: Snapshot) -> None:
        self._schedule.cancel_soon()
        self.is_kept = False
        if self._schedule.complaint:
            complaint, self._schedule.complaint = self._schedule.complaint, ""
            raise OSError(errno.ENOSPC, complaint)
        if self._schedule.is_waiting:
            # An earlier save has failed, and a timer will try again. Until then the guest's memory
            # or vrings may change without a state in the store that includes the change. Have the
            # journal declare the stored state and all earlier states invalid.
            self.journal.require(self._serial + 1)
            return
        if self._store.is_behind_with(self._group):
            # The store has not received this guest's earlier messages yet: save later. Only the
            # last state is useful, and each state that waits in the queue occupies a descriptor.
            self.journal.require(self._serial + 1)
            self._schedule.retry(BEHIND_S)
            return
        contents = None
        try:
            messages, state = self._state(snapshot)
            contents = messages, state.jailed.stderr_pipe
            memory = OwnedFd(create_memfd("balloond-state", content=messages.encode(state)))
            try:
                self._put_state(memory, state.jailed.fds().union(messages.fds))
            finally:
                memory.close()
        except OSError as err:
            if contents is None or contents != self._contents:
                self.journal.require(self._serial + 1)
            if err.errno != errno.ENOSPC:
                raise
            self._take_out_unused(snapshot)
            if self._schedule.retry_and_complain(NO_ROOM_S):
                raise
            return
        if contents != self._contents:
            self._contents, self._valid_from = contents, self._serial
        if self._store.has_all_of(self._group):
            self.journal.require(self._valid_from)
        self._schedule.kept()
        self.is_kept = True

    def _state(self, snapshot: Snapshot) -> tuple[EncodedMessages, GuestState]:
        """The guest's state; puts all of its descriptors into the store first."""
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

        def numbered(messages: list[ReplayMessage]) -> tuple[SavedMessage, ...]:
            return tuple(
                SavedMessage(content, tuple(number(fd) for fd in fds)) for content, fds in messages
            )

        backend = snapshot.backend
        try:
            messages = self._replay.messages_of(backend, numbered)
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
            # What is left in ``new`` was not stored. Forget its numbers, and the cached messages
            # that contain them, so that the next state names no descriptor that the store lacks.
            self._replay = _ReplayCache()
            for each in new:
                self._fds.drop(each)
            raise
        return messages, GuestState(self._vm, snapshot.row, jailed)

    def _take_out_unused(self, snapshot: Snapshot) -> None:
        """Makes room: removes from the store the descriptors that the guest no longer uses. Only
        the stored state, by now invalid, names them."""
        replayed = [fd for _, fds in replay(snapshot.backend) for fd in fds]
        used = [snapshot.connection, self.journal.fd, *replayed]
        used += [] if snapshot.stderr_pipe is None else [snapshot.stderr_pipe]
        for number in self._fds.kept.keys() - {self._fds.find(fd) for fd in used}:
            self._store.remove(self._fd_name(number))
            self._fds.drop(number)

    def _put_state(self, memory: OwnedFd, needed: set[int]) -> None:
        """Stores a state, and removes descriptors that no state names any more."""
        numbers = self._fds.kept.keys() - needed
        gone = [self._fd_name(number) for number in sorted(numbers)]
        if self._serial:
            gone.insert(0, self._state_name(self._serial))
        stay = None if self._is_store_known else [self._fd_name(number) for number in needed]
        name = self._state_name(self._serial + 1)
        self._store.replace(name, memory, gone, losses=self._losses, stay=stay)
        self._serial += 1
        self._is_store_known = True
        self._fds.keep_only(needed)

    def _lost(self, name: str, losses: int) -> None:
        """Handles a keeper's report that it had no room for a descriptor or the state of this
        guest: puts all of the guest into the store again, after ``LOST_S``."""
        self._losses, self._is_store_known = losses, False
        self.is_kept = False
        key = parse_key(name)
        if isinstance(key, FdKey):
            self._fds.drop(key.fd_number)
        self._replay, self._contents = _ReplayCache(), None
        if self._schedule.retry_and_complain(LOST_S):
            self._schedule.complaint = "what keeps it has no room for a descriptor"
            self._schedule.save()

    def save_soon(self) -> None:
        self._schedule.soon(self._store, self._group)

    async def drained(self) -> None:
        try:
            await self._store.drained(self._group)
        finally:
            # The caller answers the VMM next, and the VMM then relies on its request being in
            # effect. States from before the last change of memory, vrings or device are wrong from
            # now on: have the journal declare them invalid, so that no controller restores them.
            self.journal.require(self._valid_from)

    def forget(self) -> None:
        if not self._is_store_known:
            # After a loss the keeper may still have what later states have replaced. An empty
            # state, of which nothing else is to stay, has it drop all of that. Where no memory or
            # descriptor is free for the state, the next balloond removes the rest.
            with contextlib.suppress(OSError):
                memory = OwnedFd(create_memfd("balloond-state"))
                with contextlib.closing(memory):
                    name = self._state_name(self._serial + 1)
                    self._store.replace(name, memory, [], losses=self._losses, stay=[])
                    self._serial += 1
        self._store.remove(self._state_name(self._serial))
        for number in self._fds.kept:
            self._store.remove(self._fd_name(number))

    def close(self) -> None:
        self._store.on_loss(self._group, None)
        self._store.set_user(self._group, None)
        self._schedule.cancel()
        self._fds.clear()
        self.journal.close()

    def _fd_name(self, number: int) -> str:
        return str(FdKey(self._vm.number, number))

    def _state_name(self, serial: int) -> str:
        return str(StateKey(self._vm.number, serial))
