"""Whether a driver begins anew, goes on after a pause, or is one in mid-life that nobody knows."""

from collections.abc import Sequence

import pytest

from balloon_daemon.units import NumPages
from balloon_daemon.vhost_user.driver_state import DriverState
from balloon_daemon.virtio.balloon import BalloonConfig

HELD = 256
TARGET = 512
INFLATEQ, DEFLATEQ, STATSQ = range(3)


def holding(actual: int = HELD) -> DriverState:
    """A driver with so many pages in its balloon, asked for more."""
    return DriverState(BalloonConfig(NumPages(TARGET), NumPages(actual)))


def actual_of(state: DriverState) -> int:
    """``actual`` as the driver reads it."""
    return int.from_bytes(state.read(4, 4), "little")


def test_actual_reads_what_was_written_while_nothing_happens() -> None:
    assert actual_of(holding()) == HELD


def test_actual_reads_0_from_the_first_sign_of_a_reset_and_num_pages_stands() -> None:
    state = holding()
    state.sign_reset()
    assert actual_of(state) == 0
    assert int.from_bytes(state.read(0, 4), "little") == TARGET
    # A pause looks the same so far, so nothing is forgotten.
    assert state.config.actual == HELD


@pytest.mark.parametrize("stood_at", [7, 65535])
def test_inflateq_at_0_that_stood_elsewhere_is_a_new_driver(stood_at: int) -> None:
    state = holding()
    state.sign_reset()
    assert state.set_base(INFLATEQ, 0, stood_at)
    assert (state.config.actual, actual_of(state)) == (0, 0)
    assert not state.balloon_unknown


def test_new_driver_of_an_empty_balloon_changes_nothing() -> None:
    assert not holding(0).set_base(INFLATEQ, 0, 7)


@pytest.mark.parametrize("stood_at", [1, 7, 65535])
def test_inflateq_where_it_stood_is_a_pause(stood_at: int) -> None:
    state = holding()
    state.sign_reset()
    assert not state.set_base(INFLATEQ, stood_at, stood_at)
    assert actual_of(state) == HELD
    assert not state.balloon_unknown


def test_inflateq_that_stood_at_0_is_a_pause_after_no_chain_or_65536() -> None:
    state = holding()
    state.sign_reset()
    assert not state.set_base(INFLATEQ, 0, 0)
    assert actual_of(state) == HELD


def test_inflateq_that_stood_at_0_is_a_new_driver_if_it_has_read_its_config_space() -> None:
    state = holding()
    state.sign_reset()
    assert actual_of(state) == 0  # Nobody who is paused reads.
    assert state.set_base(INFLATEQ, 0, 0)
    assert state.config.actual == 0


def test_read_before_the_first_sign_is_no_driver_that_begins() -> None:
    state = holding()
    assert actual_of(state) == HELD
    state.sign_reset()
    assert not state.set_base(INFLATEQ, 0, 0)
    assert actual_of(state) == HELD


@pytest.mark.parametrize("index", [INFLATEQ, DEFLATEQ])
def test_data_queue_that_begins_in_mid_life_has_an_unknown_balloon(index: int) -> None:
    state = DriverState()
    assert not state.set_base(index, 300, 0)
    assert state.balloon_unknown


def test_statsq_in_mid_life_says_nothing_of_the_balloon() -> None:
    state = DriverState()
    assert not state.set_base(STATSQ, 300, 0)
    assert not state.balloon_unknown


def test_unknown_balloon_is_known_once_the_driver_has_written_it() -> None:
    state = DriverState()
    state.set_base(INFLATEQ, 300, 0)
    assert not state.write(0, bytes(4))  # num_pages, which is no word of the driver's.
    assert state.balloon_unknown
    assert state.write(4, (99).to_bytes(4, "little"))
    assert (state.balloon_unknown, state.config.actual) == (False, 99)


def test_unknown_balloon_is_empty_once_the_driver_begins_anew() -> None:
    state = DriverState()
    state.set_base(INFLATEQ, 300, 0)
    assert not state.begin_anew()
    assert not state.balloon_unknown


