"""Makes the answers of the API's clients, a part at a time.

The status of all VMs is made one VM at a time, and once for all clients whose requests had come
before the first VM's turn; so are the metrics. So no client gets figures from before its request,
and for 200 clients that ask at once one status is made, not 200. At most one status and one text
of metrics are in the making at a time, because clients can ask and hang up faster than answers are
made.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic
from typing import Protocol

from balloon_daemon.api.client import Client, Phase, chunk
from balloon_daemon.api.messages import (
    Answer,
    Later,
    Parts,
    Request,
    Stream,
    TraceStream,
    Waiting,
    Whole,
)
from balloon_daemon.api.routes import Routes
from balloon_daemon.api.traces import Traces
from balloon_daemon.events import ApiClientTooSlow, Publish
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.records.recent import Recent

MOST_HELD_BYTES = 32 << 20
"""How many bytes of answers may wait for all clients together. The status of 1,000 VMs has 0.8
MB: some 40 such answers, each made at another time."""

TOO_SLOW_A_SECOND = 1
"""How often ``ApiClientTooSlow`` is published in a second."""


class Sends(Protocol):
    """The server's methods that ``Answering`` calls."""

    def serves(self, client: Client) -> bool:
        """Whether a client's connection is open."""

    def clients(self) -> list[Client]:
        """All clients whose connections are open."""

    def wait(self, client: Client) -> None:
        """Reads no more from a client whose answer is being made."""

    def send(self, client: Client) -> None:
        """Sends what waits for a client, as much as the kernel takes now."""

    def send_soon(self, client: Client) -> None:
        """Sends what waits for a client, in the client's turn."""

    def work_soon(self) -> None:
        """Goes on with the answers that are being made."""

    def drop(self, client: Client) -> None:
        """Ends a client's connection."""


class _Job(NamedTuple):
    """An answer that is being made, a part at a time.

    Attributes:
        parts: makes the parts.
        take: called with each part.
        done: called after the last part.
        clients: the clients that get the answer.
    """

    parts: Iterator[bytes]
    take: Callable[[bytes], None]
    done: Callable[[], None]
    clients: list[Client]


