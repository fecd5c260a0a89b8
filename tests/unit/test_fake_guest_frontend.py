"""The fake front-end against a scripted back-end: what it says, in which order, and what it minds.

A script needs no second thread: a socket holds all its answers before the first question.
"""

import array
import os
import socket
from collections.abc import Iterator

import pytest

from balloon_daemon.fake_guest.frontend import FakeFrontend, frontend_addr
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, QEMU_WITHOUT_SLOTS, Ring, Style
from balloon_daemon.fake_guest.wire import BackendError, Wire
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    FLAG_NEED_REPLY,
    HEADER,
    OFFERED_PROTOCOL_FEATURES,
    U64,
    VERSION,
    VHOST_USER_F_PROTOCOL_FEATURES,
    BackendRequest,
    ConfigAccess,
    FrontendRequest,
    Message,
    ProtocolFeature,
    RegionDescription,
    VringState,
    decode_config_access,
    decode_memory_table,
    decode_single_region,
    decode_u64,
    decode_vring_addr,
    encode_reply,
)

Q = FrontendRequest
OFFERED = 0x1_0000_0027 | VHOST_USER_F_PROTOCOL_FEATURES

REGIONS = [
    RegionDescription(GuestAddr(0), 0x10000, FrontendAddr(0x7000_0000_0000), 0),
    RegionDescription(GuestAddr(0x1_0000_0000), 0x10000, FrontendAddr(0x7100_0000_0000), 0x10000),
]
RINGS = [
    Ring(index, 64, GuestAddr(0x1_0000_0000), GuestAddr(0x1_0000_1000), GuestAddr(0x2000))
    for index in (0, 1)
]


