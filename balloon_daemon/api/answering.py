"""Makes the answers of the API's clients, a part at a time.

The status of all VMs is made a VM at a time, once for all clients that had asked when it was
begun. So no client gets a status from before its request, and what 200 clients that ask at once
cost does not grow with the number of VMs.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, Protocol

from balloon_daemon.api.client import Client, Phase
from balloon_daemon.api.routes import (
    Answer,
    Parts,
    Request,
    Routes,
    Stream,
    Waiting,
    WholeStatus,
)
from balloon_daemon.records.recent import Recent


class Sends(Protocol):
    """What the answering asks of the server."""

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
        take: takes each part.
        done: called after the last part.
        clients: who gets it.
    """

    parts: Iterator[bytes]
    take: Callable[[bytes], None]
    done: Callable[[], None]
    clients: list[Client]


class Answering:
    """The answers that are being made, and the clients that follow the events.

    Args:
        routes: says what a request is answered.
        recent: the last events.
        server: sends the answers.
    """

    def __init__(self, routes: Routes, recent: Recent, server: Sends) -> None:
        self._routes = routes
        self._recent = recent
        self._server = server
        self._jobs = deque[_Job]()
        self._wanting: list[Client] = []
        """The clients that want the status of all VMs and came after that was begun."""
        self._makes_status = False
        self._tickets: dict[Client, int | None] = {}
        """The clients that wait for what takes a while, and by which number it is withdrawn."""

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
            case WholeStatus():
                self._server.wait(client)
                self._wanting.append(client)
                if not self._makes_status:
                    self._begin_status()
            case Parts():
                self._server.wait(client)
                self._make(client, answer)
            case Waiting():
                self._server.wait(client)
                self._begin(client, answer)
            case Stream():
                self._stream(client, answer)

    def _make(self, client: Client, parts: Parts) -> None:
        """Begins to make an answer of parts."""
        made: list[bytes] = []
        done = partial(self._made, made, client)
        self._jobs.append(_Job(parts.parts, made.append, done, [client]))

    def _begin(self, client: Client, waiting: Waiting) -> None:
        """Begins what takes a while; its client waits, and may go meanwhile (``left``)."""
        self._tickets[client] = None

        def ended(parts: Parts) -> None:
            # The controller is in the middle of a step: nothing is made or sent now.
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
        """Notes that a client's connection has ended: what it waits for is withdrawn."""
        ticket = self._tickets.pop(client, None)
        if ticket is not None:
            self._routes.withdraw(ticket)

    def _made(self, made: list[bytes], client: Client) -> None:
        if self._server.serves(client):
            self.finish(client, Answer(200, b"".join(made)))

    def finish(self, client: Client, answer: Answer) -> None:
        """Sends an answer that is complete."""
        client.begin_answer(answer.status, len(answer.body), answer.allow)
        client.queue(answer.body)
        self._server.send(client)

    def work(self) -> None:
        """Makes one part of an answer, by turns."""
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

    def _begin_status(self) -> None:
        """Begins the status of all VMs, for all clients that want it by now."""
        clients, self._wanting = self._wanting, []
        made: list[bytes] = []
        done = partial(self._status_made, made, clients)
        self._makes_status = True
        self._jobs.append(_Job(self._routes.status_parts(), made.append, done, clients))

    def _status_made(self, made: list[bytes], clients: list[Client]) -> None:
        self._makes_status = False
        sends = self._finished_each(clients, Answer(200, b"".join(made)))
        self._jobs.append(_Job(sends, lambda part: None, lambda: None, clients))
        if self._wanting:
            self._begin_status()

    def _finished_each(self, clients: list[Client], answer: Answer) -> Iterator[bytes]:
        """Sends one answer to many clients, one at each step: 200 of them take some 20 ms."""
        for client in clients:
            if self._server.serves(client):
                self.finish(client, answer)
            yield b""

    def _stream(self, client: Client, stream: Stream) -> None:
        client.begin_answer(200, None)
        client.wanted = stream.vm
        self._server.wait(client)
        chunks = (_chunk(line) for name, line in self._recent.lines() if stream.vm in (None, name))
        done = partial(self._streamed, client, stream)
        self._jobs.append(_Job(chunks, client.queue, done, [client]))

    def _streamed(self, client: Client, stream: Stream) -> None:
        """Goes on after the last events that there were when the client asked."""
        if self._server.serves(client):
            if not stream.follow:
                client.queue(b"0\r\n\r\n")
            client.phase = Phase.STREAMING if stream.follow else Phase.ANSWERED
            self._server.send(client)

    def told(self, name: str, line: str) -> None:
        """Queues an event for everybody who follows."""
        chunk = _chunk(line)
        for client in self._server.clients():
            if client.phase is Phase.STREAMING and client.wanted in (None, name):
                if not client.has_more:
                    self._server.send_soon(client)
                client.queue(chunk)
                if client.is_behind:
                    self._server.drop(client)


def _chunk(line: str) -> bytes:
    """A line as a chunk (RFC 9112, section 7.1)."""
    content = line.encode(errors="replace") + b"\n"
    return b"%x\r\n%b\r\n" % (len(content), content)
