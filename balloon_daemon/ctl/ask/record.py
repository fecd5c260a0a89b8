"""``balloonctl record``: writes a trace of the events that a running balloond's sizing policy
handles."""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from balloon_daemon.ctl.ask.client import Client, NoAnswerError
from balloon_daemon.errors import printable
from balloon_daemon.units import MIB

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_NO_DAEMON = 0, 1, 2, 3

LIMIT_BYTES = 256 * MIB
"""The largest trace that ``balloonctl simulate`` reads."""

STANDARD_OUTPUT = Path("-")

_ENDED = b'{"error":'
"""The first bytes of the line in which balloond says why it ends a trace."""


def record(client: Client, path: Path | None, for_s: float | None) -> int:
    """Writes a trace until Ctrl-C, until its time is over, or until balloond ends.

    Args:
        client: asks balloond.
        path: the file, which must not be there; ``-``: standard output; None: a new one, named by
            the time.
        for_s: for how long; None: without an end.

    Returns:
        The exit status.

    Raises:
        NoAnswerError, NotAllowedError, RefusedError: as ``Client.ask``, before anything came.
        OSError: standard output cannot be written.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    until_s = None if for_s is None else time.monotonic() + for_s
    path = path or Path(time.strftime("balloond-%Y%m%d-%H%M%S.trace"))
    name = printable(str(path))
    file: WholeLines | None = None
    status, why = EXIT_OK, ""
    try:
        for line in client.lines("/v1/trace", follow=True, until_s=until_s):
            if file is None:
                # Make the file only when the first line has come: if balloond refuses the request,
                # no empty file is left.
                file = WholeLines(path)
                if file.is_own:
                    until = "until Ctrl-C" if for_s is None else f"for {for_s:g} s"
                    print(f"recording to {name} {until}", file=sys.stderr, flush=True)
            if line.startswith(_ENDED):
                status, why = EXIT_FAILURE, printable(json.loads(line)["error"])
                break
            file.write(line)
            if file.size_bytes > LIMIT_BYTES:
                why = "it is as large as a trace may be that balloonctl simulate reads"
                break
    except KeyboardInterrupt:
        pass
    except FileExistsError:
        _complain(f"{name} is there already; name another file (-o)")
        return EXIT_USAGE
    except NoAnswerError as err:
        if file is None:
            raise
        status, why = EXIT_NO_DAEMON, str(err)
    except OSError as err:
        if path == STANDARD_OUTPUT:
            raise
        status, why = EXIT_FAILURE, err.strerror or str(err)
        if file is None:
            why += "; name another file (-o)"
    finally:
        if file is not None:
            file.end()
    if why:
        _complain(f"{name}: {why}")
    if file is not None and file.is_own:
        print(f"{file.lines:,} lines recorded; they are read by: balloonctl simulate {name}")
    return status


class WholeLines:
    """A file that always ends with a whole line, even if a write fails in the middle of one.

    Args:
        path: a file that is not there yet, or ``-``.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.is_own = path != STANDARD_OUTPUT
        self._fd = os.open(path, flags, 0o600) if self.is_own else sys.stdout.fileno()
        self.size_bytes = 0
        self.lines = 0

    def write(self, line: bytes) -> None:
        """Writes a line. Raises OSError: the disk is full, for example."""
        left = memoryview(line + b"\n")
        while left:
            left = left[os.write(self._fd, left) :]
        self.size_bytes += len(line) + 1
        self.lines += 1

    def end(self) -> None:
        """Cuts off the part of a line that was not written whole (ftruncate(2)), and closes the
        file."""
        if self.is_own:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size_bytes)
            os.close(self._fd)


def _complain(text: str) -> None:
    print(f"balloonctl record: {text}", file=sys.stderr, flush=True)
