"""The back-end's half of vhost-user as a state machine: messages in, effects out.

Pure: no socket, no mapping. Theory of operation: the front-end describes features, memory and
vrings in any order; a vring is *ready* once it has a size, addresses, a kick and is enabled; which
virtqueue stands behind an index follows from the acknowledged features. Whatever changes something
that a running device was forked with gives ``StopDevice`` *before* its answer, so that nobody
serves memory or rings that the front-end believes are gone, and ``RingsChanged``.

A message that breaks the protocol raises FrontendError and changes nothing; its file descriptors
are closed, and so is the connection, by the caller.

Source: QEMU's "Vhost-user Protocol".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import NumPages
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.effects import (
    ActualWritten,
    AnswerVringBase,
    Effect,
    ReadyVring,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.memory_table import MAX_MEM_SLOTS, Fd, MemoryTable
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import Message, ProtocolFeature
from balloon_daemon.virtio.balloon import (
    MAX_QUEUES,
    OFFERED_FEATURES,
    BalloonConfig,
    BalloonQueue,
    queue_numbers,
)
from balloon_daemon.virtio.split_queue import MAX_QUEUE_SIZE


@dataclass(slots=True)
class Vring:
    """What the front-end has said about one vring so far."""

    size: int = 0
    base: int = 0
    addr: wire.VringAddr | None = None
    kick: Fd | None = None
    call: Fd | None = None
    err: Fd | None = None
    started: bool = False
    enabled: bool = False

    @property
    def ready(self) -> bool:
        return self.started and self.enabled and bool(self.size) and self.addr is not None


# Plain: an IntFlag makes a member anew for each "&", and its "~" knows of no bit beyond its own.
_REPLY_ACK = int(ProtocolFeature.REPLY_ACK)
_PROTOCOL_FEATURES = int(wire.OFFERED_PROTOCOL_FEATURES)
_IMPLEMENTED = int(OFFERED_FEATURES) | wire.VHOST_USER_F_PROTOCOL_FEATURES
_RESTART: list[Effect] = [StopDevice(), RingsChanged()]


@dataclass(slots=True)
class Backend:
    """One front-end's device.

    Args:
        memory: an empty memory table.
        offered: the device's feature bits, some of OFFERED_FEATURES.
    """

    memory: MemoryTable
    offered: int = OFFERED_FEATURES
    config: BalloonConfig = field(default_factory=BalloonConfig)
    acknowledged: int = 0
    protocol_features: int = 0
    vrings: list[Vring] = field(default_factory=lambda: [Vring() for _ in range(MAX_QUEUES)])
    channel: Fd | None = None
    """The back-end's own channel (SET_BACKEND_REQ_FD); without it no target can be signalled."""

    def ready_vrings(self, *, disabled: bool = False) -> list[ReadyVring]:
        """The vrings that a device can serve now; none unless the inflateq is among them.

        Args:
            disabled: also those that it could only look at, with or without the inflateq.
        """
        ready = []
        for index, queue in queue_numbers(self.acknowledged).items():
            vring = self.vrings[index]
            ready_for = vring.ready or disabled
            if ready_for and vring.addr is not None and vring.kick is not None:
                ready.append(
                    ReadyVring(index, queue, vring.size, vring.addr, vring.kick, vring.call)
                )
        serves = disabled or any(vring.queue is BalloonQueue.INFLATEQ for vring in ready)
        return ready if serves and self.memory.regions else []

    def close(self) -> None:
        """Closes every descriptor that the front-end gave."""
        self.memory.close()
        for vring in self.vrings:
            for fd in (vring.kick, vring.call, vring.err):
                if fd is not None:
                    fd.close()
        self.vrings = [Vring() for _ in range(MAX_QUEUES)]
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def handle(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        """Takes one message.

        Args:
            message: as it came.
            fds: the descriptors beside it; they are the back-end's from now on.

        Returns:
            What to do, in this order.

        Raises:
            FrontendError: the message breaks the protocol.
        """
        handler = _HANDLERS.get(message.request)
        try:
            if (
                message.flags & wire.VERSION_MASK != wire.VERSION
                or message.flags & wire.FLAG_REPLY
            ):
                raise FrontendError(message.name, f"flags {message.flags:#x} of no request")
            if handler is None:
                raise FrontendError(message.name, "is not offered by this back-end")
            if len(fds) not in _ALLOWED_FDS.get(message.request, _NO_FDS):
                raise FrontendError(message.name, f"came with {len(fds)} file descriptors")
            effects = handler(self, message, fds)
        except FrontendError:
            for fd in fds:
                fd.close()
            raise
        # Behind a StopDevice: the front-end may free at once what it took back.
        return [*effects, Send(self._ack(message))] if self._wants_ack(message) else effects

    def vring_is_to_stop(self, message: Message) -> bool:
        """Whether a GET_VRING_BASE that was handled already has not stopped its vring yet."""
        if message.request != Request.GET_VRING_BASE:
            return False
        return self.vrings[wire.decode_vring_state(message).index].kick is not None

    def reply_again(self, message: Message) -> list[bytes]:
        """The answer to a message that was handled already, but perhaps not answered."""
        if message.request == Request.GET_VRING_BASE:
            return [self.stop_vring(wire.decode_vring_state(message).index)]
        if message.request in _ANSWERED:
            effects = self.handle(message, ())
            return [effect.reply for effect in effects if isinstance(effect, Send)]
        return [self._ack(message)] if self._wants_ack(message) else []

    def _wants_ack(self, message: Message) -> bool:
        return bool(
            message.flags & wire.FLAG_NEED_REPLY
            and self.protocol_features & _REPLY_ACK
            and message.request not in _ANSWERED
        )

    def _ack(self, message: Message) -> bytes:
        return wire.encode_reply(message.request, wire.U64.pack(0))

    def stop_vring(self, index: int) -> bytes:
        """Stops a vring; GET_VRING_BASE's reply, once ``vrings[index].base`` is right."""
        vring = self.vrings[index]
        vring.started = False
        if vring.kick is not None:
            vring.kick.close()
            vring.kick = None
        state = wire.VringState(index, vring.base)
        return wire.encode_reply(Request.GET_VRING_BASE, state.encode())

    # --- features -----------------------------------------------------------------------------

    def _get_constant(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        number = wire.U64.pack(_CONSTANTS[message.request])
        return [Send(wire.encode_reply(message.request, number))]

    def _get_features(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        features = wire.U64.pack(self.offered | wire.VHOST_USER_F_PROTOCOL_FEATURES)
        return [Send(wire.encode_reply(message.request, features))]

    def _set_features(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        features = wire.decode_u64(message)
        # Whatever is implemented: a balloond with other settings may have offered it before us.
        if unknown := features & ~_IMPLEMENTED:
            raise FrontendError(message.name, f"{unknown:#x} was not offered")
        if features == self.acknowledged:
            return []
        self.acknowledged = features
        return [*_RESTART]

    def _set_protocol_features(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        features = wire.decode_u64(message)
        if unknown := features & ~_PROTOCOL_FEATURES:
            raise FrontendError(message.name, f"{unknown:#x} was not offered")
        self.protocol_features = features
        return []

    def _set_owner(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        return []

    def _reset_owner(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        # Deprecated; some front-ends still send it where they mean: disable all rings.
        for vring in self.vrings:
            vring.enabled = False
        return [*_RESTART]

    def _set_backend_req_fd(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        if self.channel is not None:
            self.channel.close()
        self.channel = fds[0]
        return [*_RESTART]

    # --- memory -------------------------------------------------------------------------------

    def _set_mem_table(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        self.memory.set(message.name, wire.decode_memory_table(message), fds)
        return [*_RESTART]

    def _add_mem_reg(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        self.memory.add(message.name, wire.decode_single_region(message), fds[0])
        return [*_RESTART]

    def _rem_mem_reg(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        self.memory.remove(message.name, wire.decode_single_region(message))
        for fd in fds:  # Allowed for the sake of old front-ends, and never used.
            fd.close()
        return [*_RESTART]

    # --- vrings -------------------------------------------------------------------------------

    def _vring(self, message: Message, index: int) -> Vring:
        if index >= MAX_QUEUES:
            raise FrontendError(message.name, f"vring {index}, there are {MAX_QUEUES}")
        return self.vrings[index]

    def _set_vring_num(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        vring = self._vring(message, state.index)
        if not 1 <= state.num <= MAX_QUEUE_SIZE or state.num & (state.num - 1):
            raise FrontendError(
                message.name, f"size {state.num}, allowed are powers of two up to {MAX_QUEUE_SIZE}"
            )
        vring.size = state.num
        return [*_RESTART] if vring.started else []

    def _set_vring_addr(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        addr = wire.decode_vring_addr(message)
        vring = self._vring(message, addr.index)
        if addr.descriptors % 16 or addr.available % 2 or addr.used % 4:
            raise FrontendError(message.name, f"vring {addr.index} is not aligned (virtio 2.7)")
        vring.addr = addr
        return [*_RESTART] if vring.started else []

    def _set_vring_base(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        vring = self._vring(message, state.index)
        if state.num > 0xFFFF:
            raise FrontendError(message.name, f"base {state.num} is over 65535")
        # Kept only to answer with: the ring's own used.idx says where we are.
        before, vring.base = vring.base, state.num
        if state.index == 0 and before and not state.num and self.config.actual:
            # The inflateq begins anew, so does the driver: whatever it had given is its own again.
            # One that stood at 0 is resumed there, after 65536 chains or none.
            self.config.actual = NumPages(0)
            return [ActualWritten(self.config.actual)]
        return []

    def _get_vring_base(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        self._vring(message, state.index)
        return [StopDevice(), AnswerVringBase(state.index), RingsChanged()]

    def _vring_fd(self, message: Message, fds: Sequence[Fd]) -> tuple[Vring, Fd | None]:
        number = wire.decode_u64(message)
        if number & ~(wire.VRING_INDEX_MASK | wire.VRING_NOFD_MASK):
            raise FrontendError(message.name, f"vring {number:#x}")
        if bool(number & wire.VRING_NOFD_MASK) == bool(fds):
            raise FrontendError(message.name, f"{len(fds)} descriptors, its flag says otherwise")
        return self._vring(message, number & wire.VRING_INDEX_MASK), fds[0] if fds else None

    def _set_vring_kick(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        vring, fd = self._vring_fd(message, fds)
        if fd is None:
            raise FrontendError(message.name, "without a descriptor: polled rings are not served")
        if vring.kick is not None:
            vring.kick.close()
        vring.kick = fd
        vring.started = True
        if not self.acknowledged & wire.VHOST_USER_F_PROTOCOL_FEATURES:
            # "Ring states": without that feature a ring is enabled as soon as it starts.
            vring.enabled = True
        return [*_RESTART]

    def _set_vring_call(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        vring, fd = self._vring_fd(message, fds)
        if vring.call is not None:
            vring.call.close()
        vring.call = fd
        return [*_RESTART] if vring.started else []

    def _set_vring_err(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        vring, fd = self._vring_fd(message, fds)
        if vring.err is not None:
            vring.err.close()
        vring.err = fd
        return []

    def _set_vring_enable(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        vring = self._vring(message, state.index)
        if state.num > 1:
            raise FrontendError(message.name, f"{state.num} is neither 0 nor 1")
        changed = vring.enabled != bool(state.num)
        vring.enabled = bool(state.num)
        return [*_RESTART] if changed and vring.started else []

    # --- config space -------------------------------------------------------------------------

    def _get_config(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        access = wire.decode_config_access(message)
        content = self.config.read(access.offset, len(access.content))
        if content is None:
            # "GET_CONFIG": a payload of size zero says that the access failed.
            return [Send(wire.encode_reply(message.request, b""))]
        return [Send(wire.encode_config_reply(access, content))]

    def _set_config(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        access = wire.decode_config_access(message)
        if not self.config.write(access.offset, access.content):
            raise FrontendError(
                message.name,
                f"{len(access.content)} bytes at {access.offset}, the config space has "
                f"{BalloonConfig.SIZE}",
            )
        return [ActualWritten(self.config.actual)]


_CONSTANTS: dict[int, int] = {
    Request.GET_PROTOCOL_FEATURES: wire.OFFERED_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM: MAX_QUEUES,
    Request.GET_MAX_MEM_SLOTS: MAX_MEM_SLOTS,
}
"""Requests that always get the same u64."""

_HANDLERS: dict[int, Callable[[Backend, Message, Sequence[Fd]], list[Effect]]] = {
    **dict.fromkeys(_CONSTANTS, Backend._get_constant),
    Request.GET_FEATURES: Backend._get_features,
    Request.SET_FEATURES: Backend._set_features,
    Request.SET_OWNER: Backend._set_owner,
    Request.RESET_OWNER: Backend._reset_owner,
    Request.SET_MEM_TABLE: Backend._set_mem_table,
    Request.SET_VRING_NUM: Backend._set_vring_num,
    Request.SET_VRING_ADDR: Backend._set_vring_addr,
    Request.SET_VRING_BASE: Backend._set_vring_base,
    Request.GET_VRING_BASE: Backend._get_vring_base,
    Request.SET_VRING_KICK: Backend._set_vring_kick,
    Request.SET_VRING_CALL: Backend._set_vring_call,
    Request.SET_VRING_ERR: Backend._set_vring_err,
    Request.SET_PROTOCOL_FEATURES: Backend._set_protocol_features,
    Request.SET_VRING_ENABLE: Backend._set_vring_enable,
    Request.SET_BACKEND_REQ_FD: Backend._set_backend_req_fd,
    Request.GET_CONFIG: Backend._get_config,
    Request.SET_CONFIG: Backend._set_config,
    Request.ADD_MEM_REG: Backend._add_mem_reg,
    Request.REM_MEM_REG: Backend._rem_mem_reg,
}

_ANSWERED = {*_CONSTANTS, Request.GET_FEATURES, Request.GET_VRING_BASE, Request.GET_CONFIG}
"""Requests with a reply of their own, so without an acknowledgement."""


_NO_FDS = range(1)
_ALLOWED_FDS: dict[int, range] = {
    Request.SET_MEM_TABLE: range(wire.MAX_FDS + 1),
    Request.SET_VRING_KICK: range(2),
    Request.SET_VRING_CALL: range(2),
    Request.SET_VRING_ERR: range(2),
    Request.REM_MEM_REG: range(2),
    Request.ADD_MEM_REG: range(1, 2),
    Request.SET_BACKEND_REQ_FD: range(1, 2),
}
"""How many descriptors may come with a message; with all others none."""
