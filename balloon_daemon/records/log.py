"""Log lines: text for people, with fields for systemd-journald, or one JSON object a line.

Each line is about one event. A log that cannot be written (a full disk, a closed pipe, a pipe that
is not read) neither stops balloond nor blocks it: lines that are not written are counted.
"""

import json
import os
import select
from collections.abc import Iterator
from time import gmtime, localtime, monotonic, strftime, time

from balloon_daemon.events import (
    Connected,
    Disconnected,
    Event,
    LinesLost,
    VmDriven,
    VmLetGo,
    VmLost,
)
from balloon_daemon.linux.journald import send_line
from balloon_daemon.linux.systemd import logs_to_journal
from balloon_daemon.records.budget import UserBudgets
from balloon_daemon.records.line import Level, Line
from balloon_daemon.records.words import is_debug, worded

_ABOUT_USERS = (Connected, Disconnected, VmDriven, VmLetGo, VmLost)
_OWN_FIELDS = {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT"}


class Log:
    """Writes a line for each event of interest. The event bus calls this object with each event:
    it is a ``Reader`` (``records/bus.py``).

    O_NONBLOCK would keep writes from blocking, but it would apply to the open file, which other
    processes share; so poll(2) is asked before each write whether the file takes more.

    Args:
        fd: the descriptor to write to, standard error for example; it stays the caller's. Where
            it is the systemd journal's stream and ``style`` is ``text``, lines go to journald with
            their fields, and to ``fd`` only where journald does not take them.
        style: ``text`` or ``json``.
        verbose: True: write lines for debugging too.
    """

    def __init__(self, fd: int, style: str, *, verbose: bool) -> None:
        self._fd = fd
        self._json = style == "json"
        self._is_stream = logs_to_journal(fd)
        self._verbose = verbose
        self._budgets = UserBudgets()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lost = 0
        self._torn = False

    def __call__(self, event: Event, at_s: float) -> None:
        """Writes the line of an event.

        Args:
            event: the event.
            at_s: when it was published, in seconds since the epoch.
        """
        if isinstance(event, _ABOUT_USERS):
            self._budgets.note(event, monotonic())
            if isinstance(event, (Connected, Disconnected)):
                return  # These have no line.
        debug = is_debug(event)
        if debug and not self._verbose:
            return
        # Debug lines have no limit: with --verbose a person wants all of them.
        left_out = 0 if debug else self._budgets.admit(event, monotonic())
        # Do not make the text of an event that is left out: when events come in a flood, that
        # would take most of the time.
        line = None if left_out is None else worded(event)
        if line is None:
            return
        if left_out:
            more = f" ({left_out} more lines on VMs of this user were left out)"
            line = line._replace(message=line.message + more)
        self._emit(line, at_s)

    def _emit(self, line: Line, at_s: float) -> None:
        has_fields = self._is_stream and not self._json and not self._lost
        if has_fields and send_line(_fields(line)):
            return
        lines = f"{self._format(line, at_s)}\n"
        if self._lost and (loss := worded(LinesLost(self._lost))) is not None:
            lines = f"{self._format(loss, time())}\n{lines}"
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
            # Write at most PIPE_BUF bytes after each poll(2). For a pipe, poll(2) promises room
            # for that many (pipe(7)); a longer write could block.
            while written < len(content) and self._poll.poll(0):
                written += os.write(self._fd, content[written : written + select.PIPE_BUF])
        except OSError:
            pass  # There is no other place to report the error.
        return written

    def _format(self, line: Line, at_s: float) -> str:
        if self._json:
            return as_json(line, at_s)
        text = _text(line)
        if self._is_stream:
            return f"<{line.level.value}>{text}"  # sd-daemon(3)
        when = f"{strftime('%H:%M:%S', localtime(at_s))}.{_milliseconds(at_s):03}"
        mark = f"{line.level.name.lower()}: " if line.level <= Level.WARNING else ""
        return f"{when} balloond: {mark}{text}"


def _text(line: Line) -> str:
    # Keep a message on one line, even where it quotes a text of several lines.
    message = line.message.replace("\n", " | ")
    vm = line.fields.get("vm")
    return f"{vm}: {message}" if vm else message


def _fields(line: Line) -> Iterator[tuple[str, str]]:
    """A line's fields for journald; a field with several values is yielded once for each."""
    yield "MESSAGE", _text(line)
    yield "PRIORITY", str(line.level.value)
    yield "SYSLOG_IDENTIFIER", "balloond"
    yield "EVENT", line.word
    for name, value in line.fields.items():
        if name.upper() not in _OWN_FIELDS:
            several = value if isinstance(value, list | tuple) else (value,)
            for one in several:
                yield name.upper(), str(one)


def _milliseconds(at_s: float) -> int:
    return int(at_s * 1000) % 1000


def as_json(line: Line, at_s: float) -> str:
    """A line as one JSON object, as ``--log json`` writes it.

    Args:
        line: the line.
        at_s: when its event was published, in seconds since the epoch.
    """
    # Do not use the module datetime here: loading it would take 0.3 MiB of memory.
    second = strftime("%Y-%m-%dT%H:%M:%S", gmtime(at_s))
    entry = {
        "event": line.word,
        **line.fields,
        # These keys come last, so that they win: a field of the event with the same name cannot
        # replace them.
        "time": f"{second}.{_milliseconds(at_s):03}+00:00",
        "level": line.level.name.lower(),
        "message": line.message,
    }
    return json.dumps(entry)
