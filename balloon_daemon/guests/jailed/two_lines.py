"""Tasks that wait for a turn of the event loop: those of old connections, which the event loop
watches directly (``turns.AT_ONCE``), and those of all others, the new ones, alternately."""

import asyncio
from collections import deque


class TwoLines:
    """Two queues of tasks, one task for each connection; neither queue blocks the other."""

    def __init__(self) -> None:
        self._old: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._young: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._old_first = True

    def add(self, fd: int, turn: asyncio.Future[None], *, old: bool) -> None:
        """Adds a task at the end of its queue.

        Args:
            fd: the task's connection.
            turn: becomes done when the task has its turn; may be cancelled before.
            old: whether the event loop watches the connection directly.
        """
        (self._old if old else self._young).append((fd, turn))

    @property
    def young(self) -> bool:
        """Whether a task of a new connection waits."""
        return bool(self._young)

    def wake_next(self, *, young: bool) -> int | None:
        """Wakes the task that has waited longest in the queue whose turn it is, else in the other
        queue.

        Args:
            young: whether new connections' tasks may have a turn at all.

        Returns:
            The task's connection; None where no task may have a turn.
        """
        lines = [self._old, self._young] if self._old_first else [self._young, self._old]
        self._old_first = not self._old_first
        for line in lines:
            if line is self._young and not young:
                continue
            while line:
                fd, turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return fd
        return None
