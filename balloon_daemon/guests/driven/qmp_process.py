"""What the host's kernel says of a QEMU process that its monitor does not say.

Everything is read from /proc: opening a file of QEMU's, or even stat(2), could hang for good where
the server of its file system (FUSE, NFS) does not answer.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice

from balloon_daemon.linux.figures import read_once
from balloon_daemon.linux.mountinfo import Mount, read_mounts
from balloon_daemon.linux.process_figures import apart, files_of
from balloon_daemon.linux.reading_child import MOST_BYTES

MAX_THREADS = 256
"""How many threads are looked at, oldest first: the first virtual CPU's is among the oldest."""

MOST_READ, WITHIN_S = 64, 0.02
"""The status of at most so many of these threads is read, for at most so many seconds."""

_INNER = re.compile(rb"^NSpid:\s+(.*)$", re.MULTILINE)


def has_thread(pid: int, thread: int) -> bool:
    """Whether a process has this thread, by the number that its own PID namespace gives it.

    SO_PEERCRED gives the process that made the listening socket of the monitor, which is not QEMU
    where another process (libvirt does) has handed the socket to QEMU. And QEMU may be in a
    container, where its threads have other numbers.

    Source: proc_pid_status(5), NSpid.
    """
    try:
        # List only the first threads: a process may have many thousands, and each takes some 2 µs.
        # The kernel lists some 1,000 at a time.
        with os.scandir(f"/proc/{pid}/task") as entries:
            tasks = [entry.name for entry in islice(entries, MAX_THREADS)]
    except OSError:
        return False
    # Outside of containers the number is the same, and no thread's status need be read.
    return str(thread) in tasks or thread in _inner_numbers(pid, tasks)


def _inner_numbers(pid: int, tasks: Iterable[str]) -> Iterator[int]:
    """The numbers that threads have in their process's own PID namespace, until the time is up;
    none where the process is in ours."""
    until_s, content = time.monotonic() + WITHIN_S, apart(pid)
    for task in islice(tasks, MOST_READ):
        if time.monotonic() >= until_s:
            return
        try:
            status = read_once(f"/proc/{pid}/task/{task}/status", MOST_BYTES, content)
        except (FileNotFoundError, ProcessLookupError):
            continue  # This thread has ended.
        except OSError:
            return
        found = _INNER.search(status)
        numbers = found[1].split() if found is not None else []
        if len(numbers) < 2:
            return
        yield int(numbers[-1])


def descriptor_of(pid: int, target: str) -> str:
    """The path in /proc of a descriptor whose link begins with ``target``; "" for none."""
    return next((path for path, link in files_of(pid) if link.startswith(target)), "")


def on_hugetlbfs(paths: Iterable[str]) -> set[str]:
    """Those paths that lie on a mounted hugetlbfs, by our own list of mounts."""
    try:
        mounts = read_mounts()  # Once for all: a host may have thousands.
    except OSError:
        return set()
    return {path for path in paths if _file_system(path, mounts) == "hugetlbfs"}


def _file_system(path: str, mounts: Iterable[Mount]) -> str:
    fstype, longest = "", 0
    for mount in mounts:
        point = mount.point.rstrip("/")
        # Of two mounts at one place the later one hides the other.
        if len(point) >= longest and f"{path}/".startswith(f"{point}/"):
            fstype, longest = mount.fstype, len(point)
    return fstype
