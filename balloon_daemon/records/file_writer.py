"""A program that writes a file for the daemon, and does nothing else.

Runs by its file (``python -I -S file_writer.py FD``), started by ``scribe.py``. It gets the open
file through the socket FD, then the file's content. A write to a disk may block for any time, and
O_NONBLOCK has no effect on a regular file (open(2)): so this program waits for the disk, and the
daemon does not.

The program ends when the daemon closes the socket, or has ended. It ends before that when a write
fails or the file has reached its largest size, and sends the reason. In both cases the file ends
with a whole line.
"""

import contextlib
import os
import signal
import socket
import sys

READY = b"ready\n"
"""The first line that this program sends: it has begun."""

CHUNK = 1 << 16


def copy(sock: socket.socket, file: int, limit_bytes: int) -> str:
    """Writes the lines that come through a socket to a file, which then ends with a whole line.

    Returns:
        Why no more is written; "": the daemon has closed the socket.
    """
    size = whole = 0
    why = ""
    try:
        while not why and (chunk := sock.recv(CHUNK)):
            part = chunk[: limit_bytes - size]
            _write_all(file, part)
            whole = max(whole, size + part.rfind(b"\n") + 1)
            size += len(part)
            if len(part) < len(chunk):
                why = f"it has reached its largest size, {limit_bytes >> 20} MiB"
    except OSError as err:
        why = err.strerror or str(err)
    with contextlib.suppress(OSError):
        os.ftruncate(file, whole)
    return why


def _write_all(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def main(fd: int, limit_bytes: int) -> None:
    """Runs the program.

    Args:
        fd: the socket's number.
        limit_bytes: the largest size of the file.
    """
    # systemd and terminals send these signals to all processes of balloond at once. This program
    # ends after the daemon, when it has written all that the daemon has sent.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Descriptors that systemd has passed to balloond are VMs' and not for this program: a copy of
    # one would keep a guest's memory allocated.
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    # Whoever reads balloond's output sees its end only when no process has it open.
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    with socket.socket(fileno=fd) as sock:
        _, (file,), _, _ = socket.recv_fds(sock, 1, 1)
        sock.sendall(READY)
        why = copy(sock, file, limit_bytes)
        with contextlib.suppress(OSError):
            sock.sendall(why.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
