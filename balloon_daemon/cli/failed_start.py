"""Delays the exit of a balloond that cannot start, so that systemd goes on restarting the unit and
keeps its file descriptor store, with the connections and memory of VMs."""

import signal
from collections.abc import Callable

from balloon_daemon.cli.printing import complain
from balloon_daemon.linux.signals import END_SIGNALS
from balloon_daemon.linux.systemd import has_stored_fds

AGAIN_AFTER_S = 5.0
"""The shipped unit allows 30 starts in 60 s. A balloond with a mistake in its configuration file
ends after 0.2 s. Without this wait systemd would give up on the unit after 6 s and close the
store. All VMs on balloond's own device would then lose their balloons for good, with the memory in
them."""

STATUS = 1
"""With this exit status systemd starts the shipped unit again. With status 2, that of a wrong
setting, systemd does not (RestartPreventExitStatus=)."""


def started(start: Callable[[], int]) -> int:
    """Starts balloond. If that fails while systemd's file descriptor store holds VMs' descriptors,
    waits ``AGAIN_AFTER_S`` before returning ``STATUS``.

    A signal that is to end balloond (``systemctl stop``, ``systemctl restart``) ends the wait.

    Args:
        start: runs balloond, and returns its exit status.

    Returns:
        The exit status.
    """
    has_stored = has_stored_fds()  # Asked first: ``start`` takes these descriptors.
    try:
        status = start()
    except SystemExit as err:  # argparse raises it for a wrong flag.
        status = err.code if isinstance(err.code, int) else 1
    if status and has_stored:
        complain(
            "balloond: systemd keeps the VMs of the balloond before; their balloons stay as they "
            f"are until one starts, which is tried each {AGAIN_AFTER_S:.0f} s"
        )
        signal.sigtimedwait(END_SIGNALS, AGAIN_AFTER_S)
        return STATUS
    return status
