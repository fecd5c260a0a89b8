"""The API's server over real sockets, in an event loop of the test's: clients of any kind."""

import array
import asyncio
import contextlib
import itertools
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balloon_daemon.api import answering, socket_file
from balloon_daemon.api import client as api_client
from balloon_daemon.api import server as api_server
from balloon_daemon.api import traces as api_traces
from balloon_daemon.api.answering import Answering
from balloon_daemon.api.client import MAX_HEAD_BYTES, MOST_WAITING_BYTES, Client, Phase
from balloon_daemon.api.messages import MAX_BODY_BYTES, Rights
from balloon_daemon.api.seats import MOST, MOST_OF_USER, MOST_READERS, TAKE_WITHIN_S
from balloon_daemon.api.server import MOST_MISUSES, Records, Server
from balloon_daemon.api.socket_file import ApiSocket
from balloon_daemon.api.traces import TOO_SLOW, Traces
from balloon_daemon.commands import (
    Done,
    NotDone,
    NotReloaded,
    Pause,
    Reclaim,
    Reclaimed,
    Release,
    Reloaded,
    Reserve,
    Resume,
    SetBalloon,
    TakeAnswer,
    Unreserve,
)
from balloon_daemon.events import (
    ApiClientTooSlow,
    ApiMisused,
    CallbackFailed,
    Event,
    EventsLost,
    Stepped,
    TargetReached,
    TraceBegun,
)
from balloon_daemon.records.counters import Counters
from balloon_daemon.records.recent import Recent
from balloon_daemon.sizing.decision import Ended, Share
from balloon_daemon.sizing.host_events import Looked
from balloon_daemon.status import HostStatus, SourceStatus, VmStatus
from balloon_daemon.units import MIB, VmId
from tests.harness.api_schemas import check
from tests.harness.faults import fault
from tests.harness.needs import needs_root
from tests.harness.other_user import NOBODY, as_member
from tests.harness.waiting import HANG_S

VM = VmId(1, "web")
GET_STATUS = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
GET_METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
GET_EVENTS = b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n"
GET_TRACE = b"GET /v1/trace HTTP/1.1\r\nHost: x\r\n\r\n"
SCM_MAX_FD = 253  # include/net/scm.h
MEMBERS_GID = 64502
"""A group that an ordinary host does not use."""

Play = Callable[[Callable[["World"], Awaitable[None]]], None]


class Desk:
    """A host with some VMs, which counts what it is asked."""

    def __init__(self) -> None:
        self.vms = 3
        self.asked = self.listed = 0
        self.obeyed: list[tuple[Release | SetBalloon | Pause | Resume | Unreserve, int]] = []
        self.answer: Done | NotDone = Done(2 * MIB, 0)
        self.wanted: dict[int, tuple[Reclaim | Reserve, int, TakeAnswer]] = {}
        self.withdrawn: list[int] = []
        self.at_once: Reclaimed | None = None
        self.fails = False

    def host_status(self) -> HostStatus:
        self.asked += 1
        if self.fails:
            raise KeyError("a bug")
        return HostStatus(SourceStatus("meminfo", "", 0, 0, 0))

    def vm_ids(self) -> tuple[VmId, ...]:
        self.listed += 1
        return tuple(VmId(number + 1, f"vm{number + 1}") for number in range(self.vms))

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        return VmStatus(vm_id, frozenset(), None, 0, None, None, kind="qmp")

    def obey(self, command: Release | SetBalloon, uid: int) -> Done | NotDone:
        self.obeyed.append((command, uid))
        return self.answer

    def steer(self, command: Pause | Resume | Unreserve, uid: int) -> NotDone | None:
        self.obeyed.append((command, uid))
        return self.answer if isinstance(self.answer, NotDone) else None

    def want(self, command: Reclaim | Reserve, uid: int, answer: TakeAnswer) -> int | NotDone:
        if isinstance(self.answer, NotDone):
            return self.answer
        self.wanted[len(self.wanted) + 1] = (command, uid, answer)
        if self.at_once is not None:
            answer(self.at_once)
        return len(self.wanted)

    def withdraw(self, ticket: int) -> None:
        self.withdrawn.append(ticket)


