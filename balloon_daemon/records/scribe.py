"""The daemon's side of a program that writes a file (``file_writer``).

Runs in the controller, and never waits for the program: what it does not take at once is kept up
to a limit, and what is more is refused.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from pathlib import Path

from balloon_daemon.linux.apart import LowNumbers

PROGRAM = Path(__file__).with_name("file_writer.py")
READY = b"ready\n"
"""The program's first line."""

STARTS_WITHIN_S = 5.0
"""How long the program may take to begin; it takes 20 ms."""

ENDS_WITHIN_S = 1.0
"""How long the program may take, when balloond ends, for what is kept for it."""

MOST_BYTES = 4 << 20
"""The most that is kept for the program while its disk does not take it."""


class Scribe:
    """One such program, which is started, and has begun, before balloond serves any VM.

    Args:
        file: the open file; the program gets a duplicate.
        limit_bytes: the file's largest size.
        low: starts the program without any descriptor that a VMM has sent.

    Raises:
        OSError: the program cannot be started, or does not begin in time.
    """

    def __init__(self, file: int, limit_bytes: int, low: LowNumbers) -> None:
        self._kept = bytearray()
        self._heard = bytearray()
        self._ended = False
        self._sock, theirs = socket.socketpair()
        self._pid = 0
        try:
            with theirs:
                socket.send_fds(self._sock, [b"f"], [file])
                fd = low.duplicate(theirs.fileno())
                command = [sys.executable, "-I", "-S", str(PROGRAM), str(fd), str(limit_bytes)]
                self._pid = low.exec(command, {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}, fd)
                self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        finally:
            # Until the program has begun, it may share balloond's table of descriptors
            # (CLONE_FILES), and this close would take the socket from it.
            low.close_duplicate()

    def send(self, content: bytes) -> bool:
        """Sends content to be written; False: it is dropped, as too much is kept already."""
        self.flush()
        if self._ended or len(self._kept) + len(content) > MOST_BYTES:
            return False
        self._kept += content
        self.flush()
        return True

    def flush(self) -> None:
        """Sends what is kept, as far as the program takes it now."""
        try:
            while self._kept:
                del self._kept[: self._sock.send(self._kept, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            self._end()

    def why_ended(self) -> str | None:
        """Why the program writes no more; None: it does."""
        if not self._ended:
            self._hear()
        else:
            self._reap()
        return self._heard.decode(errors="replace") if self._ended else None

    def close(self) -> None:
        """Gives the program what is kept for it, for a limited time, and lets it end."""
        if self._ended:
            return
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        while self._kept and not self._ended and poll.poll(ENDS_WITHIN_S * 1000):
            self.flush()
        # The program reads what is in the socket, and writes it, after balloond has ended.
        self._sock.close()

    def _wait_until_ready(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while not self._heard.endswith(READY):
            if not poll.poll(STARTS_WITHIN_S * 1000):
                raise TimeoutError(f"{PROGRAM.name} does not begin")
            self._hear()
            if self._ended:
                raise ChildProcessError(f"{PROGRAM.name} has ended at once")
        self._heard.clear()

    def _hear(self) -> None:
        try:
            said = self._sock.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self._heard += said[: 4096 - len(self._heard)]
        if not said:
            self._end()

    def _end(self) -> None:
        """Notes that the program has closed its socket, or ends it."""
        with contextlib.suppress(OSError):
            while said := self._sock.recv(4096, socket.MSG_DONTWAIT):
                self._heard += said[: 4096 - len(self._heard)]
        self._ended = True
        self._kept.clear()
        self._sock.close()
        self._reap()

    def _reap(self) -> None:
        """Reaps the program. It may still close its file, for which it may wait for a disk."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                ended, _ = os.waitpid(self._pid, os.WNOHANG)
                self._pid = 0 if ended else self._pid
