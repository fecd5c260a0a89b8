"""Unix sockets over which this process wants no descriptors (unix(7), SCM_RIGHTS).

Any peer may send descriptors, up to 253 with one message. A receiver without a buffer for them has
the kernel close them within its own recvmsg(2), and the last close of a socket closes what waits
in its queue. Such a close may never end: the descriptor may be a TCP socket that lingers
(SO_LINGER), or the last one of a file of FUSE. So here descriptors are refused where the kernel
can do that, and else are left in the queue, where they cost this process no number.
"""

import contextlib
import socket

_SO_PASSRIGHTS = 83  # asm-generic/socket.h, Linux 6.16


class FdsWaitError(Exception):
    """Descriptors came with the next bytes; both are still in the socket's queue."""


def refuse_descriptors(sock: socket.socket) -> bool:
    """Has the kernel refuse descriptors: who sends some gets EPERM.

    Args:
        sock: a Unix socket before connect(2) or listen(2). Connections to a listening socket
            inherit the refusal from it, already while they wait to be accepted.

    Returns:
        False: the kernel cannot do that (before Linux 6.16).
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def read_urgent_in_place(sock: socket.socket) -> None:
    """Has urgent bytes (MSG_OOB) stay in their place in the stream; before anything is received.

    Otherwise recvmsg(2) skips urgent bytes, and closes the descriptors that came with them.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def receive_without_fds(sock: socket.socket, most_bytes: int) -> bytes:
    """Receives bytes with which no descriptors came.

    Args:
        sock: a stream socket, non-blocking and after ``read_urgent_in_place``.
        most_bytes: how many bytes at most.

    Returns:
        The bytes; b"" where the peer has hung up.

    Raises:
        FdsWaitError: descriptors came with them.
        BlockingIOError: nothing has come.
        OSError: the connection has failed.
    """
    # A MSG_PEEK without an ancillary buffer stops at the first bytes that came with descriptors,
    # and sets MSG_CTRUNC. The descriptors stay in the queue.
    some, _, flags, _ = sock.recvmsg(most_bytes, 0, socket.MSG_PEEK)
    if flags & socket.MSG_CTRUNC:
        raise FdsWaitError
    # Receive only what was looked at: the peer may have sent more by now, with descriptors.
    return sock.recv(len(some))


def hang_up(sock: socket.socket) -> bool:
    """Shuts a connection down, and receives and forgets what waits in its queue.

    Args:
        sock: as for ``receive_without_fds``.

    Returns:
        Whether no descriptors wait in the queue, nor ever can, so that the socket's close does not
        block.
    """
    with contextlib.suppress(OSError):  # The peer has hung up.
        sock.shutdown(socket.SHUT_RDWR)
    for _ in range(2):  # The first recvmsg(2) may report a pending SO_ERROR instead.
        try:
            # Nothing more can come, and the queue is as long as a socket's buffer at most.
            while receive_without_fds(sock, 1 << 16):
                pass
        except FdsWaitError:
            return False
        except OSError:
            continue
        return True
    return False
