"""The back-end's state machine, request by request."""

import pytest

from balloon_daemon.units import PAGE_SIZE, NumPages
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import (
    ActualWritten,
    AnswerVringBase,
    Effect,
    ReadyVring,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.messages import (
    FLAG_NEED_REPLY,
    U64,
    VERSION,
    VHOST_USER_F_PROTOCOL_FEATURES,
    VRING_NOFD_MASK,
    ConfigAccess,
    FrontendRequest,
    ProtocolFeature,
    VringState,
    decode_message,
    encode_memory_table,
    encode_reply,
)
from balloon_daemon.vhost_user.replay import replay
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature, BalloonQueue
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import ADDR, OFFERED, REGION, fresh, say, set_up
from tests.harness.faults import fault

Q = FrontendRequest
RESTART: list[Effect] = [StopDevice(), RingsChanged()]


def ready(backend: Backend) -> list[tuple[int, BalloonQueue]]:
    return [(vring.index, vring.queue) for vring in backend.ready_vrings()]


# --- constants --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        (Q.GET_FEATURES, 1 << 32 | 1 << 30 | 0b110111),
        (Q.GET_PROTOCOL_FEATURES, 0b1010_0110_0010_1001),
        (Q.GET_QUEUE_NUM, 5),
        (Q.GET_MAX_MEM_SLOTS, 256),
    ],
)
def test_get_constant_answers_with_it(request_: Q, number: int) -> None:
    assert say(fresh(), request_) == [Send(encode_reply(request_, U64.pack(number)))]


# --- REPLY_ACK --------------------------------------------------------------------------------


def test_features_offered_are_the_settings_and_those_of_other_settings_still_work() -> None:
    fewer = OFFERED & ~BalloonFeature.REPORTING
    backend = fresh()
    backend.offered = OFFERED_FEATURES & ~BalloonFeature.REPORTING
    assert say(backend, Q.GET_FEATURES) == [Send(encode_reply(Q.GET_FEATURES, U64.pack(fewer)))]

    say(backend, Q.SET_FEATURES, U64.pack(OFFERED))
    assert backend.acknowledged == OFFERED


@pytest.mark.parametrize(
    ("negotiated", "flags", "acknowledged"),
    [
        (ProtocolFeature.REPLY_ACK, VERSION | FLAG_NEED_REPLY, True),
        (ProtocolFeature.REPLY_ACK, VERSION, False),
        (ProtocolFeature.MQ, VERSION | FLAG_NEED_REPLY, False),
    ],
)
def test_request_is_acknowledged_if_it_asks_and_the_feature_is_negotiated(
    negotiated: int, flags: int, acknowledged: bool
) -> None:
    backend = fresh()
    say(backend, Q.SET_PROTOCOL_FEATURES, U64.pack(negotiated))
    ack: list[Effect] = [Send(encode_reply(Q.SET_OWNER, U64.pack(0)))]
    assert say(backend, Q.SET_OWNER, flags=flags) == ack * acknowledged


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Q.GET_FEATURES, b""),
        (Q.GET_CONFIG, ConfigAccess(0, 0, bytes(16)).encode()),
        (Q.GET_CONFIG, ConfigAccess(15, 0, bytes(16)).encode()),
        (Q.GET_VRING_BASE, VringState(0, 0).encode()),
    ],
)
def test_request_with_an_answer_of_its_own_gets_no_second_one(request_: Q, payload: bytes) -> None:
    backend = fresh()
    say(backend, Q.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.REPLY_ACK))
    effects = say(backend, request_, payload, flags=VERSION | FLAG_NEED_REPLY)
    assert sum(isinstance(effect, Send | AnswerVringBase) for effect in effects) == 1


def test_acknowledgement_comes_after_the_device_is_stopped() -> None:
    backend = set_up([0])
    say(backend, Q.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.REPLY_ACK))
    flags = VERSION | FLAG_NEED_REPLY
    effects = say(backend, Q.REM_MEM_REG, REGION.encode_single(), flags=flags)
    ack = Send(encode_reply(Q.REM_MEM_REG, U64.pack(0)))
    assert effects.index(StopDevice()) < effects.index(ack)


