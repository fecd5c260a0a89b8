"""Tells of which kind of pages a guest's memory file is made.

The kind decides how memory is given back (docs/performance.md): 4 KiB pages one by one, a part of
a transparent huge page after the kernel has split it, a page of hugetlbfs only as a whole.
"""

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from balloon_daemon.linux.figures import read_figures
from balloon_daemon.linux.mountinfo import read_lines

MOUNTS = Path("/proc/self/mountinfo")
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def keep_page_kinds() -> None:
    """Opens what ``pages_of`` reads, so that no later call of it waits for a lookup."""
    for path in (MOUNTS, SHMEM_ENABLED):
        with contextlib.suppress(OSError):
            read_figures(os.fspath(path))


def pages_of(fds: Iterable[int]) -> set[tuple[int, str]]:
    """The kinds of pages of shared memory files.

    The list of mounts is read once for all of them: on a host with a thousand mounts that takes a
    millisecond, and a VM may have hundreds of files.

    Source: Linux, admin-guide/mm/transhuge.rst, "Shmem / tmpfs".

    Returns:
        The size of a file's pages in bytes (more than the machine's: hugetlbfs), and the kernel's
        word for when it uses transparent huge pages: ``always``, ``within_size``, ``advise``,
        ``never``; each pair once.

    Raises:
        OSError: a descriptor has no file.
    """
    kinds, devices = set(), set()
    for fd in fds:
        page_bytes = os.fstatvfs(fd).f_bsize
        if page_bytes > mmap.PAGESIZE:
            kinds.add((page_bytes, "never"))
        else:
            device = os.fstat(fd).st_dev
            devices.add((page_bytes, f"{os.major(device)}:{os.minor(device)}"))
    # Memfds are in the kernel's own tmpfs mount, whose setting is SHMEM_ENABLED. Its values deny
    # and force overrule the huge= option of every mount.
    overall = _chosen_word(SHMEM_ENABLED)
    forced = {"deny": "never", "force": "always"}.get(overall)
    options = _mount_options() if devices and forced is None else {}
    for page_bytes, number in devices:
        kinds.add((page_bytes, forced or options.get(number, overall)))
    return kinds


def _mount_options() -> dict[str, str]:
    """For each mounted file system's device (``major:minor``): its ``huge=`` option, or
    ``never``."""
    try:
        lines = read_lines(MOUNTS)
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        # Fields as numbered in proc_pid_mountinfo(5): (3) is the device; (11), the last, has the
        # super block's options, among them huge=.
        fields = line.decode(errors="replace").split(" ")
        if len(fields) > 3 and fields[2] not in found:
            options = dict(word.partition("=")[::2] for word in fields[-1].split(","))
            found[fields[2]] = options.get("huge", "never")
    return found


def _chosen_word(path: Path) -> str:
    try:
        words = read_figures(os.fspath(path)).decode(errors="replace").split()
    except OSError:
        return "never"  # A kernel without transparent huge pages has no such file.
    return next((word.strip("[]") for word in words if word.startswith("[")), "never")
