"""What a service says to its manager (sd_notify(3)): one datagram, no library needed."""

import os
import socket

MANAGER_WITHIN_S = 2.0
"""How long the service manager may take to take a message."""


def notify(*assignments: str, within_s: float = MANAGER_WITHIN_S) -> bool:
    """Sends assignments such as ``READY=1`` to the service manager.

    Args:
        assignments: each is a line.
        within_s: how long it may take to take them; 0 for what is said again soon.

    Returns:
        False where there is no manager to tell; a manager that cannot be reached is no error of
        the daemon either.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # READY=1 must arrive: the manager's queue may be full of descriptors for its store.
            sock.settimeout(within_s)
            # A path need not be UTF-8.
            sock.sendto("\n".join(assignments).encode(errors="surrogateescape"), address)
    except OSError:
        return False
    return True


def runs_as_service() -> bool:
    """Tells whether a service manager has started this process, or one that it comes from."""
    return any(name in os.environ for name in ("NOTIFY_SOCKET", "INVOCATION_ID"))


def logs_to_journal(fd: int) -> bool:
    """Tells whether a file descriptor is the journal's own stream (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def is_process_of_unit() -> bool:
    """Tells whether a service manager itself started this very process, as a unit's.

    Not whether an ancestor was: whatever a service starts inherits its environment.

    Source: systemd.exec(5), "Environment Variables in Spawned Processes".
    """
    started = os.environ.get("SYSTEMD_EXEC_PID")
    if started is None:  # before systemd 248
        return "INVOCATION_ID" in os.environ and os.getppid() == 1
    return started == str(os.getpid())
