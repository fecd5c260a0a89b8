"""The tube's two ends over a real socketpair."""

import itertools
import os
from collections.abc import Iterator

import pytest

from balloon_daemon.tube.connection import MAX_DATAGRAMS, ControllerEnd, DeviceEnd, open_tube
from balloon_daemon.tube.messages import Command, Progress, Ready, Stats, Target
from tests.harness.faults import fault

Ends = tuple[ControllerEnd, DeviceEnd]


@pytest.fixture
def ends() -> Iterator[Ends]:
    upper, lower = open_tube()
    yield upper, lower
    upper.close()
    lower.close()


def test_tube_carries_orders_down_and_reports_up_in_order(ends: Ends) -> None:
    controller, device = ends
    assert controller.send(Target(3 << 30))
    assert controller.send(Command.REQUEST_STATS)
    assert device.receive() == [Target(3 << 30), Command.REQUEST_STATS]
    assert device.send(Ready())
    assert device.send(Stats(((1, 2),)))
    assert controller.receive() == [Ready(), Stats(((1, 2),))]


def test_tube_with_nothing_in_it_gives_nothing_and_does_not_block(ends: Ends) -> None:
    controller, device = ends
    assert controller.receive() == []
    assert device.receive() == []


def test_tube_is_closed_on_exec_and_non_blocking(ends: Ends) -> None:
    for end in ends:
        assert os.get_inheritable(end.fileno()) is False
        assert os.get_blocking(end.fileno()) is False


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9, 1024, 5000])
def test_device_ignores_messages_of_other_lengths(ends: Ends, length: int) -> None:
    controller, device = ends
    os.write(controller.fileno(), bytes(length))
    assert controller.send(Target(1))
    assert device.receive() == [Target(1)]


@fault("device writes what no device sends into its tube")
@pytest.mark.parametrize("length", [0, 1, 4, 57, 1024, 5000])
def test_controller_reads_up_to_garbage_and_nothing_behind_it(ends: Ends, length: int) -> None:
    controller, device = ends
    assert device.send(Ready())
    os.write(device.fileno(), b"\xff" * length)
    assert device.send(Ready())
    assert controller.receive() == [Ready()]
    assert controller.garbage is not None
    assert controller.receive() == []
    assert not controller.at_end


def test_full_tube_refuses_and_takes_again_once_it_is_read(ends: Ends) -> None:
    controller, device = ends
    sent = sum(1 for _ in itertools.takewhile(bool, iter(lambda: device.send(Ready()), None)))
    assert 100 < sent < 10_000
    assert device.send(Progress()) is False
    assert controller.receive() == [Ready()] * MAX_DATAGRAMS
    assert device.send(Progress()) is True


@fault("device reports without end (taken over)")
def test_controller_reads_a_bounded_number_at_a_time_and_all_in_the_end(ends: Ends) -> None:
    # A device that was taken over can write faster than the controller reads: each call ends.
    controller, device = ends
    for _ in range(MAX_DATAGRAMS + 10):
        assert device.send(Ready())
    device.close()
    assert controller.receive() == [Ready()] * MAX_DATAGRAMS
    assert controller.receive() == [Ready()] * 10
    assert not controller.at_end
    assert controller.receive() is None
    assert controller.at_end


def test_orders_that_are_not_taken_are_told_from_those_that_are(ends: Ends) -> None:
    controller, device = ends
    assert controller.unread_bytes() == 0
    assert controller.send(Target(1))
    one = controller.unread_bytes()
    assert controller.send(Target(2))
    assert controller.unread_bytes() > one > 0
    assert len(device.receive() or ()) == 2
    assert controller.unread_bytes() == 0


def test_reports_of_a_device_that_is_gone_are_read_before_its_end_is_told(ends: Ends) -> None:
    controller, device = ends
    assert device.send(Ready())
    device.close()
    assert controller.receive() == [Ready()]
    assert controller.receive() is None


def test_device_without_a_controller_hears_of_its_end_and_drops_what_it_says(ends: Ends) -> None:
    controller, device = ends
    assert controller.send(Target(1))
    controller.close()
    assert device.receive() is None
    assert device.send(Ready()) is False


def test_controller_without_a_device_drops_what_it_says(ends: Ends) -> None:
    controller, device = ends
    device.close()
    assert controller.send(Command.STOP) is False


def test_device_that_died_with_orders_unread_is_at_its_end(ends: Ends) -> None:
    controller, device = ends
    assert controller.send(Target(1))
    device.close()  # The kernel says ECONNRESET to the one whose message was lost.
    assert controller.receive() is None


def test_send_through_an_end_that_is_closed_is_our_bug_and_raised(ends: Ends) -> None:
    controller, _ = ends
    controller.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        controller.send(Target(1))
