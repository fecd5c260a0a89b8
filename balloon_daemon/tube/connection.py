"""The two ends of the tube. The controller's end never blocks; nor does the device's."""

import contextlib
import os
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
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            # Full, or the other side is gone: what matters is absolute and comes again.
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
        """All reports that wait; None once the device has closed its end and all is read."""
        reports: list[Up] = []
        with contextlib.suppress(BlockingIOError):
            while datagram := self._read():
                try:
                    reports.append(decode_up(datagram))
                except TubeError:
                    self.ignored += 1
            return reports or None
        return reports


class DeviceEnd(_End):
    """The device's end."""

    def send(self, message: Up) -> bool:
        """Sends to the controller; False where the tube is full or the controller is gone."""
        return self._write(encode_up(message))

    def receive(self) -> list[Down] | None:
        """All orders that wait; None once the controller is gone."""
        orders: list[Down] = []
        with contextlib.suppress(BlockingIOError):
            while datagram := self._read():
                try:
                    orders.append(decode_down(datagram))
                except TubeError:
                    self.ignored += 1
            return None
        return orders
