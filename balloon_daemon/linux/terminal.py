"""Whether this process has a controlling terminal."""

from balloon_daemon.linux.figures import read_figures


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that has not hung up.

    The kernel takes a terminal that hangs up from all processes of its session before it sends
    them SIGHUP (drivers/tty/tty_jobctrl.c: session_clear_tty, tty_signal_session_leader).

    /proc/self/stat stays open from the first call on: the kernel looks up a name that it has not
    cached under the lock of the directory, and anybody may list /proc/PID, and so hold that lock.

    Source: proc(5), /proc/PID/stat, field 7 (tty_nr).
    """
    try:
        # The name, which is in parentheses, may contain spaces. It is followed by the fields from
        # the third on: state, ppid, pgrp, session, tty_nr.
        return int(read_figures("/proc/self/stat").rpartition(b")")[2].split()[4]) != 0
    except (OSError, ValueError, IndexError):
        return False
