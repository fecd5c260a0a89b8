"""Reads recordings of guests from their files."""

from pathlib import Path

from balloon_daemon.ctl.simulate.recording import Recording, parse_recording
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.linux.bounded_file import read_bounded, why_unreadable

LIMIT_BYTES = 16 << 20
"""The largest file that is read; a recording of a minute has 6 KiB."""


def read_recording(path: Path) -> Recording:
    """Reads a recording.

    Raises:
        ConfigError: the file cannot be read, or is no recording; the message names the file.
    """
    where = printable(str(path))
    try:
        content = read_bounded(str(path), str(path), LIMIT_BYTES).content
    except OSError as err:
        raise ConfigError(f"{where}: {why_unreadable(err)}") from err
    return parse_recording(path.stem, where, content.decode(errors="replace"))


def read_recordings(directory: Path) -> list[Recording]:
    """Reads all recordings of a directory, by name.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    paths = sorted(directory.glob("*.csv"))
    if not paths:
        raise ConfigError(f"{printable(str(directory))}: has no recording (*.csv)")
    return [read_recording(path) for path in paths]
