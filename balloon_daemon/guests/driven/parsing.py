"""When VMMs' JSON is parsed: so many bytes at once, and so many a second.

Runs in the controller. A message may have 256 KiB, which take up to 6 ms to parse
(``answers.MAX_NESTED``), and the messages of many VMMs may be complete at the same moment: without
a limit all other VMs would wait meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

BYTES_AT_ONCE = 64 * 1024
"""How many bytes of all VMMs are parsed before other work has its turn: 4 ms. A message that
has begun is parsed whole."""

BYTES_PER_S = 8 * 1024 * 1024
"""How many bytes of all VMMs are parsed in a second: half of the time of the thread that
serves all VMs. 1,024 VMs that are sampled each second send half as many bytes; from all monitors
of one user no more than three eighths of these bytes are read in a second (``reading_share``)."""


class Turns:
    """Shares the time for parsing among users, who take turns."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._left, self._at_s = float(BYTES_AT_ONCE), 0.0
        self._waiting: dict[int, deque[Callable[[], object]]] = {}
        self._is_turn = False
        """Whether ``_go_on`` has just chosen who parses its next message."""
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self, n_bytes: int) -> bool:
        """Whether a message of so many bytes may be parsed now; if so, its bytes are counted.

        While others wait it may not, even if there is room: a user of many VMMs, one of which
        always has a message, would leave no room to those who wait.
        """
        if not self._is_room() or (self._waiting and not self._is_turn):
            return False
        self._is_turn = False
        self._left -= n_bytes
        return True

    def _is_room(self) -> bool:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # This is another event loop than at the last call: begin anew with the whole share,
            # and drop what waited in the other loop.
            self._loop, self._timer = loop, None
            self._left, self._at_s = float(BYTES_AT_ONCE), 0.0
            self._waiting.clear()
        now_s = loop.time()
        passed = (now_s - self._at_s) * BYTES_PER_S
        self._left, self._at_s = min(BYTES_AT_ONCE, self._left + passed), now_s
        return self._left > 0

    async def room(self, user: int, n_bytes: int) -> None:
        """Waits until a message of so many bytes may be parsed, and counts its bytes.

        Args:
            user: whose VMM it is.
            n_bytes: the message's length; 0: nothing is waited for.
        """
        if n_bytes and not self.has_room(n_bytes):
            bell = asyncio.get_running_loop().create_future()
            self.wait(user, partial(self._ring, bell, n_bytes))
            await bell

    def _ring(self, bell: "asyncio.Future[None]", n_bytes: int) -> None:
        """Wakes a task. Its message counts now: until the task runs, others may be chosen."""
        if not bell.done():  # Else the task has been cancelled.
            self._left -= n_bytes
            bell.set_result(None)

    def wait(self, user: int, go_on: Callable[[], object]) -> None:
        """Has a VMM's message parsed once there is room, after ``has_room`` has said that there is
        none.

        Args:
            user: whose VMM it is.
            go_on: called once, when there is room; may call ``has_room`` and ``wait`` again.
        """
        self._waiting.setdefault(user, deque()).append(go_on)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is None and self._waiting and self._loop is not None:
            # A byte more than is missing, so that there is room then.
            missing = max(0.0, 1.0 - self._left)
            self._timer = self._loop.call_later(missing / BYTES_PER_S, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        try:
            while self._is_room() and self._waiting:
                user = next(iter(self._waiting))
                waiting = self._waiting.pop(user)
                go_on = waiting.popleft()
                if waiting:
                    self._waiting[user] = waiting  # Its next turn: after all other users'.
                self._is_turn = True
                go_on()
        finally:
            self._is_turn = False
            self._set_timer()


TURNS = Turns()
"""Shares this process's time for parsing among the users of all VMMs."""


class Lines:
    """Cuts the bytes that have come from a monitor into lines.

    Attributes:
        waits: whether a complete line waits until ``TURNS`` lets it be parsed.
    """

    def __init__(self) -> None:
        self.waits = False
        self._rest = bytearray()
        self._sought = 0
        """How much of ``_rest`` is known to have no line's end."""

    def add(self, content: memoryview) -> None:
        """Adds bytes that have come."""
        self._rest += content

    def take(self) -> bytearray | None:
        """The next complete line; None: there is none, or ``waits`` is True from now on."""
        end = self._rest.find(b"\n", self._sought)
        self.waits = end >= 0 and not TURNS.has_room(end)
        if end < 0:
            self._sought = len(self._rest)
        if end < 0 or self.waits:
            return None
        line = self._rest[:end]
        del self._rest[: end + 1]
        self._sought = 0
        return line

    @property
    def unfinished_bytes(self) -> int:
        """How many bytes of an incomplete line have come. Ask only after ``take`` has returned
        None and ``waits`` is False: else complete lines are counted, too."""
        return len(self._rest)