class Script:
    """The far end of a front-end's socket: answers written in advance, questions read later."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.channel: socket.socket | None = None

    def answer(self, request: FrontendRequest, payload: bytes) -> None:
        self.sock.send(encode_reply(request, payload))

    def answer_number(self, request: FrontendRequest, number: int) -> None:
        self.answer(request, U64.pack(number))

    def acknowledge(self, *requests: FrontendRequest) -> None:
        for request in requests:
            self.answer_number(request, 0)

    def asked(self) -> list[tuple[Message, int]]:
        """Every message sent so far, with the number of file descriptors beside it."""
        found: list[tuple[Message, int]] = []
        self.sock.setblocking(False)
        while True:
            try:
                header, control, _, _ = self.sock.recvmsg(HEADER.size, 256)
            except BlockingIOError:
                return found
            fds = array.array("i")
            for _, _, content in control:
                fds.frombytes(content)
            request, flags, size = HEADER.unpack(header)
            for fd in fds:
                if request == Q.SET_BACKEND_REQ_FD:
                    self.channel = socket.socket(fileno=fd)
                else:
                    os.close(fd)
            payload = self.sock.recv(size) if size else b""
            found.append((Message(request, flags, payload), len(fds)))


@pytest.fixture
def pair() -> Iterator[tuple[Wire, Script]]:
    ours, theirs = socket.socketpair()
    with theirs:
        script = Script(theirs)
        yield Wire(ours, timeout_s=0.05), script
        if script.channel is not None:
            script.channel.close()


@pytest.fixture
def make(pair: tuple[Wire, Script]) -> Iterator["Maker"]:
    maker = Maker(*pair)
    yield maker
    for frontend in maker.made:
        frontend.close()


class Maker:
    def __init__(self, wire: Wire, script: Script) -> None:
        self.wire = wire
        self.script = script
        self.made: list[FakeFrontend] = []

    def frontend(self, style: Style, *, num_vqs: int = 5) -> FakeFrontend:
        self.made.append(FakeFrontend(self.wire, style, num_vqs=num_vqs))
        return self.made[-1]

    def negotiated(self, style: Style, *, num_vqs: int = 2) -> FakeFrontend:
        """A front-end past its negotiation, whose questions so far are read away."""
        frontend = self.frontend(style, num_vqs=num_vqs)
        if style is CROSVM:
            answers_for_crosvm(self.script, num_vqs)
        else:
            answers_for_qemu(self.script, num_vqs, slots=style is QEMU)
        frontend.negotiate()
        self.script.asked()
        return frontend


def answers_for_qemu(script: Script, num_vqs: int, *, slots: bool = True) -> None:
    script.answer_number(Q.GET_FEATURES, OFFERED)
    script.answer_number(Q.GET_PROTOCOL_FEATURES, OFFERED_PROTOCOL_FEATURES)
    script.answer_number(Q.GET_QUEUE_NUM, num_vqs)
    if slots:
        script.answer_number(Q.GET_MAX_MEM_SLOTS, 32)
    script.acknowledge(Q.SET_BACKEND_REQ_FD, Q.SET_OWNER)
    script.answer_number(Q.GET_FEATURES, OFFERED)
    for _ in range(num_vqs):
        script.acknowledge(Q.SET_VRING_CALL, Q.SET_VRING_ERR)


def answers_for_crosvm(script: Script, num_vqs: int) -> None:
    script.answer_number(Q.GET_FEATURES, OFFERED)
    script.answer_number(Q.GET_PROTOCOL_FEATURES, OFFERED_PROTOCOL_FEATURES)
    script.answer_number(Q.GET_QUEUE_NUM, num_vqs)


def names(asked: list[tuple[Message, int]]) -> list[str]:
    return [message.name for message, _ in asked]


def test_qemu_negotiates_in_its_order(make: Maker) -> None:
    answers_for_qemu(make.script, 2)

    make.frontend(QEMU, num_vqs=2).negotiate()

    asked = make.script.asked()
    assert names(asked) == [
        "GET_FEATURES",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "GET_QUEUE_NUM",
        "GET_MAX_MEM_SLOTS",
        "SET_BACKEND_REQ_FD",
        "SET_OWNER",
        "GET_FEATURES",
        "SET_VRING_CALL",
        "SET_VRING_ERR",
        "SET_VRING_CALL",
        "SET_VRING_ERR",
    ]
    # Everything after SET_PROTOCOL_FEATURES that has no reply of its own wants to be answered.
    assert [bool(message.flags & FLAG_NEED_REPLY) for message, _ in asked] == (
        [False] * 5 + [True, True, False] + [True] * 4
    )
    assert [fds for _, fds in asked] == [0] * 5 + [1, 0, 0] + [1] * 4


def test_crosvm_negotiates_without_acknowledgements(make: Maker) -> None:
    answers_for_crosvm(make.script, 2)

    make.frontend(CROSVM, num_vqs=2).negotiate()

    asked = make.script.asked()
    assert names(asked) == [
        "SET_OWNER",
        "GET_FEATURES",
        "SET_FEATURES",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "SET_BACKEND_REQ_FD",
        "GET_QUEUE_NUM",
    ]
    assert not any(message.flags & FLAG_NEED_REPLY for message, _ in asked)


def test_backend_without_config_space_is_given_up(make: Maker) -> None:
    make.script.answer_number(Q.GET_FEATURES, OFFERED)
    without = OFFERED_PROTOCOL_FEATURES & ~ProtocolFeature.CONFIG
    make.script.answer_number(Q.GET_PROTOCOL_FEATURES, without)

    with pytest.raises(BackendError, match="CONFIG is not offered"):
        make.frontend(QEMU).negotiate()


def test_backend_without_protocol_features_is_given_up(make: Maker) -> None:
    make.script.answer_number(Q.GET_FEATURES, 0x1_0000_0000)

    with pytest.raises(BackendError, match="no protocol features"):
        make.frontend(QEMU).negotiate()


def test_backend_with_too_few_queues_is_given_up(make: Maker) -> None:
    answers_for_qemu(make.script, 4)

    with pytest.raises(BackendError, match="4 queues, this VMM has 5"):
        make.frontend(QEMU, num_vqs=5).negotiate()


def test_qemu_starts_configured_queues_and_enables_all(make: Maker) -> None:
    frontend = make.negotiated(QEMU, num_vqs=3)
    each = (
        Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ADDR, Q.SET_VRING_KICK, Q.SET_VRING_CALL,
    )  # fmt: skip
    expected = [
        Q.SET_FEATURES, Q.ADD_MEM_REG, Q.ADD_MEM_REG, *each, *each,
        *[Q.SET_VRING_ENABLE] * 3, *[Q.SET_VRING_CALL] * 3,
    ]  # fmt: skip
    make.script.acknowledge(*expected)

    with open(os.devnull) as file:
        memory = [(region, file.fileno()) for region in REGIONS]
        frontend.start(0x1_0000_0000, memory, RINGS)

    asked = make.script.asked()
    assert names(asked) == [request.name for request in expected]
    assert decode_u64(asked[0][0]) == 0x1_0000_0000 | VHOST_USER_F_PROTOCOL_FEATURES
    assert [decode_single_region(message) for message, _ in asked[1:3]] == REGIONS
    assert [fds for _, fds in asked[1:3]] == [1, 1]
    addr = decode_vring_addr(asked[5][0])
    assert addr.descriptors == 0x7100_0000_0000
    assert addr.available == 0x7100_0000_1000
    assert addr.used == 0x7000_0000_2000


def test_memory_shared_before_is_not_shared_again(make: Maker) -> None:
    frontend = make.negotiated(QEMU)
    make.script.acknowledge(Q.ADD_MEM_REG, Q.ADD_MEM_REG, Q.REM_MEM_REG)

    with open(os.devnull) as file:
        memory = [(region, file.fileno()) for region in REGIONS]
        frontend.share_memory(memory)
        frontend.share_memory(memory)
        frontend.share_memory(memory[:1])

    asked = make.script.asked()
    assert names(asked) == ["ADD_MEM_REG", "ADD_MEM_REG", "REM_MEM_REG"]
    assert decode_single_region(asked[2][0]) == REGIONS[1]


@pytest.mark.parametrize("style", [QEMU_WITHOUT_SLOTS, CROSVM])
def test_memory_without_slots_goes_as_one_table(make: Maker, style: Style) -> None:
    frontend = make.negotiated(style)
    make.script.acknowledge(Q.SET_MEM_TABLE)

    with open(os.devnull) as file:
        frontend.share_memory([(region, file.fileno()) for region in REGIONS])

    message, fds = make.script.asked()[0]
    assert decode_memory_table(message) == REGIONS
    assert fds == 2


def test_stop_disables_all_and_asks_bases_of_the_configured(make: Maker) -> None:
    frontend = make.negotiated(QEMU, num_vqs=3)
    make.script.acknowledge(
        Q.SET_FEATURES, Q.ADD_MEM_REG, Q.ADD_MEM_REG, *[
            Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ADDR, Q.SET_VRING_KICK,
            Q.SET_VRING_CALL,
        ] * 2, *[Q.SET_VRING_ENABLE] * 3, *[Q.SET_VRING_CALL] * 3,
    )  # fmt: skip
    with open(os.devnull) as file:
        frontend.start(0, [(region, file.fileno()) for region in REGIONS], RINGS)
    make.script.asked()
    make.script.acknowledge(*[Q.SET_VRING_ENABLE] * 3)
    make.script.answer(Q.GET_VRING_BASE, VringState(0, 17).encode())
    make.script.answer(Q.GET_VRING_BASE, VringState(1, 4).encode())

    bases = frontend.stop()

    assert bases == {0: 17, 1: 4}
    assert names(make.script.asked()) == ["SET_VRING_ENABLE"] * 3 + ["GET_VRING_BASE"] * 2
    assert not frontend.running


def test_qemu_reads_the_whole_config_space(make: Maker) -> None:
    frontend = make.negotiated(QEMU)
    space = bytes(range(16))
    make.script.answer(Q.GET_CONFIG, ConfigAccess(0, 0, space).encode())

    content = frontend.read_config(4, 4)

    asked = decode_config_access(make.script.asked()[0][0])
    assert content == space[4:8]
    assert (asked.offset, len(asked.content), asked.flags) == (0, 16, 0)


def test_qemu_writes_the_whole_config_space_with_what_it_read_last(make: Maker) -> None:
    frontend = make.negotiated(QEMU)
    make.script.answer(Q.GET_CONFIG, ConfigAccess(0, 0, b"old." + bytes(12)).encode())
    make.script.acknowledge(Q.SET_CONFIG)
    frontend.read_config(0, 4)

    frontend.write_config(4, b"actu")

    asked = decode_config_access(make.script.asked()[1][0])
    assert (asked.offset, asked.content) == (0, b"old.actu" + bytes(8))


def test_crosvm_reads_and_writes_what_the_guest_did(make: Maker) -> None:
    frontend = make.negotiated(CROSVM)
    make.script.answer(Q.GET_CONFIG, ConfigAccess(4, 1, b"1234").encode())

    content = frontend.read_config(4, 4)
    frontend.write_config(6, b"56")

    read, write = (decode_config_access(message) for message, _ in make.script.asked())
    assert content == b"1234"
    assert (read.offset, len(read.content)) == (4, 4)
    assert (write.offset, write.content) == (6, b"56")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (encode_reply(Q.GET_CONFIG, ConfigAccess(0, 0, bytes(4)).encode()), "answered with 4"),
        (encode_reply(Q.GET_FEATURES, U64.pack(0)), "is GET_FEATURES"),
        (Message(Q.GET_CONFIG, VERSION, b"").encode(), "flags 0x1"),
        (encode_reply(Q.GET_CONFIG, b"short"), "its answer to GET_CONFIG"),
        (HEADER.pack(Q.GET_CONFIG, 5, 1 << 20), "payload of 1048576 bytes"),
    ],
)
def test_wrong_answer_is_minded(make: Maker, answer: bytes, complaint: str) -> None:
    frontend = make.negotiated(QEMU)
    make.script.sock.send(answer)

    with pytest.raises(BackendError, match=complaint):
        frontend.read_config(0, 4)


def test_request_refused_is_an_error(make: Maker) -> None:
    frontend = make.negotiated(QEMU)
    make.script.answer_number(Q.SET_CONFIG, 1)

    with pytest.raises(BackendError, match="SET_CONFIG refused with status 1"):
        frontend.write_config(4, bytes(4))


def test_no_answer_is_a_timeout_and_a_hang_up_is_an_error(make: Maker) -> None:
    frontend = make.negotiated(QEMU)

    with pytest.raises(TimeoutError, match="to answer"):
        frontend.read_config(0, 4)
    make.script.sock.close()
    with pytest.raises(OSError, match=r"hung up|Broken pipe"):
        frontend.read_config(0, 4)


def open_channel(make: Maker, style: Style) -> tuple[FakeFrontend, socket.socket]:
    """A negotiated front-end and the back-end's end of its channel."""
    frontend = make.negotiated(style)
    assert make.script.channel is not None
    return frontend, make.script.channel


