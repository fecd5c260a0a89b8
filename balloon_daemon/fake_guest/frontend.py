"""A vhost-user front-end that sends QEMU's messages in QEMU's order, or crosvm's.

Runs in the fake guest's process and in tests. It plays the VMM: it has the connection, the memory
table, the rings' addresses and the config space, and does not know what a balloon is.

Source: QEMU's "Vhost-user Protocol"; the order of QEMU 11.1's and crosvm's messages as recorded.
"""

import os
from collections.abc import Callable, Sequence

from balloon_daemon.fake_guest.negotiation import NOTHING_YET, negotiate
from balloon_daemon.fake_guest.requests import Requests, decoded
from balloon_daemon.fake_guest.styles import CONFIG_WRITABLE, QEMU, Ring, Style, Vring
from balloon_daemon.fake_guest.wire import BackendError, Wire
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    U64,
    VHOST_USER_F_PROTOCOL_FEATURES,
    ConfigAccess,
    FrontendRequest,
    ProtocolFeature,
    RegionDescription,
    VringAddr,
    VringState,
    decode_config_access,
    decode_vring_state,
    encode_memory_table,
)
from balloon_daemon.virtio.balloon import BalloonConfig

_Q = FrontendRequest


def frontend_addr(regions: Sequence[RegionDescription], addr: GuestAddr) -> FrontendAddr:
    """Translates a guest-physical address into an address of this VMM.

    Raises:
        ValueError: no region holds it.
    """
    for region in regions:
        if 0 <= addr - region.guest_addr < region.size_bytes:
            return FrontendAddr(addr - region.guest_addr + region.frontend_addr)
    raise ValueError(f"guest address {addr:#x} is in none of {len(regions)} regions")