# --- what is ready ----------------------------------------------------------------------------


def test_vring_is_ready_with_size_addresses_kick_enable_and_memory() -> None:
    backend = set_up([0, 1, 2, 3])
    inflateq = backend.vrings[0]
    assert inflateq.kick is not None
    assert backend.ready_vrings()[0] == ReadyVring(
        0, BalloonQueue.INFLATEQ, 128, ADDR, inflateq.kick, inflateq.call
    )
    assert [queue.value for _, queue in ready(backend)] == [
        "inflateq", "deflateq", "statsq", "reporting_vq",
    ]  # fmt: skip


def test_queue_behind_an_index_follows_the_acknowledged_features() -> None:
    backend = set_up([0, 1, 2], OFFERED & ~BalloonFeature.STATS_VQ)
    assert ready(backend)[2] == (2, BalloonQueue.REPORTING_VQ)
    say(backend, Q.SET_FEATURES, U64.pack(OFFERED))
    assert ready(backend)[2] == (2, BalloonQueue.STATSQ)


def test_vring_beyond_the_acknowledged_queues_is_never_ready() -> None:
    # QEMU enables all five, whatever the driver uses.
    backend = set_up([0, 1, 2, 3, 4])
    assert [index for index, _ in ready(backend)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Q.SET_VRING_ENABLE, VringState(0, 0).encode()),
        (Q.GET_VRING_BASE, VringState(0, 0).encode()),
        (Q.RESET_OWNER, b""),
        (Q.REM_MEM_REG, REGION.encode_single()),
        (Q.SET_MEM_TABLE, encode_memory_table([])),
    ],
)
def test_nothing_is_ready_without_inflateq_or_memory_and_the_device_is_stopped_first(
    request_: Q, payload: bytes
) -> None:
    backend = set_up([0, 1])
    effects = say(backend, request_, payload)
    assert effects[0] == StopDevice()
    assert effects[-1] == RingsChanged()
    assert ready(backend) == []


def test_vring_without_protocol_features_is_enabled_by_its_kick() -> None:
    backend = set_up([0], OFFERED & ~VHOST_USER_F_PROTOCOL_FEATURES)
    say(backend, Q.GET_VRING_BASE, VringState(0, 0).encode())
    say(backend, Q.SET_VRING_ENABLE, VringState(0, 0).encode())
    say(backend, Q.SET_VRING_KICK, U64.pack(0), [CountedFd()])
    assert [index for index, _ in ready(backend)] == [0]


@fault("memory table changed while rings run")
@pytest.mark.parametrize(
    ("request_", "payload", "count"),
    [
        (Q.SET_VRING_CALL, U64.pack(0), 1),
        (Q.SET_VRING_CALL, U64.pack(VRING_NOFD_MASK), 0),
        (Q.SET_VRING_KICK, U64.pack(0), 1),
        (Q.SET_VRING_NUM, VringState(0, 256).encode(), 0),
        (Q.SET_VRING_ADDR, ADDR.encode(), 0),
        (Q.SET_BACKEND_REQ_FD, b"", 1),
        (Q.SET_MEM_TABLE, encode_memory_table([REGION]), 1),
    ],
)
def test_change_of_what_a_device_was_forked_with_forks_another(
    request_: Q, payload: bytes, count: int
) -> None:
    backend = set_up([0])
    assert say(backend, request_, payload, [CountedFd() for _ in range(count)]) == RESTART


@pytest.mark.parametrize(
    ("request_", "payload", "count"),
    [
        (Q.SET_VRING_ERR, U64.pack(0), 1),
        (Q.SET_VRING_ENABLE, VringState(0, 1).encode(), 0),
        (Q.SET_VRING_ENABLE, VringState(4, 1).encode(), 0),
        (Q.SET_VRING_CALL, U64.pack(4), 1),
        (Q.SET_VRING_BASE, VringState(0, 7).encode(), 0),
        (Q.SET_FEATURES, U64.pack(OFFERED), 0),
        (Q.SET_OWNER, b"", 0),
    ],
)
def test_change_of_nothing_that_a_device_knows_lets_it_run(
    request_: Q, payload: bytes, count: int
) -> None:
    backend = set_up([0])
    assert say(backend, request_, payload, [CountedFd() for _ in range(count)]) == []


