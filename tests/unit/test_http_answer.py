"""One HTTP answer, from bytes that come in any pieces."""

import pytest

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.http_answer import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    HttpAnswer,
    HttpAnswerParser,
)
from tests.harness.faults import fault


def parsed(answer: bytes) -> HttpAnswer | None:
    return HttpAnswerParser().feed(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", HttpAnswer(200, b"{}", False)),
        (b"HTTP/1.1 204 \r\nServer: x\r\n\r\n", HttpAnswer(204, b"", False)),
        (b"HTTP/1.1 404 \r\nServer: x\r\n\r\n", HttpAnswer(404, b"", False)),
        (
            b"HTTP/1.0 404\r\nconnection: Close\r\ncontent-length:0\r\n\r\n",
            HttpAnswer(404, b"", True),
        ),
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
            HttpAnswer(200, b"1", False),
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
            HttpAnswer(200, b"abc0123456789", False),
        ),
    ],
)
def test_answer_is_parsed_whole_and_byte_by_byte(answer: bytes, expected: HttpAnswer) -> None:
    assert parsed(answer) == expected

    parser = HttpAnswerParser()
    pieces = [answer[place : place + 1] for place in range(len(answer))]
    assert [parser.feed(piece) for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert parser.feed(pieces[-1]) == expected


@fault("the VMM of a driven VM hangs, sends garbage")
@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 99 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n12",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 6,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1025,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 20,
    ],
)
def test_answer_that_breaks_the_protocol_or_a_bound_is_refused(answer: bytes) -> None:
    with pytest.raises(ControlError) as caught:
        parsed(answer)

    assert caught.value.fault is Fault.NONSENSE
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 300


@fault("the VMM of a driven VM hangs, sends garbage")
@pytest.mark.parametrize("greeting", [b"S", b"HTTPS", b'{"QMP": {}}', b"\r\n", b"HTTP/2"])
def test_other_protocol_is_refused_before_it_says_more(greeting: bytes) -> None:
    """A monitor of QEMU's greets, and waits; its client would, too."""
    with pytest.raises(ControlError) as caught:
        HttpAnswerParser().feed(greeting)
    assert caught.value.fault is Fault.NONSENSE


def test_answer_at_the_bounds_is_parsed() -> None:
    body = b"x" * MAX_BODY_BYTES
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

    assert parsed(head + body) == HttpAnswer(200, body, False)
