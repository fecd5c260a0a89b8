"""Whether this process has a controlling terminal."""


def has_terminal() -> bool:
    """Whether there is one, and it has not hung up.

    The kernel takes a terminal that hangs up from all processes of its session before it sends
    them SIGHUP (drivers/tty/tty_jobctrl.c: session_clear_tty, tty_signal_session_leader).

    Source: proc(5), /proc/PID/stat, field 7 (tty_nr).
    """
    try:
        with open("/proc/self/stat", "rb") as stat:
            # The name, which is in parentheses, may contain spaces. It is followed by the fields
            # from the third on: state, ppid, pgrp, session, tty_nr.
            return int(stat.read().rpartition(b")")[2].split()[4]) != 0
    except (OSError, ValueError, IndexError):
        return False
