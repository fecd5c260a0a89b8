"""A VM's state as bytes: what one controller writes and the next one reads. Pure.

A state has two parts. ``vm`` is common to all VMs: the VM's number, its name, and the state of its
balloon policy. ``jailed`` is for VMs that our own device serves: the vhost-user messages that
bring a fresh back-end to the present state, so that a restored state passes the same checks as a
VMM's messages, and the VM's descriptors, by number (``keys.FdKey``).

Layout: a line ``balloond guest state <version> <CRC-32 of the rest, 8 hex digits>``, then JSON.
The checksum detects damage, not forgery: only a balloond of the same user can write a state.
"""

import json
import math
import zlib
from collections.abc import Sequence

from balloon_daemon.errors import StateFileError
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.state_v1 import read_v1
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId

VERSION = 2
MAX_STATE_BYTES = 1 << 20
"""Far more than the largest state: 256 regions take about 50 KiB."""

MAX_NAME = 64
"""Characters of a VM's name."""

_MAGIC = "balloond guest state"


class SavedMessage(NamedTuple):
    """One vhost-user message with the numbers of its descriptors."""

    content: bytes
    fds: tuple[int, ...]


class JailedGuest(NamedTuple):
    """The state of a VM that our own device serves.

    Attributes:
        handled: how many messages of the VMM this state includes.
        num_pages: the balloon's target, in 4 KiB pages.
        actual: the balloon's size, in 4 KiB pages; the last or a slightly earlier value of
            ``actual``.
        connection: the VMM's socket.
        journal: the memory with the request in hand.
        stderr_pipe: read end of the pipe that is the device's standard error; its end of file
            means that the device has ended. None where no device was forked.
        messages: the messages for a fresh back-end.
    """

    handled: int
    num_pages: int
    actual: int
    connection: int
    journal: int
    stderr_pipe: int | None
    messages: tuple[SavedMessage, ...]

    def fds(self) -> set[int]:
        """The numbers of all descriptors that this state names."""
        numbers = {self.connection, self.journal}
        if self.stderr_pipe is not None:
            numbers.add(self.stderr_pipe)
        return numbers.union(*(message.fds for message in self.messages))


class GuestState(NamedTuple):
    """The state of one VM, from which the next controller goes on.

    Attributes:
        vm: the VM's id.
        row: its balloon policy's state; None while there is no policy.
        jailed: the part for our own device.
    """

    vm: VmId
    row: VmRow | None
    jailed: JailedGuest


class EncodedMessages:
    """Messages that many states of a guest have in common: encoded once, and their CRC-32 computed
    once, for all of these states.

    Memory tables have up to 256 regions and seldom change, vrings change only while a driver is
    bound; but a state is encoded for each decision, and up to 20 times a second while a balloon
    grows.

    Args:
        messages: the messages.
        after: the encoded messages before them.
    """

    def __init__(
        self, messages: Sequence[SavedMessage] = (), after: "EncodedMessages | None" = None
    ) -> None:
        encoded = _listed(messages).encode()
        added_fds = frozenset(fd for message in messages for fd in message.fds)
        if after is None:
            added = b'{"jailed": {"messages": [' + encoded
            self._any: bool = bool(messages)
            self.fds: frozenset[int] = added_fds
            self._content = added
            self._crc = zlib.crc32(added)
        else:
            added = (b", " if after._any and messages else b"") + encoded
            self._any = after._any or bool(messages)
            self.fds = after.fds | added_fds
            self._content = after._content + added
            self._crc = zlib.crc32(added, after._crc)

    def encode(self, state: GuestState) -> bytes:
        """The encoded state: these messages come first, then ``state``'s own."""
        jailed, row = state.jailed, state.row
        numbers = {
            "handled": jailed.handled,
            "num_pages": jailed.num_pages,
            "actual": jailed.actual,
            "connection": jailed.connection,
            "journal": jailed.journal,
            "stderr_pipe": jailed.stderr_pipe,
        }
        vm = {
            "number": state.vm.number,
            "name": state.vm.name,
            "row": None
            if row is None
            else {
                "vm_mem_bytes": row.vm_mem_bytes,
                "level": row.level,
                "recheck_at_s": row.recheck_at_s,
                "release_at_s": row.release_at_s,
            },
        }
        comma = ", " if self._any and jailed.messages else ""
        messages = f"{comma}{_listed(jailed.messages)}]"
        rest = f'{messages}, {json.dumps(numbers)[1:]}, "vm": {json.dumps(vm)}}}'.encode()
        head = f"{_MAGIC} {VERSION} {zlib.crc32(rest, self._crc):08x}\n".encode()
        return b"".join((head, self._content, rest))


def _listed(messages: Sequence[SavedMessage]) -> str:
    return json.dumps([[m.content.hex(), list(m.fds)] for m in messages])[1:-1]


def decode_state(content: bytes) -> GuestState:
    """Decodes a state, of this version or of version 1.

    Raises:
        StateFileError: the bytes are a state of another version, damaged, or no state; none of
            them is used then.
    """
    head, newline, body = content.partition(b"\n")
    words = head.decode("ascii", "replace").split(" ")
    if not newline or " ".join(words[:-2]) != _MAGIC:
        raise StateFileError("is not a guest's state")
    version, checksum = words[-2:]
    try:
        if version == str(VERSION):
            if checksum != f"{zlib.crc32(body):08x}":
                raise StateFileError("is damaged: its checksum is wrong")
            fields = json.loads(body)
        elif version == "1":
            fields = read_v1(body, checksum)
        else:
            raise StateFileError(
                f"is of version {version}, this balloond reads versions 1 and {VERSION}"
            )
        return _state(fields)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as err:
        raise StateFileError(f"is damaged: {err}") from err


def _state(fields: dict[str, dict[str, object]]) -> GuestState:
    vm, jailed = fields["vm"], fields["jailed"]
    number, name, row = _number(vm["number"]), vm["name"], vm["row"]
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"a VM named {name!r}")
    messages, stderr_pipe = jailed["messages"], jailed["stderr_pipe"]
    if not isinstance(messages, list):
        raise ValueError("a field of the wrong type")
    return GuestState(
        vm=VmId(number, name),
        row=None if row is None else _row(row),
        jailed=JailedGuest(
            handled=_number(jailed["handled"]),
            num_pages=_number(jailed["num_pages"], 1 << 32),
            actual=_number(jailed["actual"], 1 << 32),
            connection=_number(jailed["connection"]),
            journal=_number(jailed["journal"]),
            stderr_pipe=None if stderr_pipe is None else _number(stderr_pipe),
            messages=tuple(
                SavedMessage(bytes.fromhex(content), tuple(_number(fd) for fd in fds))
                for content, fds in messages
            ),
        ),
    )


def _row(fields: object) -> VmRow:
    if not isinstance(fields, dict):
        raise ValueError("a row that is no object")
    return VmRow(
        vm_mem_bytes=_number(fields["vm_mem_bytes"]),
        level=_number(fields["level"]),
        recheck_at_s=_seconds(fields["recheck_at_s"]),
        release_at_s=_seconds(fields["release_at_s"]),
    )


def _number(value: object, limit: int = 1 << 63) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r} where a number below {limit} belongs")
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} where seconds belong")
    if not math.isfinite(value):
        raise ValueError(f"{value!r} where seconds belong")
    return float(value)
