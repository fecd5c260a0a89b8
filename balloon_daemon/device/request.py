"""The messages between controller and template: a device's spec with descriptors, and a pid.

The template looks at a request's first bytes, up to the seccomp filter, which all devices have in
common. Only the device that serves that guest receives the request.
"""

import array
import marshal
import socket
import struct
from typing import Any

from balloon_daemon import __version__
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.linux.jail import Identity
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.virtio.balloon import BalloonQueue

_QUEUES = tuple(BalloonQueue)
_FIELDS = [name for spec in (DeviceSpec, RegionSpec, VringSpec, Identity) for name in spec._fields]
_NAMES = [*_FIELDS, *(queue.value for queue in _QUEUES)]
HELLO = f"balloond {__version__} forks {' '.join(_NAMES)}".encode()
"""The template's first datagram, with the names of all fields and queues in their order. The files
on disk may be newer than the running controller, even of the same version; a template with other
fields would decode a request wrongly, so the controller refuses one."""

ANSWER = struct.Struct("<qi")
"""The device's process id, and an errno (not 0: no device was forked)."""

FDS_A_DATAGRAM = 250
"""Descriptors in one datagram; the kernel's limit, SCM_MAX_FD, is 253."""

MAX_DATAGRAM_BYTES = 128 * 1024
"""A request with 256 regions, five vrings and a filter of 4096 instructions fits."""

_HEAD = struct.Struct("<III")
"""The number of descriptors, the process id of the device's parent, the bytes of the filter."""

_ROOM = socket.CMSG_SPACE(FDS_A_DATAGRAM * array.array("i").itemsize)


class Head(NamedTuple):
    """The beginning of a request that is still in the socket.

    Attributes:
        sent: how many descriptors the controller sent.
        bpf: the seccomp program.
    """

    sent: int
    bpf: memoryview


class Request(NamedTuple):
    """A request as it was received.

    Attributes:
        sent: how many descriptors the controller sent.
        parent: the process id of the controller.
        spec: the bytes behind the seccomp program, for ``decode_spec``.
        fds: the descriptors received; fewer than ``sent`` where this process could hold no more.
    """

    sent: int
    parent: int
    spec: memoryview
    fds: list[int]


def send_request(
    sock: socket.socket, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int, bpf: bytes
) -> None:
    """Sends a request in as many datagrams as its descriptors need.

    The spec is sent with each descriptor's number replaced by its place among the sent
    descriptors.

    Raises:
        OSError: a datagram was not sent. No device is forked then, because the template forks only
            after the last datagram.
    """
    fds = [tube_fd, stderr_fd, *spec.fds()]
    places = iter(range(2, len(fds)))
    encoded = encode_spec(spec.with_fds(lambda fd: next(places)))
    content = _HEAD.pack(len(fds), parent, len(bpf)) + bpf + encoded
    for start in range(0, len(fds), FDS_A_DATAGRAM):
        part = fds[start : start + FDS_A_DATAGRAM]
        socket.send_fds(sock, [b"+" if start else content], list(part))


def peek_request(sock: socket.socket, buffer: bytearray) -> Head | None:
    """Waits for a request, and leaves it in the socket; None once the controller has hung up.

    Nothing behind the seccomp program is copied: every later device would inherit the bytes that
    say where this VM's VMM has mapped the guest's memory.

    Args:
        sock: the socket to the controller.
        buffer: of ``MAX_DATAGRAM_BYTES``; receives the bytes.
    """
    if not sock.recv_into(buffer, _HEAD.size, socket.MSG_PEEK):
        return None
    sent, _, bpf_bytes = _HEAD.unpack_from(buffer)
    end = _HEAD.size + bpf_bytes
    sock.recv_into(buffer, end, socket.MSG_PEEK)
    return Head(sent, memoryview(buffer)[_HEAD.size : end])


def drop_request(sock: socket.socket, head: Head) -> None:
    """Removes a request from the socket. The kernel drops its descriptors before they get numbers
    here, so this process calls close(2) for none of them."""
    for _ in range(0, head.sent, FDS_A_DATAGRAM):
        sock.recv(1)


def receive_request(sock: socket.socket, buffer: bytearray) -> Request | None:
    """The next request; None once the controller has closed the socket.

    Args:
        sock: the socket to the controller.
        buffer: of ``MAX_DATAGRAM_BYTES``; receives the request's bytes.
    """
    length, fds = _receive(sock, buffer)
    if not length:
        return None
    count, parent, bpf_bytes = _HEAD.unpack_from(buffer)
    # Receive all datagrams of the request, even if this process had no room for some descriptors.
    # A datagram left in the socket would be taken for the next request.
    rest = bytearray(1)
    for _ in range(FDS_A_DATAGRAM, count, FDS_A_DATAGRAM):
        more, further = _receive(sock, rest)
        fds += further
        if not more:
            return None
    return Request(count, parent, memoryview(buffer)[_HEAD.size + bpf_bytes : length], fds)


def _receive(sock: socket.socket, buffer: bytearray) -> tuple[int, list[int]]:
    length, ancillary, _, _ = sock.recvmsg_into([buffer], _ROOM)
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return length, list(fds)


_REGIONS, _VRINGS, _IDENTITY, _CHANNEL = map(
    DeviceSpec._fields.index, ("regions", "vrings", "identity", "channel_fd")
)
_REGION_FD = RegionSpec._fields.index("fd")
_QUEUE, _KICK, _CALL = map(VringSpec._fields.index, ("queue", "kick_fd", "call_fd"))


def encode_spec(spec: DeviceSpec) -> bytes:
    """Encodes all fields in their order; ``HELLO`` has said that the template knows the same ones.
    Unlike pickle, marshal needs no import.

    Not under their names, and each queue by its place: a device would write to the reference count
    of each name, and so copy the page that the name is on.
    """
    fields: list[Any] = list(spec)
    fields[_REGIONS] = tuple(map(tuple, spec.regions))
    fields[_VRINGS] = tuple(
        (*vring[:_QUEUE], _QUEUES.index(vring.queue), *vring[_QUEUE + 1 :])
        for vring in spec.vrings
    )
    fields[_IDENTITY] = None if spec.identity is None else tuple(spec.identity)
    return marshal.dumps(tuple(fields))


def decode_spec(request: Request) -> DeviceSpec:
    """Decodes a request whose descriptors have all come; called in the device only."""
    fields: list[Any] = list(marshal.loads(request.spec))
    regions, vrings, fds = [], [], request.fds
    for region in map(list, fields[_REGIONS]):
        if (place := region[_REGION_FD]) is not None:
            region[_REGION_FD] = fds[place]
        regions.append(RegionSpec(*region))
    for vring in map(list, fields[_VRINGS]):
        vring[_QUEUE], vring[_KICK] = _QUEUES[vring[_QUEUE]], fds[vring[_KICK]]
        if (place := vring[_CALL]) is not None:
            vring[_CALL] = fds[place]
        vrings.append(VringSpec(*vring))
    fields[_REGIONS], fields[_VRINGS] = tuple(regions), tuple(vrings)
    if (identity := fields[_IDENTITY]) is not None:
        fields[_IDENTITY] = Identity(*identity)
    if (place := fields[_CHANNEL]) is not None:
        fields[_CHANNEL] = fds[place]
    return DeviceSpec(*fields)
