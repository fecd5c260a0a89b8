"""The process of a keeper, for the balloond that has started it.

The standard library's subprocess is not used: it would cost the controller a quarter of a MiB.
"""

import contextlib
import os
import select
import signal
import sys

from balloon_daemon.handover import fd_keeper
from balloon_daemon.linux.figures import lockable

_NULL = [
    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
    (os.POSIX_SPAWN_DUP2, 0, 1),
    (os.POSIX_SPAWN_DUP2, 0, 2),
]
"""A process that reads balloond's standard output to the end would wait for the keeper's end too,
so the keeper's streams are /dev/null."""


class KeeperProcess:
    """Starts a keeper in a session of its own.

    Args:
        path: where it listens for later balloonds, absolute.
        fd: the number of the socket through which it talks to this one; it becomes inheritable.

    Attributes:
        pid: its process id.

    Raises:
        OSError: no process can be started.
    """

    def __init__(self, path: str, fd: int) -> None:
        # Run the keeper by its file and isolated (-I), so that it imports no file of the current
        # directory, and without site-packages (-S), which it does not need.
        command = [sys.executable, "-I", "-S", fd_keeper.__file__, path, str(fd)]
        os.set_inheritable(fd, True)
        self.pid = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            file_actions=_NULL,
            setsid=True,
            # Python ignores SIGPIPE and SIGXFSZ, and a program inherits that.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
        self._status: int | None = None

    def wait(self, within_s: float) -> int | None:
        """The keeper's exit status, once it has ended; None: it has not ended in this time, in
        seconds."""
        if self._status is None:
            with contextlib.closing(lockable(os.pidfd_open(self.pid))) as pidfd:
                poller = select.poll()
                poller.register(pidfd, select.POLLIN)
                poller.poll(within_s * 1000)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill(self) -> None:
        """Kills the keeper, and waits until it has ended."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
