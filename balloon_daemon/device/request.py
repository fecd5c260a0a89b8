"""What controller and template say to each other: a device's spec and its descriptors, a pid.

Bytes and descriptors are read apart: only the device itself decodes the bytes, and learns what
they say of its guest. The template keeps the filter, which all devices have in common, and nothing
else.
"""

import array
import marshal
import socket
import struct
from typing import Any, NamedTuple

from balloon_daemon import __version__
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.linux.jail import Identity
from balloon_daemon.virtio.balloon import BalloonQueue

_FIELDS = [name for spec in (DeviceSpec, RegionSpec, VringSpec) for name in spec.__slots__]
HELLO = f"balloond {__version__} forks {' '.join(_FIELDS)}".encode()
"""The template's first datagram. Its files may be another balloond's than those of the running
controller, also of the same version: a request of other fields would be decoded wrongly."""

ANSWER = struct.Struct("<qi")
"""The device's process id, and an errno that says why there is none."""

FDS_A_DATAGRAM = 250
"""SCM_MAX_FD of the kernel is 253."""

MAX_DATAGRAM_BYTES = 128 * 1024
"""256 regions, five vrings and a filter of 4096 instructions fit."""

_HEAD = struct.Struct("<III")
"""How many descriptors, the process id of the device's parent, how many bytes of filter."""

_ROOM = socket.CMSG_SPACE(FDS_A_DATAGRAM * array.array("i").itemsize)


class Request(NamedTuple):
    """A request as it came.

    Attributes:
        sent: how many descriptors were sent with it.
        parent: the process id of the controller.
        bpf: the seccomp program.
        spec: all else, for ``decode_spec``.
        fds: the descriptors; fewer than ``sent`` where there was no room for more.
    """

    sent: int
    parent: int
    bpf: memoryview
    spec: memoryview
    fds: list[int]


def send_request(
    sock: socket.socket, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int, bpf: bytes
) -> None:
    """Sends a request, as many datagrams as its descriptors need.

    In the request a descriptor's number is its place among those that are sent with it.

    Raises:
        OSError: the template takes nothing; it forks only what it has received as a whole.
    """
    fds = [tube_fd, stderr_fd, *spec.fds()]
    places = iter(range(2, len(fds)))
    encoded = _encode_spec(spec.with_fds(lambda fd: next(places)))
    content = _HEAD.pack(len(fds), parent, len(bpf)) + bpf + encoded
    for start in range(0, len(fds), FDS_A_DATAGRAM):
        part = fds[start : start + FDS_A_DATAGRAM]
        socket.send_fds(sock, [b"+" if start else content], list(part))


def receive_request(sock: socket.socket, buffer: bytearray) -> Request | None:
    """The next request; None once the controller is gone.

    Args:
        sock: leads to the controller.
        buffer: of ``MAX_DATAGRAM_BYTES``; the request's bytes are in there and nowhere else.
    """
    length, fds = _receive(sock, buffer)
    if not length:
        return None
    count, parent, bpf_bytes = _HEAD.unpack_from(buffer)
    # As many datagrams as were sent, also where some descriptors found no room here: what is left
    # would be taken for the next request.
    rest = bytearray(1)
    for _ in range(FDS_A_DATAGRAM, count, FDS_A_DATAGRAM):
        more, further = _receive(sock, rest)
        fds += further
        if not more:
            return None
    view, behind = memoryview(buffer), _HEAD.size + bpf_bytes
    return Request(count, parent, view[_HEAD.size : behind], view[behind:length], fds)


def _receive(sock: socket.socket, buffer: bytearray) -> tuple[int, list[int]]:
    # Not recv_fds(): it makes an object of the bytes, and its memory is not ours to overwrite.
    length, ancillary, _, _ = sock.recvmsg_into([buffer], _ROOM)
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return length, list(fds)


def _encode_spec(spec: DeviceSpec) -> bytes:
    """Every field by its name. marshal(3) costs neither process an import, as pickle would."""
    return marshal.dumps(
        _fields(spec)
        | {
            "regions": [_fields(region) for region in spec.regions],
            "vrings": [_fields(v) | {"queue": v.queue.value} for v in spec.vrings],
            "identity": None if spec.identity is None else _fields(spec.identity),
        }
    )


def _fields(value: DeviceSpec | RegionSpec | VringSpec | Identity) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def decode_spec(request: Request) -> DeviceSpec:
    """The spec of a request whose descriptors have all come; in the device alone."""
    fields: dict[str, Any] = marshal.loads(request.spec)
    fields["regions"] = tuple(RegionSpec(**region) for region in fields["regions"])
    fields["vrings"] = tuple(
        VringSpec(**vring | {"queue": BalloonQueue(vring["queue"])}) for vring in fields["vrings"]
    )
    if fields["identity"] is not None:
        fields["identity"] = Identity(**fields["identity"])
    return DeviceSpec(**fields).with_fds(request.fds.__getitem__)
