"""All vrings of a balloon, and the requests that describe them.

Pure. Part of the back-end; ``vhost_user/backend.py`` says which changes end a device.

Source: QEMU's "Vhost-user Protocol", "Ring states" and "Front-end message types".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from balloon_daemon.errors import FrontendError
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.driver_state import DriverState
from balloon_daemon.vhost_user.effects import (
    NO_ROOM,
    RESTART,
    ActualWritten,
    Effect,
    ReadyVring,
    not_served,
)
from balloon_daemon.vhost_user.memory_table import Fd
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import Message
from balloon_daemon.vhost_user.vring import Vring
from balloon_daemon.virtio.balloon import MAX_QUEUES, BalloonQueue


class Vrings:
    """The vrings by their index, as the front-end has described them so far.

    Args:
        driver: notes bases and descriptions, which show whether a driver begins anew.
        right_kind: (request, descriptor) -> whether the descriptor is of the kind that the request
            needs.
    """

    def __init__(self, driver: DriverState, right_kind: Callable[[int, Fd], bool]) -> None:
        self._driver = driver
        self._right_kind = right_kind
        self._vrings = [Vring() for _ in range(MAX_QUEUES)]

    def __len__(self) -> int:
        return len(self._vrings)

    def __iter__(self) -> Iterator[Vring]:
        return iter(self._vrings)

    def __getitem__(self, index: int) -> Vring:
        return self._vrings[index]

    def ready(
        self, queues: Mapping[int, BalloonQueue], *, disabled: bool = False
    ) -> list[ReadyVring]:
        """The vrings of these queues that a device can serve now.

        Args:
            queues: which virtqueue stands behind an index.
            disabled: True: also disabled vrings, whose ``used.idx`` a device may read, but which
                it must not serve.
        """
        ready = []
        for index, queue in queues.items():
            vring = self._vrings[index]
            if not (vring.ready or (disabled and vring.described)):
                continue
            assert vring.addr is not None
            assert vring.kick is not None
            ready.append(ReadyVring(index, queue, vring.size, vring.addr, vring.kick, vring.call))
        return ready

    def stood_at(self, indices: Iterable[tuple[int, int]]) -> None:
        """Takes (vring, ``used.idx``) pairs from a device that has ended."""
        for index, used_index in indices:
            self._vrings[index].base = used_index

    def stop(self, index: int) -> bytes:
        """Stops a vring, whose ``base`` must be its ``used.idx``; returns the answer to
        GET_VRING_BASE."""
        self._vrings[index].set_kick(None)
        return base_reply(index, self._vrings[index].base)

    def disable(self) -> None:
        """Disables all vrings."""
        for vring in self._vrings:
            vring.enabled = False

    def reset(self) -> None:
        """Stops and disables all vrings, and sets their bases to 0."""
        for vring in self._vrings:
            vring.set_kick(None)
            vring.enabled, vring.base = False, 0

    def close(self) -> None:
        """Closes the vrings' descriptors and forgets all that was set up."""
        for vring in self._vrings:
            vring.close()
        self._vrings = [Vring() for _ in range(MAX_QUEUES)]

    # --- requests -----------------------------------------------------------------------------

    def _vring(self, index: int) -> Vring:
        """The vring of this index; for an index beyond the last a new ``Vring``, which is not
        stored."""
        return self._vrings[index] if index < MAX_QUEUES else Vring()

    def set_num(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        return self._described(message, state.index, self._vring(state.index).set_size(state.num))

    def set_addr(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        addr = wire.decode_vring_addr(message)
        return self._described(message, addr.index, self._vring(addr.index).set_addr(addr))

    def _described(self, message: Message, index: int, wrong: str) -> list[Effect]:
        if index < MAX_QUEUES:
            self._driver.set_up(message.request, index)
        effects = [*RESTART] if self._vring(index).started else []
        return [not_served(message, wrong), *effects] if wrong else effects

    def set_base(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        vring = self._vring(state.index)
        # A device starts at the used.idx in guest memory, not at this base. The base is kept for
        # GET_VRING_BASE's reply, and because it may show that the driver begins anew.
        before, was_unusable = vring.base, vring.unusable
        if wrong := vring.set_base(state.num):
            return [not_served(message, wrong), *RESTART]
        emptied = self._driver.set_base(state.index, state.num, before)
        effects = [*RESTART] if was_unusable else []
        return [*effects, ActualWritten(self._driver.config.actual)] if emptied else effects

    def _vring_fd(self, message: Message, fds: Sequence[Fd]) -> tuple[Vring, Fd | None, str]:
        """The vring, the descriptor for it, and why that descriptor cannot be used.

        An unusable descriptor is closed, and None is returned in its place.
        """
        number = wire.decode_u64(message)
        if number & ~(wire.VRING_INDEX_MASK | wire.VRING_NOFD_MASK):
            raise FrontendError(message.name, f"vring {number:#x}")
        if bool(number & wire.VRING_NOFD_MASK) == bool(fds):
            raise FrontendError(message.name, f"{len(fds)} descriptors, its flag says otherwise")
        index, fd, wrong = number & wire.VRING_INDEX_MASK, fds[0] if fds else None, ""
        if index >= MAX_QUEUES:
            wrong = f"vring {index}, a balloon has {MAX_QUEUES}"
        elif fd is not None and not self._right_kind(message.request, fd):
            wrong = f"vring {index}'s descriptor is no eventfd"
        if wrong and fd is not None:
            fd.close()
        return self._vring(index), None if wrong else fd, wrong

    def set_kick(
        self, message: Message, fds: Sequence[Fd], *, enables: bool = False
    ) -> list[Effect]:
        vring, fd, wrong = self._vring_fd(message, fds)
        vring.set_kick(fd)
        if fd is None:
            wrong = wrong or "without a descriptor: polled rings are not served"
            return [not_served(message, wrong), *RESTART]
        vring.enabled |= enables
        return [*RESTART]

    def set_call(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        vring, fd, wrong = self._vring_fd(message, fds)
        vring.set_call(fd, usable=not wrong)
        effects = [*RESTART] if vring.started else []
        return [not_served(message, wrong), *effects] if wrong else effects

    def set_err(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        vring, fd, wrong = self._vring_fd(message, fds)
        vring.set_err(fd)
        return [not_served(message, wrong)] if wrong else []

    def lose_fd(self, message: Message) -> list[Effect]:
        """Handles a request whose descriptor was lost for want of room."""
        number = wire.decode_u64(message)
        if number & wire.VRING_NOFD_MASK:
            return VRING_HANDLERS[message.request](self, message, ())
        vring = self._vring(number & wire.VRING_INDEX_MASK)
        if message.request == Request.SET_VRING_KICK:
            vring.set_kick(None)
        elif message.request == Request.SET_VRING_CALL:
            # Mark the ring as unusable. A ring without a call descriptor would otherwise be served
            # as one whose driver polls. But this driver waits for a call, and would wait for its
            # buffers for ever.
            vring.set_call(None, usable=False)
        return [not_served(message, NO_ROOM), *RESTART]

    def set_enable(self, message: Message, fds: Sequence[Fd]) -> list[Effect]:
        state = wire.decode_vring_state(message)
        vring = self._vring(state.index)
        changed = vring.enabled != bool(state.num)
        vring.enabled = bool(state.num)
        return [*RESTART] if changed and vring.started else []


def base_reply(index: int, base: int) -> bytes:
    """The answer to GET_VRING_BASE."""
    return wire.encode_reply(Request.GET_VRING_BASE, wire.VringState(index, base).encode())


VRING_HANDLERS: dict[int, Callable[[Vrings, Message, Sequence[Fd]], list[Effect]]] = {
    Request.SET_VRING_NUM: Vrings.set_num,
    Request.SET_VRING_ADDR: Vrings.set_addr,
    Request.SET_VRING_BASE: Vrings.set_base,
    Request.SET_VRING_KICK: Vrings.set_kick,
    Request.SET_VRING_CALL: Vrings.set_call,
    Request.SET_VRING_ERR: Vrings.set_err,
    Request.SET_VRING_ENABLE: Vrings.set_enable,
}
"""Requests that describe one vring."""
