"""The HTTP client and a real Unix socket, with a server that does as it should, or not."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.http import HttpConnection
from balloon_daemon.guests.driven.http_answer import MAX_BODY_BYTES
from tests.fakes.http_vmm import HANGS, HttpVmm, Misbehaviour, Reply
from tests.harness.faults import fault

SHORT_S = 0.2
"""The limit where a test waits for it."""


class Echo(HttpVmm):
    """Answers /large with as much as is allowed, /refused with 400, and all else with itself."""

    def reply(self, method: str, target: str, body: object) -> Reply:
        match target:
            case "/large":
                return 200, "x" * (MAX_BODY_BYTES - 2)
            case "/refused":
                return 400, {"fault_message": "No\x1b[2J\nballoon."}
            case "/empty":
                return 204, None
            case "/nothing":
                return 404, None
        return 200, {"method": method, "target": target, "body": body}


def with_echo(
    tmp_path: Path, talk: Callable[[Echo, HttpConnection], Awaitable[None]], within_s: float = 60.0
) -> None:
    async def run() -> None:
        async with Echo(tmp_path / "vmm.sock") as vmm:
            http = HttpConnection(str(vmm.path), within_s)
            await http.open()
            await talk(vmm, http)
            http.close()

    asyncio.run(run())


def test_calls_share_one_connection_and_each_gets_its_answer(tmp_path: Path) -> None:
    async def talk(vmm: Echo, http: HttpConnection) -> None:
        assert http.pid == os.getpid()
        assert await http.get("/a") == {"method": "GET", "target": "/a", "body": None}
        assert await http.ask("PATCH", "/b", {"n": 1}) == (
            200,
            {"method": "PATCH", "target": "/b", "body": {"n": 1}},
        )
        await http.change("PUT", "/empty", {})
        vmm.chunked = True
        assert await http.get("/large") == "x" * (MAX_BODY_BYTES - 2)
        assert [call[0] for call in vmm.asked] == ["GET", "PATCH", "PUT", "GET"]

    with_echo(tmp_path, talk)


def test_refusal_has_the_servers_words_on_one_line(tmp_path: Path) -> None:
    async def talk(vmm: Echo, http: HttpConnection) -> None:
        with pytest.raises(ControlError) as caught:
            await http.get("/refused")
        assert caught.value.fault is Fault.REFUSED
        assert caught.value.detail == "400: No\\x1b[2J\\x0aballoon."
        with pytest.raises(ControlError, match=r"^refused: 404$"):
            await http.get("/nothing")
        # The connection is as good as before.
        assert await http.ask("GET", "/") == (200, {"method": "GET", "target": "/", "body": None})

    with_echo(tmp_path, talk)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: "


@fault("the VMM of a driven VM hangs, sends garbage")
@pytest.mark.parametrize(
    ("how", "fault"),
    [
        (HANGS, Fault.HANGS),
        (Misbehaviour(OK + b"8\r\n\r\n{"), Fault.HANGS),
        (Misbehaviour(b"\0" * 100 + b"\r\n\r\n"), Fault.NONSENSE),
        (Misbehaviour(b"X-Endless: header\r\n", endless=True), Fault.NONSENSE),
        (Misbehaviour(OK + b"999999999\r\n\r\n", endless=True), Fault.NONSENSE),
        (Misbehaviour(b"x", endless=True), Fault.NONSENSE),
        (Misbehaviour(OK + b"8\r\n\r\n{", closes=True), Fault.GONE),
        (Misbehaviour(b"HTTP/1.1 2", closes=True), Fault.GONE),
        (Misbehaviour(closes=True), Fault.GONE),
        (Misbehaviour(OK + b"4\r\n\r\n{{{{"), Fault.NONSENSE),
        (Misbehaviour(OK + b"2\r\n\r\n{}{}"), Fault.NONSENSE),
    ],
)
def test_server_that_misbehaves_costs_its_own_call_only(
    tmp_path: Path, how: Misbehaviour, fault: Fault
) -> None:
    async def talk(vmm: Echo, http: HttpConnection) -> None:
        vmm.misbehaviour = how
        with pytest.raises(ControlError) as caught:
            await http.get("/")
        assert caught.value.fault is fault
        http.close()
        why = await http.gone()
        with pytest.raises(ControlError) as caught:
            await http.get("/")
        assert caught.value.fault is why.fault

    with_echo(tmp_path, talk, SHORT_S if fault is Fault.HANGS else 60.0)


def test_end_of_the_server_is_noticed_between_calls(tmp_path: Path) -> None:
    async def talk(vmm: Echo, http: HttpConnection) -> None:
        await http.get("/")
        gone = asyncio.ensure_future(http.gone())
        await vmm.hang_up()
        await gone

    with_echo(tmp_path, talk)


@fault("the VMM of a driven VM hangs, sends garbage")
def test_answer_to_nobody_ends_the_connection(tmp_path: Path) -> None:
    async def run() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "vmm.sock"))
            listener.listen()
            http = HttpConnection(str(tmp_path / "vmm.sock"))
            await http.open()
            server, _ = listener.accept()
            server.sendall(OK + b"0\r\n\r\n")
            assert (await http.gone()).fault is Fault.NONSENSE
            with pytest.raises(ControlError, match="bytes without a call"):
                await http.get("/")
            server.close()

    asyncio.run(run())


def test_server_that_keeps_nothing_alive_has_gone_after_its_answer(tmp_path: Path) -> None:
    async def talk(vmm: Echo, http: HttpConnection) -> None:
        vmm.misbehaviour = Misbehaviour(OK + b"2\r\nConnection: close\r\n\r\n{}")
        assert await http.get("/") == {}
        await http.gone()

    with_echo(tmp_path, talk)


def opened(path: Path) -> Fault:
    async def run() -> Fault:
        with pytest.raises(ControlError) as caught:
            await HttpConnection(str(path)).open()
        assert caught.value.detail.isprintable()
        return caught.value.fault

    return asyncio.run(run())


def test_place_without_a_server_is_named_by_its_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))

    assert opened(tmp_path / "missing") is Fault.NOT_THERE
    assert opened(tmp_path / "stale") is Fault.NOT_THERE
    assert opened(tmp_path / "loop") is Fault.NOT_THERE
    assert opened(tmp_path / ("x" * 200)) is Fault.NOT_THERE
    assert opened(tmp_path / "nul\0") is Fault.NOT_THERE
    assert opened(tmp_path / "file") is Fault.NOT_A_SOCKET
    assert opened(tmp_path) is Fault.NOT_A_SOCKET


def test_socket_of_another_type_is_no_server(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "packets"))
        listener.listen()
        assert opened(tmp_path / "packets") is Fault.NOT_A_SOCKET


@fault("the VMM of a driven VM hangs, sends garbage")
def test_server_that_accepts_nobody_hangs_and_nobody_waits_for_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "full"))
            assert opened(tmp_path / "full") is Fault.HANGS