# --- vring base -------------------------------------------------------------------------------


def test_get_vring_base_stops_the_device_before_its_answer() -> None:
    backend = set_up([0, 1])
    kick = backend.vrings[1].kick
    effects = say(backend, Q.GET_VRING_BASE, VringState(1, 0).encode())
    assert effects == [StopDevice(), AnswerVringBase(1), RingsChanged()]
    assert isinstance(kick, CountedFd)
    assert kick.closings == 1


def test_vring_base_where_no_device_ever_ran_is_what_was_set() -> None:
    backend = fresh()
    say(backend, Q.SET_VRING_BASE, VringState(2, 4711).encode())
    say(backend, Q.GET_VRING_BASE, VringState(2, 0).encode())
    expected = encode_reply(Q.GET_VRING_BASE, VringState(2, 4711).encode())
    assert backend.stop_vring(2) == expected


@pytest.mark.parametrize(
    ("stood_at", "resumed_at", "actual"),
    [(7, 0, 0), (7, 7, 256), (0, 0, 256), (0, 7, 256), (65535, 0, 0)],
)
def test_inflateq_that_jumps_to_zero_has_a_new_driver_and_an_empty_balloon(
    stood_at: int, resumed_at: int, actual: int
) -> None:
    # One that stood at 0, after 65536 chains or none, is a paused guest's that goes on.
    backend = set_up([0])
    backend.rings_stood_at([(0, stood_at)])
    backend.restore_config(0, 256, balloon_known=True)
    say(backend, Q.SET_VRING_BASE, VringState(0, resumed_at).encode())
    assert backend.config.actual == actual


# --- config space -----------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, 1, 2**32 - 1])
def test_get_config_of_any_part_and_any_flags_echoes_both(flags: int) -> None:
    backend = fresh()
    backend.set_target(0x01020304 * PAGE_SIZE)
    asked = ConfigAccess(1, flags, bytes(2)).encode()
    reply = ConfigAccess(1, flags, b"\x03\x02").encode()
    assert say(backend, Q.GET_CONFIG, asked) == [Send(encode_reply(Q.GET_CONFIG, reply))]


@pytest.mark.parametrize(
    ("offset", "length", "content"),
    [
        (0, 20, "04030201" + "00010000" + "00" * 12),
        (6, 17, "0000" + "00" * 15),
        (4, 24, "00010000" + "00" * 20),
        (16, 4, "00" * 4),
        (2**32 - 1, 64, "00" * 64),
        (0, 0, ""),
    ],
)
def test_get_config_beyond_the_space_reads_zeros_there(
    offset: int, length: int, content: str
) -> None:
    # QEMU's config_size= may say more than a balloon has; all of it is read at once then.
    backend = set_up([0])
    backend.restore_config(0x01020304, 256, balloon_known=True)
    asked = ConfigAccess(offset, 0, bytes(length)).encode()
    reply = ConfigAccess(offset, 0, bytes.fromhex(content)).encode()
    assert say(backend, Q.GET_CONFIG, asked) == [Send(encode_reply(Q.GET_CONFIG, reply))]


def test_set_config_of_more_than_the_space_takes_actual() -> None:
    backend = set_up([0])
    content = bytes.fromhex("ffffffff" + "00010000" + "ff" * 56)
    effects = say(backend, Q.SET_CONFIG, ConfigAccess(0, 0, content).encode())
    assert effects == [ActualWritten(NumPages(256))]
    assert (backend.config.num_pages, backend.config.actual) == (0, 256)


