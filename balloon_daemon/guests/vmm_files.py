"""Has children open files of VMMs' processes in /proc, for the controller to read.

Runs in the controller, for VMs of all kinds. The controller itself looks up no name below /proc
that belongs to another process (``linux/process_lookups.py``): whoever can keep a lookup in a
process's directory waiting would so hold up all VMs.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence

from balloon_daemon.errors import BalloondError
from balloon_daemon.linux.asked_child import Passed
from balloon_daemon.linux.process_figures import ProcessFigures, ProcessFiles

AGAIN_S, AGAIN_MOST_S = 1.0, 60.0
"""The first and the longest pause before a VMM's process is looked at again, after a look that was
late or has failed; each pause is twice as long as the one before."""

Take = Callable[[object], None]
"""Takes a part of an answer."""

Ask = Callable[[Sequence[object], Take, int], Awaitable[None]]
"""Has a child carry an order out (``guests/driven/path_orders.py``). Takes the order, the function
that gets the parts of the answer, and the socket to connect or -1. Raises OSError, or another
``BalloondError`` where the order takes too long."""


async def user_of(pid: int, ask: Ask) -> int:
    """The user whose allowance of time pays for looks at a process; -1: there is no such process.

    This is the process's effective user. But a program with the set-user-ID bit may have root as
    its effective user, so where that is root the real user pays, who has started the program.

    Raises:
        OSError: the kernel's reason.
        BalloondError: processes are looked up too slowly now, or were lately.
    """
    user = await one_answer(ask, "owner", pid) if pid > 0 else -1
    if user == 0:
        user = await one_answer(ask, "real-user", pid, 0)
    return user if isinstance(user, int) else -1


async def opened(pid: int, ask: Ask) -> ProcessFiles | None:
    """Has a child open a process's files.

    Returns:
        The files; None: the process is gone, or may not be looked at.

    Raises:
        OSError: the kernel's reason.
        BalloondError: processes are looked up too slowly now, or were lately.
    """
    user = await user_of(pid, ask)
    if user < 0:
        return None
    match await one_answer(ask, "open", pid, user):
        case Passed([int(started), identity, int(number)], files):
            if len(files) != number:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            for_whom = (identity[0], identity[1]) if isinstance(identity, list | tuple) else None
            statm, io = [*files, None][:2]
            assert statm is not None
            return ProcessFiles(pid, user, started, for_whom, statm, io)
    return None


async def one_answer(ask: Ask, *order: object) -> object:
    """The only part of the answer to an order; None: there is none."""
    parts: list[object] = []
    await ask(order, parts.append, -1)
    return parts[0] if parts else None


class FiguresToCome:
    """The figures of a VMM's process, once a child has opened its files.

    A look that is late or fails is made again after a pause, and so is one whose files cannot be
    read any more; of a process that is gone, or may not be looked at, nothing is known for good.

    Args:
        pid: the process; 0: unknown.
        ask: has a child look; None: nobody looks.
        came: called whenever files were opened.

    Attributes:
        now: the figures; unknown until they have come.
    """

    def __init__(self, pid: int, ask: Ask | None, came: Callable[[], None]) -> None:
        self._pid, self._ask, self._came = pid, ask, came
        self.now = ProcessFigures(None)
        self._pause_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def want(self) -> None:
        """Has the files opened, unless they are open, or are about to be."""
        is_new = self._task is None and self._pid > 0 and self._ask is not None
        if is_new or (self._task is not None and self._task.done() and self.now.has_failed):
            self._task = asyncio.get_running_loop().create_task(self._open())

    def close(self) -> None:
        """Closes the files, and asks for no more."""
        if self._task is not None:
            self._task.cancel()
        self.now.close()

    async def _open(self) -> None:
        assert self._ask is not None
        while True:
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s or AGAIN_S, AGAIN_MOST_S)
            try:
                files = await opened(self._pid, self._ask)
            except (OSError, BalloondError):
                continue
            self.now.close()
            self.now = ProcessFigures(files)
            self._came()
            return
