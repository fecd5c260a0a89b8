"""Tells of which kind of pages a guest's memory file is made.

The kind decides how memory is given back (docs/performance.md): 4 KiB pages one by one, a part of
a transparent huge page after the kernel has split it, a page of hugetlbfs only as a whole.
"""

import mmap
import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def pages_of(fd: int) -> tuple[int, str]:
    """The kind of pages of a shared memory file.

    Source: Linux, admin-guide/mm/transhuge.rst, "Shmem / tmpfs".

    Returns:
        The size of its pages in bytes (more than the machine's: hugetlbfs), and the kernel's word
        for when it uses transparent huge pages: ``always``, ``within_size``, ``advise``,
        ``never``.

    Raises:
        OSError: the descriptor has no file.
    """
    page_bytes = os.fstatvfs(fd).f_bsize
    if page_bytes > mmap.PAGESIZE:
        return page_bytes, "never"
    # Memfds are in the kernel's own tmpfs mount, whose setting is SHMEM_ENABLED. Its values deny
    # and force overrule the huge= option of every mount.
    overall = _chosen_word(SHMEM_ENABLED)
    device = os.fstat(fd).st_dev
    option = _mount_option(f"{os.major(device)}:{os.minor(device)}")
    if overall in ("deny", "force"):
        option = {"deny": "never", "force": "always"}[overall]
    elif option is None:
        option = overall
    return page_bytes, option


def _mount_option(device: str) -> str | None:
    """The ``huge=`` of a mounted tmpfs, else ``never``; None where it is not mounted."""
    try:
        content = MOUNTS.read_bytes().decode(errors="replace")
    except OSError:
        return None
    # Split lines at newlines and fields at blanks only: the kernel escapes blanks, tabs, newlines
    # and backslashes in a mount point's name (fs/proc_namespace.c, mangle), but no other white
    # space.
    for line in content.split("\n"):
        # Fields as numbered in proc_pid_mountinfo(5): (3) is the device; (11), the last, has the
        # super block's options, among them huge=.
        fields = line.split(" ")
        if len(fields) > 3 and fields[2] == device:
            options = dict(word.partition("=")[::2] for word in fields[-1].split(","))
            return options.get("huge", "never")
    return None


def _chosen_word(path: Path) -> str:
    try:
        words = path.read_text().split()
    except OSError:
        return "never"  # A kernel without transparent huge pages has no such file.
    return next((word.strip("[]") for word in words if word.startswith("[")), "never")
