"""Answers config accesses that look like earlier ones, without decoding each of them.

Pure. A guest reads its target and writes ``actual`` once for each MiB that it gives, and a VMM
sends the same bytes each time, but for ``actual``. Between two accesses the guest works for
milliseconds, so the controller's code and data have left the processor's caches, and each object
and function that an access takes costs several times what it costs in a loop. So once
``Backend.handle`` has answered a request, the bytes with which its answer begins are kept in a
dictionary, under the request's first 24 bytes.
"""

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.vhost_user.driver_state import DriverState
from balloon_daemon.vhost_user.messages import (
    CONFIG_HEADER,
    HEADER,
    FrontendRequest,
    Message,
)
from balloon_daemon.vhost_user.vring import Vring

HEAD_BYTES = HEADER.size + CONFIG_HEADER.size
"""The bytes before the config space's content, in a request and in GET_CONFIG's reply."""

MOST_BYTES = 64
"""The longest request that is kept: QEMU sends the whole config space of 16 bytes, other VMMs
4."""

MOST_KNOWN = 4
"""How many kinds of accesses are kept. QEMU sends two."""


class _Known(NamedTuple):
    """A kind of access.

    Attributes:
        reads: whether it is a GET_CONFIG.
        request_bytes: a request's length.
        offset: the place in the config space of the first byte that it is about.
        length: how many bytes of the config space it is about.
        reply: what the answer begins with; b"": there is none.
    """

    reads: bool
    request_bytes: int
    offset: int
    length: int
    reply: bytes


class KnownAccesses:
    """The kinds of config accesses that one front-end has made.

    Args:
        driver: has the config space.
        inflateq: an access while it stands still may be a sign of another driver, or write
            ``poison_val``, so it is not answered here.
    """

    def __init__(self, driver: DriverState, inflateq: Vring) -> None:
        self._driver = driver
        self._inflateq = inflateq
        self._known: dict[bytes, _Known] = {}

    def forget(self) -> None:
        """Forgets all kinds, as another request may change whether an access is acknowledged."""
        self._known.clear()

    def learn(self, message: Message, reply: bytes) -> None:
        """Keeps a kind of access.

        Args:
            message: a GET_CONFIG or SET_CONFIG that ``Backend.handle`` has understood.
            reply: its answer, b"" where there is none.
        """
        request = message.encode()
        if len(request) > MOST_BYTES or len(self._known) >= MOST_KNOWN:
            return
        offset, length, _ = CONFIG_HEADER.unpack_from(message.payload)
        reads = message.request == FrontendRequest.GET_CONFIG
        reply = reply[:HEAD_BYTES] if reads else reply
        self._known[request[:HEAD_BYTES]] = _Known(reads, len(request), offset, length, reply)

    def answer(self, waiting: bytes) -> tuple[bytes, bool] | None:
        """Performs an access, if these bytes are one whole access of a kind that is kept.

        Returns:
            The reply, b"" for none, and whether ``actual`` was written; None: nothing is done.
        """
        known = self._known.get(waiting[:HEAD_BYTES])
        if known is None:
            return None
        reads, request_bytes, offset, length, reply = known
        driver = self._driver
        if (
            request_bytes != len(waiting)
            or not self._inflateq.started
            or driver.reset_signed
            or driver.poison_is_new
            or driver.balloon_unknown
        ):
            return None
        # In this state ``DriverState.read`` and ``write`` do nothing but call these two.
        if reads:
            return reply + driver.config.read(offset, length), False
        return reply, driver.config.write(offset, waiting[HEAD_BYTES:])
