"""Log lines: text for people and the journal, or one JSON object a line for machines.

A line is an event with fields. A log that cannot be written (a full disk, a closed pipe, a pipe
that nobody empties) is never a reason to stop, nor to wait: what does not go out is counted.
"""

import json
import logging
import os
import select
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from balloon_daemon.events import Event
from balloon_daemon.linux.systemd import logs_to_journal
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.records.words import Level, worded

LOGGER = logging.getLogger("balloond")

# sd-daemon(3): what the journal takes as a line's priority.
_LEVELS = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Text(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        vm = record.__dict__.get("fields", {}).get("vm")
        # Whatever a message quotes, it stays one line.
        message = record.getMessage().replace("\n", " | ")
        line = f"{vm}: {message}" if vm else message
        if self._journal:
            return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}"
        when = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{when} balloond: {mark}{line}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        # The line's own keys win: a field named like one of them must not hide it.
        return json.dumps({**record.__dict__.get("fields", {}), **entry}, default=str)


class _Lines(logging.Handler):
    """Writes lines to a descriptor, and never waits for whoever reads them.

    O_NONBLOCK would be simpler, but it belongs to the open file, which others share.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lost = 0
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        lines = f"{self.format(record)}\n"
        if self._lost:
            lines = f"{self.format(self._loss())}\n{lines}"
        if self._torn:
            lines = f"\n{lines}"
        content = lines.encode(errors="backslashreplace")
        written = self._write(content)
        if written == len(content):
            self._lost, self._torn = 0, False
        else:
            self._lost += 1
            self._torn |= written > 0

    def _write(self, content: bytes) -> int:
        written = 0
        try:
            # A writable pipe has room for PIPE_BUF bytes at least (pipe(7)); more could block.
            while written < len(content) and self._poll.poll(0):
                written += os.write(self._fd, content[written : written + select.PIPE_BUF])
        except OSError:
            pass  # Whatever it is, there is nowhere to say it.
        return written

    def _loss(self) -> logging.LogRecord:
        lines = "1 line" if self._lost == 1 else f"{self._lost} lines"
        return logging.makeLogRecord(
            {
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": f"{lines} could not be written here: lost",
                "fields": {"event": "log", "lost": self._lost},
            }
        )


def configure(style: str, *, verbose: bool) -> None:
    """Sends balloond's log to standard error.

    Args:
        style: ``text`` or ``json``.
        verbose: debug lines too.
    """
    # Nothing that a record would be asked for; finding it out would cost each line as much again.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = _Lines(sys.stderr.fileno())
    journal = logs_to_journal(sys.stderr.fileno())
    handler.setFormatter(_Json() if style == "json" else _Text(journal=journal))
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)


class EventLog:
    """A logger that carries fields, such as which VM a line is about."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields
        self._admit: Admit = lambda: 0

    def bind(self, **fields: Any) -> "EventLog":
        """A log with more fields."""
        return EventLog(**self._fields, **fields).within(self._admit)

    def within(self, admit: "Admit") -> "EventLog":
        """This log, whose lines are left out from now on where ``admit`` says so."""
        self._admit = admit
        return self

    def debug(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, message, fields)

    def info(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.INFO, event, message, fields)

    def warning(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, message, fields)

    def error(self, event: str, message: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, message, fields)

    def limited_error(self, limit: "RateLimit", now_s: float, event: str, message: str) -> None:
        """An error that may come again at any rate; of some it says how many there were."""
        left_out = limit.admit(now_s)
        if left_out is not None:
            self.error(event, f"{message} ({left_out} more like it)" if left_out else message)

    def publish(self, event: Event) -> None:
        """Writes an event's line. A ``Publish``."""
        level, word, message, fields = worded(event)
        self._log(_LEVELS[level], word, message, fields)

    def _log(self, level: int, event: str, message: str, fields: dict[str, Any]) -> None:
        if LOGGER.isEnabledFor(level):
            # With --verbose somebody looks, and wants it all.
            left_out = 0 if level == logging.DEBUG else self._admit()
            if left_out is None:
                return
            if left_out:
                message += f" ({left_out} more lines on VMs of this user were left out)"
            extra = {"fields": {"event": event, **self._fields, **fields}}
            LOGGER.log(level, "%s", message, extra=extra)


Admit = Callable[[], int | None]
"""How many lines were left out before this one; None: leave this one out too."""
