"""Makes a host short of some resource, for one running process."""

import contextlib
import os
import resource
from collections.abc import Iterator

import psutil

from balloon_daemon.linux import asked_child
from tests.harness.daemon import Daemon
from tests.harness.waiting import DeadlineError, wait_until


@contextlib.contextmanager
def limited(pid: int, kind: int, limit: int) -> Iterator[None]:
    """Lowers a process's soft limit for as long as the block runs (prlimit(2))."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (limit, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, (soft, hard))


def fd_numbers(pid: int) -> set[int]:
    """The descriptors that a process has open."""
    return {int(number) for number in os.listdir(f"/proc/{pid}/fd")}


def fds_but_figures(daemon: Daemon) -> set[int]:
    """A controller's descriptors without its files of figures, which stay open once read, and
    without the child that looks VMMs' processes up, which is ended here: it ends when it is idle
    for 3 s."""
    end_looker(daemon.pid)
    figures = ("/proc/", "/sys/", f"{daemon.config.low_mem.path.resolve()}/")
    found = set[int]()
    for number in fd_numbers(daemon.pid):
        with contextlib.suppress(FileNotFoundError):  # closed after the listing
            if not os.readlink(f"/proc/{daemon.pid}/fd/{number}").startswith(figures):
                found.add(number)
    return found


def end_looker(pid: int) -> None:
    """Kills the child that looks names up for a controller, if there is one."""
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == asked_child.NAME and child.status() != psutil.STATUS_ZOMBIE:
                before = fd_numbers(pid)
                child.kill()
                # The controller's end of the child's socket, as nothing else closes meanwhile. It
                # is closed already where the controller was just ending the child itself.
                with contextlib.suppress(DeadlineError):
                    wait_until(
                        lambda before=before: before - fd_numbers(pid),  # type: ignore[misc]
                        what="it is closed",
                    )


def limit_for_room(taken: set[int], room: int) -> int:
    """The RLIMIT_NOFILE under which a process with these descriptors can open so many more."""
    limit = 0
    while True:
        if limit not in taken:
            if room == 0:
                return limit
            room -= 1
        limit += 1


def status_kib(pid: int, name: str) -> int:
    """A figure of /proc/PID/status (VmSize, VmRSS...), in KiB."""
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith(f"{name}:"))
    return int(line.split()[1])


def cpu_s(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_asleep(pid: int) -> bool:
    """Whether a process waits in the kernel, as a device does in epoll_wait with nothing to do."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "S"


def at_rest(daemon: Daemon) -> set[int]:
    """The descriptors that a controller has open; its files of figures stay open."""
    return fd_numbers(daemon.pid)
