"""A client of a balloond's API, by the standard library's HTTP."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness.waiting import HANG_S


class Reply(NamedTuple):
    """An answer.

    Attributes:
        status: its status code.
        content: its JSON.
        headers: its headers, by their names in lower case.
    """

    status: int
    content: Any
    headers: dict[str, str]


class UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=HANG_S)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path)


def connected(path: Path) -> socket.socket:
    """A connection to a balloond's API, with a deadline for all its calls."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(HANG_S)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def ask(path: Path, target: str, method: str = "GET", content: object = None) -> Reply:
    """Sends one request, and returns its answer."""
    connection = UnixConnection(path)
    try:
        connection.request(method, target, None if content is None else json.dumps(content))
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, json.loads(answer.read()), headers)
    finally:
        connection.close()


def fetched(path: Path, target: str, accept: str = "") -> tuple[int, str, str]:
    """Asks for what is no JSON. Returns the answer's status, content type and text."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", target, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def sent(path: Path, text: bytes) -> tuple[int, str]:
    """Sends bytes that need be no request. Returns the answer's status and sentence."""
    with connected(path) as sock:
        with contextlib.suppress(BrokenPipeError):  # It has answered, and reads no more.
            sock.sendall(text)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return answer.status, json.loads(answer.read())["error"]


def events(path: Path, target: str = "/v1/events") -> Iterator[dict[str, Any]]:
    """The stream of events; ends as the stream does."""
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        assert answer.status == 200
        while line := answer.readline():
            yield json.loads(line)
    finally:
        connection.close()
