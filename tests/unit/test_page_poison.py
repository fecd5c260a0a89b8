"""``poison_val``: whose word it is, how long it holds, and what of a guest's reports is freed."""

from collections.abc import Callable

import pytest

from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.guests.jailed.device_spec import device_spec
from balloon_daemon.units import NumPages
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ActualWritten, Effect, PoisonValWritten
from balloon_daemon.vhost_user.messages import (
    U64,
    ConfigAccess,
    FrontendRequest,
    VringState,
    decode_message,
)
from balloon_daemon.vhost_user.replay import replay
from balloon_daemon.virtio.balloon import BalloonFeature
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import OFFERED, fresh, say, set_up

Q = FrontendRequest
PATTERN = 0xAAAAAAAA
HELD = 512
STOOD_AT = 7
INFLATEQ, REPORTING_VQ = 0, 3
WRITTEN: list[Effect] = [PoisonValWritten()]

Writes = Callable[[Backend, int], list[Effect]]
"""Writes ``poison_val`` for the driver, as a VMM does."""


def qemu_writes(backend: Backend, poison_val: int, actual: int = 0) -> list[Effect]:
    """A driver's write of either field: QEMU sends both, as it remembers the other one."""
    content = b"".join(n.to_bytes(4, "little") for n in (4711, actual, 0, poison_val))
    return say(backend, Q.SET_CONFIG, ConfigAccess(0, 0, content).encode())


def crosvm_writes(backend: Backend, poison_val: int) -> list[Effect]:
    access = ConfigAccess(12, 1, poison_val.to_bytes(4, "little"))
    return say(backend, Q.SET_CONFIG, access.encode())


EACH_VMM = pytest.mark.parametrize("writes", [qemu_writes, crosvm_writes])


def start_rings(backend: Backend, base: int = 0) -> None:
    """Sets the inflateq and the reporting_vq up, as at DRIVER_OK and after a pause."""
    say(backend, Q.SET_FEATURES, U64.pack(OFFERED))
    for index in (INFLATEQ, REPORTING_VQ):
        say(backend, Q.SET_VRING_NUM, VringState(index, 128).encode())
        say(backend, Q.SET_VRING_BASE, VringState(index, base).encode())
        say(backend, Q.SET_VRING_KICK, U64.pack(index), [CountedFd()])
        say(backend, Q.SET_VRING_ENABLE, VringState(index, 1).encode())


def stop_rings(backend: Backend) -> None:
    """Stops them, as for a pause and for a reset; the inflateq stands where it is."""
    for index in (INFLATEQ, REPORTING_VQ):
        say(backend, Q.SET_VRING_ENABLE, VringState(index, 0).encode())
        say(backend, Q.GET_VRING_BASE, VringState(index, 0).encode())


def running(poison_val: int | None, writes: Writes = qemu_writes) -> Backend:
    """A driver that has said this of its free pages, and has taken chains since."""
    backend = fresh()
    if poison_val is not None:
        writes(backend, poison_val)
    start_rings(backend)
    backend.rings_stood_at([(INFLATEQ, STOOD_AT)])
    return backend


def spec_of(backend: Backend) -> DeviceSpec:
    return device_spec(backend, (), "vm1", 0.0, None)


# --- what a value means -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "poison_val", "freed"),
    [
        (OFFERED, 0, True),
        (OFFERED, PATTERN, False),
        (OFFERED, 1, False),
        (OFFERED, None, False),
        (OFFERED & ~BalloonFeature.PAGE_POISON, None, True),
        (OFFERED & ~BalloonFeature.PAGE_POISON, PATTERN, True),
    ],
)
def test_reported_pages_are_freed_where_zeros_are_what_the_guest_may_find(
    features: int, poison_val: int | None, freed: bool
) -> None:
    backend = running(poison_val)
    say(backend, Q.SET_FEATURES, U64.pack(features))
    assert spec_of(backend).frees_reported is freed


# --- whose word it is -------------------------------------------------------------------------


@EACH_VMM
@pytest.mark.parametrize("poison_val", [0, PATTERN])
def test_value_that_a_driver_writes_before_its_rings_is_its_word(
    writes: Writes, poison_val: int
) -> None:
    backend = fresh()
    assert writes(backend, poison_val) == WRITTEN
    assert backend.config.poison_val == poison_val
    start_rings(backend)
    assert backend.config.poison_val == poison_val
    assert int.from_bytes(backend.config.read(12, 4), "little") == poison_val


@pytest.mark.parametrize("poison_val", [None, 0, PATTERN])
@pytest.mark.parametrize("sent", [0, PATTERN, 1])
def test_value_beside_an_actual_is_what_qemu_remembers_and_nobodys_word(
    poison_val: int | None, sent: int
) -> None:
    backend = running(poison_val)
    assert qemu_writes(backend, sent, HELD) == [ActualWritten(NumPages(HELD))]
    assert backend.config.poison_val == poison_val


