"""Serves the API's clients in the controller's event loop, a moment at a time.

The event loop belongs to the VMs. All the API's descriptors are in one epoll instance, which the
loop watches as one descriptor (epoll(7)): however many clients come at once, they get ``TURN_S``
of a turn of the loop, and are then not served for seven times as long. asyncio's own streams would
handle every readable connection in the same turn, and 200 clients would keep a VM waiting for 20
ms. On busy processors the kernel's scheduler also makes a process wait that has run for long.

What a client may cost is bounded: its request in bytes and in time, what waits for it in bytes,
and the number of clients.
"""

import asyncio
import math
import select
import time
from collections import deque
from collections.abc import Callable, Sequence

from balloon_daemon.api.answering import Answering
from balloon_daemon.api.bodies import RefusedError
from balloon_daemon.api.client import Client, Phase
from balloon_daemon.api.listeners import Listener, Listeners
from balloon_daemon.api.messages import refusal
from balloon_daemon.api.metrics import Metrics
from balloon_daemon.api.own_figures import keep_own_figures, own_figures
from balloon_daemon.api.routes import Routes
from balloon_daemon.api.seats import MOST, READERS, TAKE_WITHIN_S, makes_room, why_full
from balloon_daemon.api.traces import Traces
from balloon_daemon.commands import Desk, Reloader, Tracing
from balloon_daemon.events import ApiMisused, CallbackFailed, Publish
from balloon_daemon.linux.passed_fds import hang_up
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.records.counters import Counters
from balloon_daemon.records.recent import Recent

TURN_S, SHARE = 0.0005, 1 / 8
"""How long clients are served in one turn of the event loop, and the share of the loop's time that
they may use in the long run."""

LOOK_AT = 32
"""How many ready descriptors are taken from the epoll instance at a time."""

ASK_WITHIN_S = 10.0
"""How long a client may take to send its whole request."""

LOOK_S = 1.0
"""How often to look for clients that are late (``ASK_WITHIN_S``, ``TAKE_WITHIN_S``)."""

MOST_MISUSES = 16
"""After this many connections in which clients of ``READERS`` have sent descriptors, members of
the socket's group are refused: each such connection stays open for good, and costs a descriptor.
"""


class Records(NamedTuple):
    """The readers of events that the server asks.

    Attributes:
        recent: the last events.
        traces: the clients that record a trace.
        counters: how many faults and decisions there were.
    """

    recent: Recent
    traces: Traces
    counters: Counters


