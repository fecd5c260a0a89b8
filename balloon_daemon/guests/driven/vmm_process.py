"""Asks children what a VMM's process has open and which threads it has (``process_orders.py``).

Runs in the controller.
"""

from collections.abc import Sequence
from typing import NamedTuple

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.lookups import LOOKUPS, Ask
from balloon_daemon.linux.process_figures import user_of

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
        found: the descriptors that were looked for, some at most.
    """

    are_seen: bool
    found: tuple[OpenFile, ...] = ()


async def open_files(pid: int, starts: Sequence[str], ask: Ask | None = None) -> OpenFiles:
    """Looks for descriptors of a process.

    Args:
        pid: the process.
        starts: how the links in /proc/PID/fd begin.
        ask: has a child look; None: ``LOOKUPS`` does.

    Raises:
        ControlError: the files of its user's processes are looked at too slowly now, or were
            lately.
    """
    starts = [start[:_MOST_LETTERS] for start in starts]
    match await _asked(ask or LOOKUPS.ask, "files", pid, starts):
        case [bool(are_seen), list(found)]:
            return OpenFiles(are_seen, tuple(OpenFile(*each) for each in found))
    return OpenFiles(are_seen=False)


async def has_thread(pid: int, thread: int) -> bool:
    """Whether a process has this thread, by the number that its own PID namespace gives it.

    Raises:
        ControlError: as of ``open_files``.
    """
    return await _asked(LOOKUPS.ask, "thread", pid, thread) is True


async def _asked(ask: Ask, name: str, pid: int, wanted: object) -> object:
    """The answer; None: there is no such process."""
    user = user_of(pid) if pid > 0 else -1
    if user < 0:
        return None
    parts: list[object] = []
    try:
        await ask([name, pid, user, wanted], parts.append, -1)
    except ControlError as err:
        detail = "what its user's processes have open is listed too slowly"
        raise ControlError(Fault.HANGS, err.detail or detail) from err
    except OSError as err:  # Somebody has killed the child.
        raise ControlError(Fault.HANGS, err.strerror or "") from err
    return parts[0] if parts else None
