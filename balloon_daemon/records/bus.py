"""Queues published events, and delivers them to their readers in later turns of the event loop.

An event is stamped with the time and queued; readers get it after the present turn of the event
loop. So all guests' targets leave before the first line about low memory is worded, and a flood of
events uses a bounded share of the loop's time and of memory.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic, time

from balloon_daemon.events import Event, EventsLost, ReaderFailed

MOST = 16_384
"""The most events that may be queued, some 3 MiB: sixteen for each of 1024 VMs, the most VMs."""

TURN_S = 0.001
"""How long readers may take in one turn of the event loop."""

Reader = Callable[[Event, float], None]
"""Called with an event, and with the time of its publishing in seconds since the epoch."""

CallSoon = Callable[[Callable[[], None]], object]
"""Schedules a function for the next turn of the event loop (``loop.call_soon``)."""


class Bus:
    """The one queue of events.

    While no event loop delivers the events (``drain_by``), only ``drain`` empties the queue.

    Args:
        readers: each gets every event, in the order of publishing.
    """

    def __init__(self, *readers: Reader) -> None:
        self._readers = readers
        self._queue = deque[tuple[Event, float]]()
        self._lost = 0
        self._call_soon: CallSoon | None = None
        self._scheduled = False

    def read_by(self, reader: Reader) -> None:
        """Gives a reader every event that was not delivered yet, and all later ones."""
        self._readers = (*self._readers, reader)

    def publish(self, event: Event) -> None:
        """Queues an event; while ``MOST`` events are queued, counts it as lost instead."""
        if len(self._queue) >= MOST:
            self._lost += 1
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self._queue.append((EventsLost(lost), time()))
        self._queue.append((event, time()))
        if not self._scheduled and self._call_soon is not None:
            self._scheduled = True
            self._call_soon(self._take_turn)

    def add(self, reader: Reader) -> None:
        """Adds a reader, which gets every event that is not delivered yet."""
        self._readers += (reader,)

    def drain_by(self, call_soon: CallSoon | None) -> None:
        """Lets an event loop deliver published events, a few in each turn.

        Args:
            call_soon: the loop's own; None: the loop ends, and only ``drain`` empties the queue.
        """
        self._call_soon = call_soon
        self._scheduled = bool(self._queue) and call_soon is not None
        if self._scheduled and call_soon is not None:
            call_soon(self._take_turn)

    def drain(self) -> None:
        """Delivers all published events, however long that takes."""
        while self._queue or self._lost:
            if not self._queue:
                lost, self._lost = self._lost, 0
                self._queue.append((EventsLost(lost), time()))
            self._hand_out()

    def _take_turn(self) -> None:
        until_s = monotonic() + TURN_S
        while self._queue and monotonic() < until_s:
            self._hand_out()
        self._scheduled = bool(self._queue)
        if self._scheduled and self._call_soon is not None:
            self._call_soon(self._take_turn)

    def _hand_out(self) -> None:
        event, at_s = self._queue.popleft()
        for read in self._readers:
            try:
                read(event, at_s)
            except Exception as err:
                # Go on after a bug in one reader: the other readers must still get this event, and
                # all readers later ones. If a reader fails at ReaderFailed itself, drop the error:
                # to publish it would cause the same error again, without end.
                if not isinstance(event, ReaderFailed):
                    error = f"{type(err).__name__}: {err}"
                    self.publish(ReaderFailed(type(event).__name__, error))