class Server:
    """The API's server. The controller starts and ends it by the methods of ``Service``.

    Args:
        sockets: where clients connect.
        records: the readers of events that the server asks.
        publish: called with each event to be published.
    """

    def __init__(self, sockets: Sequence[Listener], records: Records, publish: Publish) -> None:
        self._listeners = Listeners(sockets)
        self._recent, self._traces, self._counters = records
        self._publish = publish
        self._answering: Answering
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._ready = deque[int]()
        self._timers: dict[Callable[[], None], asyncio.Handle] = {}
        keep_own_figures()
        self._misuses = 0
        """How many connections of clients that may only read brought descriptors."""

    def start(self, desk: Desk, tracing: Tracing, reloader: Reloader | None = None) -> None:
        self._traces.start(tracing, self.serves, self.send_soon, self._later)
        metrics = Metrics(desk, self._recent.undriven, self._counters, own_figures)
        routes = Routes(desk, self._recent, metrics, reloader)
        self._answering = Answering(routes, self._recent, self._traces, self, self._publish)
        self._listeners.watch(self._epoll, select.EPOLLIN)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._turn)
        self._recent.follow(self._answering.told)
        for listener in self._listeners:
            self._publish(listener.begun())

    def close(self) -> None:
        self._recent.leave(self._answering.told)
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        for client in self._traces.close():
            self.send(client)
        for client in list(self._clients.values()):
            self.drop(client)
        for timer in self._timers.values():
            timer.cancel()
        for listener in self._listeners:
            listener.close()
        self._epoll.close()

    # --- turns --------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Serves clients for about ``TURN_S``, then serves none for seven times as long."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._epoll.fileno())
        if (timer := self._timers.pop(self._turn, None)) is not None:
            timer.cancel()
        began_s = time.monotonic()
        try:
            if not self._ready:
                self._ready.extend(fd for fd, _ in self._epoll.poll(0, LOOK_AT))
            while self._ready or self._answering.has_work:
                if self._ready:
                    self._serve(self._ready.popleft())
                if self._answering.has_work:
                    self._answering.work()
                if time.monotonic() - began_s >= TURN_S:
                    break
        except Exception as err:
            # A bug in the API must not end the service of the API, let alone that of VMs.
            self._publish(CallbackFailed(f"{type(err).__name__}: {err}"))
        finally:
            rest_s = (time.monotonic() - began_s) * (1 / SHARE - 1)
            self._later(rest_s, self._rested)

    def _rested(self) -> None:
        if self._ready or self._answering.has_work:
            self._turn()
        else:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._epoll.fileno(), self._turn)

    def _turn_soon(self) -> None:
        if self._rested not in self._timers:
            self._later(0, self._turn)

    def _later(self, after_s: float, call: Callable[[], None]) -> None:
        if call not in self._timers:
            self._timers[call] = asyncio.get_running_loop().call_later(after_s, self._due, call)

    def _due(self, call: Callable[[], None]) -> None:
        del self._timers[call]
        call()

    def _serve(self, fd: int) -> None:
        if (listener := self._listeners.get(fd)) is not None:
            if len(self._clients) < MOST:
                self._accept(listener)
            return
        client = self._clients.get(fd)
        if client is None:
            return  # The client has gone since epoll reported it.
        try:
            if self._is_shut_out(client):
                self.drop(client)
            elif time.monotonic() >= client.deadline_s:
                self._end_late(client)
            elif client.phase is not Phase.WAITING and client.has_more:
                self.send(client)
            elif (request := client.receive()) is not None:
                self._answering.answer(client, request)
        except RefusedError as err:
            self._answering.finish(client, refusal(err.status, str(err)))
        except (EOFError, OSError):
            self.drop(client)
        except Exception as err:
            self._publish(CallbackFailed(f"{type(err).__name__}: {err}"))
            self.drop(client)

    def _accept(self, listener: Listener) -> None:
        try:
            sock, _ = listener.sock.accept()
        except BlockingIOError:
            return
        except OSError:
            self._accept_later()  # accept(2) has failed, perhaps with EMFILE.
            return
        sock.setblocking(False)
        uid, rights = listener.rights_of(sock)
        client = Client(sock, uid, rights, time.monotonic() + ASK_WITHIN_S)
        self._clients[sock.fileno()] = client
        self._epoll.register(sock, select.EPOLLIN)
        self._later(LOOK_S, self._look)
        if len(self._clients) < MOST:
            self._ready.append(listener.sock.fileno())  # Another client may wait.
        else:
            self._accept_later()
        if self._is_shut_out(client):
            self.drop(client)
        elif why := why_full(client, self._clients.values()):
            if idle := makes_room(client, self._clients.values(), time.monotonic()):
                self.drop(idle)
            else:
                self._answering.finish(client, refusal(503, why))

    def _is_shut_out(self, client: Client) -> bool:
        """Whether nothing is received from a client any more, because members of its group have
        sent descriptors too often (``MOST_MISUSES``)."""
        return client.rights in READERS and self._misuses >= MOST_MISUSES

    # --- what ``Answering`` calls -------------------------------------------------------------

    def serves(self, client: Client) -> bool:
        """Whether a client's connection is open."""
        return self._clients.get(client.sock.fileno()) is client

    def clients(self) -> list[Client]:
        """All clients whose connections are open."""
        return list(self._clients.values())

    def wait(self, client: Client) -> None:
        """Reads no more from a client whose answer is being made."""
        client.phase, client.deadline_s = Phase.WAITING, math.inf
        # Watch only for the client's hang-up: epoll reports EPOLLHUP even if it is not asked for.
        self._epoll.modify(client.sock, 0)

    def send_soon(self, client: Client) -> None:
        """Sends what waits for a client, in the client's turn."""
        client.deadline_s = time.monotonic() + TAKE_WITHIN_S
        self._ready.append(client.sock.fileno())
        self._turn_soon()

    def work_soon(self) -> None:
        """Goes on with the answers that are being made."""
        self._turn_soon()

    def send(self, client: Client) -> None:
        """Sends what the kernel takes now, and waits for the rest to be taken."""
        try:
            while client.has_more:
                if not client.send():
                    self._epoll.modify(client.sock, select.EPOLLOUT)
                    client.deadline_s = time.monotonic() + TAKE_WITHIN_S
                    return
        except OSError:
            self.drop(client)  # It has hung up.
            return
        if client.streams:
            self._epoll.modify(client.sock, select.EPOLLIN)
            client.deadline_s = math.inf
        else:
            self.drop(client)

    # --- ends ---------------------------------------------------------------------------------

    def _look(self) -> None:
        """Looks for late clients; each is answered 408 or dropped when its turn comes."""
        now_s = time.monotonic()
        if late := [fd for fd, client in self._clients.items() if now_s >= client.deadline_s]:
            self._ready.extend(late)
            self._turn_soon()
        if self._clients:
            self._later(LOOK_S, self._look)

    def _end_late(self, client: Client) -> None:
        if client.phase is Phase.ASKING and client.has_asked:
            sentence = f"the request was not complete within {ASK_WITHIN_S:g} seconds"
            self._answering.finish(client, refusal(408, sentence))
        else:
            self.drop(client)

    def _accept_later(self) -> None:
        """Stops accepting for ``LOOK_S``: new clients wait in the listening socket's queue."""
        self._listeners.watch(self._epoll, 0)
        self._later(LOOK_S, self._accept_again)

    def _accept_again(self) -> None:
        if len(self._clients) < MOST:
            self._listeners.watch(self._epoll, select.EPOLLIN)
        else:
            self._accept_later()

    def drop(self, client: Client) -> None:
        """Ends a client's connection; but leaves it open where a client of ``READERS`` has sent
        descriptors, which wait in its queue."""
        if not self.serves(client):
            return
        self._epoll.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        self._answering.left(client)
        # Close the connection of a client that may change something in any case, although the
        # close may block: root and this process's user can block this process in other ways too.
        # No descriptors come over TCP, however much a client sends on.
        if hang_up(client.sock) or client.rights not in READERS:
            client.sock.close()
        else:
            self._keep(client)

    def _keep(self, client: Client) -> None:
        """Leaves a connection with descriptors in its queue open for good: close(2) would also
        close those descriptors, and the close of a file (on FUSE, for example) may never end."""
        client.sock.detach()
        self._misuses += 1
        if self._misuses <= MOST_MISUSES:
            closed = self._misuses == MOST_MISUSES
            self._publish(ApiMisused(client.uid, closed))
            if closed:
                for listener in self._listeners:
                    listener.close_to_group()
                # Drop the group's other clients in their turns, not here: that takes some ms.
                self._ready.extend(self._clients)
                self._turn_soon()
