"""The one request that a controller may have in hand when it dies, in memory that outlives it.

A VMM waits for the answer to a request for ever. A controller that was killed between reading a
request and answering it would leave it waiting, so the request is written down *before* it is
taken from the socket, and marked as done after it was answered. It is written by plain stores into
a shared mapping, which survive a kill -9 and cost nothing beside the socket's system calls.
"""

import mmap
import os
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol

from balloon_daemon.errors import StateFileError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd

_HEAD = struct.Struct("<IIQ")
MAX_REQUEST_BYTES = 8192
"""More than a vhost-user message with the longest payload that is accepted."""

_REQUIRED = struct.Struct("<Q")
_REQUIRED_AT = _HEAD.size + MAX_REQUEST_BYTES
_SIZE = _REQUIRED_AT + _REQUIRED.size


class Phase(IntEnum):
    """How far a request has come."""

    NONE = 0
    HANDLING = 1
    """Written down; perhaps still in the socket, perhaps taken from it; not answered."""
    SENDING = 2
    """Handled, and its answer given to the socket."""


class Entry(NamedTuple):
    """A request in hand.

    Attributes:
        phase: how far it has come; never NONE.
        number: which message of this VMM it is, from 1.
        request: header and payload.
    """

    phase: Phase
    number: int
    request: bytes


class RequestJournal(Protocol):
    """Where the request in hand is written down, if anywhere."""

    def begin_next(self, number: int, peek: Callable[[], bytes | None]) -> None:
        """Writes down the request that a VMM's connection has next, if it has one.

        Args:
            number: which message of this VMM it is, from 1.
            peek: gives the request without taking it from the connection; None: not there yet.
        """

    def sending(self) -> None:
        """Its answer goes out next: to be called right before the system call."""

    def done(self) -> None:
        """It is answered, or needed no answer."""

    def pending(self) -> Entry | None:
        """The request in hand; None where there was none.

        Raises:
            StateFileError: the memory does not hold a journal. Whether its VMM waits for an answer
                cannot be known then.
        """


class NoJournal:
    """Writes nothing down: where no controller can go on with a VM, none needs to know."""

    def begin_next(self, number: int, peek: Callable[[], bytes | None]) -> None:
        pass

    def sending(self) -> None:
        pass

    def done(self) -> None:
        pass

    def pending(self) -> Entry | None:
        return None


class Journal:
    """One guest's journal.

    Args:
        fd: its memory, from ``create`` or from a store.

    Raises:
        OSError, ValueError: the memory cannot be mapped.
    """

    def __init__(self, fd: OwnedFd) -> None:
        self.fd = fd
        if os.fstat(fd.fileno()).st_size < _SIZE:
            os.truncate(fd.fileno(), _SIZE)  # Journals of an earlier version are shorter.
        self._map = mmap.mmap(fd.fileno(), _SIZE)
        # A process that the controller forks must not have every guest's journal, writable: taken
        # over by a guest, it could make the next controller perform a request for another VM.
        self._map.madvise(mmap.MADV_DONTFORK)
        self._words = memoryview(self._map)[:4].cast("I")

    @classmethod
    def create(cls, name: str) -> "Journal":
        """Makes an empty one."""
        return cls(OwnedFd(create_memfd(name, size_bytes=_SIZE)))

    def begin_next(self, number: int, peek: Callable[[], bytes | None]) -> None:
        if (request := peek()) is not None:
            self.begin(number, request)

    def begin(self, number: int, request: bytes) -> None:
        """Writes a request down, the phase last: a store of four bytes is whole or not at all."""
        self._map[_HEAD.size : _HEAD.size + len(request)] = request
        _HEAD.pack_into(self._map, 0, Phase.NONE, len(request), number)
        self._words[0] = Phase.HANDLING

    def sending(self) -> None:
        self._words[0] = Phase.SENDING

    def done(self) -> None:
        self._words[0] = Phase.NONE

    def pending(self) -> Entry | None:
        phase, length, number = _HEAD.unpack_from(self._map)
        if phase == Phase.NONE:
            return None
        if phase not in tuple(Phase) or length > MAX_REQUEST_BYTES:
            found = f"a request of {length} bytes in phase {phase}"
            raise StateFileError(f"the journal that another balloond left is damaged: {found}")
        return Entry(Phase(phase), number, self._map[_HEAD.size : _HEAD.size + length])

    @property
    def required(self) -> int:
        """The serial number of the oldest state that is valid for this guest."""
        return int(_REQUIRED.unpack_from(self._map, _REQUIRED_AT)[0])

    def require(self, serial: int) -> None:
        """Makes states before this serial number invalid: the VMM has changed memory or vrings.

        A guest restored from an invalid state would have pages removed by a memory table that its
        VMM has replaced since. Whether a later state reaches the store is not known here. An
        invalid state never becomes valid again.
        """
        _REQUIRED.pack_into(self._map, _REQUIRED_AT, max(serial, self.required))

    def close(self) -> None:
        """Unmaps and closes it."""
        self._words.release()
        self._map.close()
        self.fd.close()
