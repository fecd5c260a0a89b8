"""The two ends of the tube; neither of them blocks."""

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct

from balloon_daemon.errors import TubeError
from balloon_daemon.tube.messages import (
    MAX_MESSAGE_BYTES,
    Down,
    Up,
    decode_down,
    decode_up,
    encode_down,
    encode_up,
)


def open_tube() -> tuple["ControllerEnd", "DeviceEnd"]:
    """Makes a connected pair, both ends non-blocking and close-on-exec."""
    upper, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    upper.setblocking(False)
    lower.setblocking(False)
    return ControllerEnd(upper), DeviceEnd(lower)


MAX_DATAGRAMS = 64
"""Messages taken at a time: a device taken over by its guest must not keep the controller busy by
writing faster than the controller reads. A tube holds some 280 messages (net.core.wmem_default).
"""

_SIOCOUTQ = 0x5411  # linux/sockios.h

_LOST = {errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM}
"""The tube is full, the other side is gone, or the host has no memory. The message is dropped:
every message that matters is absolute and is sent again later."""


class _End:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _write(self, datagram: bytes) -> bool:
        # write(2), not sendto(2): crosvm's seccomp policy for this device allows only write(2).
        try:
            os.write(self._socket.fileno(), datagram)
        except OSError as err:
            if err.errno not in _LOST:
                raise
            return False
        return True

    def _read(self) -> bytes:
        """Reads one datagram; empty at the tube's end. Raises BlockingIOError where none waits."""
        try:
            return self._socket.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            return b""


class ControllerEnd(_End):
    """The controller's end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.garbage: str | None = None
        """Describes the received message that no device sends; None: there was none so far."""
        self.at_end = False
        """The device is gone, and all of its reports have been read."""

    def send(self, message: Down) -> bool:
        """Sends to the device; False where the tube is full or the device is gone."""
        return self._write(encode_down(message))

    def receive(self) -> list[Up] | None:
        """Waiting reports, at most 64; None once the device is gone and all are read.

        After a message that no device sends, which ``garbage`` describes, nothing more is read.
        """
        reports: list[Up] = []
        with contextlib.suppress(BlockingIOError):
            while len(reports) < MAX_DATAGRAMS and self.garbage is None:
                datagram = self._read()
                if not datagram and self._has_hung_up():
                    self.at_end = not reports
                    return reports or None
                try:
                    reports.append(decode_up(datagram))
                except TubeError as err:
                    self.garbage = str(err)
        return reports

    def _has_hung_up(self) -> bool:
        """Whether the device's end is closed. recv(2) returns nothing at the end of file, and for
        a datagram of no bytes, which no device sends."""
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLHUP is always reported.
        return bool(poll.poll(0))

    def unread_bytes(self) -> int:
        """Bytes that the orders not yet read by the device occupy (unix(7), SIOCOUTQ)."""
        (unread,) = struct.unpack("i", fcntl.ioctl(self._socket, _SIOCOUTQ, bytes(4)))
        return int(unread)


class DeviceEnd(_End):
    """The device's end."""

    def wait_for_order(self) -> bool:
        """Waits for the first order without reading it; False where the controller is gone."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll()
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except ConnectionResetError:
            return False

    def send(self, message: Up) -> bool:
        """Sends to the controller; False where the tube is full or the controller is gone."""
        return self._write(encode_up(message))

    def receive(self) -> list[Down] | None:
        """Waiting orders, at most 64 messages; None once the controller is gone.

        A message that the controller would never send is ignored.
        """
        orders: list[Down] = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_DATAGRAMS):
                datagram = self._read()
                if not datagram:
                    return None
                with contextlib.suppress(TubeError):
                    orders.append(decode_down(datagram))
        return orders
