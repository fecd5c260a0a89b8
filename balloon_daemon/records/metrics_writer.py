"""A program that keeps a file of metrics, and does nothing else.

Runs by its file (``python -I -S metrics_writer.py FD PATH``), started by ``scribe.py``. It gets
texts through the socket FD, each after a line with its length in bytes. A text is written to a
file beside PATH, which is then renamed to PATH (rename(2)): who reads PATH finds a whole text.

The program ends when the daemon closes the socket, or has ended. Then it removes PATH, so that
nobody takes the figures of an ended daemon for present ones. It ends before that when a write
fails, and sends the reason.
"""

import contextlib
import os
import signal
import socket
import sys

READY = b"ready\n"


def keep(sock: socket.socket, path: str) -> None:
    """Writes the texts that come through a socket, until the daemon closes it.

    Raises:
        OSError: the file cannot be written.
    """
    written: os.stat_result | None = None
    try:
        with sock.makefile("rb") as texts:
            while head := texts.readline():
                length = int(head)
                text = texts.read(length)
                if len(text) < length:
                    return  # The daemon has ended in the middle of a text.
                written = replace(path, text)
    finally:
        # Remove only the file that this program wrote: a later balloond may have replaced it.
        with contextlib.suppress(OSError):
            if written is not None and os.path.samestat(os.lstat(path), written):
                os.unlink(path)


def replace(path: str, text: bytes) -> os.stat_result:
    """Makes a text the whole content of a file, for whoever reads it (mode 0644).

    Returns:
        The new file's status (fstat(2)), which identifies it.

    Raises:
        OSError: it cannot be written.
    """
    new = path + "-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # Left by a writer that was killed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(new, flags, 0o644), "wb") as file:
            file.write(text)
            made = os.fstat(file.fileno())
        os.rename(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    return made


def main(fd: int, path: str) -> None:
    """Runs the program.

    Args:
        fd: the socket's number.
        path: the file.
    """
    # systemd and terminals send these signals to all processes of balloond at once. This program
    # ends after the daemon.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Descriptors that systemd has passed to balloond are VMs' and not for this program: a copy of
    # one would keep a guest's memory allocated.
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.umask(0o022)
    why = ""
    with socket.socket(fileno=fd) as sock:
        sock.sendall(READY)
        try:
            keep(sock, path)
        except OSError as err:
            why = err.strerror or str(err)
        with contextlib.suppress(OSError):
            sock.sendall(why.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
