"""The signals that end balloond, held and let through: nothing of it outlasts its block."""

import signal

import pytest

from balloon_daemon.linux import terminal
from balloon_daemon.linux.signals import END_SIGNALS, HANGS_AFTER_S, Interruptible
from tests.harness.faults import fault


@pytest.mark.parametrize("held", [set(), set(END_SIGNALS), {signal.SIGTERM}])
def test_interruptible_leaves_mask_and_handlers_as_they_were(held: set[signal.Signals]) -> None:
    before = signal.pthread_sigmask(signal.SIG_SETMASK, held)
    handlers = {number: signal.getsignal(number) for number in (*END_SIGNALS, signal.SIGALRM)}
    try:
        with Interruptible():
            assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@fault("SIGHUP while it starts")
@pytest.mark.parametrize(
    ("number", "lost", "ends"),
    [
        (signal.SIGTERM, False, True),
        (signal.SIGINT, False, True),
        # The configuration is to be read anew, once there is one.
        (signal.SIGHUP, False, False),
        (signal.SIGHUP, True, True),
    ],
)
def test_start_that_hangs_is_ended_by_a_signal_to_end_alone(
    number: signal.Signals, lost: bool, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process has a terminal, and the next look finds none, if the terminal has hung up.
    seen = iter([True])
    monkeypatch.setattr(terminal, "has_terminal", lambda: next(seen, not lost))
    came: list[int] = []
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {each: signal.signal(each, lambda n, _: came.append(n)) for each in asked}
    try:
        with Interruptible():
            for _ in range(2):
                signal.raise_signal(number)
            waits_s, _ = signal.getitimer(signal.ITIMER_REAL)
            assert (0 < waits_s <= HANGS_AFTER_S) == ends
            assert came == []
        assert came == [number]  # It is pending until then, and once.
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
