"""The vhost-user socket: whole messages and their descriptors, however they arrive."""

import array
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.vhost_user.connection import MAX_UNSENT_BYTES, Connection, Received
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from balloon_daemon.vhost_user.messages import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD_BYTES,
    VERSION,
    FrontendRequest,
    Message,
    encode_reply,
    encode_request,
)
from tests.fakes.closes_at_once import closes_at_once
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds, room_for_fds

Q = FrontendRequest
FOUR_BYTES = Message(Q.SET_VRING_KICK, VERSION, b"four")


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, ForeignFds(closes_at_once()))
    theirs.setblocking(False)
    yield connection, theirs
    connection.close()
    theirs.close()


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Nine pipes' reading ends; the writing ends tell who still holds them."""
    pipes = [os.pipe() for _ in range(MAX_FDS + 1)]
    yield [reading for reading, _ in pipes]
    for reading, writing in pipes:
        os.close(reading)
        os.close(writing)


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    assert sock.sendmsg([data], rights) == len(data)


def received(connection: Connection) -> list[tuple[Message, int]]:
    """All messages that are whole, each with how many descriptors it had; closes those."""
    messages = []
    while (whole := connection.receive()) is not None:
        message, fds, lost = whole
        assert not lost
        messages.append((message, len(fds)))
        for fd in fds:
            fd.close()
    connection.close_dropped()
    return messages


Pair = tuple[Connection, socket.socket]


class Known:
    """Knows one request, and notes what it and a journal are asked to do.

    Args:
        reply: its answer.
    """

    def __init__(self, reply: bytes = b"") -> None:
        self._reply = reply
        self.heard: list[str] = []
        self.seen: list[bytes] = []

    def answer(self, waiting: bytes) -> tuple[bytes, bool] | None:
        self.seen.append(waiting)
        return (self._reply, True) if waiting == FOUR_BYTES.encode() else None

    def begin(self, number: int, request: bytes) -> None:
        self.heard.append(f"begin {number} {request == FOUR_BYTES.encode()}")

    def sending(self) -> None:
        self.heard.append("sending")


def test_known_message_is_recorded_before_it_is_taken_and_is_answered(pair: Pair) -> None:
    connection, theirs = pair
    known = Known(b"yes")
    assert connection.answer_known(known, known, 7) is None
    send(theirs, FOUR_BYTES.encode())
    assert connection.answer_known(known, known, 7) is True
    assert known.heard == ["begin 7 True", "sending"]
    assert theirs.recv(100) == b"yes"
    assert connection.answer_known(known, known, 8) is None
    assert received(connection) == []
    assert known.seen == [FOUR_BYTES.encode()]


def test_known_message_without_an_answer_is_never_about_to_be_answered(pair: Pair) -> None:
    connection, theirs = pair
    known = Known()
    send(theirs, FOUR_BYTES.encode())
    assert connection.answer_known(known, known, 1) is True
    assert known.heard == ["begin 1 True"]
    with pytest.raises(BlockingIOError):
        theirs.recv(1, socket.MSG_DONTWAIT)


def test_answer_that_the_socket_does_not_take_is_sent_later(pair: Pair) -> None:
    connection, theirs = pair
    with contextlib.suppress(BlockingIOError):
        while True:
            connection._socket.send(bytes(100))
    send(theirs, FOUR_BYTES.encode())
    assert connection.answer_known(Known(b"yes"), None, 1) is True
    assert connection.unsent == b"yes"
    # Nothing overtakes it.
    send(theirs, FOUR_BYTES.encode())
    assert connection.answer_known(Known(b"no"), None, 2) is None
    came = b""
    while not came.endswith(b"yes"):
        with contextlib.suppress(BlockingIOError):
            came += theirs.recv(100_000)
        connection.flush()
    assert connection.unsent == b""