def test_config_change_is_noticed_and_counted_as_early_before_start(make: Maker) -> None:
    frontend, channel = open_channel(make, QEMU)
    channel.send(CONFIG_CHANGE_MSG)
    frontend.requests.serve_channel()

    assert frontend.requests.config_changed
    assert frontend.requests.counters.early_config_changes == 1


def test_config_change_that_wants_an_answer_gets_one(make: Maker) -> None:
    frontend, channel = open_channel(make, QEMU)
    message = Message(BackendRequest.CONFIG_CHANGE_MSG, VERSION | FLAG_NEED_REPLY, b"")
    channel.send(message.encode())

    frontend.requests.serve_channel()

    answer = channel.recv(64)
    assert answer == encode_reply(BackendRequest.CONFIG_CHANGE_MSG, U64.pack(0))


def test_config_change_while_an_answer_is_awaited_is_not_lost(make: Maker) -> None:
    frontend, channel = open_channel(make, QEMU)
    channel.send(CONFIG_CHANGE_MSG)

    with pytest.raises(TimeoutError):
        frontend.read_config(0, 4)

    assert frontend.requests.config_changed


def test_other_message_on_the_channel_is_minded(make: Maker) -> None:
    frontend, channel = open_channel(make, QEMU)
    channel.send(Message(BackendRequest.IOTLB_MSG, VERSION, b"").encode())

    with pytest.raises(BackendError, match="back-end request 1"):
        frontend.requests.serve_channel()


def test_channel_closed_by_the_backend_leaves_the_connection(make: Maker) -> None:
    frontend, channel = open_channel(make, QEMU)
    channel.close()

    frontend.requests.serve_channel()

    assert frontend.requests.channel is None


def test_address_outside_all_regions_has_no_translation() -> None:
    with pytest.raises(ValueError, match="none of 2 regions"):
        frontend_addr(REGIONS, GuestAddr(0x10000))


def test_flood_stops_where_the_socket_is_full(pair: tuple[Wire, Script]) -> None:
    wire, _ = pair
    while wire.send_now(bytes(65536)):
        pass

    with pytest.raises(TimeoutError, match="take our message"):
        wire.send(bytes(65536))
    wire.close()
