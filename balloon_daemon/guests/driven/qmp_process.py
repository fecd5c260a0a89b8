"""What the host's kernel says of a QEMU process that its monitor does not say.

Everything is read from /proc: opening a file of QEMU's, or even stat(2), could hang for good where
the server of its file system (FUSE, NFS) does not answer.
"""

import os
from collections.abc import Iterable

from balloon_daemon.linux.figures import read_once
from balloon_daemon.linux.mountinfo import Mount, read_mounts
from balloon_daemon.linux.process_figures import files_of

MAX_THREADS = 256
"""How many threads are looked at, oldest first: the first virtual CPU's is among the oldest."""


def has_thread(pid: int, thread: int) -> bool:
    """Whether a process has this thread, by the number that its own PID namespace gives it.

    SO_PEERCRED gives the process that made the listening socket of the monitor, which is not QEMU
    where another process (libvirt does) has handed the socket to QEMU. And QEMU may be in a
    container, where its threads have other numbers.

    Source: proc_pid_status(5), NSpid.
    """
    try:
        tasks = os.listdir(f"/proc/{pid}/task")[:MAX_THREADS]
    except OSError:
        return False
    # Outside of containers the number is the same, and no thread's status need be read.
    return str(thread) in tasks or any(_inner_number(pid, task) == thread for task in tasks)


def _inner_number(pid: int, task: str) -> int:
    try:
        status = read_once(f"/proc/{pid}/task/{task}/status")
    except OSError:
        return -1
    line = next((line for line in status.split(b"\n") if line.startswith(b"NSpid:")), b"NSpid: -1")
    return int(line.split()[-1])


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
