"""Unix sockets over which this process wants no descriptors (unix(7), SCM_RIGHTS).

Any peer may send descriptors, up to 253 with one message. A receiver without a buffer for them has
the kernel close them within its own recvmsg(2), and the last close of a socket closes what waits
in its queue. Such a close may never end: the descriptor may be a TCP socket that lingers
(SO_LINGER), or the last one of a file of FUSE.
"""

import socket

_SO_PASSRIGHTS = 83  # asm-generic/socket.h, Linux 6.16


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