@pytest.mark.parametrize("deflateq_at", [0, 12])
def test_deflateq_alone_ends_no_reset(deflateq_at: int) -> None:
    # QEMU sets the queues up in their order, others need not.
    state = holding()
    state.sign_reset()
    state.set_base(DEFLATEQ, deflateq_at, deflateq_at)
    assert actual_of(state) == 0
    assert state.set_base(INFLATEQ, 0, 7)


def test_write_after_a_reset_is_a_new_drivers_and_counts_from_nothing() -> None:
    state = holding()
    state.sign_reset()
    # Byte by byte, as over a legacy transport: the old driver's other bytes must not stay.
    assert state.write(4, b"\x05")
    assert (state.config.actual, actual_of(state)) == (5, 5)


def test_signs_of_a_reset_do_not_add_up() -> None:
    state = holding()
    state.sign_reset()
    actual_of(state)
    state.sign_reset()  # Of the same reset: that the config space was read still counts.
    assert state.set_base(INFLATEQ, 0, 0)


FEATURES, NUM, ADDR, BASE = range(4)
QEMU_SETS_UP: Sequence[int | tuple[int, int]] = [
    FEATURES,
    (NUM, 0),
    (BASE, 0),
    (ADDR, 0),
    (NUM, 1),
    (BASE, 1),
    (ADDR, 1),
]
CROSVM_SETS_UP = [FEATURES, (NUM, 0), (ADDR, 0), (BASE, 0), (NUM, 1), (ADDR, 1), (BASE, 1)]
LAST_FIRST = [(BASE, 1), (NUM, 1), (ADDR, 1), (BASE, 0), (NUM, 0), (ADDR, 0), FEATURES]
ORDERS = {"qemu": QEMU_SETS_UP, "crosvm": CROSVM_SETS_UP, "backwards": LAST_FIRST}
Order = Sequence[int | tuple[int, int]]


def set_up(state: DriverState, order: Order, bases: tuple[int, int], before: int) -> None:
    """A VMM sets its driver's queues up in an order of its own."""
    for part in order:
        if isinstance(part, int):
            state.set_up(part)
        elif part[0] == BASE:
            state.set_base(part[1], bases[part[1]], before)
        else:
            state.set_up(*part)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("stopped", [True, False])
def test_pause_ends_in_a_known_balloon_in_whatever_order_all_is_set_up(
    order: Order, stopped: bool
) -> None:
    state = holding(0)
    set_up(state, order, (0, 0), 0)
    state.write(4, HELD.to_bytes(4, "little"))
    for _ in range(3):
        if stopped:
            state.stopped()
        set_up(state, order, (7, 7), 7)
        assert actual_of(state) == HELD


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("stopped", [True, False])
def test_reset_ends_in_an_empty_balloon_in_whatever_order_all_is_set_up(
    order: Order, stopped: bool
) -> None:
    state = holding(0)
    set_up(state, order, (0, 0), 0)
    state.write(4, HELD.to_bytes(4, "little"))
    if stopped:
        state.stopped()
    set_up(state, order, (0, 0), 7)
    assert (actual_of(state), state.config.actual) == (0, 0)


@pytest.mark.parametrize("part", [FEATURES, (NUM, 0), (ADDR, 1)])
def test_part_that_is_set_up_anew_is_the_first_sign_while_the_rings_run(
    part: int | tuple[int, int],
) -> None:
    state = holding(0)
    set_up(state, QEMU_SETS_UP, (0, 0), 0)
    state.write(4, HELD.to_bytes(4, "little"))
    set_up(state, [part], (0, 0), 0)
    assert actual_of(state) == 0


def test_read_while_the_inflateq_stands_still_is_a_sign_and_while_it_is_set_up_none() -> None:
    state = holding(0)
    set_up(state, QEMU_SETS_UP, (0, 0), 0)
    state.write(4, HELD.to_bytes(4, "little"))
    state.look_at_config()
    assert actual_of(state) == HELD
    state.stopped()
    state.look_at_config()
    assert actual_of(state) == 0


def test_begin_anew_says_whether_anything_was_held() -> None:
    assert holding().begin_anew()
    assert not holding(0).begin_anew()