def test_message_with_descriptors_is_never_a_known_one(pair: Pair, files: list[int]) -> None:
    connection, theirs = pair
    known = Known()
    send(theirs, FOUR_BYTES.encode(), files[:1])
    assert connection.answer_known(known, known, 1) is None
    assert known.seen == []
    assert received(connection) == [(FOUR_BYTES, 1)]


def test_known_message_before_one_with_descriptors_takes_none_of_them(
    pair: Pair, files: list[int]
) -> None:
    connection, theirs = pair
    send(theirs, FOUR_BYTES.encode())
    send(theirs, FOUR_BYTES.encode(), files[:1])
    answered = connection.answer_known(Known(), None, 1)
    left = [(FOUR_BYTES, 1)]
    assert received(connection) == (left if answered else [(FOUR_BYTES, 0), *left])


def test_rest_of_a_message_is_never_a_known_one(pair: Pair) -> None:
    connection, theirs = pair
    known = Known()
    content = FOUR_BYTES.encode()
    send(theirs, content[:6])
    assert connection.receive() is None
    send(theirs, content[6:])
    assert connection.answer_known(known, known, 1) is None
    assert known.seen == []
    assert received(connection) == [(FOUR_BYTES, 0)]


def test_sending_says_whether_all_was_taken(pair: Pair) -> None:
    connection, theirs = pair
    assert connection.send(bytes(100)) is True
    theirs.recv(100)
    while connection.send(bytes(4000)):
        pass
    assert len(theirs.recv(100)) == 100


@fault("sends a message in pieces, or many in one")
@pytest.mark.parametrize("cut", range(1, HEADER.size + 4))
def test_message_split_at_any_byte_is_whole_only_at_its_end(pair: Pair, cut: int) -> None:
    connection, theirs = pair
    send(theirs, FOUR_BYTES.encode()[:cut])
    assert connection.receive() is None
    send(theirs, FOUR_BYTES.encode()[cut:])
    assert received(connection) == [(FOUR_BYTES, 0)]


def test_message_byte_by_byte_with_its_fd_on_the_first_is_whole(
    pair: Pair, files: list[int]
) -> None:
    connection, theirs = pair
    encoded = FOUR_BYTES.encode()
    send(theirs, encoded[:1], files[:1])
    for at in range(1, len(encoded)):
        assert connection.receive() is None
        send(theirs, encoded[at : at + 1])
    assert received(connection) == [(FOUR_BYTES, 1)]


def test_several_messages_in_one_send_come_one_by_one(pair: Pair) -> None:
    connection, theirs = pair
    messages = [
        Message(Q.SET_OWNER, VERSION, b""),
        FOUR_BYTES,
        Message(Q.SET_CONFIG, 9, b"x" * 40),
    ]
    send(theirs, b"".join(message.encode() for message in messages))
    assert received(connection) == [(message, 0) for message in messages]


@fault("sends a message in pieces, or many in one")
def test_several_messages_with_fds_each_keep_their_own(pair: Pair, files: list[int]) -> None:
    connection, theirs = pair
    # All wait in the socket before the first is read: the kernel must not mix them up, nor we.
    for count in (1, 0, 8, 2):
        send(theirs, FOUR_BYTES.encode(), files[:count])
    assert received(connection) == [(FOUR_BYTES, count) for count in (1, 0, 8, 2)]


def test_message_after_a_split_one_keeps_its_own_fds(pair: Pair, files: list[int]) -> None:
    connection, theirs = pair
    encoded = FOUR_BYTES.encode()
    send(theirs, encoded[:5], files[:1])
    send(theirs, encoded[5:])
    send(theirs, encoded, files[:2])
    assert received(connection) == [(FOUR_BYTES, 1), (FOUR_BYTES, 2)]


def test_fds_are_the_same_files_and_closed_on_exec(pair: Pair, files: list[int]) -> None:
    connection, theirs = pair
    send(theirs, FOUR_BYTES.encode(), files[:2])
    whole = connection.receive()
    assert whole is not None
    numbers = [fd.fileno() for fd in whole[1]]
    assert [os.fstat(fd).st_ino for fd in numbers] == [os.fstat(fd).st_ino for fd in files[:2]]
    assert [os.get_inheritable(fd) for fd in numbers] == [False, False]


