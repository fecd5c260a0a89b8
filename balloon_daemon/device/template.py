"""The template: a process that has loaded what a device needs, nothing else, and forks devices.

A device shares its memory with the process that it was forked from until either writes to it. The
controller writes all the time, and each page that it writes leaves the device with an old copy of
its own; what a device does need lies scattered among what only the controller does. The template
is forked before the controller loads anything of its own, and rests between two devices.

It clones with CLONE_PARENT (clone(2)): each device is the controller's own child, which waits for
it and whose death ends it. The template sees the descriptors on their way and numbers from the
controller, never a guest's byte, and dies with the controller. Where it is gone, the controller
forks devices itself: larger, and just as jailed.
"""

import contextlib
import errno
import marshal
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from balloon_daemon.device.process import (
    STANDARD_ERROR,
    DeviceSpec,
    RegionSpec,
    VringSpec,
    become_device,
    fork,
    fork_here,
    prepare_fork,
)
from balloon_daemon.linux import cpython, jail, libc
from balloon_daemon.linux.events import allow_all_fds
from balloon_daemon.linux.seccomp import Program
from balloon_daemon.virtio.balloon import BalloonQueue

NAME = "balloond-forks"
"""For ``ps`` and ``top``."""

FDS_A_DATAGRAM = 250
"""SCM_MAX_FD of the kernel is 253."""

MAX_DATAGRAM_BYTES = 128 * 1024
"""256 regions, five vrings and a filter of 4096 instructions fit."""

ANSWER_WITHIN_S = 2.0
"""Longer than a fork takes on a host that is out of memory; then the template is given up."""


class Template:
    """The controller's side of it.

    Args:
        pid: the template's process id.
        sock: leads to it.
    """

    def __init__(self, pid: int, sock: socket.socket) -> None:
        self.pid = pid
        self._socket: socket.socket | None = sock
        self._bpf = b""
        self._lost: Callable[[str], None] = lambda why: None

    def prepare(self, bpf: bytes, lost: Callable[[str], None]) -> None:
        """Sets what is known only later.

        Args:
            bpf: the seccomp program that the devices load, an array of struct sock_filter.
            lost: hears, in one line, that the template is gone.
        """
        self._bpf, self._lost = bpf, lost

    def fork(self, spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
        """Has a device forked; where the template is gone, forks it here. A ``Fork``.

        Raises:
            OSError: no process or no descriptor to be had, or the template ended over it.
        """
        fds = [tube_fd, words_fd, *spec.fds()]
        if self._socket is None or not self._ask(_encode(spec, parent, len(fds), self._bpf), fds):
            return fork_here(spec, tube_fd, words_fd, parent)
        try:
            answer = self._socket.recv(_ANSWER.size)
        except OSError:
            answer = b""
        if len(answer) != _ANSWER.size:
            # Perhaps forked, and nobody knows whom: without an order, and with its tube about to
            # be closed, such a device ends. Another one must not be given the same tube.
            self._give_up("does not answer")
            raise OSError(errno.EAGAIN, "the process that forks devices does not answer")
        pid: int
        pid, number = _ANSWER.unpack(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return pid

    def _ask(self, request: bytes, fds: list[int]) -> bool:
        assert self._socket is not None
        try:
            for start in range(0, len(fds), FDS_A_DATAGRAM):
                socket.send_fds(
                    self._socket, [b"+" if start else request], fds[start : start + FDS_A_DATAGRAM]
                )
        except OSError:
            # What it does not have as a whole it does not fork.
            self._give_up("is gone")
            return False
        return True

    def _give_up(self, why: str) -> None:
        self.close()
        self._lost(
            f"process {self.pid}, which forks devices, {why}: from now on balloond forks "
            "them itself, each larger by some 2 MiB"
        )

    def close(self) -> None:
        """Ends the template; the devices live on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def start_template() -> Template | None:
    """Forks the template: to be called before anything is imported that no device needs.

    Returns:
        None where there is no process to be had; then the controller forks its devices itself.
    """
    parent = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.closing(theirs):
        try:
            pid = fork(lambda: _run(theirs, parent))
        except OSError:
            ours.close()
            return None
    ours.settimeout(ANSWER_WITHIN_S)
    return Template(pid, ours)


def _run(sock: socket.socket, parent: int) -> NoReturn:
    """The template's life."""
    try:
        jail.reset_signals()
        jail.close_fds_except([STANDARD_ERROR, sock.fileno()])
        jail.die_with(parent, NAME)
        allow_all_fds()
        prepare_fork()
        cpython.run_without_new_arenas(lambda: _serve(sock))
    except BaseException as err:
        jail.write_last_words(f"{NAME}: {type(err).__name__}: {err}\n")
    finally:
        os._exit(1)


def _serve(sock: socket.socket) -> NoReturn:
    """Forks what is asked for until the controller is gone."""
    program = bpf = None
    while request := _receive(sock):
        flat, fds = request
        if program is None or flat[2] != bpf:
            program, bpf = Program(flat[2]), flat[2]
        answer = _clone(_decode(flat, fds, program.load), fds, flat[0])
        # Before the answer: should this process hang, the controller must not take a device for
        # alive because somebody else has its end of the tube too.
        for fd in fds:
            os.close(fd)
        sock.send(_ANSWER.pack(*answer))
    os._exit(0)


def _receive(sock: socket.socket) -> tuple[tuple[Any, ...], list[int]] | None:
    """The next request and its descriptors; None once the controller is gone."""
    content, fds, _, _ = socket.recv_fds(sock, MAX_DATAGRAM_BYTES, FDS_A_DATAGRAM)
    if not content:
        return None
    flat = marshal.loads(content)
    # As many datagrams as were sent, also where some descriptors found no room here: what is left
    # would be taken for the next request.
    for _ in range(FDS_A_DATAGRAM, flat[1], FDS_A_DATAGRAM):
        content, more, _, _ = socket.recv_fds(sock, 1, FDS_A_DATAGRAM)
        fds += more
        if not content:
            return None
    return flat, fds


def _clone(spec: DeviceSpec | None, fds: list[int], parent: int) -> tuple[int, int]:
    """The new device's process id and 0, or 0 and an errno."""
    if spec is None:
        return 0, errno.EMFILE
    try:
        pid = libc.clone_sibling()
    except OSError as err:
        return 0, err.errno or errno.EAGAIN
    if pid == 0:
        become_device(spec, fds[0], fds[1], parent)
    return pid, 0


_ANSWER = struct.Struct("<qi")
"""The device's process id, and an errno that says why there is none."""


def _encode(spec: DeviceSpec, parent: int, fds: int, bpf: bytes) -> bytes:
    """A request: all of a spec but its descriptors, in types that marshal knows."""
    return marshal.dumps(
        (
            parent,
            fds,
            bpf,
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


def _decode(
    flat: tuple[Any, ...], fds: list[int], load_filter: Callable[[], None]
) -> DeviceSpec | None:
    """The spec of a request; None where some of its descriptors found no room here."""
    _, count, _, name, regions, kinds, vrings, calls, channel, change, identity, *rest = flat
    if len(fds) != count:
        return None
    left = iter(fds[2:])
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
