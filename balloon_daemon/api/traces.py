"""The clients that record: each gets a trace of the events that the sizing policy handles, as they
come.

A trace begins with the policy's present state, and its lines are those of ``balloond --record``.
While no client records, tracing costs one check for each event.

Publishing the present state takes 30 µs for each VM. The bus delivers it, outside the time that
clients get (``server.TURN_S``). So it is published once for all clients that wait for it, and at
most once in ``REST_S``.
"""

import time
from collections.abc import Callable

from balloon_daemon.api.client import Client, Phase, chunk
from balloon_daemon.api.shown import as_json
from balloon_daemon.commands import Tracing
from balloon_daemon.events import Event, EventsLost, Stepped, Surveyed, TraceBegun, VmFound
from balloon_daemon.records.entries import entries_of
from balloon_daemon.records.trace import Entry, Lost, encode_entry

TOO_SLOW = (
    "this trace ends here: it was not taken as fast as it was made; write it to a faster disk"
)
"""The last line of a client that has left too much unread."""

REST_S = 1.0
"""The least time between two publications of the present state. With it, tracing of 1,024 VMs
costs 4 % of the event loop's time; without it, clients that begin traces one after the other cost
70 to 86 %."""

LAST_CHUNK = b"0\r\n\r\n"

Later = Callable[[float, Callable[[], None]], None]


class Traces:
    """The clients that record a trace. The event bus calls this object with each event: it is a
    ``Reader`` (``records/bus.py``).

    Args:
        header: makes the first line of a trace that begins now.
    """

    def __init__(self, header: Callable[[], bytes]) -> None:
        self._header = header
        self._clients: dict[Client, int] = {}
        """Each client, and the number of the ``TraceBegun`` that it got; 0: it waits for one."""
        self._serves: Callable[[Client], bool]
        self._send_soon: Callable[[Client], None]
        self._tracing: Tracing
        self._later: Later
        self._next_s = 0.0
        """The earliest time at which the next trace may begin (``REST_S``)."""
        self._lost = 0

    def start(
        self,
        tracing: Tracing,
        serves: Callable[[Client], bool],
        send_soon: Callable[[Client], None],
        later: Later,
    ) -> None:
        """Takes clients from now on.

        Args:
            tracing: publishes the events that the sizing policy handles.
            serves: whether a client's connection is open.
            send_soon: sends what waits for a client, in the client's turn.
            later: calls a function after a number of seconds; does nothing where a call of that
                function is planned already.
        """
        self._tracing, self._serves, self._send_soon = tracing, serves, send_soon
        self._later = later

    def add(self, client: Client) -> None:
        """Adds a client, to which the head of its answer was sent: its trace is to begin soon."""
        client.phase = Phase.TRACING
        self._clients[client] = 0
        self._later(max(0.0, self._next_s - time.monotonic()), self.begin)

    def begin(self) -> None:
        """Begins a trace for all clients that wait for one; drops clients that have gone."""
        for client in [client for client in self._clients if not self._serves(client)]:
            self._remove(client)
        if not all(self._clients.values()):
            self._next_s = time.monotonic() + REST_S
            self._tracing.begin()

    def close(self) -> list[Client]:
        """Ends all traces, because balloond ends. Returns their clients, whose end waits to be
        sent."""
        clients = [client for client in self._clients if self._serves(client)]
        for client in clients:
            client.queue(LAST_CHUNK)
            client.phase = Phase.ANSWERED
        self._clients.clear()
        return clients

    def __call__(self, event: Event, at_s: float) -> None:
        """Gives an event's lines to the clients.

        Args:
            event: the event.
            at_s: unused: an event that is recorded has its own time.
        """
        if not self._clients:
            return
        match event:
            case TraceBegun(number=number):
                takers = [client for client, begun in self._clients.items() if not begun]
                self._clients |= dict.fromkeys(takers, number)
                self._queue(takers, chunk(self._header()))
            case VmFound(number=number):
                takers = [client for client, begun in self._clients.items() if begun == number]
            case Stepped() | Surveyed():
                takers = [client for client, begun in self._clients.items() if begun]
            case EventsLost(lost):
                # The bus has dropped these events, and does not tell whether traces would have
                # had lines for them: count them all.
                self._lost += lost
                return
            case _:
                return
        if takers:
            lost, self._lost = self._lost, 0
            self._queue(takers, b"".join(map(chunk, _lines(event, lost))))

    def _queue(self, clients: list[Client], content: bytes) -> None:
        for client in clients:
            if client not in self._clients:
                continue
            if not self._serves(client):
                self._remove(client)
                continue
            if not client.has_more:
                self._send_soon(client)
            client.queue(content)
            if client.is_behind:
                client.end_stream(chunk(as_json({"error": TOO_SLOW}) + b"\n") + LAST_CHUNK)
                self._remove(client)

    def _remove(self, client: Client) -> None:
        del self._clients[client]
        if not self._clients:
            self._tracing.end()


def _lines(event: Event, lost: int) -> list[bytes]:
    entries = entries_of(event)
    if lost:
        entries.insert(0, Entry(entries[0].at_s, Lost(lost)))
    return [encode_entry(entry) for entry in entries]
