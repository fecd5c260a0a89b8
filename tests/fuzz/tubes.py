"""Target: the tube, both ways. The device may be taken over, so its reports are the enemy's.

Datagrams of any content go through a real socketpair: whatever comes out is well-formed, says
again what went in, and can be put into words as the controller does.
"""

import contextlib
import os

from balloon_daemon.errors import NO_HEAD, GuestError, RingError, Rule, TubeError
from balloon_daemon.tube.connection import open_tube
from balloon_daemon.tube.messages import (
    Command,
    Down,
    Fault,
    FaultKind,
    Progress,
    Ready,
    Stats,
    Stopped,
    Target,
    Up,
    decode_down,
    decode_up,
    encode_down,
    encode_up,
)
from balloon_daemon.virtio.balloon import MAX_QUEUES, MAX_STATS
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import no_fd_left_open, require

MAX_MESSAGES = 64


def run(data: bytes) -> None:
    """A tube's life: garbage and real messages in both directions, then either end closes."""
    with no_fd_left_open():
        _life(Choices(data))


def _life(choices: Choices) -> None:
    controller, device = open_tube()
    sent_up = sent_down = 0
    try:
        for _ in range(MAX_MESSAGES):
            if not choices:
                break
            datagram = _report(choices) if choices.chance(128) else _order(choices)
            to_controller = choices.chance(160)
            end = device if to_controller else controller
            if choices.chance(40):
                datagram = datagram[: choices.below(len(datagram) + 1)]
                datagram += choices.take(choices.below(40))
            with contextlib.suppress(BlockingIOError):
                os.write(end.fileno(), datagram)
                sent_up += to_controller
                sent_down += not to_controller
            _check_codec(datagram)
        if choices.chance(128):
            controller.close()
            _drain_orders(device.receive(), sent_down)
        else:
            device.close()
            _drain_reports(controller.receive(), sent_up)
    finally:
        controller.close()
        device.close()


def _drain_reports(reports: list[Up] | None, sent: int) -> None:
    require(len(reports or []) <= sent, "more reports than were sent")
    for report in reports or []:
        _check_report(report)


def _drain_orders(orders: list[Down] | None, sent: int) -> None:
    require(len(orders or []) <= sent, "more orders than were sent")
    for order in orders or []:
        require(isinstance(order, Target | Command), "an order of no kind", order)


def _check_codec(datagram: bytes) -> None:
    """A message that is understood says exactly what its bytes say."""
    with contextlib.suppress(TubeError):
        report = decode_up(datagram)
        _check_report(report)
        require(encode_up(report) == datagram, "another report comes out", report)
    with contextlib.suppress(TubeError):
        order = decode_down(datagram)
        require(encode_down(order) == datagram, "another order comes out", order)


def _check_report(report: Up) -> None:
    match report:
        case Stats(entries):
            require(len(entries) <= MAX_STATS, "too many statistics", len(entries))
        case Stopped(indices):
            inside = all(n < MAX_QUEUES and used < 65536 for n, used in indices)
            require(inside, "a vring that is none", indices)
        case Fault(FaultKind.HOST):
            require(report.code < 4096, "no errno", report)
        case Fault():
            error = GuestError("inflateq", report.head, Rule(report.code), report.detail)
            require(str(error) and str(RingError("statsq", error.rule, error.found)), "no words")
        case Ready() | Progress():
            pass


def _order(choices: Choices) -> bytes:
    if choices.chance(96):
        return encode_down(choices.pick(list(Command)))
    return encode_down(Target(choices.wide(8)))


def _report(choices: Choices) -> bytes:
    match choices.below(5):
        case 0:
            return encode_up(Progress(*(choices.wide(8) for _ in Progress._fields)))
        case 1:
            entries = [(choices.number(2), choices.wide(8)) for _ in range(choices.below(70))]
            return encode_up(Stats(tuple(entries)))
        case 2:
            rule = choices.wide(4) if choices.chance(64) else choices.pick(list(Rule))
            kind, queue = choices.pick(list(FaultKind)), choices.below(7)
            head = choices.pick((0, 1, NO_HEAD, 2**32 - 1))
            fault = Fault(kind, queue, rule, head, choices.wide(8), choices.wide(8))
            return encode_up(fault)
        case 3:
            pairs = [(choices.below(7), choices.wide(4)) for _ in range(choices.below(8))]
            return encode_up(Stopped(tuple(pairs)))
        case _:
            return encode_up(Ready())
