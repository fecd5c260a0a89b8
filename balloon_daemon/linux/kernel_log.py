"""Reads the kernel's log for the one fact found only there: for which system call a seccomp filter
killed a process."""

import os
import re

_SECCOMP = re.compile(rb"type=1326 .*?\bpid=(\d+) .*?\bsyscall=(\d+) ")


def find_seccomp_kill(pid: int) -> int | None:
    """Looks for the record of a process killed by its seccomp filter.

    Args:
        pid: the process, in this process's PID namespace.

    Returns:
        The system call's number; None where the log may not be read or has no record (records are
        rate-limited, and go to the audit daemon where one runs).
    """
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    found = None
    try:
        while True:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:
                continue  # The record was overwritten during the read: go on with the next one.
            if not record:
                return found
            match = _SECCOMP.search(record)
            if match and int(match[1]) == pid:
                found = int(match[2])
    except OSError:
        # The end of the log is reached: a read there raises BlockingIOError.
        return found
    finally:
        os.close(fd)