class Answering:
    """The answers that are being made, and the clients that follow the events.

    Args:
        routes: gives the answer to a request.
        recent: the last events.
        traces: the clients that record a trace.
        server: sends the answers.
        publish: called with each event to be published.
    """

    def __init__(
        self, routes: Routes, recent: Recent, traces: Traces, server: Sends, publish: Publish
    ) -> None:
        self._publish = publish
        self._routes = routes
        self._recent = recent
        self._traces = traces
        self._server = server
        self._jobs = deque[_Job]()
        self._wanting: dict[str, list[Client]] = {}
        """For each kind of answer about all VMs (``Whole.kind``): the clients that asked for it
        after the answer now in the making was begun. They get the next answer of that kind."""
        self._making = set[str]()
        """The kinds of which an answer is being made."""
        self._tickets: dict[Client, int | None] = {}
        """The clients that wait for a command's end, each with the number by which the command is
        withdrawn."""
        self._numbers = itertools.count()
        self._held: dict[Client, tuple[int, int]] = {}
        """The clients that have not received all of their answers, in the order in which the
        answers were queued. Each has the number of its answer, which is the same for clients that
        share one, and the answer's size."""
        self._too_slow = RateLimit(TOO_SLOW_A_SECOND)

    @property
    def has_work(self) -> bool:
        """Whether an answer is being made."""
        return bool(self._jobs)

    def answer(self, client: Client, request: Request) -> None:
        """Answers a request, or begins to."""
        answer = self._routes.answer(request)
        match answer:
            case Answer():
                self.finish(client, answer)
            case Whole(kind):
                self._server.wait(client)
                self._wanting.setdefault(kind, []).append(client)
                if kind not in self._making:
                    self._begin_whole(kind)
            case Parts():
                self._server.wait(client)
                self._make(client, answer)
            case Waiting():
                self._server.wait(client)
                self._begin(client, answer)
            case Stream():
                self._stream(client, answer)
            case TraceStream():
                client.begin_answer(200, None)
                self._server.wait(client)
                self._traces.add(client)
                self._server.send_soon(client)
            case Later(begin):
                self._server.wait(client)
                begin(partial(self._answered, client))

    def _answered(self, client: Client, answer: Answer) -> None:
        if self._server.serves(client):
            self.finish(client, answer)

    def _make(self, client: Client, parts: Parts) -> None:
        """Begins to make an answer of parts."""
        made: list[bytes] = []
        done = partial(self._made, made, client)
        self._jobs.append(_Job(parts.parts, made.append, done, [client]))

    def _begin(self, client: Client, waiting: Waiting) -> None:
        """Begins a command that takes a while. Its client waits, or hangs up before the command
        has ended (``left``)."""
        self._tickets[client] = None

        def ended(parts: Parts) -> None:
            # ``Governor`` calls this while it carries out the results of a step, for which VMs
            # wait: so only queue the answer's making here.
            if client in self._tickets:
                del self._tickets[client]
                self._make(client, parts)
                self._server.work_soon()

        ticket = self._routes.begin(waiting, ended)
        if isinstance(ticket, Answer):
            del self._tickets[client]
            self.finish(client, ticket)
        elif client in self._tickets:
            self._tickets[client] = ticket

    def left(self, client: Client) -> None:
        """Notes that a client's connection has ended: makes no answer for it, and withdraws the
        command whose end it waits for."""
        self._held.pop(client, None)
        for clients in self._wanting.values():
            if client in clients:
                clients.remove(client)
        ticket = self._tickets.pop(client, None)
        if ticket is not None:
            self._routes.withdraw(ticket)

    def _made(self, made: list[bytes], client: Client) -> None:
        if self._server.serves(client):
            self.finish(client, Answer(200, b"".join(made)))

    def finish(self, client: Client, answer: Answer, number: int | None = None) -> None:
        """Sends an answer that is complete.

        Args:
            client: gets the answer.
            answer: the answer.
            number: the answer's number, if other clients get the same answer; None: none does.
        """
        client.begin_answer(answer.status, len(answer.body), answer.allow, answer.kind)
        client.queue(answer.body)
        self._server.send(client)
        self._hold(client, len(answer.body), number)

    def _hold(self, client: Client, n_bytes: int, number: int | None = None) -> None:
        """Notes a client that has not received all of its answer; then drops the slowest clients
        while more than ``MOST_HELD_BYTES`` wait to be sent to all clients together.

        Args:
            client: the client.
            n_bytes: the size of the answer, all of which stays in memory until all is sent.
            number: the answer's number, if other clients get the same answer; None: none does.
        """
        self._held[client] = next(self._numbers) if number is None else number, n_bytes
        for each in [each for each in self._held if not self._waits(each)]:
            del self._held[each]
        while sum(dict(self._held.values()).values()) > MOST_HELD_BYTES:
            # Drop clients with the fewest rights first; of these, the client that got its answer
            # first (``min`` returns the first of several, and ``_held`` is in that order).
            slowest = min(self._held, key=lambda each: each.rights)
            self._server.drop(slowest)
            suppressed = self._too_slow.admit(monotonic())
            if suppressed is not None:
                self._publish(ApiClientTooSlow(slowest.uid, MOST_HELD_BYTES, suppressed))

    def _waits(self, client: Client) -> bool:
        return self._server.serves(client) and client.has_more

    def work(self) -> None:
        """Makes one part of one answer; the answers that are being made take turns."""
        job = self._jobs.popleft()
        try:
            part = next(job.parts, None)
            if part is None:
                job.done()
            else:
                job.take(part)
                self._jobs.append(job)
        except Exception:
            for client in job.clients:
                self._server.drop(client)
            job.done()
            raise

    def _begin_whole(self, kind: str) -> None:
        """Begins an answer about all VMs, for all clients that have asked for it by now."""
        clients = self._wanting.pop(kind)
        made: list[bytes] = []
        done = partial(self._whole_made, kind, made, clients)
        self._making.add(kind)
        self._jobs.append(_Job(self._routes.whole_parts(kind), made.append, done, clients))

    def _whole_made(self, kind: str, made: list[bytes], clients: list[Client]) -> None:
        self._making.discard(kind)
        sends = self._finished_each(clients, Answer(200, b"".join(made), kind=kind))
        self._jobs.append(_Job(sends, lambda part: None, lambda: None, clients))
        if self._wanting.get(kind):
            self._begin_whole(kind)

    def _finished_each(self, clients: list[Client], answer: Answer) -> Iterator[bytes]:
        """Sends one answer to many clients, one at each step: 200 of them take some 20 ms."""
        number = next(self._numbers)
        for client in clients:
            if self._server.serves(client):
                self.finish(client, answer, number)
            yield b""

    def _stream(self, client: Client, stream: Stream) -> None:
        client.begin_answer(200, None)
        client.wanted = stream.vm
        self._server.wait(client)
        # Queue nothing yet, as events may come as fast as clients' turns: ``_streamed`` queues all
        # lines and begins to follow in one step, so that no event is missed or sent twice.
        worded = (b"" for _ in self._recent.word())
        done = partial(self._streamed, client, stream)
        self._jobs.append(_Job(worded, lambda part: None, done, [client]))

    def _streamed(self, client: Client, stream: Stream) -> None:
        """Sends the events that ``Recent`` has kept; then ends the stream, unless the client has
        asked for later events too."""
        if self._server.serves(client):
            lines = [line for name, line in self._recent.lines() if stream.vm in (None, name)]
            kept = b"".join(map(_chunk, lines))
            client.queue(kept)
            if not stream.follow:
                client.queue(b"0\r\n\r\n")
            client.phase = Phase.STREAMING if stream.follow else Phase.ANSWERED
            self._server.send(client)
            self._hold(client, len(kept))

    def told(self, name: str, line: str) -> None:
        """Queues an event for each client that follows the events."""
        chunk = _chunk(line)
        for client in self._server.clients():
            if client.phase is Phase.STREAMING and client.wanted in (None, name):
                if not client.has_more:
                    self._server.send_soon(client)
                client.queue(chunk)
                if client.is_behind:
                    self._server.drop(client)


def _chunk(line: str) -> bytes:
    return chunk(line.encode(errors="replace") + b"\n")
