"""Writes the metrics to a file for node_exporter's textfile collector, over and over.

Runs in the controller's event loop, where it only makes the text, a moment at a time as for the
API's clients; a program of its own writes the file (``records/metrics_writer.py``). It is the one
thing about metrics that wakes balloond by itself: once each ``EVERY_S``.
"""

import asyncio
import time
from collections.abc import Callable, Iterator

from balloon_daemon.api.metrics import Metrics
from balloon_daemon.api.own_figures import own_figures
from balloon_daemon.commands import Desk, Reloader, Tracing
from balloon_daemon.events import MetricsFileEnded, MetricsNotWritten, Publish
from balloon_daemon.records.counters import Counters
from balloon_daemon.records.recent import Recent
from balloon_daemon.records.scribe import MOST_BYTES, Scribe

EVERY_S = 15.0
"""The time between two texts: as often as Prometheus asks node_exporter in most places."""

TURN_S, SHARE = 0.0005, 1 / 8
"""How long a text is made in one turn of the event loop, and the share of the loop's time that
this may take in the long run, as for the API's clients (``server.py``)."""

FLUSH_S = 0.25
"""How long to wait for a writer that has not taken the whole text."""


class MetricsFile:
    """Has metrics written to a file. The controller starts and ends this by the methods of
    ``Service``.

    Args:
        scribe: hands texts to the program that writes the file.
        recent: knows the VMs whose balloons cannot be driven.
        counters: how many faults and decisions there were.
        publish: called with each event to be published.
    """

    def __init__(
        self, scribe: Scribe, recent: Recent, counters: Counters, publish: Publish
    ) -> None:
        self._scribe = scribe
        self._recent = recent
        self._counters = counters
        self._publish = publish
        self._timer: asyncio.Handle | None = None
        self._next_s = 0.0
        self._metrics: Metrics
        self._parts: Iterator[bytes] = iter(())
        self._made: list[bytes] = []
        self._is_behind = False

    def start(self, desk: Desk, tracing: Tracing, reloader: Reloader | None = None) -> None:
        self._metrics = Metrics(desk, self._recent.undriven, self._counters, own_figures)
        self._later(0.0, self._begin)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        """Begins a text."""
        if (why := self._scribe.why_ended()) is not None:
            self._publish(MetricsFileEnded(why))
            return
        self._next_s = asyncio.get_running_loop().time() + EVERY_S
        # Without this process's figures: node_exporter fails if a textfile has samples with the
        # names of its own (``process_…``).
        self._parts, self._made = self._metrics.parts(openmetrics=False, own=False), []
        self._make()

    def _make(self) -> None:
        """Makes parts of a text for a moment, then rests; sends the text once it is whole."""
        self._wait()
        began_s = time.monotonic()
        for part in self._parts:
            self._made.append(part)
            took_s = time.monotonic() - began_s
            if took_s >= TURN_S:
                self._later(took_s * (1 / SHARE - 1), self._make)
                return
        text, self._made = b"".join(self._made), []
        if self._scribe.send(b"%d\n%b" % (len(text), text)):
            self._is_behind = False
        elif not self._is_behind and self._scribe.why_ended() is None:
            # The text is larger than the writer program takes, or its disk is stuck. Publish that
            # once, and again only after a later text was written. Meanwhile the file keeps its
            # older text and mtime.
            self._is_behind = True
            self._publish(MetricsNotWritten(len(text), MOST_BYTES))
        self._flush()

    def _flush(self) -> None:
        """Sends what is left of a text that is larger than the writer's socket."""
        self._wait()
        self._scribe.flush()
        if self._scribe.has_more:
            self._later(FLUSH_S, self._flush)

    def _wait(self) -> None:
        """Waits for the time of the next text. Called before anything else, so that an error in
        the making of one text, which the event loop publishes, ends no later one."""
        self._later(self._next_s - asyncio.get_running_loop().time(), self._begin)

    def _later(self, after_s: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(after_s, call)