class Tracing:
    """Publishes the beginnings of traces, of a policy without VMs, and counts them."""

    def __init__(self) -> None:
        self.begun = 0
        self.goes_on = False
        self.traces = Traces(lambda: b'{"balloond_trace":1}\n')

    def begin(self) -> None:
        self.begun += 1
        self.goes_on = True
        asyncio.get_running_loop().call_soon(self.traces, TraceBegun(1.0, self.begun, None), 0.0)

    def end(self) -> None:
        self.goes_on = False


class World:
    """A server, its clients, and what it publishes."""

    def __init__(self, path: Path) -> None:
        self.desk = Desk()
        self.recent = Recent()
        self.events: list[Event] = []
        self.socket = ApiSocket(path)
        self.tracing = Tracing()
        self.traces = self.tracing.traces
        self.records = Records(self.recent, self.traces, Counters())
        self.server = Server([self.socket], self.records, self.events.append)

    async def connect(self) -> socket.socket:
        """A client's end of a new connection."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self.socket.path))
        return sock

    async def ask(self, text: bytes = GET_STATUS) -> tuple[int, Any]:
        """An answer's status and its content."""
        sock = await self.connect()
        with sock:
            with contextlib.suppress(BrokenPipeError):  # It has answered, and reads no more.
                await asyncio.get_running_loop().sock_sendall(sock, text)
            return parsed(await received(sock))

    def clients_waiting(self) -> list[Client]:
        """The clients for which a part of their answers waits, the first one first."""
        return [one for one in self.server.clients() if one.phase.name == "ANSWERED"]

    def held(self) -> int:
        """How many these are."""
        return len(self.clients_waiting())

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.001)


async def received(sock: socket.socket) -> bytes:
    """All that the server sends until it closes the connection."""
    got = b""
    while some := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        got += some
    return got


def chunks_of(answer: bytes) -> list[bytes]:
    """The lines of a stream in chunks that has ended as it should."""
    body = answer.split(b"\r\n\r\n", 1)[1]
    content = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if size == b"0":
            return content.splitlines()
        content += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


