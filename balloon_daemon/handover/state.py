"""A guest's state as bytes: what one controller writes and the next one reads.

Pure. The back-end's part is kept as the vhost-user messages that would bring a fresh back-end
there, so restoring it runs through the same checks as a VMM's own messages. Descriptors are named
by number; the store holds them as ``<guest>.<number>``.

Layout: a line ``balloond guest state <version> <sha256 of the rest>``, then JSON.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from balloon_daemon.errors import StateFileError
from balloon_daemon.sizing.balloon_policy import PolicyState

if TYPE_CHECKING:
    import hashlib

VERSION = 1
MAX_STATE_BYTES = 1 << 20
"""Far above the largest: 256 regions take about 50 KiB."""

_MAGIC = "balloond guest state"
_NAME = re.compile(r"vm[0-9]{1,18}")
"""Guests are numbered by their connections, and the count never starts over."""


class SavedMessage(NamedTuple):
    """One vhost-user message with the numbers of its descriptors."""

    content: bytes
    fds: tuple[int, ...]


class GuestState(NamedTuple):
    """All that the next controller needs of one guest.

    Attributes:
        name: the guest's.
        handled: messages of the VMM that this state includes.
        num_pages: the balloon's target, in 4 KiB pages.
        actual: its size, in 4 KiB pages; the driver's last word, or one shortly before.
        vm_mem_bytes: the VM's size that the policy goes by; 0 while there is no policy.
        policy: level and deadlines on CLOCK_MONOTONIC; None while there is no policy.
        connection: the VMM's socket.
        journal: the request in the making.
        life: read end of a pipe that the device holds open; None where no device was forked.
        messages: what a fresh back-end must hear.
    """

    name: str
    handled: int
    num_pages: int
    actual: int
    vm_mem_bytes: int
    policy: PolicyState | None
    connection: int
    journal: int
    life: int | None
    messages: tuple[SavedMessage, ...]

    def fds(self) -> set[int]:
        """The numbers of all descriptors that it names."""
        numbers = {self.connection, self.journal}
        if self.life is not None:
            numbers.add(self.life)
        return numbers.union(*(message.fds for message in self.messages))


class Beginning:
    """The messages that many states of a guest begin with, encoded and hashed once for all.

    Memory tables have up to 256 regions and seldom change, vrings change while a driver is bound;
    a state is encoded for each decision, and up to 20 times a second while a balloon grows.

    Args:
        messages: the messages.
        after: those that come before them.
    """

    def __init__(
        self, messages: Sequence[SavedMessage] = (), after: "Beginning | None" = None
    ) -> None:
        self._any: bool = bool(messages) or (after is not None and after._any)
        encoded = _listed(messages).encode()
        own = frozenset(fd for message in messages for fd in message.fds)
        if after is None:
            self.fds: frozenset[int] = own
            self._content = b'{"messages": [' + encoded
            self._digest = _sha256(self._content)
        else:
            self.fds = after.fds | own
            added = (b", " if after._any and messages else b"") + encoded
            self._content = after._content + added
            self._digest = after._digest.copy()
            self._digest.update(added)

    def encode(self, state: GuestState) -> bytes:
        """The bytes of a state whose own messages follow these."""
        policy = None
        if state.policy is not None:
            policy = [state.policy.level, state.policy.recheck_at_s, state.policy.release_at_s]
        fields = {
            "name": state.name,
            "handled": state.handled,
            "num_pages": state.num_pages,
            "actual": state.actual,
            "vm_mem_bytes": state.vm_mem_bytes,
            "policy": policy,
            "connection": state.connection,
            "journal": state.journal,
            "life": state.life,
        }
        comma = ", " if self._any and state.messages else ""
        rest = f"{comma}{_listed(state.messages)}], {json.dumps(fields)[1:]}".encode()
        digest = self._digest.copy()
        digest.update(rest)
        head = f"{_MAGIC} {VERSION} {digest.hexdigest()}\n".encode()
        return b"".join((head, self._content, rest))


def encode_state(state: GuestState) -> bytes:
    """The bytes of a state."""
    return Beginning().encode(state)


def _listed(messages: Sequence[SavedMessage]) -> str:
    return json.dumps([[m.content.hex(), list(m.fds)] for m in messages])[1:-1]


def decode_state(content: bytes) -> GuestState:
    """Reads a state.

    Raises:
        StateFileError: it is of another version, damaged, or not a state at all. Nothing of such
            a state is used.
    """
    head, newline, body = content.partition(b"\n")
    words = head.decode("ascii", "replace").split(" ")
    if not newline or " ".join(words[:-2]) != _MAGIC:
        raise StateFileError("is not a guest's state")
    version, digest = words[-2:]
    if version != str(VERSION):
        raise StateFileError(f"is of version {version}, this balloond reads version {VERSION}")
    if digest != _sha256(body).hexdigest():
        raise StateFileError("is damaged: its checksum is wrong")
    try:
        return _checked(json.loads(body))
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as err:
        raise StateFileError(f"is damaged: {err}") from err


def _sha256(content: bytes) -> "hashlib._Hash":
    # Here, as only a balloond with a store needs it: it loads libcrypto, 8 ms and 3.7 MiB.
    import hashlib

    return hashlib.sha256(content)


def _checked(fields: dict[str, object]) -> GuestState:
    policy = fields["policy"]
    life = fields["life"]
    messages = fields["messages"]
    name = fields["name"]
    if not isinstance(name, str) or not isinstance(messages, list):
        raise ValueError("a field of the wrong type")
    if not _NAME.fullmatch(name):
        raise ValueError(f"a guest named {name!r}")
    return GuestState(
        name=name,
        handled=_number(fields["handled"]),
        num_pages=_number(fields["num_pages"], 1 << 32),
        actual=_number(fields["actual"], 1 << 32),
        vm_mem_bytes=_number(fields["vm_mem_bytes"]),
        policy=None if policy is None else _policy(policy),
        connection=_number(fields["connection"]),
        journal=_number(fields["journal"]),
        life=None if life is None else _number(life),
        messages=tuple(
            SavedMessage(bytes.fromhex(content), tuple(_number(fd) for fd in fds))
            for content, fds in messages
        ),
    )


def _policy(fields: object) -> PolicyState:
    if not isinstance(fields, list) or len(fields) != 3:
        raise ValueError("a policy that is no level and two deadlines")
    level, recheck_at_s, release_at_s = fields
    return PolicyState(_number(level), _seconds(recheck_at_s), _seconds(release_at_s))


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
