"""Reads the low-memory source at regular times, for the record of a host that decides seldom.

Runs in the controller, with ``--record`` alone. Without it the source is read only when the policy
wants to know, and the record would not tell for how long memory was low.
"""

import asyncio

from balloon_daemon.events import Publish, Surveyed
from balloon_daemon.host.watch import MemoryWatch

POLLS = 5
"""The source is read after so many times ``Config.poll_s``: each 5 s, at the usual speed."""


class Survey:
    """Publishes readings at regular times.

    Args:
        watch: reads the source.
        every_s: the time between two readings.
        publish: takes events.
        loop: the controller's.
    """

    def __init__(
        self,
        watch: MemoryWatch,
        every_s: float,
        publish: Publish,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._watch = watch
        self._every_s = every_s
        self._publish = publish
        self._loop = loop
        self._timer: asyncio.Handle | None = None

    def begin(self) -> None:
        """Publishes a reading at once, and others from then on."""
        self._timer = self._loop.call_soon(self._look)

    def close(self) -> None:
        """Reads the source no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        # Set the timer first: an error of the reading, for lack of memory perhaps, is published by
        # the event loop, and the next reading is tried all the same.
        self._timer = self._loop.call_later(self._every_s, self._look)
        self._publish(Surveyed(self._loop.time(), self._watch.look()))
