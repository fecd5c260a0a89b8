"""A device that its guest has taken over, imitated: its end of the tube, in an enemy's hands.

Only root can have it (pidfd_getfd(2) asks for what ptrace(2) does, and a device is not dumpable).
"""

import contextlib
import ctypes
import os
import select
import socket
from collections.abc import Iterator, Sequence

import psutil

from balloon_daemon.errors import Rule
from balloon_daemon.tube.messages import Fault, FaultKind, Progress, Stats, encode_up
from tests.soak.enemy import BACK_OFF_S, Enemy

_PIDFD_GETFD = 438  # asm-generic/unistd.h
_libc = ctypes.CDLL(None, use_errno=True)
AT_A_TIME = 256


def flood_with_reports(enemy: Enemy) -> Iterator[None]:
    """Reports as any device sends them, as fast as the controller takes them."""
    yield from _flood(enemy, _REPORTS)


def flood_with_garbage(enemy: Enemy) -> Iterator[None]:
    """What no device ever sends."""
    yield from _flood(enemy, _GARBAGE)


_REPORTS = [
    *(encode_up(Progress(inflated_pages=n, buffers=n)) for n in range(8)),
    encode_up(Stats(((0, 1), (4, 512 << 20), (5, 512 << 20)))),
    encode_up(Fault(FaultKind.CHAIN, 0, Rule.LOOP, 0, 0, 0)),
]
_GARBAGE = [b"", bytes(1), b"\xff" * 4, b"\xff" * 92, bytes(1023)]


def _flood(enemy: Enemy, reports: Sequence[bytes]) -> Iterator[None]:
    while True:
        tube = _tube_of(*enemy.device)
        if tube is None:
            enemy.pause()
            yield
            continue
        with tube:
            enemy.counts["devices"] += 1
            with contextlib.suppress(OSError):  # The controller has closed its end.
                yield from _fill(enemy, tube, reports)


def _fill(enemy: Enemy, tube: socket.socket, reports: Sequence[bytes]) -> Iterator[None]:
    """Fills a tube again and again. Raises OSError once nobody reads it any more."""
    poller = select.poll()
    poller.register(tube, select.POLLOUT)
    while True:
        try:
            for number in range(AT_A_TIME):
                tube.send(reports[number % len(reports)])
                enemy.counts["reports"] += 1
        except BlockingIOError:
            poller.poll(1000 * BACK_OFF_S)
        enemy.at_work = True
        yield


def _tube_of(controller_socket: str, name: str) -> socket.socket | None:
    """The tube's end of a device that runs now."""
    for process in psutil.process_iter(["name"]):
        try:
            parent = process.parent() if process.info["name"] == name else None
            if parent is not None and controller_socket in parent.cmdline():
                return _take_tube(process.pid)
        except (psutil.Error, OSError):
            continue  # It has just ended.
    return None


def _take_tube(pid: int) -> socket.socket | None:
    pidfd = os.pidfd_open(pid)
    try:
        for number in os.listdir(f"/proc/{pid}/fd"):
            if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                continue
            fd = _libc.syscall(_PIDFD_GETFD, pidfd, int(number), 0)
            if fd < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            sock = socket.socket(fileno=fd)
            if sock.type == socket.SOCK_SEQPACKET:
                return sock
            sock.close()
    finally:
        os.close(pidfd)
    return None
