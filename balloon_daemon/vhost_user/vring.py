"""One vring as the front-end describes it, and why it cannot be served.

Pure. Each setter returns why the new value cannot be served, "" where it can: the guest's driver
chooses sizes and addresses, and a wrong value must not cost its VM the connection.

Source: QEMU's "Vhost-user Protocol", "Ring states"; virtio 1.3, 2.7.
"""

from dataclasses import dataclass

from balloon_daemon.vhost_user.memory_table import Fd
from balloon_daemon.vhost_user.messages import VringAddr
from balloon_daemon.virtio.split_queue import MAX_QUEUE_SIZE


@dataclass(slots=True)
class Vring:
    """The values that the front-end has sent for one vring so far.

    Attributes:
        base: the ``used.idx`` at which the ring stands, with which GET_VRING_BASE is answered.
        no_base: the base that was sent is impossible for a split ring.
        no_call: the driver wants calls, but the descriptor sent for them is unusable.
    """

    size: int = 0
    base: int = 0
    addr: VringAddr | None = None
    kick: Fd | None = None
    call: Fd | None = None
    err: Fd | None = None
    started: bool = False
    enabled: bool = False
    no_base: bool = False
    no_call: bool = False

    @property
    def unusable(self) -> bool:
        """Whether the ring cannot be served because of its base or its call descriptor."""
        return self.no_base or self.no_call

    @property
    def ready(self) -> bool:
        """Whether a device can serve the ring."""
        return self.started and self.enabled and self.described

    @property
    def described(self) -> bool:
        """Whether a device can at least read the ring's ``used.idx``: the ring has a size,
        addresses and a kick, and a call where the driver wants calls."""
        has_all = bool(self.size) and self.addr is not None and self.kick is not None
        return has_all and not self.unusable

    def set_size(self, size: int) -> str:
        sound = 1 <= size <= MAX_QUEUE_SIZE and not size & (size - 1)
        self.size = size if sound else 0
        return "" if sound else f"size {size}, allowed are powers of two up to {MAX_QUEUE_SIZE}"

    def set_addr(self, addr: VringAddr) -> str:
        sound = not (addr.descriptors % 16 or addr.available % 2 or addr.used % 4)
        self.addr = addr if sound else None
        return "" if sound else f"vring {addr.index} is not aligned (virtio 2.7)"

    def set_base(self, base: int) -> str:
        self.base, self.no_base = base & 0xFFFF, base > 0xFFFF
        return f"base {base} is over 65535" if self.no_base else ""

    def set_kick(self, kick: Fd | None) -> None:
        """Sets the kick eventfd: a descriptor starts the ring, None stops it."""
        if self.kick is not None:
            self.kick.close()
        self.kick, self.started = kick, kick is not None

    def set_call(self, call: Fd | None, *, usable: bool = True) -> None:
        """Sets the call eventfd; None where the driver polls, or where the descriptor sent for it
        is not ``usable``."""
        if self.call is not None:
            self.call.close()
        self.call, self.no_call = call, not usable

    def set_err(self, err: Fd | None) -> None:
        if self.err is not None:
            self.err.close()
        self.err = err

    def close(self) -> None:
        """Closes its descriptors."""
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                fd.close()
        self.kick = self.call = self.err = None
