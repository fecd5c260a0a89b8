"""A VMM's requests to the back-end, their answers, and the back-end's messages on its own channel.

Runs in the fake guest's process and in tests.
"""

import os
import socket
from collections.abc import Callable, Sequence
from typing import TypeVar

from balloon_daemon.errors import FrontendError
from balloon_daemon.fake_guest.styles import FrontendCounters
from balloon_daemon.fake_guest.wire import BackendError, Wire
from balloon_daemon.vhost_user.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    U64,
    VERSION,
    BackendRequest,
    FrontendRequest,
    Message,
    decode_u64,
    encode_reply,
    encode_request,
)

T = TypeVar("T")


def decoded(decode: Callable[[Message], T], message: Message) -> T:
    """Decodes a reply; the back-end sent it, so FrontendError becomes BackendError."""
    try:
        return decode(message)
    except FrontendError as err:
        raise BackendError(f"its answer to {err}") from err


class Requests:
    """Sends a VMM's requests and reads the answers.

    Args:
        wire: the connection; owned from here on.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.counters = FrontendCounters()
        self.acks = False
        """Whether REPLY_ACK is in effect: every request is answered."""
        self.running = False
        """Whether rings run, so that the back-end may send CONFIG_CHANGE_MSG."""
        self.config_changed = False
        """Set by CONFIG_CHANGE_MSG; cleared by the caller that handles it."""
        self.channel: Wire | None = None

    def close(self) -> None:
        """Hangs up, and closes the back-end's channel."""
        self.wire.close()
        if self.channel is not None:
            self.channel.close()

    def ask(self, request: FrontendRequest, payload: bytes = b"") -> Message:
        """Sends a request that has a reply of its own, and returns that reply.

        Raises:
            BackendError: an answer to another request, or with flags that QEMU refuses.
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
        self.wire.send(encode_request(request, payload, ack=self.acks), fds)
        if self.acks and (status := decoded(decode_u64, self._reply(request))):
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

    def open_channel(self) -> None:
        """Gives the back-end a socket for its own messages.

        Raises:
            BackendError: the back-end refused it.
            OSError: no answer in time, or the back-end hung up.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel = Wire(ours, timeout_s=self.wire.timeout_s)
        with theirs:
            self.tell(FrontendRequest.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    def serve_channel(self) -> None:
        """Reads the back-end's messages on its own channel, without waiting.

        Raises:
            BackendError: a message that a balloon never sends.
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
