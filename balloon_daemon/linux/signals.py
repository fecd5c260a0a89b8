"""The signals that end balloond: held from its first line on, until its event loop takes them.

By its default action a signal would end a start half-way, with a socket, a keeper or another
process left behind; SIGUSR1 would kill what is only to make way. Held, it waits in the kernel.
"""

import os
import signal
from types import FrameType, TracebackType

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

HANGS_AFTER_S = 2.0
"""What is not done so long after it was to end is not waited for."""


def hold_end_signals() -> None:
    """Has them wait. Forked children inherit that; ``linux/jail.py`` undoes it for devices."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)


def release_end_signals() -> None:
    """Delivers what has waited, and whatever comes from here on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)


class Interruptible:
    """Around what may hang, while the signals are held: nobody should need SIGKILL to end it.

    SIGTERM, SIGINT and SIGHUP stay held, unless what goes on here hangs for 2 s more: then it ends
    in KeyboardInterrupt. SIGUSR1 asks nobody to end.
    """

    def __enter__(self) -> None:
        self._came: list[int] = []
        asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        # What nohup(1) and a script's "&" ignore stays ignored.
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
        if not self._came:
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
