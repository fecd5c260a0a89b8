"""The template's process: it waits for requests, and clones a device for each.

The template clones with CLONE_PARENT (clone(2)): each device is the controller's own child, so the
controller can wait for it, and the controller's death ends it. The device itself receives the
request with its descriptors; the template has only looked at the seccomp filter in it (MSG_PEEK).
So a device inherits nothing of another VM, and the template closes no VMM's descriptor: such a
close may take long, and the controller waits for the template's answer. The template is started
without the controller's environment, and clears the few variables that it is given.
"""

import contextlib
import errno
import gc
import os
import resource
import socket
from typing import NoReturn

from balloon_daemon.device.request import (
    ANSWER,
    HELLO,
    MAX_DATAGRAM_BYTES,
    Head,
    decode_spec,
    drop_request,
    peek_request,
    receive_request,
)
from balloon_daemon.device.spec import STANDARD_ERROR
from balloon_daemon.device.start import become_device
from balloon_daemon.device.warm_up import warm_up
from balloon_daemon.linux import cpython, jail, libc
from balloon_daemon.linux.events import OwnedFd, allow_all_fds
from balloon_daemon.linux.seccomp import Program

NAME = "balloond-forks"
"""The process's name in ``ps`` and ``top``."""

OWN_FDS = 4
"""Descriptors that a device has besides those of its request while it receives the request:
standard error, the template's socket and both ends of the pipe."""


def run_template(sock: socket.socket, parent: int) -> NoReturn:
    """Runs the template in a process that was started for it; ends the process.

    Args:
        sock: the socket to the controller.
        parent: the controller's process id.
    """
    try:
        jail.reset_signals()
        jail.close_fds_except([STANDARD_ERROR, sock.fileno()])
        jail.die_with(parent, NAME)
        libc.forget_environment()
        allow_all_fds()
        buffer = bytearray(MAX_DATAGRAM_BYTES)
        warm_up()
        libc.return_freed_memory()
        # Take all present objects out of the garbage collector's reach. A collection in a forked
        # device would write to every object, and so copy every page that the device shares with
        # this process.
        gc.freeze()
        gc.enable()
        sock.send(HELLO)
        cpython.run_without_new_arenas(lambda: _serve(sock, buffer))
    except ConnectionError:
        # The controller has ended, perhaps before this process could send HELLO.
        os._exit(0)
    except BaseException as err:
        jail.write_error(f"{NAME}: {type(err).__name__}: {err}\n")
    finally:
        os._exit(1)


def _serve(sock: socket.socket, buffer: bytearray) -> NoReturn:
    """Forks a device for each request, until the controller is gone."""
    program, bpf = None, b""
    while head := peek_request(sock, buffer):
        if program is None or bytes(head.bpf) != bpf:
            bpf = bytes(head.bpf)
            program = Program(bpf)
        try:
            answer = _clone(head, sock, buffer, program), 0
        except OSError as err:
            drop_request(sock, head)
            answer = 0, err.errno or errno.EAGAIN
        sock.send(ANSWER.pack(*answer))
    os._exit(0)


def _clone(head: Head, sock: socket.socket, buffer: bytearray, program: Program) -> int:
    """Clones a device, which receives the request; returns its process id.

    Raises:
        OSError: no process or descriptor is free; the request is still in the socket.
    """
    if head.sent + OWN_FDS > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    taken, take = map(OwnedFd, os.pipe2(os.O_CLOEXEC))
    with contextlib.closing(taken):
        with contextlib.closing(take):
            pid = libc.clone_sibling()
            if pid == 0:
                _become(sock, buffer, take.fileno(), program)
        # Wait until the device has received its request; only then is the next request at the
        # socket's head. If the pipe reaches its end of file without a byte, the device died before
        # that. Then end this process too, because a part of the request may be left in the socket;
        # the controller starts another template.
        if not os.read(taken.fileno(), 1):
            os._exit(1)
    return pid


def _become(sock: socket.socket, buffer: bytearray, take: int, program: Program) -> NoReturn:
    """Turns this process into the device that was asked for."""
    try:
        request = receive_request(sock, buffer)
        if request is None:
            os._exit(0)
        os.write(take, b".")
        if len(request.fds) != request.sent:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        spec = decode_spec(request)
        become_device(spec, request.fds[0], request.fds[1], request.parent, program.load)
    except BaseException as err:
        jail.write_error(f"{NAME}: {type(err).__name__}: {err}\n")
    finally:
        os._exit(1)
