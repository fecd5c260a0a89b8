"""The one request that a controller has in hand, recorded in memory that outlives the controller.

A VMM waits for the answer to a request for ever. A controller killed between reading a request and
answering it would leave the VMM waiting. So the request is recorded *before* it is read from the
socket, and marked as done after it was answered. It is recorded by plain stores into a shared
mapping, which survive SIGKILL and cost nothing beside the socket's system calls.
"""

import mmap
import os
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from balloon_daemon.errors import StateFileError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.named_tuple import NamedTuple

_HEAD = struct.Struct("<IIQ")
MAX_REQUEST_BYTES = 8192
"""Longer than a vhost-user message with the longest payload that is accepted."""

_REQUIRED = struct.Struct("<Q")
_REQUIRED_AT = _HEAD.size + MAX_REQUEST_BYTES
_SIZE = _REQUIRED_AT + _REQUIRED.size


class Phase(IntEnum):
    """The progress of a request."""

    NONE = 0
    HANDLING = 1
    """Recorded; it may still be in the socket or be read already; not answered."""
    SENDING = 2
    """Handled, and its answer is being sent."""


class Entry(NamedTuple):
    """A request in hand.

    Attributes:
        phase: its progress; never NONE.
        number: the message's number among this VMM's messages, from 1.
        request: header and payload.
    """

    phase: Phase
    number: int
    request: bytes


class RequestJournal(Protocol):
    """Records the request in hand, or nothing."""

    def begin_next(self, number: int, peek: Callable[[], bytes | None]) -> None:
        """Records the next request of a VMM's connection, if there is one.

        Args:
            number: the message's number among this VMM's messages, from 1.
            peek: returns the request without removing it from the connection; None: it is
                incomplete.
        """

    def begin(self, number: int, request: bytes) -> None:
        """Records a request, before it is read from the connection."""

    def sending(self) -> None:
        """Notes that the answer is about to be sent; to be called right before the system call."""

    def done(self) -> None:
        """Notes that the request is answered, or needed no answer."""

    def pending(self) -> Entry | None:
        """The request in hand; None where there was none.

        Raises:
            StateFileError: the memory holds no valid journal, so whether the VMM waits for an
                answer is unknown.
        """


class NoJournal:
    """Records nothing: for a VM that is kept in no store, so that no other controller takes it
    over."""

    def begin_next(self, number: int, peek: Callable[[], bytes | None]) -> None:
        pass

    def begin(self, number: int, request: bytes) -> None:
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
            os.truncate(fd.fileno(), _SIZE)  # An earlier version's journals are shorter.
        self._map = mmap.mmap(fd.fileno(), _SIZE)
        # MADV_DONTFORK: a forked device must not inherit this writable mapping. A device that its
        # guest has taken over could write another VM's request into it, and the next controller
        # would perform that request.
        self._map.madvise(mmap.MADV_DONTFORK)
        self._words = memoryview(self._map)[:4].cast("I")

    @classmethod
    def create(cls, name: str) -> "Journal":
        """Makes an empty journal."""
        return cls(OwnedFd(create_memfd(name, size_bytes=_SIZE)))

    def begin_next(self, number: int, peek: Callable[[], bytes | None]) -> None:
        if (request := peek()) is not None:
            self.begin(number, request)

    def begin(self, number: int, request: bytes) -> None:
        """Records a request. The phase is stored last, as four aligned bytes at once: a controller
        killed before that leaves phase NONE, and never half a phase."""
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
        """Makes states before this serial number invalid, after the VMM has changed memory or
        vrings.

        A guest restored from an invalid state would get a device with a memory table that its VMM
        has replaced since, and that device would remove the wrong pages. The journal does not know
        whether the store has received a later state. An invalid state never becomes valid again.
        """
        _REQUIRED.pack_into(self._map, _REQUIRED_AT, max(serial, self.required))

    def close(self) -> None:
        """Unmaps the memory and closes it."""
        self._words.release()
        self._map.close()
        self.fd.close()
