"""Asks a running balloond over its API; where that fails, says why, and the remedy."""

import contextlib
import errno
import grp
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11

from balloon_daemon.errors import printable

ANSWER_WITHIN_S = 10.0
"""How long balloond may take: it answers within milliseconds, but answers many clients that ask at
once one after another."""

MOST_BYTES = 64 << 20
"""The longest answer: the status of 1,024 VMs has less than a megabyte."""


_NOT_UNDERSTOOD = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""The errors raised when an answer is read that is no JSON, is nested too deeply, or lacks members
or types that balloond's answers have."""


class NoAnswerError(Exception):
    """balloond cannot be asked: says why, and the remedy."""


class NotAllowedError(Exception):
    """This user may not ask: says who may."""


class RefusedError(Exception):
    """balloond refuses the request: its own sentence."""


class Client:
    """A balloond's API.

    Args:
        path: the path of its socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def understood(self) -> Iterator[None]:
        """A context for code that reads balloond's answers. Raises NoAnswerError where that code
        fails because an answer has another form than balloond's."""
        try:
            yield
        except _NOT_UNDERSTOOD as err:
            raise NoAnswerError(
                f"what listens at {printable(str(self._path))} answers otherwise than balloond; "
                "name its socket (--api)"
            ) from err

    def ask(
        self,
        target: str,
        method: str = "GET",
        content: object = None,
        within_s: float = ANSWER_WITHIN_S,
    ) -> bytes:
        """Sends one request.

        Args:
            target: the path, with its query.
            method: the method.
            content: the body, which is sent as JSON; None: there is none.
            within_s: how long balloond may take.

        Returns:
            The answer's body.

        Raises:
            NoAnswerError: there is no balloond, or it does not answer.
            NotAllowedError: this user may not ask.
            RefusedError: balloond refuses the request.
        """
        body = bytearray()
        for some in self._answer(target, method, content, within_s):
            body += some
            if len(body) > MOST_BYTES:
                raise NoAnswerError(f"{self._name} answers without end")
        return bytes(body)

    def lines(self, target: str, *, follow: bool, until_s: float | None = None) -> Iterator[bytes]:
        """The lines of a stream, as they come; raises what ``ask`` does.

        Args:
            target: the path, with its query.
            follow: the stream goes on for as long as balloond runs.
            until_s: take no more from then on, on CLOCK_MONOTONIC; None: until it ends.
        """
        rest = b""
        within_s = None if follow else ANSWER_WITHIN_S
        for some in self._answer(target, "GET", None, within_s, until_s):
            *lines, rest = (rest + some).split(b"\n")
            yield from lines

    def _answer(
        self,
        target: str,
        method: str,
        content: object,
        within_s: float | None,
        until_s: float | None = None,
    ) -> Iterator[bytes]:
        http = h11.Connection(h11.CLIENT)
        body = b"" if content is None else json.dumps(content).encode()
        headers = [("Host", "localhost"), ("Content-Length", str(len(body)))]
        try:
            with self._connect() as sock:
                head = http.send(h11.Request(method=method, target=target, headers=headers)) or b""
                # Send head and body in one write: balloond may refuse a request after its head,
                # and hang up; a second write would then fail with EPIPE.
                sock.sendall(head + (http.send(h11.Data(data=body)) or b""))
                http.send(h11.EndOfMessage())
                sock.settimeout(max(within_s or 0.0, ANSWER_WITHIN_S))
                yield from self._body(http, sock, within_s, until_s)
        except (h11.RemoteProtocolError, ConnectionError) as err:
            raise NoAnswerError(
                f"{self._name} has ended the connection; perhaps it has ended, or something else "
                "listens there"
            ) from err
        except TimeoutError as err:
            raise NoAnswerError(f"{self._name} does not answer; look at its log") from err

    def _body(
        self,
        http: h11.Connection,
        sock: socket.socket,
        within_s: float | None,
        until_s: float | None,
    ) -> Iterator[bytes]:
        refused, refusal = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                if until_s is not None and not _comes(sock, until_s):
                    return
                http.receive_data(sock.recv(1 << 16))
            elif isinstance(event, h11.Response):
                refused = None if event.status_code == 200 else event.status_code
                sock.settimeout(within_s if refused is None else ANSWER_WITHIN_S)
            elif isinstance(event, h11.Data) and refused is None:
                yield bytes(event.data)
            elif isinstance(event, h11.Data):
                refusal = (refusal + event.data)[:MOST_BYTES]
            elif isinstance(event, h11.EndOfMessage):
                if refused is not None:
                    raise self._refusal(refused, refusal)
                return
            else:
                raise ConnectionResetError

    def _refusal(self, status: int, body: bytes) -> Exception:
        try:
            answer: Any = json.loads(body)
            # The answer to a refused reload has ``mistakes``, which say more than its ``error``.
            sentence = "\n".join(map(printable, answer.get("mistakes") or [answer["error"]]))
        except _NOT_UNDERSTOOD:
            return NoAnswerError(f"{self._name} answers with status {status} and no sentence")
        return NotAllowedError(sentence) if status == 403 else RefusedError(sentence)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(ANSWER_WITHIN_S)
        try:
            sock.connect(str(self._path))
        except OSError as err:
            sock.close()
            raise self._not_connected(err) from err
        return sock

    def _not_connected(self, err: OSError) -> Exception:
        path = printable(str(self._path))
        match err.errno:
            case errno.EACCES | errno.EPERM:
                return NotAllowedError(f"you may not connect to {path}: {self._who_may()}")
            case errno.ENOENT | errno.ECONNREFUSED | errno.ENOTDIR | errno.ENOTSOCK:
                return NoAnswerError(
                    f"no balloond listens at {path}; start it (as a service it does, by hand with "
                    f"--api {path}), or name another socket (--api)"
                )
            case _:
                return NoAnswerError(f"{path}: {err.strerror or err}; name another socket (--api)")

    def _who_may(self) -> str:
        """For a user who may not connect: who may, and how to become one of them."""
        group = "the socket's group (balloond)"
        with contextlib.suppress(OSError, KeyError):  # Its directory may be closed to this user.
            gid = self._path.stat().st_gid
            if gid == 0:
                return "only root may; use sudo"
            group = f"the group {printable(grp.getgrgid(gid).gr_name)}"
        return f"root may, and members of {group}; use sudo, or have yourself added to that group"

    @property
    def _name(self) -> str:
        return f"balloond at {printable(str(self._path))}"


def _comes(sock: socket.socket, until_s: float) -> bool:
    """Waits until the socket is readable; False: it is not by ``until_s`` (time.monotonic)."""
    left_s = max(0.0, until_s - time.monotonic())
    return bool(select.select([sock], [], [], left_s)[0])
