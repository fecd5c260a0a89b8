"""Target: a front-end's messages and file descriptors, through a real socket, into the back-end.

The front-end says anything at all, whole or in pieces, with descriptors of any kind, for which
there may be no room. Held to: FrontendError and nothing else; a refused message changes nothing
and leaks no descriptor; nothing that a running device was forked with changes without StopDevice
first; whoever waits for an answer gets one, such that QEMU takes it; what cannot be served is not,
and an unsound table holds no file; the state reached can be told to another controller.
"""

import array
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import astuple

from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import Connection, inspect_memory, right_kind
from balloon_daemon.vhost_user.effects import (
    AnswerVringBase,
    Effect,
    NotServed,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from balloon_daemon.vhost_user.memory_table import Fd, MemoryTable
from tests.fakes.closes_at_once import closes_at_once
from tests.fuzz.replayed import check_replay
from tests.harness.enemies.choices import Choices
from tests.harness.enemies.descriptors import MEMORY, POOL, usual_fd
from tests.harness.enemies.messages import random_message, rightful_start
from tests.harness.fd_room import room_for_fds
from tests.harness.invariants import no_fd_left_open, require

MAX_STEPS = 200

_ANSWERED = {
    wire.FrontendRequest.GET_FEATURES,
    wire.FrontendRequest.GET_PROTOCOL_FEATURES,
    wire.FrontendRequest.GET_QUEUE_NUM,
    wire.FrontendRequest.GET_MAX_MEM_SLOTS,
    wire.FrontendRequest.GET_VRING_BASE,
    wire.FrontendRequest.GET_CONFIG,
    wire.FrontendRequest.GET_STATUS,
}
"""Whoever sends one of these waits for its own reply."""


def run(data: bytes) -> None:
    """One conversation, from the first byte to the hang-up."""
    with no_fd_left_open():
        conversation = Conversation()
        choices = Choices(data)
        try:
            for _ in range(MAX_STEPS):
                if not choices or not conversation.step(choices):
                    break
            check_replay(conversation.backend, MemoryTable(inspect_memory))
        finally:
            conversation.close()


class Conversation:
    """A front-end that may say anything, and the back-end that has to live with it."""

    def __init__(self) -> None:
        self._vmm, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._vmm.setblocking(False)
        self.connection = Connection(ours, ForeignFds(closes_at_once()))
        self.backend = Backend(MemoryTable(inspect_memory), right_kind=right_kind)

    def close(self) -> None:
        """Hangs up and lets go of everything."""
        self._vmm.close()
        # In this order: what the back-end lets go of, the connection has closed.
        self.backend.close()
        self.connection.close()

    def step(self, choices: Choices) -> bool:
        """Says something and lets the back-end answer; False once the connection is over."""
        kind = choices.below(16)
        if kind == 0:
            self._say(choices.take(choices.below(64)), self._descriptors(choices, 9, MEMORY))
        elif kind == 1:
            self._vmm.shutdown(socket.SHUT_WR)
        elif kind == 2:
            self.backend.set_target(choices.number(4) * PAGE_SIZE)
        elif kind == 3:
            for message, count in rightful_start(choices.below(5)):
                self._say(message, [usual_fd(message)] * count)
        else:
            message, count = random_message(choices)
            fds = self._descriptors(choices, count, usual_fd(message))
            cut = choices.below(len(message) + 1) if choices.chance(24) else 0
            if cut:
                self._say(message[:cut], fds)
                if not self._listen():
                    return False
                # Descriptors may come with any byte of the message.
                fds = (
                    self._descriptors(choices, 1, usual_fd(message)) if choices.chance(64) else []
                )
            self._say(message[cut:], fds)
        ending = choices.number(1)
        if ending >= 56:
            with contextlib.suppress(BlockingIOError, ConnectionResetError):
                self._vmm.recv(1 << 16)
        return self._listen(room=not 56 <= ending < 64)

    def _descriptors(self, choices: Choices, expected: int, usual: int) -> list[int]:
        count = choices.below(11) if choices.chance(24) else expected
        return [
            POOL[choices.below(len(POOL))] if choices.chance(64) else usual for _ in range(count)
        ]

    def _say(self, content: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._vmm.sendmsg([content], rights)

    def _listen(self, *, room: bool = True) -> bool:
        """Takes what was said; without room, what came with it is lost."""
        try:
            while True:
                with contextlib.nullcontext() if room else room_for_fds(0):
                    received = self.connection.receive()
                if received is None:
                    return True
                for effect in handle(self.backend, *received):
                    match effect:
                        case Send(reply):
                            self.connection.send(reply)
                        case AnswerVringBase(index):
                            self.connection.send(self.backend.stop_vring(index))
                        case _:
                            pass
        except (EOFError, FrontendError, BrokenPipeError, ConnectionResetError):
            return False


def handle(
    backend: Backend, message: wire.Message, fds: Sequence[OwnedFd], lost: bool = False
) -> list[Effect]:
    """Gives a message to the back-end, and holds the back-end to its promises.

    Raises:
        FrontendError: the message was refused, rightly.
        InvariantBrokenError: a promise was broken.
    """
    before, served = _all_of(backend), what_is_served(backend)
    num_pages = backend.config.num_pages
    try:
        effects = backend.handle(message, fds, lost=lost)
    except FrontendError:
        require(_all_of(backend) == before, "a refused message changed something", message)
        require(all(fd.fileno() < 0 for fd in fds), "a refused message's fd is open", message)
        raise
    require(backend.config.num_pages == num_pages, "the front-end wrote num_pages", message)
    kinds = [type(effect) for effect in effects]
    if served and what_is_served(backend) != served:
        require(StopDevice in kinds, "changed under a running device", message, effects)
        require(RingsChanged in kinds, "no device after the change", message, effects)
    if not served and what_is_served(backend):
        require(RingsChanged in kinds, "no device where one could be", message, effects)
    wanted = message.request in _ANSWERED or bool(
        message.flags & wire.FLAG_NEED_REPLY
        and backend.protocol_features & wire.ProtocolFeature.REPLY_ACK
    )
    answers = kinds.count(Send) + kinds.count(AnswerVringBase)
    require(answers == wanted, "answers", message, effects)
    require(kinds.count(NotServed) <= 1, "said more than once", effects)
    if StopDevice in kinds:
        first = kinds.index(StopDevice)
        require(Send not in kinds[:first], "answered before the device ended", effects)
    for effect in effects:
        if isinstance(effect, Send):
            request, flags, size = wire.HEADER.unpack_from(effect.reply)
            sound = (request, flags) == (message.request, wire.VERSION | wire.FLAG_REPLY)
            require(sound and size == len(effect.reply) - wire.HEADER.size, "reply", effect)
    _check_memory(backend)
    return effects


def what_is_served(backend: Backend) -> list[object]:
    """All that a device forked now would be given; empty where none would be."""
    vrings = backend.ready_vrings()
    if not vrings:
        return []
    files = [
        (region.description, _number(region.fd), region.never_freed)
        for region in backend.memory.regions
    ]
    rings = [(v.index, v.queue, v.size, v.addr, v.kick.fileno(), _number(v.call)) for v in vrings]
    return [files, rings, _number(backend.channel)]


def _number(fd: Fd | None) -> int | None:
    return None if fd is None else fd.fileno()


def _all_of(backend: Backend) -> list[object]:
    vrings = [
        [v.size, v.base, v.addr, v.started, v.enabled, v.no_base, v.no_call]
        + [_number(fd) for fd in (v.kick, v.call, v.err)]
        for v in backend.vrings
    ]
    regions = [(*region[:1], _number(region.fd), *region[2:]) for region in backend.memory.regions]
    memory = (regions, backend.memory.unsound)
    negotiated = (backend.acknowledged, backend.protocol_features, backend.status)
    return [astuple(backend.driver), negotiated, vrings, _number(backend.channel), memory]


def _check_memory(backend: Backend) -> None:
    """No region wraps, overlaps another or reaches beyond its file; else there is none."""
    end = 0
    if backend.refusal:
        require(not backend.ready_vrings(), "served though refused", backend.refusal)
        require(not backend.ready_vrings(disabled=True), "looked at", backend.refusal)
    unsound = backend.memory.unsound
    require(not (unsound and backend.memory.regions), "an unsound table holds files", unsound)
    for region in sorted(backend.memory.regions, key=lambda r: r.description.guest_addr):
        place = region.description
        require(place.guest_addr >= end and place.size_bytes > 0, "regions overlap", place)
        end = place.guest_addr + place.size_bytes
        require(end <= 1 << 64, "a region wraps around", place)
        if region.fd is None:
            require(region.never_freed, "freed and not mapped", region)
            continue
        [facts] = inspect_memory([region.fd])
        require(region.never_freed or not facts.never_freed, "would be freed", region, facts)
        require(facts.mappable, "would be mapped", region, facts)
        size = facts.size_bytes
        inside = size is None or place.mmap_offset_bytes + place.size_bytes <= size
        require(inside, "beyond its file", place)
