"""Reads the kernel's log for the one fact found only there: for which system call a seccomp filter
killed a process."""

import contextlib
import os
import re
import time

from balloon_daemon.linux.figures import lockable

AT_ONCE_S = 0.001
"""How long ``KernelLog.read_on`` reads at a time. A record takes 1 µs, and a log may have tens of
thousands."""

_MOST_KILLS = 64
_SECCOMP = re.compile(rb"type=1326 .*?\bpid=(\d+) .*?\bsyscall=(\d+) ")


class KernelLog:
    """The kernel's log, which stays open from the first reading on: each reading goes on where the
    last one ended, and no close has to look at locks that others have put on the file."""

    def __init__(self) -> None:
        self._fd = lockable(-1)
        self._kills: dict[int, int] = {}

    def read_on(self, within_s: float = AT_ONCE_S) -> bool:
        """Reads on, for so many seconds; True: to the end, or the log may not be read."""
        ends_s = time.monotonic() + within_s
        try:
            if self._fd.fileno() < 0:
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._fd = lockable(os.open("/dev/kmsg", flags))
            while True:
                # EPIPE: the record was overwritten during the read. Go on with the next one.
                with contextlib.suppress(BrokenPipeError):
                    self._take(os.read(self._fd.fileno(), 8192))
                if time.monotonic() >= ends_s:
                    return False
        except OSError:
            # The end of the log is reached: a read there raises BlockingIOError.
            return True

    def seccomp_kill(self, pid: int) -> int | None:
        """For which system call a process was killed by its seccomp filter, by the records that
        were read.

        Args:
            pid: the process, in this process's PID namespace.

        Returns:
            The system call's number, once; None where the log may not be read or has no record
            (records are rate-limited, and go to the audit daemon where one runs).
        """
        return self._kills.pop(pid, None)

    def close(self) -> None:
        """Closes the log; the next reading begins with its oldest record."""
        self._fd.close()

    def _take(self, record: bytes) -> None:
        match = _SECCOMP.search(record)
        if match is None:
            return
        self._kills[int(match[1])] = int(match[2])
        if len(self._kills) > _MOST_KILLS:
            del self._kills[next(iter(self._kills))]


KERNEL_LOG = KernelLog()
"""The kernel's log, as this process has it open."""


def find_seccomp_kill(pid: int) -> int | None:
    """For which system call a process was killed by its seccomp filter; None: unknown. Reads the
    whole log, which may take long: not for a process with an event loop."""
    log = KernelLog()
    while not log.read_on():
        pass
    log.close()
    return log.seccomp_kill(pid)
