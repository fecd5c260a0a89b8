"""Finds and reads the configuration file and its drop-ins; checks who may change them."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from balloon_daemon.errors import printable
from balloon_daemon.linux.bounded_file import read_bounded, why_unreadable
from balloon_daemon.linux.directories import others_may_write
from balloon_daemon.named_tuple import NamedTuple

LIMIT_BYTES = 1 << 20
"""The largest file that is read; a VM takes some hundred bytes."""

DROP_INS = "balloond.d"
"""The directory of drop-ins, beside the configuration file."""


class ConfigText(NamedTuple):
    """A file's text.

    Attributes:
        file: the file's path, for messages.
        text: what is in it.
    """

    file: str
    text: str


def read_texts(path: Path, mistakes: list[str], *, optional: bool = False) -> list[ConfigText]:
    """Reads a configuration file, then its drop-ins in the order of their names.

    Drop-ins are the files ``*.toml`` in ``DROP_INS``; names that begin with a dot are left out, as
    a shell does. If balloond runs as root, only root may be able to write these files or to add
    one: they decide how much memory VMs keep, and where root makes sockets.

    Args:
        path: the configuration file.
        mistakes: gets why files cannot be read or trusted, a line each.
        optional: True: the file may be absent.

    Returns:
        The files that could be read.
    """
    is_left_out = optional and _is_absent(path)
    found = [] if is_left_out else [_read(path, mistakes, why_unreadable)]
    found += [
        _read(each, mistakes, _why_unreadable_drop_in)
        for each in _drop_ins(path.parent / DROP_INS, mistakes)
    ]
    return [text for text in found if text is not None]


def _is_absent(path: Path) -> bool:
    """Whether nothing is there; a link that leads nowhere is something."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # ``_read`` says why.
        return False
    return False


def _why_unreadable_drop_in(err: OSError) -> str:
    return f"{err.strerror or err}; make it a readable file, or remove it"


def _drop_ins(directory: Path, mistakes: list[str]) -> list[Path]:
    name = printable(str(directory))
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as err:  # ValueError: a NUL byte in the path
        if isinstance(err, OSError) and os.path.lexists(directory):
            mistakes.append(f"{name}: {err.strerror}; make it a readable directory, or remove it")
        # Where no mistake was added here, the configuration file's path has the same fault, and a
        # mistake says so already.
        return []
    if os.geteuid() == 0 and (why := others_may_write(directory)):
        mistakes.append(f"{name}: {why}: files could be added; let root alone write there")
        return []
    chosen = [each for each in names if each.endswith(".toml") and not each.startswith(".")]
    return [directory / each for each in sorted(chosen, key=os.fsencode)]


def _read(path: Path, mistakes: list[str], why: Callable[[OSError], str]) -> ConfigText | None:
    """A file's text; None where a mistake says why not.

    Args:
        path: the file.
        mistakes: gets why it cannot be read or trusted.
        why: turns the kernel's error into the text of the mistake.
    """
    file = printable(str(path))
    try:
        content, status = read_bounded(str(path), os.fspath(path), LIMIT_BYTES)
    except OSError as err:
        mistakes.append(f"{file}: {why(err)}")
        return None
    except ValueError as err:  # a NUL byte in the path
        mistakes.append(f"{file}: {err}; name a file that there is")
        return None
    if os.geteuid() == 0 and (untrusted := _why_not_trusted(path, status)):
        mistakes.append(f"{file}: {untrusted}")
        return None
    try:
        # "-sig": a byte order mark, with which some editors begin a file, is left out.
        return ConfigText(file, content.decode("utf-8-sig"))
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        mistakes.append(f"{file}:{line}: this line is not UTF-8; save the file as UTF-8")
        return None


def _why_not_trusted(path: Path, status: os.stat_result) -> str:
    """Why others than root could change a file that root reads; "" where nobody can."""
    if status.st_uid != 0:
        return f"belongs to user {status.st_uid}, who could change it; chown root it"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write it (mode {stat.S_IMODE(status.st_mode):o}); chmod go-w it"
    why = others_may_write(path.parent)
    return why and f"{why}: it could be replaced; move it to a directory of root's"