class FakeFrontend:
    """One VM's connection to the daemon.

    Args:
        wire: the connection; owned from here on.
        style: the VMM whose behaviour it imitates.
        num_vqs: queues that this VMM provides, used or not.
    """

    def __init__(self, wire: Wire, style: Style = QEMU, *, num_vqs: int = 5) -> None:
        self.requests = Requests(wire)
        self.style = style
        self.negotiated = NOTHING_YET
        self.on_plugged: Callable[[int], None] = lambda _bytes: None
        """Called with the bytes of memory plugged in (or out: negative) while the driver runs."""
        self._config_cache = bytearray(BalloonConfig.SIZE)
        self._shared: list[tuple[RegionDescription, int]] = []
        self._vrings = [
            Vring(
                os.eventfd(style.kick_value, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
                os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
            )
            for _ in range(num_vqs)
        ]

    def close(self) -> None:
        """Hangs up and closes all of its file descriptors."""
        self.requests.close()
        for vring in self._vrings:
            for fd in (vring.kick, vring.call, vring.err):
                os.close(fd)
        self._vrings = []

    @property
    def running(self) -> bool:
        """Whether rings run."""
        return self.requests.running

    def call_fd(self, index: int) -> int:
        """The eventfd by which the device interrupts queue ``index``."""
        return self._vrings[index].call

    def kick(self, index: int) -> None:
        """Notifies the device of new chains in queue ``index``."""
        os.eventfd_write(self._vrings[index].kick, 1)

    def negotiate(self) -> None:
        """Sends everything up to the moment when the guest may look for a driver.

        Raises:
            BackendError: a feature is missing without which this VMM gives up.
            OSError: no answer in time, or the back-end hung up.
        """
        self.negotiated = negotiate(self.requests, self.style, self._vrings)

    # -- starting and stopping ------------------------------------------------------------

    def start(
        self,
        acknowledged: int,
        memory: Sequence[tuple[RegionDescription, int]],
        rings: Sequence[Ring],
    ) -> None:
        """Shares memory and rings, as a VMM does at the driver's DRIVER_OK.

        Args:
            acknowledged: the driver's features.
            memory: each region with the fd of its file.
            rings: the queues that the driver configured; others are enabled all the same.

        Raises:
            BackendError: the back-end refused something.
            OSError: no answer in time, or the back-end hung up.
        """
        self.requests.tell(
            _Q.SET_FEATURES, U64.pack(acknowledged | VHOST_USER_F_PROTOCOL_FEATURES)
        )
        self.share_memory(memory)
        regions = [region for region, _ in memory]
        for ring in rings:
            vring = self._vrings[ring.index]
            vring.configured = True
            self.requests.tell(_Q.SET_VRING_NUM, VringState(ring.index, ring.size).encode())
            self.requests.tell(_Q.SET_VRING_BASE, VringState(ring.index, ring.base).encode())
            addr = VringAddr(
                ring.index,
                0,
                descriptors=frontend_addr(regions, ring.descriptors),
                used=frontend_addr(regions, ring.used),
                available=frontend_addr(regions, ring.available),
            )
            self.requests.tell(_Q.SET_VRING_ADDR, addr.encode())
            self.requests.tell(_Q.SET_VRING_KICK, U64.pack(ring.index), [vring.kick])
            self.requests.tell(_Q.SET_VRING_CALL, U64.pack(ring.index), [vring.call])
        # Set `running` before the first SET_VRING_ENABLE. The back-end may send CONFIG_CHANGE_MSG
        # from that request on; one that is read while `running` is False counts as sent too early.
        self.requests.running = True
        everyone = self.style.whole_config
        for index, vring in enumerate(self._vrings):
            if everyone or vring.configured:
                self.requests.tell(_Q.SET_VRING_ENABLE, VringState(index, 1).encode())
        if everyone:
            for index, vring in enumerate(self._vrings):
                self.requests.tell(_Q.SET_VRING_CALL, U64.pack(index), [vring.call])

    def share_memory(self, memory: Sequence[tuple[RegionDescription, int]]) -> None:
        """Makes the back-end's memory table equal to the one given.

        Raises:
            BackendError: a region was refused.
        """
        if not self.negotiated.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            table = encode_memory_table([region for region, _ in memory])
            self.requests.tell(_Q.SET_MEM_TABLE, table, [fd for _, fd in memory])
        else:
            # Like QEMU, send only the regions that have gone or come since the last memory table.
            for region, fd in self._shared:
                if (region, fd) not in memory:
                    self.requests.tell(_Q.REM_MEM_REG, region.encode_single(), [fd])
            for region, fd in memory:
                if (region, fd) not in self._shared:
                    self.requests.tell(_Q.ADD_MEM_REG, region.encode_single(), [fd])
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
                self.requests.tell(_Q.SET_VRING_ENABLE, VringState(index, 0).encode())
        for index, vring in enumerate(self._vrings):
            if not vring.configured:
                continue
            reply = self.requests.ask(_Q.GET_VRING_BASE, VringState(index, 0).encode())
            state = decoded(decode_vring_state, reply)
            if state.index != index:
                raise BackendError(f"GET_VRING_BASE of queue {index} speaks of {state.index}")
            bases[index] = state.num
            vring.configured = False
        # Read the back-end channel before `running` is cleared. Messages that wait there were sent
        # while the rings ran, and must not count as sent too early.
        self.requests.serve_channel()
        self.requests.running = False
        return bases

    # -- config space ---------------------------------------------------------------------

    def read_config(self, offset: int, length: int) -> bytes:
        """A guest's read of the config space.

        Raises:
            BackendError: the back-end refused it, and a VMM has no value for its guest.
        """
        self.requests.counters.config_reads += 1
        if not self.style.whole_config:
            return self._get_config(offset, length, CONFIG_WRITABLE)
        self._config_cache[:] = self._get_config(0, BalloonConfig.SIZE, 0)
        return bytes(self._config_cache[offset : offset + length])

    def write_config(self, offset: int, content: bytes) -> None:
        """A guest's write to the config space; QEMU writes all of it, from its cache.

        Raises:
            BackendError: the back-end refused it.
        """
        self.requests.counters.config_writes += 1
        flags = CONFIG_WRITABLE
        if self.style.whole_config:
            self._config_cache[offset : offset + len(content)] = content
            offset, content, flags = 0, bytes(self._config_cache), 0
        self.requests.tell(_Q.SET_CONFIG, ConfigAccess(offset, flags, content).encode())

    def _get_config(self, offset: int, length: int, flags: int) -> bytes:
        reply = self.requests.ask(
            _Q.GET_CONFIG, ConfigAccess(offset, flags, bytes(length)).encode()
        )
        access = decoded(decode_config_access, reply)
        if access.offset != offset or len(access.content) != length:
            raise BackendError(
                f"GET_CONFIG of {length} bytes at {offset} answered with "
                f"{len(access.content)} at {access.offset}"
            )
        return access.content
