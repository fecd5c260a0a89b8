"""What the controller sends the process that forks devices: a device's spec, and its descriptors.

Bytes and descriptors are read apart: only the device itself learns what the bytes say of its
guest. Who forks it keeps the filter, which all devices have in common, and nothing else.
"""

import array
import marshal
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.linux import jail
from balloon_daemon.virtio.balloon import BalloonQueue

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


def fds_of(spec: DeviceSpec, tube_fd: int, words_fd: int) -> list[int]:
    """The descriptors of a request, in their order."""
    return [tube_fd, words_fd, *spec.fds()]


def send_request(
    sock: socket.socket, spec: DeviceSpec, fds: Sequence[int], parent: int, bpf: bytes
) -> None:
    """Sends a request, as many datagrams as its descriptors need.

    Raises:
        OSError: nobody takes it; what nobody has as a whole is not forked.
    """
    content = _HEAD.pack(len(fds), parent, len(bpf)) + bpf + _encode_spec(spec)
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
    """All of a spec but its descriptors, in types that marshal knows."""
    return marshal.dumps(
        (
            spec.name,
            [
                (r.guest_addr, r.frontend_addr, r.size_bytes, r.mmap_offset_bytes, r.page_bytes)
                for r in spec.regions
            ],
            [(r.fd is not None, r.freed) for r in spec.regions],
            [
                (v.index, v.queue.value, v.size, v.descriptors, v.available, v.used)
                for v in spec.vrings
            ],
            [v.call_fd is not None for v in spec.vrings],
            spec.channel_fd is not None,
            spec.config_change,
            None if spec.identity is None else (spec.identity.uid, spec.identity.gid),
            spec.must_tell_host,
            spec.earned,
            spec.rehearse,
            spec.pfns_name_pages,
        )
    )


def decode_spec(request: Request, load_filter: Callable[[], None]) -> DeviceSpec:
    """The spec of a request whose descriptors have all come; in the device alone."""
    flat = marshal.loads(request.spec)
    name, regions, kinds, vrings, calls, channel, change, identity, *rest = flat
    left = iter(request.fds[2:])
    return DeviceSpec(
        name,
        tuple(
            RegionSpec(*(*region, next(left) if mapped else None, freed))
            for region, (mapped, freed) in zip(regions, kinds, strict=True)
        ),
        tuple(_vring(vring, left, call=call) for vring, call in zip(vrings, calls, strict=True)),
        next(left) if channel else None,
        change,
        None if identity is None else jail.Identity(*identity),
        load_filter,
        *rest,
    )


def _vring(flat: tuple[Any, ...], left: Iterator[int], *, call: bool) -> VringSpec:
    index, queue, size, descriptors, available, used = flat
    return VringSpec(
        index,
        BalloonQueue(queue),
        size,
        descriptors,
        available,
        used,
        kick_fd=next(left),
        call_fd=next(left) if call else None,
    )