def parsed(answer: bytes) -> tuple[int, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Plays a scene with a server, which must end in time and without a bug."""

    def played(scene: Callable[[World], Awaitable[None]]) -> None:
        async def whole() -> None:
            world = World(tmp_path / "api.sock")
            world.server.start(world.desk, world.tracing)
            try:
                async with asyncio.timeout(HANG_S):
                    await scene(world)
            finally:
                world.server.close()
            bugs = [event for event in world.events if isinstance(event, CallbackFailed)]
            assert (bugs != []) is world.desk.fails

        asyncio.run(whole())

    return played


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        (b"\0\0\0\0\r\n\r\n", 400, "this is no HTTP request that can be read"),
        (b"GET /v1/status\r\n\r\n", 400, "this is no HTTP request that can be read"),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", 400, "this is no HTTP request that can be read"),
        (b"GET /v1/events HTTP/1.0\r\n\r\n", 505, "the stream of events needs HTTP/1.1"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nX: " + (MAX_HEAD_BYTES + 1) * b"x",
            431,
            "this is no HTTP request that can be read",
        ),
        (
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
            + MAX_HEAD_BYTES // 10 * b"Accept: ,\r\n"
            + b"\r\n",
            431,
            "this is no HTTP request that can be read",
        ),
        (
            b"POST /v1/status HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n"
            + (MAX_BODY_BYTES + 1) * b"x",
            413,
            "the body is longer than 4096 bytes",
        ),
        (
            b"POST /v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + 2000 * b"1\r\nx\r\n",
            411,
            "a body needs Content-Length; chunks are not taken",
        ),
        (
            b"POST /v1/status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            "this is no HTTP request that can be read",
        ),
    ],
)
@fault("bytes that are no request")
def test_bytes_that_are_no_request_have_a_status_and_a_sentence(
    text: bytes, status: int, sentence: str, play: Play
) -> None:
    async def scene(world: World) -> None:
        said = await world.ask(text)
        assert said[0] == status
        check("Error")(said[1])
        assert said[1]["error"].startswith(sentence)
        assert (await world.ask())[0] == 200

    play(scene)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.sampled_from(GET_STATUS.split(b" ")) | st.binary(max_size=40)))
@fault("bytes that are no request")
def test_any_bytes_are_answered_or_let_go_and_the_next_client_is_served(
    parts: list[bytes], play: Play
) -> None:
    async def scene(world: World) -> None:
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, b" ".join(parts))
            sock.shutdown(socket.SHUT_WR)
            got = await received(sock)
            assert got == b"" or parsed(got)[0] in (200, 400, 404, 405, 501, 505)
        assert (await world.ask())[0] == 200

    play(scene)


@fault("a client that is slow")
def test_request_that_is_not_complete_in_time_has_a_status_and_silence_has_none(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_server, "ASK_WITHIN_S", 0.05)
    monkeypatch.setattr(api_server, "LOOK_S", 0.01)

    async def scene(world: World) -> None:
        assert await world.ask(GET_STATUS[:-2]) == (
            408,
            {"error": "the request was not complete within 0.05 seconds"},
        )
        with await world.connect() as silent:
            assert await received(silent) == b""

    play(scene)


@fault("a client that never reads")
def test_client_that_does_not_take_its_answer_is_dropped(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_server, "TAKE_WITHIN_S", 0.05)
    monkeypatch.setattr(api_server, "LOOK_S", 0.01)

    async def scene(world: World) -> None:
        world.desk.vms = 2000  # More than a socket's queue holds.
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_STATUS)
            await world.until(lambda: world.server.clients() != [])
            await world.until(lambda: world.server.clients() == [])
            with pytest.raises(json.JSONDecodeError):
                parsed(await received(sock))

    play(scene)


@fault("clients that take their answers slowly")
def test_answers_that_wait_for_slow_clients_are_bounded_together(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        world.desk.vms = 2000  # More than a socket's queue holds.
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as open_ones:
            slow = [open_ones.enter_context(await world.connect()) for _ in range(6)]
            await loop.sock_sendall(slow[0], GET_STATUS)
            await world.until(lambda: world.held() == 1)
            (size_bytes,) = (n_bytes for _, n_bytes in world.server._answering._held.values())
            monkeypatch.setattr(answering, "MOST_HELD_BYTES", 3 * size_bytes + size_bytes // 2)
            # Each answer is made for itself, so each is another one in memory.
            for count, sock in enumerate(slow[1:3], start=2):
                await loop.sock_sendall(sock, GET_STATUS)
                await world.until(lambda count=count: world.held() == count)  # type: ignore[misc]  # bound per turn
            first = world.clients_waiting()[0]
            await loop.sock_sendall(slow[3], GET_STATUS)
            await world.until(lambda: not world.server.serves(first))
            assert world.held() == 3
            assert world.events[-1] == ApiClientTooSlow(os.getuid(), answering.MOST_HELD_BYTES)
            with pytest.raises(json.JSONDecodeError):
                parsed(await received(slow[0]))
            # Whoever takes its answer gets it.
            status, content = await world.ask()
            assert (status, len(content["vms"])) == (200, 2000)

    play(scene)


@fault("200 clients at once")
def test_one_answer_of_many_slow_clients_counts_once(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "MOST_HELD_BYTES", 2 * MIB)

    async def scene(world: World) -> None:
        world.desk.vms = 2000
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as open_ones:
            slow = [open_ones.enter_context(await world.connect()) for _ in range(20)]
            await world.until(lambda: len(world.server.clients()) == 20)
            for sock in slow:
                await loop.sock_sendall(sock, GET_STATUS)
            await world.until(lambda: world.held() == 20)
            answers = await asyncio.gather(*map(received, slow))
            assert {parsed(answer)[0] for answer in answers} == {200}

    play(scene)


@fault("a client that never reads")
def test_follower_that_never_reads_is_dropped_and_others_get_every_event(play: Play) -> None:
    async def scene(world: World) -> None:
        loop = asyncio.get_running_loop()
        with await world.connect() as silent, await world.connect() as reader:
            await loop.sock_sendall(silent, GET_EVENTS)
            await loop.sock_sendall(reader, GET_EVENTS)
            await world.until(
                lambda: [one.phase.name for one in world.server.clients()] == 2 * ["STREAMING"]
            )
            reading = asyncio.create_task(received(reader))
            sent = 0
            while len(world.server.clients()) == 2:
                for _ in range(100):
                    world.recent(TargetReached(VM, sent, 0), 0.0)
                    sent += 1
                await asyncio.sleep(0)
                await world.until(lambda: not world.server.clients()[-1].has_more)
            # What was queued, and what the kernel took: no more than both bounds.
            assert sent * 100 < 2 * MOST_WAITING_BYTES + (1 << 20)
            world.server.close()
            lines = (await reading).split(b"\r\n\r\n", 1)[1].split(b"\r\n")
            assert [json.loads(line)["actual_bytes"] for line in lines[1::2]] == list(range(sent))
            world.server = Server(
                [ApiSocket(world.socket.path)], world.records, world.events.append
            )
            world.server.start(world.desk, world.tracing)

    play(scene)


@fault("a client that records and never reads")
def test_recording_client_that_is_too_slow_is_told_so_and_dropped(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_traces, "REST_S", 0.0)

    async def scene(world: World) -> None:
        loop = asyncio.get_running_loop()
        with await world.connect() as slow, await world.connect() as reader:
            await loop.sock_sendall(slow, GET_TRACE)
            await world.until(lambda: world.tracing.begun == 1)
            await loop.sock_sendall(reader, GET_TRACE)
            await world.until(lambda: world.tracing.begun == 2)
            await asyncio.sleep(0)
            reading = asyncio.create_task(received(reader))
            sent = 0
            while all(client.streams for client in world.server.clients()):
                for _ in range(100):
                    world.traces(Stepped(float(sent), Looked(None)), 0.0)
                    sent += 1
                await world.until(lambda: not world.server.clients()[-1].has_more)
            *lines, last = chunks_of(await received(slow))
            assert json.loads(last) == {"error": TOO_SLOW}
            assert sum(map(len, lines)) < MOST_WAITING_BYTES
            # What it got before that has no gap.
            assert lines[0] == b'{"balloond_trace":1}'
            times = [json.loads(line)["t"] for line in lines[2:]]
            assert times == [float(at) for at in range(len(times))]
            await world.until(lambda: len(world.server.clients()) == 1)
            world.server.close()
            assert len(chunks_of(await reading)) == 2 + sent
            world.server = Server(
                [ApiSocket(world.socket.path)], world.records, world.events.append
            )
            world.server.start(world.desk, world.tracing)

    play(scene)


def test_client_that_has_gone_is_recorded_for_no_more(play: Play) -> None:
    async def scene(world: World) -> None:
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_TRACE)
            await world.until(lambda: world.tracing.begun == 1)
        await world.until(lambda: world.server.clients() == [])
        world.traces(Stepped(1.0, Looked(None)), 0.0)
        assert not world.tracing.goes_on

    play(scene)


@fault("clients that begin a trace and hang up, over and over")
def test_clients_that_begin_traces_over_and_over_cost_one_beginning_in_a_time(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_traces, "REST_S", 2 * HANG_S)

    async def scene(world: World) -> None:
        for _ in range(10):
            with await world.connect() as sock:
                await asyncio.get_running_loop().sock_sendall(sock, GET_TRACE)
                await world.until(lambda: any(one.streams for one in world.server.clients()))
            await world.until(lambda: world.server.clients() == [])
        # The first one's beginning was published in the turn after its request.
        assert world.tracing.begun == 1

    play(scene)


def test_client_that_has_gone_before_its_trace_began_begins_none(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        add = Traces.add

        def add_and_drop(self: Traces, client: Client) -> None:
            add(self, client)
            world.server.drop(client)

        monkeypatch.setattr(Traces, "add", add_and_drop)
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_TRACE)
            await received(sock)
        await asyncio.sleep(0)
        assert world.tracing.begun == 0

    play(scene)


def test_clients_that_ask_while_no_trace_may_begin_get_one_later(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_traces, "REST_S", 0.05)

    async def scene(world: World) -> None:
        async def first_line() -> bytes:
            with await world.connect() as sock:
                await asyncio.get_running_loop().sock_sendall(sock, GET_TRACE)
                got = b""
                while b"balloond_trace" not in got:
                    got += await asyncio.get_running_loop().sock_recv(sock, 1 << 16)
                return got

        for _ in range(3):
            assert all(await asyncio.gather(*(first_line() for _ in range(3))))

    play(scene)


def test_trace_says_what_was_lost_before_it_could_be_told(play: Play) -> None:
    async def scene(world: World) -> None:
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_TRACE)
            await world.until(lambda: [one.phase.name for one in world.server.clients()] != [])
            await world.until(lambda: world.tracing.begun == 1)
            await asyncio.sleep(0)
            world.traces(EventsLost(3), 0.0)
            world.traces(Stepped(2.0, Looked(None)), 0.0)
            await world.until(lambda: not world.server.clients()[0].has_more)
            world.server.close()
            *_, lost, after = chunks_of(await received(sock))
        assert json.loads(lost) == {"t": 2.0, "event": "lost", "entries": 3}
        assert json.loads(after)["event"] == "looked"
        again = ApiSocket(world.socket.path)
        world.server = Server([again], world.records, world.events.append)
        world.server.start(world.desk, world.tracing)

    play(scene)


@fault("a client that never reads")
def test_stream_begins_however_fast_events_come(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Answering.work

    async def scene(world: World) -> None:
        def with_event(self: Answering) -> None:
            world.recent(TargetReached(VM, 0, 0), 0.0)
            work(self)

        monkeypatch.setattr(Answering, "work", with_event)
        for _ in range(3):
            world.recent(TargetReached(VM, 0, 0), 0.0)
        with await world.connect() as follower:
            await asyncio.get_running_loop().sock_sendall(follower, GET_EVENTS)
            await world.until(
                lambda: [one.phase.name for one in world.server.clients()] == ["STREAMING"]
            )

    play(scene)


@fault("200 clients at once")
def test_clients_at_once_are_all_served_by_few_statuses(play: Play) -> None:
    async def scene(world: World) -> None:
        answers = await asyncio.gather(*(world.ask() for _ in range(200)))
        assert {status for status, _ in answers} == {200}
        assert all(len(content["vms"]) == 3 for _, content in answers)
        assert world.desk.asked < 200

    play(scene)


@fault("200 clients at once")
def test_one_turn_of_the_loop_serves_no_more_clients_than_its_time_allows(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each look at this clock takes 0.1 ms, and each client has two: two and a half fit in a turn.
    clock = itertools.count()
    told = SimpleNamespace(monotonic=lambda: next(clock) * 1e-4)
    monkeypatch.setattr(api_server, "time", told)
    served: list[int] = []
    turn, serve = Server._turn, Server._serve

    def counted_turn(self: Server) -> None:
        served.append(0)
        turn(self)

    def counted_serve(self: Server, fd: int) -> None:
        served[-1] += 1
        serve(self, fd)

    monkeypatch.setattr(Server, "_turn", counted_turn)
    monkeypatch.setattr(Server, "_serve", counted_serve)

    async def scene(world: World) -> None:
        answers = await asyncio.gather(*(world.ask() for _ in range(50)))
        assert {status for status, _ in answers} == {200}
        assert sum(served) >= 100
        assert max(served) <= 4

    play(scene)


@fault("clients that ask and hang up, over and over")
def test_clients_that_ask_and_hang_up_leave_one_answer_of_each_kind_in_the_making(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Answering, "work", lambda _self: None)  # Answers take for ever.

    async def scene(world: World) -> None:
        for text in [GET_METRICS, GET_STATUS] * 10:
            with await world.connect() as sock:
                await asyncio.get_running_loop().sock_sendall(sock, text)
                await world.until(
                    lambda: [one.phase for one in world.server.clients()] == [Phase.WAITING]
                )
            await world.until(lambda: world.server.clients() == [])
        answering = world.server._answering
        assert len(answering._jobs) == 2
        assert not any(answering._wanting.values())

    play(scene)


@fault("200 clients at once")
def test_metrics_are_made_once_for_all_who_wait_for_them(play: Play) -> None:
    async def metrics(world: World) -> bytes:
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_METRICS)
            return await received(sock)

    async def scene(world: World) -> None:
        answers = await asyncio.gather(*(metrics(world) for _ in range(100)))
        assert all(b"version=0.0.4" in each for each in answers)
        assert all(each.count(b"balloond_vm_info{") == 3 for each in answers)
        assert world.desk.asked < 100

    play(scene)


@fault("200 clients at once")
def test_status_is_never_from_before_its_request(play: Play) -> None:
    async def scene(world: World) -> None:
        world.desk.vms = 500
        first = asyncio.create_task(world.ask())
        await world.until(lambda: world.desk.listed == 1)
        world.desk.vms = 1
        second = asyncio.create_task(world.ask())
        assert len((await first)[1]["vms"]) == 500
        assert len((await second)[1]["vms"]) == 1

    play(scene)


@fault("more clients than are served at a time")
def test_clients_beyond_the_most_wait_for_their_turn(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_server, "LOOK_S", 0.01)

    async def scene(world: World) -> None:
        idle = [await world.connect() for _ in range(MOST)]
        await world.until(lambda: len(world.server.clients()) == MOST)
        waiting = asyncio.create_task(world.ask())
        await asyncio.sleep(0.02)
        assert len(world.server.clients()) == MOST
        for sock in idle:
            sock.close()
        assert (await waiting)[0] == 200

    play(scene)


@fault("more clients than are served at a time")
def test_those_who_may_only_read_leave_room_for_root(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        came = itertools.count()
        users = (1000 + number // MOST_OF_USER for number in came)
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (next(users), Rights.READ))
        idle = [await world.connect() for _ in range(MOST_READERS)]
        await world.until(lambda: len(world.server.clients()) == MOST_READERS)
        with await world.connect() as sock:
            status, content = parsed(await received(sock))
        assert status == 503
        assert content["error"].startswith(f"{MOST_READERS} clients are served already")
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (0, Rights.CHANGE))
        assert (await world.ask())[0] == 200
        for sock in idle:
            sock.close()

    play(scene)


@fault("more clients than are served at a time")
def test_one_user_who_may_only_read_leaves_room_for_others(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: World) -> None:
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (1000, Rights.READ))
        idle = [await world.connect() for _ in range(MOST_OF_USER)]
        await world.until(lambda: len(world.server.clients()) == MOST_OF_USER)
        with await world.connect() as sock:
            status, content = parsed(await received(sock))
        assert status == 503
        assert content["error"].startswith(f"{MOST_OF_USER} clients of one user are served")
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (1001, Rights.READ))
        assert (await world.ask())[0] == 200
        for sock in idle:
            sock.close()

    play(scene)


# --- descriptors ------------------------------------------------------------------------------


@pytest.fixture
def unrefused(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel lets descriptors through, as before Linux 6.16; what stays open is closed."""
    monkeypatch.setattr(socket_file, "refuse_descriptors", lambda _: False)
    before = open_fds()
    yield
    for fd in open_fds() - before:
        with contextlib.suppress(OSError):  # The directory's own.
            os.close(fd)


def open_fds() -> set[int]:
    return set(map(int, os.listdir("/proc/self/fd")))


def send_fds(sock: socket.socket, fds: list[int], content: bytes = b"GET", flags: int = 0) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([content], rights, flags)


class SentPipe:
    """A pipe whose writing end is sent away, and tells by its other end whether it is closed."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)

    def send(self, sock: socket.socket, count: int = 1, flags: int = 0) -> None:
        send_fds(sock, count * [self._writing], b"G" if flags else b"GET", flags)

    def is_closed(self) -> bool:
        """Whether the sent end is closed; asked once, after the end of all sending."""
        os.close(self._writing)
        try:
            return os.read(self._reading, 1) == b""
        except BlockingIOError:
            return False
        finally:
            os.close(self._reading)


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["", "urgent"])
@fault("a client that sends file descriptors")
def test_descriptors_of_readers_are_never_closed_and_cost_the_group_its_access(
    flags: int, play: Play, monkeypatch: pytest.MonkeyPatch, unrefused: None
) -> None:
    async def scene(world: World) -> None:
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (1000, Rights.READ))
        for number in range(MOST_MISUSES):
            sent = SentPipe()
            with await world.connect() as sock:
                if number % 2:  # They lie in the queue when the connection ends otherwise.
                    await asyncio.get_running_loop().sock_sendall(sock, b"\0\r\n\r\n")
                sent.send(sock, flags=flags)
                await received(sock)
            await world.until(lambda: world.server.clients() == [])
            assert not sent.is_closed()
        misused = [event for event in world.events if isinstance(event, ApiMisused)]
        assert misused == [ApiMisused(1000, closed=n == MOST_MISUSES - 1) for n in range(16)]
        assert world.socket.path.stat().st_mode & 0o777 == 0o600

    play(scene)


@fault("a client that sends file descriptors")
def test_connections_with_descriptors_cost_one_each_and_the_17th_reader_is_not_read(
    play: Play, monkeypatch: pytest.MonkeyPatch, unrefused: None
) -> None:
    # Nobody is dropped for being late.
    monkeypatch.setattr(api_server, "ASK_WITHIN_S", 3600.0)

    async def scene(world: World) -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (1000, Rights.READ))
        socks = [await world.connect() for _ in range(MOST_MISUSES + 4)]
        await world.until(lambda: len(world.server.clients()) == len(socks))
        sent, before = SentPipe(), open_fds()
        for sock in socks[: MOST_MISUSES + 2]:
            sent.send(sock, SCM_MAX_FD)
        # All others go: the silent one, and the one whose request has just come.
        await loop.sock_sendall(socks[-1], GET_STATUS)
        await world.until(lambda: world.server.clients() == [])
        late = await world.connect()
        await loop.sock_sendall(late, GET_STATUS)
        assert await received(late) == b""
        late.close()
        # The server's ends of the connections with descriptors are open still, and nothing else.
        assert len(open_fds()) == len(before) - 2
        assert sum(isinstance(event, ApiMisused) for event in world.events) == MOST_MISUSES
        monkeypatch.setattr(world.socket, "rights_of", lambda _: (0, Rights.CHANGE))
        assert (await world.ask())[0] == 200
        for sock in socks:
            sock.close()
        assert not sent.is_closed()

    play(scene)


@needs_root
@fault("a client that sends file descriptors")
def test_member_whose_group_is_shut_out_may_read_over_no_connection_that_waited() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        api_socket = ApiSocket(Path(directory, "api.sock"))
        os.chown(api_socket.path, -1, MEMBERS_GID)
        with socket.socket(socket.AF_UNIX) as client:
            with as_member(MEMBERS_GID, []):
                client.connect(str(api_socket.path))
            accepted, _ = api_socket.sock.accept()
            with accepted:
                assert api_socket.rights_of(accepted) == (NOBODY, Rights.READ)
                api_socket.close_to_group()
                assert api_socket.rights_of(accepted) == (NOBODY, Rights.NOTHING)
        api_socket.close()


@fault("a client that sends file descriptors")
def test_descriptors_that_wait_to_be_accepted_are_not_closed_with_the_socket(
    tmp_path: Path, unrefused: None
) -> None:
    api_socket = ApiSocket(tmp_path / "api.sock")
    listener = api_socket.sock.fileno()
    sent, urgent = SentPipe(), SentPipe()
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(str(api_socket.path))
    sent.send(clients[0])
    urgent.send(clients[1], flags=socket.MSG_OOB)
    before = open_fds()
    api_socket.close()
    # The clients with descriptors are open, in place of the socket; the third client is not.
    assert len(open_fds()) == len(before) + 1
    assert not os.path.exists(api_socket.path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(listener)
    assert [client.recv(1) for client in clients] == 3 * [b""]
    for client in clients:
        client.close()
    assert not sent.is_closed()
    assert not urgent.is_closed()


@fault("a client that sends file descriptors")
def test_own_client_that_sends_descriptors_is_dropped_and_they_are_closed(
    play: Play, unrefused: None
) -> None:
    async def scene(world: World) -> None:
        sent = SentPipe()
        with await world.connect() as sock:
            sent.send(sock)
            with contextlib.suppress(ConnectionResetError):
                assert await received(sock) == b""
        assert sent.is_closed()
        assert (await world.ask())[0] == 200

    play(scene)


def test_client_is_not_dropped_for_having_nothing_to_read() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        client = Client(ours, 0, Rights.CHANGE, 0.0)
        assert client.receive() is None
        theirs.sendall(GET_STATUS)
        request = client.receive()
        assert request is not None
        assert request.target == "/v1/status"


@fault("a bug in what the API shows")
def test_bug_in_an_answer_costs_its_client_alone(play: Play) -> None:
    async def scene(world: World) -> None:
        world.desk.fails = True
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_STATUS)
            assert await received(sock) == b""
        status, _ = await world.ask(b"GET /v1/vms/none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 404
        world.desk.fails = False
        assert (await world.ask())[0] == 200
        world.desk.fails = True

    play(scene)


def test_client_that_hangs_up_while_its_answer_is_made_is_let_go(play: Play) -> None:
    async def scene(world: World) -> None:
        world.desk.vms = 500
        with await world.connect() as sock:
            await asyncio.get_running_loop().sock_sendall(sock, GET_STATUS)
            await world.until(lambda: world.desk.asked == 1)
        await world.until(lambda: world.server.clients() == [])
        world.desk.vms = 1
        assert (await world.ask())[0] == 200

    play(scene)


def test_bounds_are_what_the_documents_say() -> None:
    assert (api_client.MAX_HEAD_BYTES, MAX_BODY_BYTES) == (8192, 4096)
    assert (api_server.ASK_WITHIN_S, TAKE_WITHIN_S) == (10, 10)


class Reloader:
    """Reads a configuration anew when a test says so."""

    def __init__(self) -> None:
        self.done: list[Callable[[Reloaded | NotReloaded], None]] = []

    def reload(self, done: Callable[[Reloaded | NotReloaded], None]) -> None:
        self.done.append(done)


def test_client_that_has_gone_before_its_answer_costs_nothing_and_others_get_theirs(
    tmp_path: Path,
) -> None:
    post = b"POST /v1/reload HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"

    async def scene() -> None:
        world, reloader = World(tmp_path / "api.sock"), Reloader()
        world.server.start(world.desk, world.tracing, reloader)
        gone = await world.connect()
        await asyncio.get_running_loop().sock_sendall(gone, post)
        await world.until(lambda: len(reloader.done) == 1)
        answer = asyncio.create_task(world.ask(post))
        await world.until(lambda: len(reloader.done) == 2)
        gone.close()
        await world.until(lambda: len(world.server.clients()) == 1)

        for done in reloader.done:
            done(Reloaded(()))

        assert await answer == (200, {"changed": []})
        await world.until(lambda: world.server.clients() == [])
        world.server.close()
        assert [event for event in world.events if isinstance(event, CallbackFailed)] == []

    async def in_time() -> None:
        async with asyncio.timeout(HANG_S):
            await scene()

    asyncio.run(in_time())


RECLAIM = b'POST /v1/reclaim HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n{"size_bytes":1}'


def test_client_that_waits_keeps_nobody_waiting_and_gets_its_answer(play: Play) -> None:
    async def scene(world: World) -> None:
        asking = asyncio.create_task(world.ask(RECLAIM))
        await world.until(lambda: bool(world.desk.wanted))
        status, _ = await world.ask()
        assert status == 200
        assert not asking.done()
        _, _, answer = world.desk.wanted[1]
        answer(Reclaimed(Ended.COMPLETE, 1, 0.5, (Share(VM, 1, 1),)))
        status, told = await asking
        assert status == 200
        check("Reclaimed")(told)
        assert told["came_bytes"] == 1
        assert world.desk.withdrawn == []

    play(scene)


@fault("a client that waits for memory")
def test_client_that_goes_away_withdraws_what_it_waits_for(play: Play) -> None:
    async def scene(world: World) -> None:
        sock = await world.connect()
        await asyncio.get_running_loop().sock_sendall(sock, RECLAIM)
        await world.until(lambda: bool(world.desk.wanted))
        sock.close()
        await world.until(lambda: world.desk.withdrawn == [1])
        # An answer that comes all the same is nobody's.
        _, _, answer = world.desk.wanted[1]
        answer(Reclaimed(Ended.COMPLETE, 1, 0.5, ()))
        assert (await world.ask())[0] == 200

    play(scene)


def test_answer_that_is_there_at_once_is_sent(play: Play) -> None:
    async def scene(world: World) -> None:
        world.desk.at_once = Reclaimed(Ended.NOBODY, 1, 0.0, ())
        status, told = await world.ask(RECLAIM)
        assert (status, told["why"]) == (200, "nobody")
        assert world.desk.withdrawn == []

    play(scene)


def test_server_that_ends_withdraws_what_is_waited_for(play: Play) -> None:
    worlds: list[World] = []
    with contextlib.ExitStack() as stack:

        async def scene(world: World) -> None:
            worlds.append(world)
            sock = stack.enter_context(await world.connect())
            await asyncio.get_running_loop().sock_sendall(sock, RECLAIM)
            await world.until(lambda: bool(world.desk.wanted))

        play(scene)
    assert worlds[0].desk.withdrawn == [1]
