"""Unix sockets over which this process wants no descriptors (unix(7), SCM_RIGHTS).

Any peer may send descriptors, up to 253 with one message. A receiver without a buffer for them has
the kernel close them within its own recvmsg(2), and the last close of a socket closes what waits
in its queue. Such a close may never end: the descriptor may be a TCP socket that lingers
(SO_LINGER), or the last one of a file of FUSE. So here descriptors are refused where the kernel
can do that, and else are left in the queue, where they cost this process no number.
"""

import contextlib
import errno
import socket

_SO_PASSRIGHTS = 83  # asm-generic/socket.h, Linux 6.16


_READS = 64
"""How often a socket is read until it counts as one in which descriptors wait. A queue has some
300 messages at most, by the usual limit of a sender's buffer (net.core.wmem_max); one read of a
stream takes 64 KiB of them, and a queue of packets has 11 of them (net.unix.max_dgram_qlen)."""

_READ_BYTES = 1 << 16


class DescriptorsSentError(OSError):
    """The peer has sent descriptors; they wait in the socket's queue, and nothing behind them can
    be read. An OSError, with which asyncio's transports end a connection without a traceback."""

    def __init__(self) -> None:
        super().__init__(errno.EBADMSG, "it sends descriptors")


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
    """Has urgent bytes (MSG_OOB) stay in their place in the stream. Call it before anything is
    received.

    Otherwise recvmsg(2) skips urgent bytes, and closes the descriptors that came with them.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def bytes_without_fds(sock: socket.socket, most_bytes: int) -> int:
    """How many bytes wait that came without descriptors; the caller must read no more, as the peer
    may send others, with descriptors, before that read.

    Args:
        sock: a connected socket, after ``read_urgent_in_place``.
        most_bytes: how many bytes at most.

    Returns:
        The number; 0 where the peer has hung up.

    Raises:
        DescriptorsSentError: descriptors came with the next bytes.
        BlockingIOError: nothing has come.
        OSError: the connection has failed.
    """
    # A MSG_PEEK without an ancillary buffer stops at the first bytes that came with descriptors,
    # and sets MSG_CTRUNC. The descriptors stay in the queue.
    content, _, flags, _ = sock.recvmsg(most_bytes, 0, socket.MSG_PEEK)
    if flags & socket.MSG_CTRUNC:
        raise DescriptorsSentError
    return len(content)


def hang_up(sock: socket.socket) -> bool:
    """Shuts a connection down, and receives and forgets what waits in its queue.

    Args:
        sock: as for ``bytes_without_fds``, or one that was never connected.

    Returns:
        Whether no descriptors wait in the queue, nor ever can, so that the socket's close does not
        block.
    """
    with contextlib.suppress(OSError):  # The peer has hung up.
        sock.shutdown(socket.SHUT_RDWR)
    for _ in range(_READS):
        try:
            content, _, flags, sender = sock.recvmsg(_READ_BYTES, 0, socket.MSG_PEEK)
            if flags & socket.MSG_CTRUNC:
                return False
            if not content and not sender:
                # The queue is empty, and the connection shut down. An empty packet
                # (SOCK_SEQPACKET) would have a sender's address, and others might wait behind it.
                return True
            sock.recvmsg(len(content) or 1)
        except OSError as err:
            # EINVAL, ENOTCONN: it was never connected. After the shutdown nobody could send over
            # it even if it were connected now. Others: a pending SO_ERROR, read once.
            if err.errno in (errno.EINVAL, errno.ENOTCONN):
                return True
    return False
