"""Target: what may stand in ``available`` and ``margin``, or stand there in their place.

A source never raises for what it reads, never waits, and never makes a figure out of garbage:
held against a reading of the same bytes that uses nothing but ``split`` and ``isdigit``.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from balloon_daemon.host.low_memory import ChromeosLowMemory
from balloon_daemon.sizing.balloon_policy import NeverLow
from balloon_daemon.units import MIB
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import no_fd_left_open, require

_DIRECTORY = Path(tempfile.mkdtemp(prefix="balloond-fuzz-", dir="/dev/shm"))
READ_BYTES = 256
"""What a source looks at of a file."""


def run(data: bytes) -> None:
    """A few readings of a directory whose files change in between."""
    choices = Choices(data)
    margin = choices.pick((None, None, MIB, 400 * MIB))
    with no_fd_left_open():
        source = ChromeosLowMemory(_DIRECTORY, device=None, margin_bytes=margin)
        for _ in range(4):
            available_mib = _put(choices, _DIRECTORY / "available", several=False)
            margin_mib = _put(choices, _DIRECTORY / "margin", several=True)
            is_off = margin is None and _is_off(_DIRECTORY / "margin")
            if margin is not None:
                margin_mib = margin // MIB
            reading = source.read()
            seen: tuple[int, int] | str | None = "off"
            if not isinstance(reading, NeverLow):
                seen = None if reading is None else (reading.available_mib, reading.margin_mib)
            wanted: tuple[int, int] | str | None = "off" if is_off else None
            if available_mib is not None and margin_mib is not None:
                wanted = available_mib, margin_mib
            require(seen == wanted, "a figure out of nothing, or none out of one", seen, wanted)
            require(bool(source.last_error) == (reading is None), "an error that is none")
            require(source.describe(), "no words")
        notices = 0
        while source.take_notice() is not None:
            notices += 1
        require(notices <= 8, "notices without end", notices)
        source.close()


def _is_off(path: Path) -> bool:
    return path.is_file() and path.read_bytes()[:READ_BYTES].split() == [b"off"]


def _put(choices: Choices, path: Path, *, several: bool) -> int | None:
    """Puts something at a path. Returns the figure that a source must read there, if any."""
    kind = choices.below(16)
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    if kind == 0:
        return None
    if kind == 1:
        path.mkdir()
        return None
    if kind == 2:
        os.mkfifo(path)
        return None
    if kind == 3:
        path.symlink_to(path)
        return None
    if kind < 8:
        word = choices.pick((b"off", str(choices.wide(5)).encode()))
        content = word + choices.pick((b"", b"\n", b" 7\n", b"\0"))
    else:
        content = choices.take(choices.below(320))
    path.write_bytes(content)
    words = content[:READ_BYTES].split()
    if not words or len(words[0]) > 12 or not (words[0].isdigit() and words[0].isascii()):
        return None
    return int(words[0]) if several or len(words) == 1 else None
