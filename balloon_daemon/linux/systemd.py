"""How a service talks to its manager: sd_notify(3)'s datagrams, and inherited descriptors.

No library is needed: each message is one datagram of assignments (``READY=1``), with descriptors
where the manager is to store some (``FDSTORE=1``).
"""

import array
import contextlib
import fcntl
import os
import select
import socket

from balloon_daemon.linux.apart import LOW
from balloon_daemon.linux.events import OwnedFd

MANAGER_WITHIN_S = 2.0
"""How long the service manager may take to receive a message."""

STORE_TRIED_WITHIN_S = 5.0
"""How long the service manager may take to show whether it stores descriptors."""

CLOSED_WITHIN_S = 0.1
"""How long systemd may take to close a descriptor that it does not store; a thread of systemd's
does the closing."""

FDSTORE_MAX = 65536
"""The value in the shipped unit (``FileDescriptorStoreMax=``)."""

TRIAL = "trial"
"""The name of the descriptor that is stored to find out whether the manager stores any."""

SOCKET_UNIT = ".socket"
"""How the name of a descriptor ends that a socket unit passes, and not the store: without
``FileDescriptorName=`` it is the unit's own name (systemd.socket(5))."""

_FIRST_INHERITED = 3


def connect_manager() -> socket.socket | None:
    """A socket to the service manager; None where no manager has started us, or it is gone."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # A name that begins with @ is in the kernel's abstract name space (unix(7)).
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        sock.close()
        return None
    return sock


def notify(*assignments: str, within_s: float = MANAGER_WITHIN_S) -> bool:
    """Sends assignments such as ``READY=1`` to the service manager.

    Args:
        assignments: one line each.
        within_s: how long the manager may take to receive them; 0 for a message that is soon
            repeated.

    Returns:
        False where there is no manager, or it cannot be reached, which is no error of the daemon.
    """
    sock = connect_manager()
    if sock is None:
        return False
    with sock:
        try:
            # Wait for room: READY=1 must arrive, and systemd's queue may be full of messages with
            # descriptors for its file descriptor store.
            sock.settimeout(within_s)
            # surrogateescape: a path in the message may have bytes that are not UTF-8.
            sock.send("\n".join(assignments).encode(errors="surrogateescape"))
        except OSError:
            return False
    return True


def take_watchdog_s() -> float | None:
    """How long the service manager waits for a ``WATCHDOG=1`` before it takes this process for
    hung, in seconds; None: it does not wait for any.

    The environment variables are removed, so that no child takes them for its own.

    Source: sd_watchdog_enabled(3).
    """
    pid, told = os.environ.pop("WATCHDOG_PID", ""), os.environ.pop("WATCHDOG_USEC", "")
    meant = not pid or pid == str(os.getpid())
    if not meant or not (told.isascii() and told.isdigit()) or not int(told):
        return None
    return int(told) / 1e6


def has_stored_fds() -> bool:
    """Whether systemd has passed descriptors to this process that it had stored."""
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid())
    return ours and not all(name.endswith(SOCKET_UNIT) for name in names)


def take_sockets() -> list[tuple[str, socket.socket]]:
    """The sockets that socket units pass, with the units' names (sd_listen_fds_with_names(3)).

    Call it before ``take_stored_fds``, and once.
    """
    taken = []
    for fd, name in _passed():
        if name.endswith(SOCKET_UNIT):
            high = OwnedFd(_above_low(fd))
            with contextlib.suppress(OSError):  # It is no socket.
                taken.append((name, socket.socket(fileno=high.fileno())))
                high.detach()
    return taken


def _passed() -> list[tuple[int, str]]:
    """The numbers and names of the descriptors that systemd has passed to this process."""
    pid, count = os.environ.get("LISTEN_PID", ""), os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit() or int(count) != len(names):
        return []
    return list(enumerate(names, _FIRST_INHERITED))


def _above_low(fd: int) -> int:
    """Moves a descriptor above LOW: a child of linux/apart.py inherits only lower numbers."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW)
    os.close(fd)
    return high


def take_stored_fds() -> dict[str, OwnedFd]:
    """The descriptors that systemd stored for us (sd_listen_fds_with_names(3)), by name.

    The environment variables are removed, so that no child takes the descriptors for its own.
    """
    passed = _passed()
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    # An OwnedFd is closed directly, not by a closer process. That is safe, because a VMM's file
    # whose close could block is never put into systemd's file descriptor store.
    return {name: OwnedFd(_above_low(fd)) for fd, name in passed if not name.endswith(SOCKET_UNIT)}


def store_capacity(manager: socket.socket, *, has_stored: bool) -> int:
    """How many descriptors the manager stores for this service; 0 where it stores none.

    systemd puts that number into ``$FDSTORE`` since version 254. Without the variable the unit
    stores nothing, or an older systemd does not tell its ``FileDescriptorStoreMax=``. So one
    descriptor is stored and removed again, to see whether it stays open; if it does, the capacity
    is taken to be the shipped unit's.

    Args:
        manager: from ``connect_manager``.
        has_stored: True: the manager has already given us descriptors that it had stored.
    """
    # Remove the variable, so that no child process takes it for its own.
    told = os.environ.pop("FDSTORE", "")
    if told.isascii() and told.isdigit():
        return int(told)
    return FDSTORE_MAX if has_stored or _stores(manager) else 0


def _stores(manager: socket.socket) -> bool:
    """Tries whether the manager keeps a descriptor that it is asked to store.

    The manager closes a descriptor that it does not store. The trial's descriptor is the writing
    end of a pipe, so the pipe's reading end shows whether the manager has closed it.

    Source: sd_notify(3), ``FDSTORE=1`` and ``BARRIER=1``.
    """
    manager.settimeout(STORE_TRIED_WITHIN_S)
    try:
        trial = _send_writer(manager, f"FDSTORE=1\nFDPOLL=0\nFDNAME={TRIAL}")
        barrier = _send_writer(manager, "BARRIER=1")
        # systemd closes the barrier once it has handled all earlier messages, the trial's among
        # them.
        stored = _is_closed(barrier, STORE_TRIED_WITHIN_S) and not _is_closed(
            trial, CLOSED_WITHIN_S
        )
        manager.send(f"FDSTOREREMOVE=1\nFDNAME={TRIAL}".encode())
    except OSError:
        return False
    return stored


def _send_writer(manager: socket.socket, message: str) -> OwnedFd:
    """Sends the writing end of a new pipe with a message; returns its reading end."""
    reader, writer = map(OwnedFd, os.pipe())
    rights = array.array("i", [writer.fileno()])
    manager.sendmsg([message.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    writer.close()
    return reader


def _is_closed(reader: OwnedFd, within_s: float) -> bool:
    """Waits until a pipe's last writer is gone; False where it stays."""
    poller = select.poll()
    poller.register(reader.fileno(), 0)
    return bool(poller.poll(within_s * 1000))


def runs_as_service() -> bool:
    """Whether a service manager has started this process or one of its ancestors."""
    return any(name in os.environ for name in ("NOTIFY_SOCKET", "INVOCATION_ID"))


def logs_to_journal(fd: int) -> bool:
    """Whether a file descriptor is the journal's own stream (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def is_process_of_unit() -> bool:
    """Whether a service manager itself started this very process, as a unit's.

    False for a service's descendants, although they inherit its environment.

    Source: systemd.exec(5), "Environment Variables in Spawned Processes".
    """
    started = os.environ.get("SYSTEMD_EXEC_PID")
    if started is None:  # before systemd 248
        return "INVOCATION_ID" in os.environ and os.getppid() == 1
    return started == str(os.getpid())
