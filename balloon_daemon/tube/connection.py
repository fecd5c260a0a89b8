"""The two ends of the tube. The controller's end never blocks; nor does the device's."""

import contextlib
import errno
import os
import select
import socket

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
"""Messages taken at a time: a device that was taken over must not hold the controller by writing
faster than it reads. A tube holds some 280 (net.core.wmem_default)."""

_LOST = {errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS, errno.ENOMEM}
"""Full, the other side is gone, or the host has no memory: what matters is absolute and comes
again."""


class _End:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.ignored = 0
        """Messages that the other side would never send."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _write(self, datagram: bytes) -> bool:
        # write(2), not sendto(2): the seed's policy allows the device no other.
        try:
            os.write(self._socket.fileno(), datagram)
        except OSError as err:
            if err.errno not in _LOST:
                raise
            return False
        return True

    def _read(self) -> bytes:
        """One datagram; empty at the end of the tube. Raises BlockingIOError where none waits."""
        try:
            return self._socket.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:
            return b""


class ControllerEnd(_End):
    """The controller's end."""

    def send(self, message: Down) -> bool:
        """Sends to the device; False where the tube is full or the device is gone."""
        return self._write(encode_down(message))

    def receive(self) -> list[Up] | None:
        """Reports that wait, of at most 64 messages; None once the device is gone and all is read.

        An empty list does not say that nothing waits: it may all have been ignored.
        """
        reports: list[Up] = []
        with contextlib.suppress(BlockingIOError):
            for taken in range(MAX_DATAGRAMS):
                datagram = self._read()
                if not datagram:
                    return None if taken == 0 else reports
                try:
                    reports.append(decode_up(datagram))
                except TubeError:
                    self.ignored += 1
        return reports


class DeviceEnd(_End):
    """The device's end."""

    def wait_for_order(self) -> bool:
        """Waits for the first order, and leaves it there; False where the controller is gone."""
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
        """Orders that wait, of at most 64 messages; None once the controller is gone."""
        orders: list[Down] = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_DATAGRAMS):
                datagram = self._read()
                if not datagram:
                    return None
                try:
                    orders.append(decode_down(datagram))
                except TubeError:
                    self.ignored += 1
        return orders
