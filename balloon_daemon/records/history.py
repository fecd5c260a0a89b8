"""Keeps the last day of a host: a reader of events, with a program that writes the file.

Runs in the controller. The program is ``history_writer``; its lines are
``[table, [value of each column, …]]``.
"""

import json

from balloon_daemon.events import (
    Decided,
    Event,
    HistoryEnded,
    HistorySetAside,
    ProtectionEvent,
    Publish,
    Surveyed,
    VmAttached,
)
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.records.words import worded
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.units import MIB

SURVEYS = 12
"""One of so many surveys is kept: one a minute, at the usual speed."""

_ASIDE = "aside "
"""The program's line about a damaged file that it has renamed begins with this; the new ending of
the file's name and the reason follow."""


class History:
    """Keeps decisions, findings of guest protection, and samples. A ``Reader``.

    Args:
        scribe: writes the file.
        publish: takes events.
    """

    def __init__(self, scribe: Scribe, publish: Publish) -> None:
        self._scribe = scribe
        self._publish = publish
        self._surveys = 0
        self._ended = False

    def __call__(self, event: Event, at_s: float) -> None:
        """Keeps an event.

        Args:
            event: the event.
            at_s: when it was published, in seconds since the epoch.
        """
        if isinstance(event, Surveyed):
            self._look_at_writer()
            if self._surveys % SURVEYS == 0:
                self._sample(event, at_s)
            self._surveys += 1
        elif isinstance(event, Decided | VmAttached | ProtectionEvent):
            if getattr(event, "quiet", False):
                return  # This decision repeats the VM's last one.
            if (line := worded(event)) is not None:
                self._send("events", at_s, str(event.vm), line.word, line.message)

    def close(self) -> None:
        """Writes no more."""
        self._scribe.close()

    def _sample(self, event: Surveyed, at_s: float) -> None:
        if isinstance(event.seen, Reading):
            available, margin = event.seen.available_mib * MIB, event.seen.margin_mib * MIB
            self._send("samples", at_s, "", None, None, None, available, margin, None)
        for vm, size, balloon, target, available_bytes, held in event.vms:
            self._send(
                "samples", at_s, str(vm), size, balloon, target, available_bytes, None, held
            )

    def _send(self, table: str, *values: object) -> None:
        # A row that the program does not take now is lost: the next sample comes soon.
        self._scribe.send(json.dumps([table, values]).encode() + b"\n")

    def _look_at_writer(self) -> None:
        while (line := self._scribe.take_line()).startswith(_ASIDE):
            ending, _, reason = line.removeprefix(_ASIDE).partition(" ")
            self._publish(HistorySetAside(reason, ending))
        why = self._scribe.why_ended()
        if why is not None and not self._ended:
            self._ended = True
            self._publish(HistoryEnded(why))