@fault("request that cannot be understood")
def test_too_many_fds_with_one_message_is_refused_and_none_stays_open(
    pair: Pair, files: list[int]
) -> None:
    connection, theirs = pair
    before = len(open_fds())
    send(theirs, FOUR_BYTES.encode(), files)
    with pytest.raises(FrontendError, match=f"more than {MAX_FDS} file descriptors"):
        connection.receive()
    connection.close()
    assert len(open_fds()) == before - 1


def test_too_many_fds_in_portions_is_refused(pair: Pair, files: list[int]) -> None:
    connection, theirs = pair
    encoded = FOUR_BYTES.encode()
    send(theirs, encoded[:2], files[:20])
    assert connection.receive() is None
    send(theirs, encoded[2:], files[:20])
    with pytest.raises(FrontendError, match=f"more than {MAX_FDS} file descriptors"):
        connection.receive()


@fault("no descriptor left for a message's own")
@pytest.mark.parametrize(("came", "room"), [(1, 0), (8, 0), (2, 1), (8, 7)])
def test_fds_for_which_this_process_has_no_room_are_lost_and_their_message_is_not(
    pair: Pair, files: list[int], came: int, room: int
) -> None:
    connection, theirs = pair
    before = open_fds()
    send(theirs, FOUR_BYTES.encode(), files[:came])
    send(theirs, FOUR_BYTES.encode(), files[:1])
    with room_for_fds(room):
        assert connection.receive() == Received(FOUR_BYTES, (), lost=True)
    # None of them is kept: which ones came cannot be known.
    assert open_fds() == before
    assert received(connection) == [(FOUR_BYTES, 1)]
    assert open_fds() == before


def test_fd_that_is_lost_with_a_part_of_a_message_is_lost_with_all_of_it(
    pair: Pair, files: list[int]
) -> None:
    connection, theirs = pair
    encoded = FOUR_BYTES.encode()
    send(theirs, encoded[:5], files[:1])
    with room_for_fds(0):
        assert connection.receive() is None
    send(theirs, encoded[5:], files[:2])
    assert connection.receive() == Received(FOUR_BYTES, (), lost=True)
    assert connection.receive() is None


@pytest.mark.parametrize("length", range(HEADER.size + 4))
def test_hang_up_in_mid_message_is_refused_and_between_two_is_the_end(
    pair: Pair, length: int
) -> None:
    connection, theirs = pair
    send(theirs, FOUR_BYTES.encode() + FOUR_BYTES.encode()[:length])
    theirs.close()
    assert connection.receive() == Received(FOUR_BYTES, ())
    with pytest.raises(EOFError if length == 0 else FrontendError):
        connection.receive()


@fault("closes in mid-message")
def test_hang_up_in_mid_message_closes_the_fds_that_came(pair: Pair, files: list[int]) -> None:
    connection, theirs = pair
    before = len(open_fds())
    send(theirs, FOUR_BYTES.encode()[:-1], files[:3])
    theirs.close()
    with pytest.raises(FrontendError, match="SET_VRING_KICK: hung up after 15 of 16 bytes"):
        connection.receive()
    connection.close()
    assert len(open_fds()) == before - 2


def test_hang_up_with_our_replies_unread_is_the_end(pair: Pair) -> None:
    connection, theirs = pair
    connection.send(encode_reply(Q.GET_FEATURES, bytes(8)))
    theirs.close()  # The kernel says ECONNRESET where the peer left something unread.
    with pytest.raises(EOFError):
        connection.receive()


@fault("request that cannot be understood")
@pytest.mark.parametrize("size", [MAX_PAYLOAD_BYTES + 1, 2**32 - 1])
def test_payload_too_long_is_refused_by_its_header(pair: Pair, size: int) -> None:
    connection, theirs = pair
    send(theirs, HEADER.pack(Q.SET_CONFIG, VERSION, size))
    with pytest.raises(FrontendError, match=f"SET_CONFIG: payload of {size} bytes"):
        connection.receive()


