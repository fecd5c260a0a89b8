"""What controller and device say to each other, byte for byte; everything else is refused."""

import struct

import pytest

from balloon_daemon.errors import Rule, TubeError
from balloon_daemon.tube.messages import (
    MAX_MESSAGE_BYTES,
    Command,
    Fault,
    FaultKind,
    Progress,
    Ready,
    Stats,
    Stopped,
    Target,
    decode_down,
    decode_up,
    encode_down,
    encode_up,
)
from balloon_daemon.virtio.balloon import MAX_QUEUES, MAX_STATS


def test_target_is_eight_bytes_little_endian() -> None:
    # The message of crosvm's change: the absolute balloon size, 3 GiB here.
    assert encode_down(Target(3 << 30)) == bytes.fromhex("000000c000000000")


@pytest.mark.parametrize(("command", "number"), [(Command.REQUEST_STATS, 1), (Command.STOP, 2)])
def test_command_is_four_bytes(command: Command, number: int) -> None:
    assert encode_down(command) == bytes([number, 0, 0, 0])
    assert decode_down(bytes([number, 0, 0, 0])) is command


def test_down_message_of_any_other_length_is_refused() -> None:
    for length in {*range(64), MAX_MESSAGE_BYTES} - {4, 8}:
        with pytest.raises(TubeError, match=f"message of {length} bytes"):
            decode_down(bytes(length))


@pytest.mark.parametrize("number", [0, 3, 2**32 - 1])
def test_command_that_does_not_exist_is_refused(number: int) -> None:
    with pytest.raises(TubeError, match="does not exist"):
        decode_down(number.to_bytes(4, "little"))


UP = [
    Ready(),
    Progress(1, 2, 3, 4, 5, 6, 2**64 - 1, 8, 9, 10, 2**64 - 2),
    Stats(()),
    Stats(tuple((n, 2**64 - n - 1) for n in range(MAX_STATS))),
    Fault(FaultKind.CHAIN, 4, Rule.PFN, 65535, 2**64 - 1, 2**64 - 1),
    Fault(FaultKind.RING, 0, Rule.HEAD, 0, 0, 0),
    Fault(FaultKind.HOST, 0, 16, 65535, 0x1000, 0),
    Stopped(()),
    Stopped(((0, 65535), (4, 0))),
]


@pytest.mark.parametrize("report", UP, ids=lambda report: type(report).__name__)
def test_report_round_trip_fits_a_datagram(report: Ready) -> None:
    datagram = encode_up(report)
    assert decode_up(datagram) == report
    assert len(datagram) <= MAX_MESSAGE_BYTES


@pytest.mark.parametrize("report", UP, ids=lambda report: type(report).__name__)
def test_report_one_byte_longer_or_shorter_is_refused(report: Ready) -> None:
    datagram = encode_up(report)
    for other in (datagram + b"\0", datagram[:-1]):
        with pytest.raises(TubeError):
            decode_up(other)


def fault(kind: int, queue: int, code: int) -> bytes:
    return struct.pack("<IIIIIQQ", 4, kind, queue, code, 0, 0, 0)


def stopped(*pairs: tuple[int, int]) -> bytes:
    return struct.pack("<I", 5) + b"".join(struct.pack("<II", *pair) for pair in pairs)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x01\x00\x00",
        bytes(4),
        (6).to_bytes(4, "little"),
        bytes(MAX_MESSAGE_BYTES),
        (3).to_bytes(4, "little") + bytes(10 * (MAX_STATS + 1)),
        fault(0, 0, Rule.PFN),
        fault(4, 0, Rule.PFN),
        fault(FaultKind.CHAIN, MAX_QUEUES, Rule.PFN),
        fault(FaultKind.CHAIN, 0, 0),
        fault(FaultKind.RING, 0, max(Rule) + 1),
        fault(FaultKind.HOST, 0, 4096),
        stopped((MAX_QUEUES, 0)),
        stopped((0, 65536)),
        stopped(*[(0, 0)] * (MAX_QUEUES + 1)),
    ],
)
def test_report_that_no_device_of_ours_sends_is_refused(datagram: bytes) -> None:
    with pytest.raises(TubeError):
        decode_up(datagram)
