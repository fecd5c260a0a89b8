"""The daemon's side of a program that writes a file (``file_writer``, ``history_writer``,
``metrics_writer``).

Runs in the controller, and never waits for the program: content that the program does not take at
once is kept in memory, up to ``MOST_BYTES``, and more is refused.
"""

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from balloon_daemon.linux.apart import LowNumbers

READY = b"ready\n"
"""The program's first line."""

STARTS_WITHIN_S = 30.0
"""How long the program may take to begin. It takes 20 ms, but a history's writer waits for a disk
that may be busy."""

ENDS_WITHIN_S = 1.0
"""How long, when balloond ends, the program may take to receive the content kept for it."""

MOST_BYTES = 4 << 20
"""The most that is kept for the program while its disk does not take it."""


class Scribe:
    """A program that writes a file; it is started, and has begun, before balloond serves any VM.

    Args:
        program: the name of the program's file in this folder.
        arguments: its arguments, after the number of its socket.
        low: starts the program without any descriptor that a VMM has sent.
        file: an open file, of which the program gets a duplicate; None: the program opens its file
            by itself.

    Raises:
        OSError: the program cannot be started, or does not begin in time.
    """

    def __init__(
        self, program: str, arguments: Sequence[str], low: LowNumbers, file: int | None = None
    ) -> None:
        self._program = program
        self._kept = bytearray()
        self._heard = bytearray()
        self._ended = False
        self._sock, theirs = socket.socketpair()
        self._pid = 0
        try:
            with theirs:
                if file is not None:
                    socket.send_fds(self._sock, [b"f"], [file])
                fd = low.duplicate(theirs.fileno())
                path = str(Path(__file__).with_name(program))
                command = [sys.executable, "-I", "-S", path, str(fd), *arguments]
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

    @property
    def has_more(self) -> bool:
        """Whether anything waits that the program has not taken yet."""
        return bool(self._kept)

    def flush(self) -> None:
        """Sends what is kept, as far as the program takes it now."""
        try:
            while self._kept:
                del self._kept[: self._sock.send(self._kept, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            self._end()

    def take_line(self) -> str:
        """A whole line that the program has sent, each line once; "": there is none."""
        if not self._ended:
            self._hear()
        line, newline, rest = self._heard.partition(b"\n")
        if not newline:
            return ""
        self._heard = rest
        return line.decode(errors="replace")

    def why_ended(self) -> str | None:
        """Why the program writes no more; None: it still writes."""
        if not self._ended:
            self._hear()
        else:
            self._reap()
        return self._heard.decode(errors="replace") if self._ended else None

    def close(self) -> None:
        """Sends the program what is kept for it, for ``ENDS_WITHIN_S`` at most without progress,
        and closes the socket, at which the program ends."""
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
        # The same read may bring the line that follows READY: why the program writes nothing, or
        # that it has renamed a damaged file.
        while not self._heard.startswith(READY):
            if not poll.poll(STARTS_WITHIN_S * 1000):
                raise TimeoutError(f"{self._program} does not begin")
            self._hear()
            if self._ended:
                raise ChildProcessError(f"{self._program} has ended at once")
        del self._heard[: len(READY)]

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
        """Reads what the program has sent last, which says why it writes no more; kills and reaps
        it."""
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
