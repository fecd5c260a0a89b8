"""Keeps one guest in a store, so that another controller can go on with it.

Each descriptor goes in once, under ``<guest>.<number>``; each state goes in as a new sealed
memfd, ``<guest>.state-<serial>``, before the one before it is taken out: whenever the controller
dies, the newest state in the store is whole, and all that it names is there.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from balloon_daemon.balloon_policy import PolicyState
from balloon_daemon.errors import StateFileError
from balloon_daemon.handover.journal import Journal
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
    replay_features,
    replay_memory,
    replay_vrings,
)

_STATE = ".state-"
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
        # By identity: descriptors are reused as numbers, their owners are not while they are here.
        self._numbers: dict[int, tuple[HasFileno, int]] = {}
        # What is in the store, by number: a descriptor that comes again must be known as the same
        # even after the first was closed.
        self._kept: dict[int, OwnedFd] = {}
        self._next_number = 1
        self._serial = 0
        self._encoded = _Encoded()
        self._settled: tuple[set[int], int] = (set(), 0)

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Knows a descriptor that is in the store already."""
        self._numbers[id(fd)] = (fd, number)
        self._kept.setdefault(number, OwnedFd(os.dup(fd.fileno())))
        self._next_number = max(self._next_number, number + 1)

    def adopt_state(self, serial: int) -> None:
        """Knows the newest state in the store."""
        self._serial = serial

    def save(self, snapshot: Snapshot) -> None:
        """Puts the guest as it is now into the store."""
        backend = snapshot.backend
        messages = self._encoded.messages_of(backend, self._saved)
        state = GuestState(
            name=self._name,
            handled=snapshot.handled,
            num_pages=backend.config.num_pages,
            actual=backend.config.actual,
            vm_mem_bytes=snapshot.vm_mem_bytes,
            policy=snapshot.policy,
            connection=self._number(snapshot.connection, vmm=True),
            journal=self._number(self.journal.fd),
            life=None if snapshot.life is None else self._number(snapshot.life),
            messages=(),
        )
        content = messages.encode(state)
        memory = OwnedFd(create_memfd("balloond-state", content=content))
        try:
            self._store.put(f"{self._name}{_STATE}{self._serial + 1}", memory)
        finally:
            memory.close()
        if self._serial:
            self._store.remove(f"{self._name}{_STATE}{self._serial}")
        self._serial += 1
        self._let_go(state.fds().union(messages.fds))

    def _saved(self, told: list[Told]) -> tuple[SavedMessage, ...]:
        return tuple(
            SavedMessage(content, tuple(self._number(fd) for fd in fds)) for content, fds in told
        )

    def _let_go(self, needed: set[int]) -> None:
        """Keeps only what the newest state names."""
        if (needed, len(self._numbers)) == self._settled:
            return
        for number in sorted(self._kept.keys() - needed):
            self._store.remove(f"{self._name}.{number}")
            self._kept.pop(number).close()
        self._numbers = {
            key: (fd, number)
            for key, (fd, number) in self._numbers.items()
            if fd.fileno() >= 0 and number in needed
        }
        self._settled = needed, len(self._numbers)

    @property
    def store_is_behind(self) -> bool:
        """Whether what can wait should."""
        return self._store.is_behind

    async def drained(self) -> None:
        """Waits until all is in the store. Raises TimeoutError."""
        await self._store.drained()

    def forget(self) -> None:
        """Takes everything of this guest out of the store: it is gone."""
        self._store.remove(f"{self._name}{_STATE}{self._serial}")
        for number in self._kept:
            self._store.remove(f"{self._name}.{number}")
        self._numbers.clear()

    def close(self) -> None:
        """Closes what is the saver's; what is in the store stays there."""
        for fd in self._kept.values():
            fd.close()
        self._kept.clear()
        self.journal.close()

    def _number(self, fd: HasFileno, *, vmm: bool = False) -> int:
        known = self._numbers.get(id(fd))
        if known is not None:
            return known[1]
        for number, kept in self._kept.items():
            # systemd keeps one descriptor of an open file, under the name that came first, and a
            # VMM sends several: one for each region of its memory, and its calls twice.
            if same_open_file(fd.fileno(), kept.fileno()):
                self._numbers[id(fd)] = (fd, number)
                return number
        number = self._next_number
        kept = OwnedFd(os.dup(fd.fileno()))
        try:
            self._store.put(f"{self._name}.{number}", fd, vmm=vmm)
        except OSError:
            # Not known as kept, or the next state would name what is not there.
            kept.close()
            raise
        self._next_number = number + 1
        self._numbers[id(fd)], self._kept[number] = (fd, number), kept
        return number


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
            kind, _, number = key.rpartition("-") if _STATE in key else key.rpartition(".")
            if number.isascii() and number.isdigit():
                (states if kind == f"{name}{_STATE[:-1]}" else fds)[int(number)] = fd
            else:
                store.remove(key)
        newest = max(states, default=0)
        state = _decode(name, states.get(newest), fds)
        for serial, fd in states.items():
            fd.close()
            if serial != newest:
                store.remove(f"{name}{_STATE}{serial}")
        yield KeptGuest(name, newest, state, fds)


def discard(store: Store, guest: KeptGuest) -> None:
    """Closes a guest that cannot be gone on with: its VMM sees its connection end."""
    store.remove(f"{guest.name}{_STATE}{guest.serial}")
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
