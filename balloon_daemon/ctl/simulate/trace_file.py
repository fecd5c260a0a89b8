"""Reads a trace file whole."""

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.linux.bounded_file import read_bounded, why_unreadable
from balloon_daemon.records.trace import Trace
from balloon_daemon.records.trace_reader import Decoder, decode_header
from balloon_daemon.records.trace_values import TraceError

LIMIT_BYTES = 256 << 20
"""The largest trace that is read; a daemon's recording ends at a quarter of this."""

BACK_S = 1.0
"""By how much a line's time may be before that of the line above. asyncio may call a timer
slightly early; its step is then recorded with the time for which the timer was set, and the next
event with the clock's time, which is earlier."""


def read_trace(path: str) -> Trace:
    """Reads a trace.

    Raises:
        ConfigError: the file cannot be read, or is no trace; the message names file and line.
    """
    name = printable(path)
    try:
        content = read_bounded(path, path, LIMIT_BYTES, pipes_too=True).content
    except OSError as err:
        raise ConfigError(f"{name}: {why_unreadable(err)}") from err
    except ValueError as err:  # a NUL byte in the path
        raise ConfigError(f"{name}: {err}") from err
    first, *lines = content.split(b"\n")
    # A daemon that was killed may have written a part of its last line.
    cut = lines.pop() if lines else b""
    try:
        trace = Trace(name, decode_header(first), is_cut=bool(cut))
    except TraceError as err:
        raise ConfigError(f"{name}:1: {err}") from err
    decoder, last_s = Decoder(), 0.0
    for index, line in enumerate(lines):
        try:
            entry = decoder.entry(line)
        except TraceError as err:
            raise trace.mistake(index, str(err)) from err
        if entry.at_s < last_s - BACK_S:
            raise trace.mistake(index, "t: is earlier than on the line above")
        last_s = entry.at_s
        trace.entries.append(entry)
    if not trace.entries:
        raise ConfigError(f"{name}: has no entries: nothing was recorded")
    return trace
