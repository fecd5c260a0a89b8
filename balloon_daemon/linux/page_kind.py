"""What pages a guest's memory file is made of.

It decides how memory comes back (docs/performance.md): 4 KiB pages one by one, a transparent huge
page after a split that the kernel makes, a page of hugetlbfs only as a whole.
"""

import mmap
import os
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def pages_of(fd: int) -> tuple[int, str]:
    """Tells what pages a shared memory file is made of.

    Source: Linux, admin-guide/mm/transhuge.rst, "Shmem / tmpfs".

    Returns:
        The size of its pages in bytes (more than the machine's: hugetlbfs), and the kernel's word
        for when it has transparent huge pages: ``always``, ``within_size``, ``advise``, ``never``.

    Raises:
        OSError: the descriptor is none of a file.
    """
    page_bytes = os.fstatvfs(fd).f_bsize
    if page_bytes > mmap.PAGESIZE:
        return page_bytes, "never"
    # The kernel's own mount, which memfds are on, goes by this; it overrules the others too.
    overall = _chosen_word(SHMEM_ENABLED)
    device = os.fstat(fd).st_dev
    option = _mount_option(f"{os.major(device)}:{os.minor(device)}")
    if overall in ("deny", "force"):
        option = {"deny": "never", "force": "always"}[overall]
    elif option is None:
        option = overall
    return page_bytes, option


def _mount_option(device: str) -> str | None:
    """The ``huge=`` of a mounted tmpfs, ``never`` without one; None where it is not mounted."""
    try:
        content = MOUNTS.read_bytes().decode(errors="replace")
    except OSError:
        return None
    # A mount point may have any other kind of space or line end in its name: only blanks, tabs,
    # newlines and backslashes are escaped (fs/proc_namespace.c, mangle).
    for line in content.split("\n"):
        # proc_pid_mountinfo(5): (3) is the device, (11) the super block's options.
        fields = line.split(" ")
        if len(fields) > 3 and fields[2] == device:
            options = dict(word.partition("=")[::2] for word in fields[-1].split(","))
            return options.get("huge", "never")
    return None


def _chosen_word(path: Path) -> str:
    try:
        words = path.read_text().split()
    except OSError:
        return "never"  # A kernel without transparent huge pages.
    return next((word.strip("[]") for word in words if word.startswith("[")), "never")
