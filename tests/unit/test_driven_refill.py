"""Memory that a snapshot has filled again: all is given back once, and taken again in steps."""

from balloon_daemon.guests.driven.refill import SLACK_BYTES, STANDS_SAMPLES, Refill
from balloon_daemon.guests.driven.target import BalloonTarget
from balloon_daemon.units import GIB, MIB

VM, WANTED = 4 * GIB, GIB


class Vm:
    """A VM whose guest follows each target at once, with a balloon of 1 GiB."""

    def __init__(self) -> None:
        self.balloon = BalloonTarget(VM, 0, None)
        self.refill = Refill(self.balloon)
        self.told = list[int]()
        self.balloon.want(WANTED)
        self.sample(VM - WANTED)

    def sample(self, held_bytes: int | None) -> int:
        """Tells the VMM what is due, and looks at the figures afterwards."""
        if (due_bytes := self.balloon.due()) is not None:
            self.told.append(due_bytes)
            self.balloon.take(VM, due_bytes)
            self.balloon.sent(self.balloon.asked_bytes)
        return self.refill.look(held_bytes)


def test_memory_that_was_filled_again_is_given_back_and_taken_in_steps() -> None:
    vm = Vm()
    vm.refill.notice()
    assert [vm.sample(VM) for _ in range(3)] == [0, 0, WANTED]
    while vm.balloon.most_bytes is not None:
        assert vm.sample(VM) == 0
    step = VM // 16
    assert vm.told == [WANTED, 0, step, 2 * step, 3 * step, WANTED]


def test_memory_that_was_not_read_is_left_alone() -> None:
    vm = Vm()
    assert [vm.sample(VM) for _ in range(9)] == [0] * 9
    assert vm.told == [WANTED]


def test_memory_within_the_slack_is_left_alone() -> None:
    vm = Vm()
    vm.refill.notice()
    assert [vm.sample(VM - WANTED + SLACK_BYTES) for _ in range(9)] == [0] * 9
    assert vm.told == [WANTED]


def test_three_samples_in_a_row_have_to_say_so() -> None:
    vm = Vm()
    vm.refill.notice()
    held = [VM, VM, None, VM - WANTED, VM, VM]
    assert [vm.sample(held_bytes) for held_bytes in held] == [0] * 6
    assert vm.sample(VM) == WANTED


def test_target_that_is_lowered_meanwhile_ends_it() -> None:
    vm = Vm()
    vm.refill.notice()
    for _ in range(3):
        vm.sample(VM)
    vm.balloon.want(0)
    for _ in range(3):
        vm.sample(VM)
    assert vm.balloon.most_bytes is None
    assert vm.told == [WANTED, 0]


def test_guest_that_does_not_follow_gets_no_further_step() -> None:
    vm = Vm()
    vm.refill.notice()
    for _ in range(3):
        vm.sample(VM)
    vm.balloon.take(VM, WANTED)  # It has not given anything back yet.
    assert vm.refill.look(VM) == 0
    assert (vm.balloon.most_bytes, vm.balloon.due()) == (0, 0)
    vm.balloon.take(VM, 300 * MIB)
    vm.balloon.sent(0)
    assert vm.refill.look(VM) == 0
    assert vm.balloon.most_bytes == 0


def test_guest_that_gives_no_more_in_the_middle_is_told_the_whole_target() -> None:
    vm = Vm()
    vm.refill.notice()
    for _ in range(5):
        vm.sample(VM)
    stopped_at = vm.balloon.taken_bytes
    assert 0 < stopped_at < vm.balloon.asked_bytes
    vm.balloon.sent(vm.balloon.asked_bytes)
    for _ in range(STANDS_SAMPLES):
        assert vm.balloon.most_bytes is not None
        vm.refill.look(VM - stopped_at)
    assert vm.balloon.most_bytes is None
    assert vm.balloon.due() == WANTED


def test_guest_that_gives_slowly_is_waited_for() -> None:
    vm = Vm()
    vm.refill.notice()
    for _ in range(5):
        vm.sample(VM)
    vm.balloon.sent(vm.balloon.asked_bytes)
    for step in range(1, 4 * STANDS_SAMPLES):
        vm.balloon.take(VM, vm.balloon.taken_bytes + step % 2 * MIB)
        vm.refill.look(VM)
    assert vm.balloon.most_bytes is not None