def test_payload_of_the_greatest_length_is_taken(pair: Pair) -> None:
    connection, theirs = pair
    send(theirs, encode_request(Q.SET_CONFIG, b"c" * MAX_PAYLOAD_BYTES))
    whole = connection.receive()
    assert whole is not None
    assert len(whole[0].payload) == MAX_PAYLOAD_BYTES


def test_replies_that_are_read_arrive_in_order_however_full_the_socket_was(pair: Pair) -> None:
    connection, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    replies = [encode_reply(Q.GET_CONFIG, n.to_bytes(4, "little") * 64) for n in range(200)]
    for reply in replies:
        connection.send(reply)
    got = bytearray()
    while len(got) < sum(map(len, replies)):
        got += theirs.recv(100_000)
        connection.flush()
    assert got == b"".join(replies)
    assert connection.flush() is True


@fault("never reads our replies")
def test_replies_that_are_never_read_end_the_connection_and_never_block(pair: Pair) -> None:
    connection, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    connection.send(encode_reply(Q.GET_CONFIG, bytes(MAX_UNSENT_BYTES - HEADER.size)))
    while connection.flush():
        connection.send(encode_reply(Q.GET_CONFIG, bytes(4000)))
    with pytest.raises(FrontendError, match="were never read"):
        connection.send(bytes(MAX_UNSENT_BYTES))


def test_send_to_a_front_end_that_is_gone_is_an_os_error(pair: Pair) -> None:
    connection, theirs = pair
    theirs.close()
    with pytest.raises(OSError, match="pipe"):
        connection.send(encode_reply(Q.GET_FEATURES, bytes(8)))


def test_owned_fd_closes_once() -> None:
    fd = OwnedFd(os.dup(0))
    number = fd.fileno()
    fd.close()
    assert fd.fileno() == -1
    taken_again = os.dup2(0, number)
    fd.close()
    os.fstat(taken_again)
    os.close(taken_again)


def test_owned_fd_that_somebody_else_closed_is_let_go_all_the_same() -> None:
    number = os.dup(0)
    fd = OwnedFd(number)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fd.close()
    # Not tried again: by now the number may be another's.
    assert fd.fileno() == -1


class FollowedUp(socket.socket):
    """A socket whose peer sends more right after each look into it."""

    more: list[Callable[[], None]]

    def recvmsg(self, *args: Any) -> Any:
        seen = super().recvmsg(*args)
        if self.more and args[2] & socket.MSG_PEEK:
            self.more.pop()()
        return seen


@pytest.mark.parametrize("cut", [1, HEADER.size, HEADER.size + 2])
@fault("one user's VMMs take more than three quarters of the descriptors")
def test_descriptors_that_may_not_come_stay_in_the_socket_whenever_they_are_sent(
    files: list[int], cut: int
) -> None:
    plain, theirs = socket.socketpair()
    ours = FollowedUp(fileno=plain.detach())
    connection = Connection(ours, ForeignFds(closes_at_once()))
    whole = FOUR_BYTES.encode()
    before = open_fds()
    with theirs, contextlib.closing(connection):
        send(theirs, whole[:cut])
        # In time for a second read, but too late for the first look.
        ours.more = [lambda: send(theirs, whole[cut:], files[:1])]
        with pytest.raises(FrontendError, match="as many as one user may"):
            connection.receive(no_fds="as many as one user may")
        assert open_fds() == before


def test_message_without_descriptors_is_read_where_none_may_come(pair: Pair) -> None:
    connection, theirs = pair
    send(theirs, FOUR_BYTES.encode())
    whole = connection.receive(no_fds="as many as one user may")
    assert whole == (FOUR_BYTES, (), False)
    assert connection.receive(no_fds="as many as one user may") is None
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        connection.receive(no_fds="as many as one user may")
