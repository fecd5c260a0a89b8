"""The template's process: it waits for requests, and clones a device for each.

The template clones with CLONE_PARENT (clone(2)): each device is the controller's own child, so the
controller can wait for it, and the controller's death ends it. The template receives descriptors
and a request's bytes, which only the device decodes, and keeps neither: a device therefore
inherits nothing of another VM. The template is started without the controller's environment, and
clears the few variables that it is given.
"""

import errno
import gc
import os
import socket
from typing import NoReturn

from balloon_daemon.device.request import (
    ANSWER,
    HELLO,
    MAX_DATAGRAM_BYTES,
    Request,
    decode_spec,
    receive_request,
)
from balloon_daemon.device.spec import STANDARD_ERROR
from balloon_daemon.device.start import become_device
from balloon_daemon.linux import cpython, jail, libc
from balloon_daemon.linux.events import allow_all_fds
from balloon_daemon.linux.seccomp import Program

NAME = "balloond-forks"
"""The process's name in ``ps`` and ``top``."""


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
        # Take all present objects out of the garbage collector's reach. A collection in a forked
        # device would write to every object, and so copy every page that the device shares with
        # this process.
        gc.collect()
        gc.freeze()
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
    """Forks what is asked for until the controller is gone."""
    program, bpf = None, b""
    while request := receive_request(sock, buffer):
        if program is None or bytes(request.bpf) != bpf:
            bpf = bytes(request.bpf)
            program = Program(bpf)
        answer = _clone(request, program)
        # Close this process's copies of the device's descriptors before it answers. Otherwise, if
        # it hung, its copy of the tube would stay open after the device's death, and the
        # controller would take the device for alive.
        for fd in request.fds:
            os.close(fd)
        sock.send(ANSWER.pack(*answer))
        # Overwrite the request: the next device that is forked would inherit its bytes, which say
        # where this VM's VMM has mapped the guest's memory.
        request.spec[:] = bytes(len(request.spec))
    os._exit(0)


def _clone(request: Request, program: Program) -> tuple[int, int]:
    """The new device's process id and 0, or 0 and an errno."""
    if len(request.fds) != request.sent:
        return 0, errno.EMFILE
    try:
        pid = libc.clone_sibling()
    except OSError as err:
        return 0, err.errno or errno.EAGAIN
    if pid == 0:
        _become(request, program)
    return pid, 0


def _become(request: Request, program: Program) -> NoReturn:
    """Turns this process into the device that was asked for."""
    try:
        spec = decode_spec(request)
        become_device(spec, request.fds[0], request.fds[1], request.parent, program.load)
    except BaseException as err:
        jail.write_error(f"{NAME}: {type(err).__name__}: {err}\n")
    finally:
        os._exit(1)
