"""The back-end's half of vhost-user as a state machine: messages in, effects out.

Pure: no socket, no mapping. Theory of operation: the front-end describes features, memory and
vrings in any order. A vring is *ready* once it has a size, addresses and a kick and is
enabled; the acknowledged features decide which virtqueue a vring's index means. A message that
changes anything with which the running device was forked gives ``StopDevice`` *before* its
answer, so that no device serves memory or rings that the front-end believes are gone, and then
``RingsChanged``.

Most VMMs exit when a back-end hangs up during their start, and the guest's driver chooses part of
what the VMM sends. So a message that can be understood is always answered; ``NotServed`` says why
its content cannot be served. FrontendError is raised only for a message that cannot be understood
or whose answer cannot be given; that message changes nothing, its file descriptors are closed, and
the caller closes the connection.

Source: QEMU's "Vhost-user Protocol".
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.driver_state import DriverState
from balloon_daemon.vhost_user.effects import (
    NO_ROOM,
    RESTART,
    ActualWritten,
    AnswerVringBase,
    Effect,
    PoisonValWritten,
    ReadyVring,
    RingsChanged,
    Send,
    StopDevice,
    not_served,
)
from balloon_daemon.vhost_user.memory_requests import MEMORY_HANDLERS
from balloon_daemon.vhost_user.memory_table import Fd, MemoryTable
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import Message, ProtocolFeature
from balloon_daemon.vhost_user.requests import (
    ALLOWED_FDS,
    ANSWERED,
    CONSTANTS,
    LEFT_ALONE,
    NO_FDS,
    VRING_FDS,
    acknowledgement,
)
from balloon_daemon.vhost_user.vrings import VRING_HANDLERS, Vrings, base_reply
from balloon_daemon.virtio.balloon import (
    MAX_QUEUES,
    OFFERED_FEATURES,
    BalloonConfig,
    BalloonQueue,
    pages_of,
    queue_numbers,
)

# Plain ints instead of IntFlags: "&" of an IntFlag makes a new member each time, and "~" of an
# IntFlag drops the bits for which its class has no name.
_REPLY_ACK = int(ProtocolFeature.REPLY_ACK)
_PROTOCOL_FEATURES = int(wire.OFFERED_PROTOCOL_FEATURES)
_IMPLEMENTED = int(OFFERED_FEATURES) | wire.VHOST_USER_F_PROTOCOL_FEATURES


@dataclass(slots=True)
class Backend:
    """The state of one front-end's device.

    Args:
        memory: an empty memory table.
        offered: the device's feature bits, some of OFFERED_FEATURES.
        right_kind: (request, descriptor) -> whether the descriptor is of the kind that the request
            needs; a write to another kind of file may block for ever.
    """

    memory: MemoryTable
    offered: int = OFFERED_FEATURES
    right_kind: Callable[[int, Fd], bool] = lambda _request, _fd: True
    driver: DriverState = field(default_factory=DriverState)
    acknowledged: int = 0
    protocol_features: int = 0
    vrings: Vrings = field(init=False)
    channel: Fd | None = None
    """The back-end's own channel (SET_BACKEND_REQ_FD), needed to tell the VMM of a new target."""
    status: int = 0
    """The driver's device status, if the front-end sends it (SET_STATUS)."""

    def __post_init__(self) -> None:
        self.vrings = Vrings(self.driver, self.right_kind)

    @property
    def config(self) -> BalloonConfig:
        """The config space, to be read; ``set_target`` and ``restore_config`` write to it."""
        return self.driver.config

    @property
    def target_bytes(self) -> int:
        """The target in the config space, where the driver reads it."""
        return self.config.num_pages * PAGE_SIZE

    def set_target(self, target_bytes: int) -> None:
        """Puts a target into the config space.

        Args:
            target_bytes: absolute; rounded down to 4 KiB pages and limited to a u32 of pages.
        """
        self.config.num_pages = pages_of(target_bytes)

    def rings_stood_at(self, indices: Iterable[tuple[int, int]]) -> None:
        """Stores the ``used.idx`` at which an ended device left each ring.

        Args:
            indices: pairs of a vring's index, below MAX_QUEUES, and its ``used.idx``, below 65536.
        """
        self.vrings.stood_at(indices)

    def restore_config(self, num_pages: int, actual: int, *, balloon_known: bool) -> None:
        """Takes the config space over from another controller, after the vrings were restored.

        Args:
            num_pages, actual: 4 KiB pages, limited to a u32.
            balloon_known: True: that controller knew the balloon's size, although the restored
                bases of the vrings look like those of a driver in mid-life.
        """
        stopped = not self.vrings[0].started
        self.driver.restore(num_pages, actual, known=balloon_known, stopped=stopped)

    @property
    def driver_runs(self) -> bool:
        """A driver has acknowledged features, so a guest's driver has found the device."""
        return bool(self.acknowledged & ~wire.VHOST_USER_F_PROTOCOL_FEATURES)

    @property
    def refusal(self) -> str:
        """Why no device can be forked for this front-end; "" where one can."""
        if unknown := self.acknowledged & ~_IMPLEMENTED:
            return f"it acknowledges features that were not offered ({unknown:#x})"
        return self.memory.unsound

    def ready_vrings(self, *, disabled: bool = False) -> list[ReadyVring]:
        """The vrings that a device can serve now; none unless the inflateq is among them.

        Args:
            disabled: True: also disabled vrings, even without an inflateq. A device may read the
                ``used.idx`` of a disabled vring, but not serve it.
        """
        ready = self.vrings.ready(queue_numbers(self.acknowledged), disabled=disabled)
        serves = disabled or any(vring.queue is BalloonQueue.INFLATEQ for vring in ready)
        return ready if serves and self.memory.regions and not self.refusal else []

    def close(self) -> None:
        """Closes every descriptor that the front-end gave."""
        self.memory.close()
        self.vrings.close()
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def handle(self, message: Message, fds: Sequence[Fd], *, lost: bool = False) -> list[Effect]:
        """Handles one message.

        Args:
            message: as it was received.
            fds: the descriptors that came with it; the back-end owns them from now on.
            lost: this process had no room for its descriptors; ``fds`` is empty.

        Returns:
            Effects, to be performed in this order.

        Raises:
            FrontendError: the message cannot be understood, or its answer cannot be given.
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
            if lost:
                handler = _HANDLERS_OF_LOST_FDS.get(Request(message.request), handler)
            elif len(fds) not in ALLOWED_FDS.get(message.request, NO_FDS):
                raise FrontendError(message.name, f"came with {len(fds)} file descriptors")
            effects = handler(self, message, fds)
        except FrontendError:
            for fd in fds:
                fd.close()
            raise
        # The acknowledgement comes after any StopDevice effect. The front-end may free guest
        # memory as soon as it reads the acknowledgement, and no device may use that memory then.
        return [*effects, Send(acknowledgement(message))] if self._wants_ack(message) else effects

    def vring_is_to_stop(self, message: Message) -> bool:
        """Whether a GET_VRING_BASE that an earlier controller handled is still to stop a vring."""
        if message.request != Request.GET_VRING_BASE:
            return False
        index = wire.decode_vring_state(message).index
        return index < MAX_QUEUES and self.vrings[index].kick is not None

    def reply_again(self, message: Message) -> list[bytes]:
        """The answer to a message that an earlier controller handled and perhaps answered."""
        if message.request == Request.GET_VRING_BASE:
            index = wire.decode_vring_state(message).index
            return [self.stop_vring(index) if index < MAX_QUEUES else base_reply(index, 0)]
        if message.request in ANSWERED:
            effects = self.handle(message, ())
            return [effect.reply for effect in effects if isinstance(effect, Send)]
        return [acknowledgement(message)] if self._wants_ack(message) else []

    def _wants_ack(self, message: Message) -> bool:
        return bool(
            message.flags & wire.FLAG_NEED_REPLY
            and self.protocol_features & _REPLY_ACK
            and message.request not in ANSWERED
        )

    def stop_vring(self, index: int) -> bytes:
        """Stops a vring, whose ``base`` must be its ``used.idx``; returns the answer to
        GET_VRING_BASE."""
        return self.vrings.stop(index)

    # --- features -----------------------------------------------------------------------------

    def _get_features(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        features = wire.U64.pack(self.offered | wire.VHOST_USER_F_PROTOCOL_FEATURES)
        return [Send(wire.encode_reply(message.request, features))]

    def _set_features(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        features = wire.decode_u64(message)
        self.driver.set_up(message.request)
        if features == self.acknowledged:
            return []
        # Take features that are not offered too: an earlier balloond with other settings may have
        # offered them. `refusal` names features that this balloond does not implement.
        self.acknowledged = features
        return [*RESTART]

    def _set_protocol_features(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        features = wire.decode_u64(message)
        self.protocol_features = features & _PROTOCOL_FEATURES
        if unknown := features & ~_PROTOCOL_FEATURES:
            return [not_served(message, f"{unknown:#x} was not offered; going on without")]
        return []

    def _reset_owner(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        # RESET_OWNER is deprecated; some front-ends still send it to disable all rings.
        self.driver.sign_reset()
        self.vrings.disable()
        return [*RESTART]

    def _reset_device(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        self.vrings.reset()
        self.status = 0
        self.driver.stopped()
        emptied = self.driver.begin_anew()
        return [*RESTART, ActualWritten(self.config.actual)] if emptied else [*RESTART]

    def _set_status(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        self.status = wire.decode_u64(message)
        if self.status:
            return []
        # QEMU sends status 0 for a reset, but also for a pause, after it has stopped all rings. So
        # a ring that is still ready shows a reset, which disables the rings.
        self.driver.sign_reset()
        return self._reset_owner(message, fds) if any(v.ready for v in self.vrings) else []

    def _get_status(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        return [Send(wire.encode_reply(message.request, wire.U64.pack(self.status)))]

    def _set_backend_req_fd(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        if self.channel is not None:
            self.channel.close()
        self.channel = None
        if fds and self.right_kind(message.request, fds[0]):
            self.channel = fds[0]
        for fd in fds[:1] if self.channel is None else ():
            fd.close()
            why = "its descriptor is no Unix socket: no target can be signalled"
            return [not_served(message, why), *RESTART]
        return [*RESTART]

    # --- vrings -------------------------------------------------------------------------------

    def _set_vring_kick(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        # Without VHOST_USER_F_PROTOCOL_FEATURES a ring is enabled as soon as it starts, and its
        # kick descriptor starts it (vhost-user specification, "Ring states").
        enables = not self.acknowledged & wire.VHOST_USER_F_PROTOCOL_FEATURES
        return self.vrings.set_kick(message, fds, enables=enables)

    def _get_vring_base(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        index = wire.decode_vring_state(message).index
        if index >= MAX_QUEUES:
            return [Send(base_reply(index, 0))]
        if index == 0:
            self.driver.stopped()
        return [StopDevice(), AnswerVringBase(index), RingsChanged()]

    def _channel_fd_lost(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        return [not_served(message, NO_ROOM), *self._set_backend_req_fd(message, ())]

    # --- config space -------------------------------------------------------------------------

    def _get_config(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        access = wire.decode_config_access(message)
        if not self.vrings[0].started:
            self.driver.look_at_config()
        content = self.driver.read(access.offset, len(access.content))
        return [Send(wire.encode_config_reply(access, content))]


def _set_config(backend: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    access, driver = wire.decode_config_access(message), backend.driver
    started = backend.vrings[0].started
    written = driver.write(access.offset, access.content, started=started)
    effects: list[Effect] = [ActualWritten(driver.config.actual)] if written else []
    return [*effects, PoisonValWritten()] if driver.poison_is_new else effects


def _tell_memory(backend: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    return MEMORY_HANDLERS[message.request](backend.memory, message, fds)


def _memory_fds_lost(backend: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    backend.memory.lose(f"its memory is unknown: {NO_ROOM}")
    return [*RESTART]


def _tell_vring(backend: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    return VRING_HANDLERS[message.request](backend.vrings, message, fds)


def _vring_fd_lost(backend: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    return backend.vrings.lose_fd(message)


def _get_constant(_: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    return [Send(wire.encode_reply(message.request, wire.U64.pack(CONSTANTS[message.request])))]


def _set_owner(_: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    return []


def _leave_alone(_: Backend, message: Message, fds: Sequence[Fd]) -> list[Effect]:
    """Refuses a request of a feature that was not offered; the front-end learns of the refusal if
    it wants an acknowledgement."""
    for fd in fds:
        fd.close()
    return [not_served(message, "is not offered; refused")]


_HANDLERS: dict[int, Callable[[Backend, Message, Sequence[Fd]], list[Effect]]] = {
    **dict.fromkeys(CONSTANTS, _get_constant),
    **dict.fromkeys(MEMORY_HANDLERS, _tell_memory),
    **dict.fromkeys(VRING_HANDLERS, _tell_vring),
    Request.GET_FEATURES: Backend._get_features,
    Request.SET_FEATURES: Backend._set_features,
    Request.SET_OWNER: _set_owner,
    Request.RESET_OWNER: Backend._reset_owner,
    Request.GET_VRING_BASE: Backend._get_vring_base,
    Request.SET_VRING_KICK: Backend._set_vring_kick,
    Request.SET_PROTOCOL_FEATURES: Backend._set_protocol_features,
    Request.SET_BACKEND_REQ_FD: Backend._set_backend_req_fd,
    Request.GET_CONFIG: Backend._get_config,
    Request.SET_CONFIG: _set_config,
    Request.RESET_DEVICE: Backend._reset_device,
    Request.SET_STATUS: Backend._set_status,
    Request.GET_STATUS: Backend._get_status,
}

_HANDLERS.update(dict.fromkeys(LEFT_ALONE, _leave_alone))

_HANDLERS_OF_LOST_FDS = {
    Request.SET_MEM_TABLE: _memory_fds_lost,
    Request.ADD_MEM_REG: _memory_fds_lost,
    **dict.fromkeys(VRING_FDS, _vring_fd_lost),
    Request.SET_BACKEND_REQ_FD: Backend._channel_fd_lost,
}
"""Handlers of requests whose descriptors were lost for want of room."""
