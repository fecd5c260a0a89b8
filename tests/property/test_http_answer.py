"""Whatever a server sends, its parser gives one answer, waits, or raises ControlError."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.http_answer import (
    MAX_BODY_BYTES,
    HttpAnswer,
    HttpAnswerParser,
)

PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 \r\n", b"\r\n", b"Content-Length: 3\r\n",
        b"Content-Length: 999999\r\n", b"Transfer-Encoding: chunked\r\n",
        b"3\r\n", b"abc", b"0\r\n", b":", b"\r", b"\n", b"\0", b"\xff",
    ]
)  # fmt: skip


@given(st.lists(PIECES | st.binary(max_size=8), max_size=24))
@settings(max_examples=300)
def test_any_bytes_give_an_answer_or_a_control_error(pieces: list[bytes]) -> None:
    parser = HttpAnswerParser()
    with contextlib.suppress(ControlError):
        for piece in pieces:
            answer = parser.feed(piece)
            if answer is not None:
                assert 200 <= answer.status <= 599
                break


@given(st.binary(max_size=200), st.lists(st.integers(1, 40), max_size=10), st.booleans())
@settings(max_examples=200)
def test_body_arrives_as_sent_however_it_is_cut(
    body: bytes, cuts: list[int], chunked: bool
) -> None:
    if chunked:
        parts = [body[place : place + 7] for place in range(0, len(body), 7)]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    else:
        sent, head = body, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    parser, rest, answer = HttpAnswerParser(), head + sent, None
    for cut in cuts:
        piece, rest = rest[:cut], rest[cut:]
        answer = parser.feed(piece) if piece else answer
    if rest:
        answer = parser.feed(rest)
    assert answer == HttpAnswer(200, body, False)
    assert len(body) <= MAX_BODY_BYTES
