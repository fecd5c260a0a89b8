"""A vhost-user front-end that says what QEMU says, in QEMU's order, or what crosvm says.

Runs in the fake guest's process and in tests. It plays the VMM: it knows the connection, the
memory table, the rings' addresses and the config space, and nothing of what a balloon does.

Source: QEMU's "Vhost-user Protocol"; the order of QEMU 11.1's and crosvm's messages as recorded.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from balloon_daemon.errors import FrontendError
from balloon_daemon.fake_guest.styles import CONFIG_WRITABLE, QEMU, FrontendCounters, Ring, Style
from balloon_daemon.fake_guest.wire import BackendError, Wire
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    U64,
    VERSION,
    VHOST_USER_F_PROTOCOL_FEATURES,
    BackendRequest,
    ConfigAccess,
    FrontendRequest,
    Message,
    ProtocolFeature,
    RegionDescription,
    VringAddr,
    VringState,
    decode_config_access,
    decode_u64,
    decode_vring_state,
    encode_memory_table,
    encode_reply,
    encode_request,
)
from balloon_daemon.virtio.balloon import BalloonConfig

_Q = FrontendRequest
_T = TypeVar("_T")


def frontend_addr(regions: Sequence[RegionDescription], addr: GuestAddr) -> FrontendAddr:
    """Translates a guest-physical address into this VMM's own.

    Raises:
        ValueError: no region holds it.
    """
    for region in regions:
        if 0 <= addr - region.guest_addr < region.size_bytes:
            return FrontendAddr(addr - region.guest_addr + region.frontend_addr)
    raise ValueError(f"guest address {addr:#x} is in none of {len(regions)} regions")


def _decoded(decode: Callable[[Message], _T], message: Message) -> _T:
    """Decodes a reply; what the layouts call the front-end's fault is the back-end's here."""
    try:
        return decode(message)
    except FrontendError as err:
        raise BackendError(f"its answer to {err}") from err


@dataclass(slots=True)
class _Vring:
    kick: int
    call: int
    err: int
    configured: bool = False


class FakeFrontend:
    """One VM's connection to the daemon.

    Args:
        wire: the connection; owned from here on.
        style: which VMM to be like.
        num_vqs: queues that this VMM provides, used or not.
    """

    def __init__(self, wire: Wire, style: Style = QEMU, *, num_vqs: int = 5) -> None:
        self.wire = wire
        self.style = style
        self.num_vqs = num_vqs
        self.counters = FrontendCounters()
        self.features = 0
        """All that the back-end offers, virtio's and vhost-user's."""
        self.protocol_features = ProtocolFeature(0)
        self.max_mem_slots: int | None = None
        self.running = False
        self.config_changed = False
        """Set by CONFIG_CHANGE_MSG; whoever handles it clears it."""
        self.channel: Wire | None = None
        self.on_plugged: Callable[[int], None] = lambda _bytes: None
        """Told how much memory was plugged in (or out: negative) while the driver runs."""
        self._config_cache = bytearray(BalloonConfig.SIZE)
        self._shared: list[tuple[RegionDescription, int]] = []
        self._vrings = [
            _Vring(
                os.eventfd(style.kick_value, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
            )
            for _ in range(num_vqs)
        ]

    def close(self) -> None:
        """Hangs up and closes every file descriptor of ours."""
        self.wire.close()
        if self.channel is not None:
            self.channel.close()
        for vring in self._vrings:
            for fd in (vring.kick, vring.call, vring.err):
                os.close(fd)
        self._vrings = []

    def call_fd(self, index: int) -> int:
        """The eventfd by which the device interrupts queue ``index``."""
        return self._vrings[index].call

    def kick(self, index: int) -> None:
        """Notifies the device of new chains in queue ``index``."""
        os.eventfd_write(self._vrings[index].kick, 1)

    # -- messages -------------------------------------------------------------------------

    def ask(self, request: FrontendRequest, payload: bytes = b"") -> Message:
        """Sends a request that has a reply of its own, and returns that reply.

        Raises:
            BackendError: an answer to something else, or with flags that QEMU refuses.
            OSError: no answer in time, or the back-end hung up.
        """
        self.counters.requests += 1
        self.wire.send(encode_request(request, payload))
        return self._reply(request)

    def tell(
        self, request: FrontendRequest, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """Sends a request without a reply; with REPLY_ACK it waits for its acknowledgement.

        Raises:
            BackendError: the back-end refused it.
            OSError: no answer in time, or the back-end hung up.
        """
        self.counters.requests += 1
        ack = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        self.wire.send(encode_request(request, payload, ack=ack), fds)
        if ack and (status := _decoded(decode_u64, self._reply(request))):
            raise BackendError(f"{request.name} refused with status {status}")

    def _reply(self, request: FrontendRequest) -> Message:
        message, fds = self.wire.receive(self.serve_channel)
        for fd in fds:
            os.close(fd)
        if fds or message.request != request or message.flags != VERSION | FLAG_REPLY:
            raise BackendError(
                f"the answer to {request.name} is {message.name} with flags "
                f"{message.flags:#x} and {len(fds)} file descriptors"
            )
        return message

    def serve_channel(self) -> None:
        """Takes what the back-end says on its own channel, without waiting.

        Raises:
            BackendError: a message that no balloon has a reason to send.
        """
        if self.channel is None:
            return
        while self.channel.readable():
            try:
                message, fds = self.channel.receive()
            except ConnectionError:
                self.channel.close()
                self.channel = None
                return
            for fd in fds:
                os.close(fd)
            if message.request != BackendRequest.CONFIG_CHANGE_MSG or fds:
                raise BackendError(f"back-end request {message.request} on the channel")
            self.counters.config_changes += 1
            self.counters.early_config_changes += not self.running
            self.config_changed = True
            if message.flags & FLAG_NEED_REPLY:
                self.channel.send(encode_reply(message.request, U64.pack(0)))

    # -- connecting -----------------------------------------------------------------------

    def negotiate(self) -> None:
        """Everything up to the moment at which the guest may look for a driver.

        Raises:
            BackendError: a feature is missing without which this VMM gives up.
            OSError: no answer in time, or the back-end hung up.
        """
        if self.style.whole_config:
            self._negotiate_like_qemu()
        else:
            self._negotiate_like_crosvm()

    def _negotiate_like_qemu(self) -> None:
        self._get_features()
        self._choose_protocol_features()
        self._check_queue_num()
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self.max_mem_slots = _decoded(decode_u64, self.ask(_Q.GET_MAX_MEM_SLOTS))
        self._open_channel()
        self.tell(_Q.SET_OWNER)
        self._get_features()
        for index, vring in enumerate(self._vrings):
            self.tell(_Q.SET_VRING_CALL, U64.pack(index), [vring.call])
            self.tell(_Q.SET_VRING_ERR, U64.pack(index), [vring.err])

    def _negotiate_like_crosvm(self) -> None:
        self.tell(_Q.SET_OWNER)
        self._get_features()
        self.tell(_Q.SET_FEATURES, U64.pack(VHOST_USER_F_PROTOCOL_FEATURES))
        self._choose_protocol_features()
        self._open_channel()
        self._check_queue_num()

    def _get_features(self) -> None:
        self.features = _decoded(decode_u64, self.ask(_Q.GET_FEATURES))
        if not self.features & VHOST_USER_F_PROTOCOL_FEATURES:
            raise BackendError("no protocol features offered, so no config space")

    def _choose_protocol_features(self) -> None:
        offered = ProtocolFeature(_decoded(decode_u64, self.ask(_Q.GET_PROTOCOL_FEATURES)))
        chosen = offered & self.style.protocol_features
        if not chosen & ProtocolFeature.CONFIG:
            raise BackendError("protocol feature CONFIG is not offered: QEMU needs it")
        # Sent before REPLY_ACK holds, so nothing answers it.
        self.tell(_Q.SET_PROTOCOL_FEATURES, U64.pack(chosen))
        self.protocol_features = chosen

    def _check_queue_num(self) -> None:
        if self.protocol_features & ProtocolFeature.MQ:
            queues = _decoded(decode_u64, self.ask(_Q.GET_QUEUE_NUM))
            if queues < self.num_vqs:
                raise BackendError(f"{queues} queues, this VMM has {self.num_vqs}")

    def _open_channel(self) -> None:
        if not self.protocol_features & ProtocolFeature.BACKEND_REQ:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel = Wire(ours, timeout_s=self.wire.timeout_s)
        with theirs:
            self.tell(_Q.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    # -- the device's life ----------------------------------------------------------------

    def start(
        self,
        acknowledged: int,
        memory: Sequence[tuple[RegionDescription, int]],
        rings: Sequence[Ring],
    ) -> None:
        """Hands over memory and rings: what a VMM does when the driver says DRIVER_OK.

        Args:
            acknowledged: the driver's features.
            memory: each region with the fd of its file.
            rings: the queues that the driver configured; others are enabled all the same.

        Raises:
            BackendError: the back-end refused something.
            OSError: no answer in time, or the back-end hung up.
        """
        self.tell(_Q.SET_FEATURES, U64.pack(acknowledged | VHOST_USER_F_PROTOCOL_FEATURES))
        self.share_memory(memory)
        regions = [region for region, _ in memory]
        for ring in rings:
            vring = self._vrings[ring.index]
            vring.configured = True
            self.tell(_Q.SET_VRING_NUM, VringState(ring.index, ring.size).encode())
            self.tell(_Q.SET_VRING_BASE, VringState(ring.index, ring.base).encode())
            addr = VringAddr(
                ring.index,
                0,
                descriptors=frontend_addr(regions, ring.descriptors),
                used=frontend_addr(regions, ring.used),
                available=frontend_addr(regions, ring.available),
            )
            self.tell(_Q.SET_VRING_ADDR, addr.encode())
            self.tell(_Q.SET_VRING_KICK, U64.pack(ring.index), [vring.kick])
            self.tell(_Q.SET_VRING_CALL, U64.pack(ring.index), [vring.call])
        # Before the first enable: the back-end may signal from that message on.
        self.running = True
        everyone = self.style.whole_config
        for index, vring in enumerate(self._vrings):
            if everyone or vring.configured:
                self.tell(_Q.SET_VRING_ENABLE, VringState(index, 1).encode())
        if everyone:
            for index, vring in enumerate(self._vrings):
                self.tell(_Q.SET_VRING_CALL, U64.pack(index), [vring.call])

    def share_memory(self, memory: Sequence[tuple[RegionDescription, int]]) -> None:
        """Makes the back-end's memory table what is given, with whatever changed since.

        Raises:
            BackendError: a region was refused.
        """
        if not self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            table = encode_memory_table([region for region, _ in memory])
            self.tell(_Q.SET_MEM_TABLE, table, [fd for _, fd in memory])
        else:
            # QEMU compares with what it shared before and sends only the difference.
            for region, fd in self._shared:
                if (region, fd) not in memory:
                    self.tell(_Q.REM_MEM_REG, region.encode_single(), [fd])
            for region, fd in memory:
                if (region, fd) not in self._shared:
                    self.tell(_Q.ADD_MEM_REG, region.encode_single(), [fd])
        before, self._shared = self._shared, list(memory)
        if self.running:
            sizes = (sum(r.size_bytes for r, _ in shared) for shared in (memory, before))
            self.on_plugged(next(sizes) - next(sizes))

    def stop(self) -> dict[int, int]:
        """Stops all queues: the driver was unbound, or the VM paused or reset.

        Returns:
            For each configured queue the available index at which to go on.

        Raises:
            BackendError: the back-end refused, or answered for another queue.
        """
        bases = {}
        for index, vring in enumerate(self._vrings):
            if self.style.whole_config or vring.configured:
                self.tell(_Q.SET_VRING_ENABLE, VringState(index, 0).encode())
        for index, vring in enumerate(self._vrings):
            if not vring.configured:
                continue
            reply = self.ask(_Q.GET_VRING_BASE, VringState(index, 0).encode())
            state = _decoded(decode_vring_state, reply)
            if state.index != index:
                raise BackendError(f"GET_VRING_BASE of queue {index} speaks of {state.index}")
            bases[index] = state.num
            vring.configured = False
        # What was said while they ran came in time, however late it is read.
        self.serve_channel()
        self.running = False
        return bases

    # -- config space ---------------------------------------------------------------------

    def read_config(self, offset: int, length: int) -> bytes:
        """A guest's read of the config space.

        Raises:
            BackendError: the back-end refused it, and a VMM has no value for its guest.
        """
        self.counters.config_reads += 1
        if not self.style.whole_config:
            return self._get_config(offset, length, CONFIG_WRITABLE)
        self._config_cache[:] = self._get_config(0, BalloonConfig.SIZE, 0)
        return bytes(self._config_cache[offset : offset + length])

    def write_config(self, offset: int, content: bytes) -> None:
        """A guest's write to the config space; QEMU writes all of it, from its cache.

        Raises:
            BackendError: the back-end refused it.
        """
        self.counters.config_writes += 1
        flags = CONFIG_WRITABLE
        if self.style.whole_config:
            self._config_cache[offset : offset + len(content)] = content
            offset, content, flags = 0, bytes(self._config_cache), 0
        self.tell(_Q.SET_CONFIG, ConfigAccess(offset, flags, content).encode())

    def _get_config(self, offset: int, length: int, flags: int) -> bytes:
        reply = self.ask(_Q.GET_CONFIG, ConfigAccess(offset, flags, bytes(length)).encode())
        access = _decoded(decode_config_access, reply)
        if access.offset != offset or len(access.content) != length:
            raise BackendError(
                f"GET_CONFIG of {length} bytes at {offset} answered with "
                f"{len(access.content)} at {access.offset}"
            )
        return access.content
