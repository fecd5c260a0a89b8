"""Signals as a terminal's shell leaves them, for what a test starts."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def default_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Has what is started in the block be ended by these signals.

    Whoever runs the tests by nohup or in a script's background has some of them ignored, and so
    would every process that they start.
    """
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