@pytest.mark.parametrize("poison_val", [None, 0, PATTERN])
def test_value_written_while_rings_run_breaks_the_rules_and_changes_nothing(
    poison_val: int | None,
) -> None:
    backend = running(poison_val)
    assert crosvm_writes(backend, 1) == []
    assert backend.config.poison_val == poison_val


def test_driver_in_mid_life_has_not_said_it_here() -> None:
    backend = fresh()
    start_rings(backend, STOOD_AT)
    qemu_writes(backend, 0, HELD)
    assert backend.config.poison_val is None


# --- how long it holds ------------------------------------------------------------------------


def moved(backend: Backend) -> None:
    """A reset that shows in the inflateq's base."""
    stop_rings(backend)


def told(backend: Backend) -> None:
    """A reset that the VMM tells."""
    stop_rings(backend)
    say(backend, Q.RESET_DEVICE)


def looked_for(backend: Backend) -> None:
    """A reset of a driver that has taken no chain: only that its device is read shows it."""
    backend.rings_stood_at([(INFLATEQ, 0)])
    stop_rings(backend)
    say(backend, Q.GET_CONFIG, ConfigAccess(0, 0, bytes(16)).encode())


def status_0(backend: Backend) -> None:
    """A reset by a VMM that does not stop the rings first."""
    say(backend, Q.SET_STATUS, U64.pack(0))


EACH_RESET = pytest.mark.parametrize("reset", [moved, told, looked_for, status_0])
Reset = Callable[[Backend], None]


@EACH_RESET
@pytest.mark.parametrize("poison_val", [0, PATTERN])
def test_next_driver_that_says_nothing_is_not_taken_at_the_word_of_the_one_before(
    reset: Reset, poison_val: int
) -> None:
    backend = running(poison_val)
    reset(backend)
    start_rings(backend)
    assert backend.config.poison_val is None


@EACH_VMM
@pytest.mark.parametrize("reset", [moved, told, looked_for])
@pytest.mark.parametrize(("first", "second"), [(0, PATTERN), (PATTERN, 0), (0, 0), (None, 0)])
def test_next_drivers_word_counts(
    writes: Writes, reset: Reset, first: int | None, second: int
) -> None:
    backend = running(first, writes)
    reset(backend)
    assert writes(backend, second) == WRITTEN
    start_rings(backend)
    assert backend.config.poison_val == second


@EACH_RESET
def test_next_drivers_word_is_not_that_of_the_one_behind_it(reset: Reset) -> None:
    backend = running(PATTERN)
    stop_rings(backend)
    qemu_writes(backend, 0)
    start_rings(backend)
    backend.rings_stood_at([(INFLATEQ, STOOD_AT)])
    reset(backend)
    start_rings(backend)
    assert backend.config.poison_val is None


@pytest.mark.parametrize("poison_val", [None, 0, PATTERN])
def test_paused_driver_goes_on_with_its_word(poison_val: int | None) -> None:
    backend = running(poison_val)
    for _ in range(3):
        stop_rings(backend)
        start_rings(backend, STOOD_AT)
    assert backend.config.poison_val == poison_val


@pytest.mark.parametrize("reset", [moved, told])
def test_actual_beside_the_next_drivers_value_is_the_one_befores_and_not_taken(
    reset: Reset,
) -> None:
    # QEMU remembers it until the driver reads its config space, and Linux writes poison_val first.
    backend = running(0)
    qemu_writes(backend, 0, HELD)
    reset(backend)
    effects = qemu_writes(backend, 0, HELD)
    start_rings(backend)
    assert backend.config.actual == 0
    assert effects[-1:] == WRITTEN
    assert (ActualWritten(NumPages(0)) in effects) == (reset is moved)


# --- another controller -----------------------------------------------------------------------


def handed_over(backend: Backend) -> Backend:
    """The back-end of the controller that goes on, from what this one stores."""
    other = fresh()
    for content, fds in replay(backend):
        say_fds = [CountedFd() for _ in fds]
        message = decode_message(content)
        say(other, Q(message.request), message.payload, say_fds)
    config = backend.config
    other.restore_config(config.num_pages, config.actual, balloon_known=True)
    return other


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("poison_val", [None, 0, PATTERN])
def test_next_controller_knows_the_drivers_word(poison_val: int | None, paused: bool) -> None:
    backend = running(poison_val)
    qemu_writes(backend, 0, HELD)
    if paused:
        stop_rings(backend)
    other = handed_over(handed_over(backend))
    assert (other.config.poison_val, other.config.actual) == (poison_val, HELD)
    stop_rings(other)
    start_rings(other, STOOD_AT)
    assert (other.config.poison_val, other.config.actual) == (poison_val, HELD)


def test_next_controller_takes_no_later_driver_at_that_word() -> None:
    other = handed_over(running(0))
    stop_rings(other)
    start_rings(other)
    assert other.config.poison_val is None


def test_state_of_a_controller_that_did_not_store_it_has_a_driver_that_has_not_said_it() -> None:
    other = set_up([INFLATEQ])
    other.restore_config(0, HELD, balloon_known=True)
    assert other.config.poison_val is None
    assert not spec_of(other).frees_reported