@pytest.mark.parametrize("offset", [0, 8, 12, 13, 16, 2**32 - 1])
def test_set_config_beside_actual_is_answered_and_changes_nothing(offset: int) -> None:
    backend = set_up([0])
    backend.restore_config(512, 256, balloon_known=True)
    assert say(backend, Q.SET_CONFIG, ConfigAccess(offset, 0, b"\xff" * 4).encode()) == []
    assert (backend.config.num_pages, backend.config.actual) == (512, 256)


def test_set_config_of_qemu_takes_actual_and_not_its_stale_num_pages() -> None:
    backend = set_up([0])
    backend.set_target(786432 * PAGE_SIZE)
    stale = bytes.fromhex("00000000" + "00010000" + "0000000000000000")
    effects = say(backend, Q.SET_CONFIG, ConfigAccess(0, 0, stale).encode())
    assert effects == [ActualWritten(NumPages(256))]
    assert (backend.config.num_pages, backend.config.actual) == (786432, 256)


def test_set_config_of_crosvm_takes_four_bytes_at_four() -> None:
    backend = fresh()
    effects = say(backend, Q.SET_CONFIG, ConfigAccess(4, 1, bytes([7, 0, 0, 0])).encode())
    assert effects == [ActualWritten(NumPages(7))]


# --- the driver's status -----------------------------------------------------------------------


def test_status_is_what_was_said_and_0_after_a_reset() -> None:
    backend = set_up([0])
    assert say(backend, Q.SET_STATUS, U64.pack(15)) == []
    assert say(backend, Q.GET_STATUS) == [Send(encode_reply(Q.GET_STATUS, U64.pack(15)))]
    say(backend, Q.RESET_DEVICE)
    assert say(backend, Q.GET_STATUS) == [Send(encode_reply(Q.GET_STATUS, U64.pack(0)))]


def test_status_0_of_a_vmm_that_does_not_stop_its_rings_first_stops_them() -> None:
    backend = set_up([0, 1])
    assert say(backend, Q.SET_STATUS, U64.pack(0)) == RESTART
    assert ready(backend) == []
    assert say(backend, Q.SET_STATUS, U64.pack(0)) == []


def test_status_is_told_to_another_controller() -> None:
    # QEMU reads it before it adds to it: 0 would say that the driver had begun anew.
    backend, other = set_up([0]), fresh()
    say(backend, Q.SET_STATUS, U64.pack(15))
    for encoded, fds in replay(backend):
        other.handle(decode_message(encoded), fds)
    assert other.status == 15
    assert ready(other) == ready(backend)


# --- descriptors ------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR])
def test_descriptor_that_replaces_another_closes_it(request_: Q) -> None:
    backend, first, second = fresh(), CountedFd(), CountedFd()
    say(backend, request_, U64.pack(3), [first])
    say(backend, request_, U64.pack(3), [second])
    assert (first.closings, second.closings) == (1, 0)


def test_channel_that_replaces_another_closes_it() -> None:
    backend, first, second = fresh(), CountedFd(), CountedFd()
    say(backend, Q.SET_BACKEND_REQ_FD, fds=[first])
    say(backend, Q.SET_BACKEND_REQ_FD, fds=[second])
    assert (first.closings, second.closings) == (1, 0)


def test_rem_mem_reg_with_a_descriptor_closes_that_too() -> None:
    backend, beside = set_up([0]), CountedFd()
    say(backend, Q.REM_MEM_REG, REGION.encode_single(), [beside])
    assert beside.closings == 1


def test_close_closes_everything_once() -> None:
    backend = set_up([0, 1, 2])
    say(backend, Q.SET_VRING_ERR, U64.pack(4), [CountedFd()])
    say(backend, Q.SET_BACKEND_REQ_FD, fds=[CountedFd()])
    held = [backend.memory.regions[0].fd, backend.channel]
    held += [fd for vring in backend.vrings for fd in (vring.kick, vring.call, vring.err)]
    backend.close()
    backend.close()
    closings = [fd.closings for fd in held if isinstance(fd, CountedFd)]
    assert closings == [1] * 9
    assert backend.ready_vrings() == []
