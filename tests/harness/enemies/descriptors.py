"""Descriptors of every kind, valid and not, that a hostile VMM sends."""

import os
import socket

from balloon_daemon.vhost_user import messages as wire

FILE_PAGES = 64


def _pool() -> list[int]:
    """Descriptors of every kind that a front-end may hand over; made once, never closed."""
    memory = os.memfd_create("fuzz-ram")
    os.ftruncate(memory, FILE_PAGES * 4096)
    small = os.memfd_create("fuzz-small")
    os.ftruncate(small, 4096)
    sealed = os.memfd_create("fuzz-sealed", os.MFD_ALLOW_SEALING)
    return [
        memory,
        os.eventfd(0, os.EFD_NONBLOCK),
        small,
        os.open(f"/proc/self/fd/{memory}", os.O_RDONLY),
        sealed,
        *os.pipe(),
        os.open("/dev/null", os.O_RDWR),
        os.open("/proc/self/exe", os.O_RDONLY),
        os.open("/", os.O_RDONLY | os.O_DIRECTORY),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(),
    ]


POOL = _pool()
MEMORY, EVENTFD, *_, UNIX_SOCKET = POOL


def usual_fd(message: bytes) -> int:
    """A descriptor of the kind that a message should bring, if it should bring one."""
    match int.from_bytes(message[:4], "little"):
        case (
            wire.FrontendRequest.SET_VRING_KICK
            | wire.FrontendRequest.SET_VRING_CALL
            | wire.FrontendRequest.SET_VRING_ERR
        ):
            return EVENTFD
        case wire.FrontendRequest.SET_BACKEND_REQ_FD:
            return UNIX_SOCKET
        case _:
            return MEMORY
