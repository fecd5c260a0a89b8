"""Asks a child how much of the host's memory the memory files of driven VMs occupy.

Runs in the controller. The file is another process's, so its descriptor's name in /proc/PID/fd
has to be looked up for each figure: the controller does not hold the file open, as its last close
frees all of the VM's memory. Each sample has such a figure. So the controller blocks until the
child answers, as for readings (``linux/reading_child.py``), 50 ms at most: that takes a tenth of
the time of a return to the event loop that waits for the answer there (``lookups.py``). A child
that is late is killed, and may live on, as no signal ends the kernel's wait for a directory's
lock; until that child has ended, no file of the user for whom it was late is asked for.
"""

import asyncio
import time

from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.measuring_child import MeasuringChild
from balloon_daemon.linux.process_figures import ProcessFiles
from balloon_daemon.linux.reading_child import IDLE_S, LATE_S, REGAINED, WITHIN_S
from balloon_daemon.linux.user_time import UserTime

BEGINS_WITHIN_S = 1.0
"""A child that has not begun after this time is replaced."""

MOST_LATE = 4
"""While so many children are late, no file is asked for."""


class MemoryFiles:
    """Asks one child at a time for the blocks of files."""

    def __init__(self) -> None:
        self.low: LowNumbers | None = None
        """Forks the children, which inherit no descriptor that a VMM has sent; None: a
        ``LowNumbers`` is made before the first fork."""
        self._child: MeasuringChild | None = None
        self._begins_s: float | None = None
        """When the child was started, until its first answer says that it has begun; then None."""
        self._ended: list[tuple[MeasuringChild, int | None]] = []
        """Children that were killed, each with the user for whom it was late."""
        self._waited = UserTime(LATE_S, REGAINED)
        self._used_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def blocks(self, process: ProcessFiles, path: str) -> int | None:
        """How many blocks of 512 bytes a file occupies that a process has open.

        Args:
            process: the process.
            path: the file's path in /proc/PID/fd.

        Returns:
            The number; None: there is no such file, or it is not known in time.
        """
        user, now_s = process.user, time.monotonic()
        self._ended = [each for each in self._ended if not each[0].is_gone()]
        late = [of for _, of in self._ended if of is not None]
        if user in late or len(late) >= MOST_LATE or self._waited.is_used_up(user, now_s):
            return None
        self._used_s = now_s
        try:
            if not self._has_child():
                return None
            assert self._child is not None
            self._child.order(process.pid, path)
            return self._child.answer(WITHIN_S)
        except TimeoutError:
            self._waited.take(user, WITHIN_S, now_s)
            self._end(user)
        except OSError:  # Somebody has killed the child, or the kernel allows none.
            self._end()
        return None

    def close(self) -> bool:
        """Ends all children, for good or until the next question; waits for nothing.

        Returns:
            Whether all children are reaped; else call it again.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end()
        self._ended = [each for each in self._ended if not each[0].is_gone()]
        return not self._ended

    def _has_child(self) -> bool:
        """Whether there is a child that can be asked; starts one where there is none."""
        now_s = time.monotonic()
        if self._child is None:
            if self.low is None:
                self.low = LowNumbers()
            self._child, self._begins_s = MeasuringChild(self.low), now_s
            self._look_later()
        if self._begins_s is not None:
            # Wait only once for a child that gets no processor: later figures ask whether it has
            # begun.
            try:
                self._child.answer(WITHIN_S if self._begins_s == now_s else 0.0)
            except TimeoutError:
                if now_s - self._begins_s > BEGINS_WITHIN_S:
                    self._end()
                return False
            self._begins_s = None
        return True

    def _end(self, late_for: int | None = None) -> None:
        if self._child is not None:
            self._child.end()
            self._ended.append((self._child, late_for))
            self._child = None

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._look)

    def _look(self) -> None:
        """Ends a child that has been idle for long, and reaps children."""
        self._timer = None
        if time.monotonic() - self._used_s >= IDLE_S:
            self._end()
        self._ended = [each for each in self._ended if not each[0].is_gone()]
        if self._child is not None or self._ended:
            self._look_later()


MEMORY_FILES = MemoryFiles()
"""Measures the memory files of all driven VMs of this process."""
