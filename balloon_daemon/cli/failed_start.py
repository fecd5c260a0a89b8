"""What becomes of VMs in systemd's store when balloond does not start: they wait there for one
that does."""

import signal
from collections.abc import Callable

from balloon_daemon.cli.printing import complain
from balloon_daemon.linux.signals import END_SIGNALS
from balloon_daemon.linux.systemd import has_stored_fds

AGAIN_AFTER_S = 5.0
"""The shipped unit allows 30 starts in 60 s. A balloond with a mistake in its configuration file
ends after 0.2 s: without this wait systemd gave up on the unit after 6 s and closed the store, and
all VMs on our own device lost their balloons for good, with their memory in them."""


def started(start: Callable[[], int]) -> int:
    """Starts balloond, and ends a start that failed slowly where VMs are in systemd's store.

    The wait is over at once when balloond is to end (``systemctl stop``, ``systemctl restart``).

    Args:
        start: runs balloond, and returns its exit status.

    Returns:
        The exit status.
    """
    has_stored = has_stored_fds()  # Before ``start`` takes them.
    try:
        status = start()
    except SystemExit as err:  # Of argparse, for a wrong flag.
        status = err.code if isinstance(err.code, int) else 1
    if status and has_stored:
        complain(
            "balloond: systemd keeps the VMs of the balloond before; their balloons stay as they "
            f"are until one starts, which is tried each {AGAIN_AFTER_S:.0f} s"
        )
        signal.sigtimedwait(END_SIGNALS, AGAIN_AFTER_S)
    return status
