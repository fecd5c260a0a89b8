"""The signals that end balloond: blocked from its first line on, until its event loop takes them.

If they were not blocked, their default action would end a start half-way and leave a socket, a
keeper or another process behind; SIGUSR1 would kill a daemon that should only hand over. A blocked
signal stays pending in the kernel.
"""

import os
import signal
from types import FrameType, TracebackType

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""SIGHUP ends balloond where its terminal has hung up; else the configuration is read anew."""

HANGS_AFTER_S = 2.0
"""How long after a signal code inside ``Interruptible`` may go on before KeyboardInterrupt ends
it."""


def hold_end_signals() -> None:
    """Blocks END_SIGNALS. Forked children inherit that mask; a device clears it
    (``linux/jail.py``)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)


def release_end_signals() -> None:
    """Unblocks END_SIGNALS; pending signals are delivered at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)


class Interruptible:
    """Guards code that may hang while the signals are blocked, so that ending it never needs
    SIGKILL.

    SIGTERM, SIGINT and SIGHUP stay pending, unless the guarded code goes on for 2 s after one that
    is to end balloond: then it ends with KeyboardInterrupt. SIGHUP is to end it only if its
    terminal has hung up; SIGUSR1 does not interrupt it.
    """

    def __enter__(self) -> None:
        # Imported here: ``balloond`` blocks the signals before it imports anything else.
        from balloon_daemon.linux.terminal import has_terminal

        self._has_terminal = has_terminal
        self._had_terminal = has_terminal()
        self._came: list[int] = []
        asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        # Signals that nohup(1) or a script's "&" has set to be ignored stay ignored.
        self._before = {
            number: before
            for number in asked
            if (before := signal.getsignal(number)) is not signal.SIG_IGN
        }
        self._alarm_before = signal.signal(signal.SIGALRM, self._hangs)
        for number in self._before:
            signal.signal(number, self._note)
        unblocked = [*self._before, signal.SIGALRM]
        self._mask_before = signal.pthread_sigmask(signal.SIG_UNBLOCK, unblocked)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        ends = number != signal.SIGHUP or (self._had_terminal and not self._has_terminal())
        if ends and not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER_S)
        self._came.append(number)

    def _hangs(self, _number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)
        signal.signal(signal.SIGALRM, self._alarm_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for came in dict.fromkeys(self._came):
            os.kill(os.getpid(), came)
