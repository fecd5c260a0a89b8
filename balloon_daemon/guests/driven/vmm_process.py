"""Asks children about a VMM's process (``process_orders.py``).

Runs in the controller.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

from balloon_daemon.guests import vmm_files
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.lookups import LOOKUPS, Ask
from balloon_daemon.linux.process_figures import ProcessFiles
from balloon_daemon.named_tuple import NamedTuple

_MOST_LETTERS = 4096  # A link's text is at most that long (PATH_MAX).


class OpenFile(NamedTuple):
    """A descriptor of a process.

    Attributes:
        path: its path in /proc/PID/fd.
        inode: its file's inode number; 0: unknown.
        size_bytes: its file's length; 0: unknown.
    """

    path: str
    inode: int
    size_bytes: int


class OpenFiles(NamedTuple):
    """What a process has open.

    Attributes:
        are_seen: whether balloond may look.
        found: the descriptors that were looked for, 64 at most (``process_orders.MOST_FOUND``).
    """

    are_seen: bool
    found: tuple[OpenFile, ...] = ()


class Look(NamedTuple):
    """What a look at a VMM's process has shown, which may be against driving its VM.

    Attributes:
        are_seen: whether balloond may look at what the process has open.
        found: whether it has one of the files open that were looked for.
        huge_page_bytes: its memory in pages of hugetlbfs.
    """

    are_seen: bool
    found: bool
    huge_page_bytes: int


async def opened(pid: int | None, ask: Ask) -> ProcessFiles | None:
    """Opens a process's files; None: there is no such process, or it may not be looked at.

    Args:
        pid: the process; None: unknown. 0 and 1 mean unknown, too: SO_PEERCRED gives 0 for a
            process outside our PID namespace, and 1 where systemd made the listening socket for
            the VMM.
        ask: has a child look.

    Raises:
        ControlError: the files of its user's processes are looked at too slowly now, or were
            lately.
    """
    if pid is None or pid <= 1:
        return None
    with _hanging():
        return await vmm_files.opened(pid, ask)


async def open_files(pid: int, starts: Sequence[str], ask: Ask | None = None) -> OpenFiles:
    """Looks for descriptors of a process.

    Args:
        pid: the process.
        starts: how the links in /proc/PID/fd begin.
        ask: has a child look; None: ``LOOKUPS`` does.

    Raises:
        ControlError: the user's processes are looked at too slowly now, or were lately.
    """
    starts = [start[:_MOST_LETTERS] for start in starts]
    match await _asked(ask or LOOKUPS.ask, "files", pid, starts):
        case [bool(are_seen), list(found)]:
            return OpenFiles(are_seen, tuple(OpenFile(*each) for each in found))
    return OpenFiles(are_seen=False)


async def pid_in(path: str) -> int | None:
    """The process whose number is in a file. None: there is no such file, or it is a user's and
    names another user's process, whose VM would be taken for that user's.

    Raises:
        ControlError: the file's directory or the user's processes are looked at too slowly now, or
            were lately.
    """
    try:
        found = await vmm_files.one_answer(LOOKUPS.ask, "number", path)
    except OSError:
        return None
    match found:
        case [int(pid), int(owner)]:
            if owner in (0, os.geteuid()):
                return pid
            with _hanging():
                return pid if await vmm_files.user_of(pid, LOOKUPS.ask) == owner else None
    return None


async def has_thread(pid: int, thread: int) -> bool:
    """Whether a process has this thread, by the number that its own PID namespace gives it.

    Raises:
        ControlError: the user's processes are looked at too slowly now, or were lately.
    """
    return await _asked(LOOKUPS.ask, "thread", pid, thread) is True


async def has_word(pid: int, word: str) -> bool:
    """Whether a process's command line has this word.

    Raises:
        ControlError: the user's processes are looked at too slowly now, or were lately.
    """
    return await _asked(LOOKUPS.ask, "has-word", pid, word) is True


async def look(process: ProcessFiles, starts: Sequence[str], ask: Ask) -> Look | None:
    """Looks for what may be against driving a process's VM; None: the process has ended.

    Args:
        process: the process.
        starts: how the links in /proc/PID/fd begin that are looked for.
        ask: has a child look.

    Raises:
        ControlError: the user's processes are looked at too slowly now, or were lately.
    """
    with _hanging():
        order = "look", process.pid, process.user, process.started, list(starts)
        match await vmm_files.one_answer(ask, *order):
            case [bool(are_seen), bool(found), int() | None as huge_bytes]:
                return Look(are_seen, found, huge_bytes or 0)
    return None


async def _asked(ask: Ask, name: str, pid: int, wanted: object) -> object:
    """The answer; None: there is no such process."""
    with _hanging():
        user = await vmm_files.user_of(pid, ask)
        return None if user < 0 else await vmm_files.one_answer(ask, name, pid, user, wanted)


@contextlib.contextmanager
def _hanging() -> Iterator[None]:
    """Raises ControlError, ``HANGS``, where a process cannot be looked at now."""
    try:
        yield
    except ControlError as err:
        detail = "what its user's processes have open is listed too slowly"
        raise ControlError(Fault.HANGS, err.detail or detail) from err
    except OSError as err:  # Somebody has killed the child, or no descriptor is free.
        raise ControlError(Fault.HANGS, err.strerror or "") from err
