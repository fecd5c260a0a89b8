"""The signals that end balloond, held and let through: nothing of it outlasts its block."""

import signal

import pytest

from balloon_daemon.linux.signals import END_SIGNALS, Interruptible


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
