"""Watches the low-memory source for all guests at once: woken by the kernel, and polling."""

import asyncio
from collections.abc import Callable

from balloon_daemon.events import Publish
from balloon_daemon.host.low_memory import LowMemorySource
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading

Listener = Callable[[Reading], None]

SAFETY_POLL_S = 60.0
"""How often to look even where the kernel wakes us, to notice that it no longer can."""


class MemoryWatch:
    """Reads the source and tells whoever listens when memory is low.

    Args:
        source: where the figures come from; the watch closes it.
        poll_s: how often to read it where nothing wakes us, in seconds.
        publish: takes what the source says of itself: once as something begins, once as it ends.
    """

    def __init__(self, source: LowMemorySource, poll_s: float, publish: Publish) -> None:
        self.source = source
        self._poll_s = poll_s
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[Listener, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._watched_fd: int | None = None

    def listen(self, listener: Listener) -> None:
        """Adds a listener, and looks at once: its next event must not wait for a poll.

        For everybody: each look puts the poll off, and those who listen again in turns would keep
        the others from ever hearing anything.
        """
        self._listeners[listener] = None
        self._look()

    def ignore(self, listener: Listener) -> None:
        """Removes a listener; fine where it is none."""
        self._listeners.pop(listener, None)
        if not self._listeners:
            self._rest()

    def read(self) -> Reading | NeverLow | None:
        """Reads the source now, and publishes what it has to say about itself."""
        reading = self.source.read()
        while notice := self.source.take_notice():
            self._publish(notice)
        return reading

    def close(self) -> None:
        """Stops watching and closes the source."""
        self._listeners.clear()
        self._rest()
        self.source.close()

    def _woken(self) -> None:
        self.source.acknowledge()
        self._look()

    def _look(self) -> None:
        try:
            reading = self.read()
        finally:
            # Whatever became of this look (no memory, say), there must be a next one.
            self._wait()
        if isinstance(reading, Reading) and reading.is_low:
            for listener in list(self._listeners):
                # An earlier one may have sent a later one away.
                if listener in self._listeners:
                    listener(reading)

    def _wait(self) -> None:
        """Arms poll and wake-up for as long as anybody listens."""
        if not self._listeners:
            return
        if self._timer is not None:
            self._timer.cancel()
        delay = self._poll_s if self.source.needs_poll else SAFETY_POLL_S
        self._timer = self._loop.call_later(delay, self._look)
        fd = self.source.wait_fd()
        if fd != self._watched_fd:
            self._unwatch()
            if fd is not None:
                self._loop.add_reader(fd, self._woken)
                self._watched_fd = fd

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched_fd is not None:
            self._loop.remove_reader(self._watched_fd)
            self._watched_fd = None
