"""The mounts, as this process sees them."""

import os
import re
from pathlib import Path

from balloon_daemon.linux.figures import read_figures
from balloon_daemon.named_tuple import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")

_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount.

    Attributes:
        root: The mounted directory of the file system; for a cgroup file system as seen from the
            cgroup namespace, so it may begin with ``/..``.
        point: The directory where it is mounted.
        fstype: The file system's type, such as ``cgroup2`` or ``fuse.lxcfs``.
        options: The super block's options.
    """

    root: str
    point: str
    fstype: str
    options: frozenset[str]


def read_mounts(path: Path = MOUNTINFO) -> list[Mount]:
    """All mounts, in the order in which they were made; a line of another format is left out.

    Source: proc_pid_mountinfo(5).

    Raises:
        OSError: the kernel's reason.
    """
    mounts = []
    # Split lines at newlines and fields at blanks only: the kernel escapes blanks, tabs, newlines
    # and backslashes in a mount point's name (fs/proc_namespace.c, mangle), but no other white
    # space.
    for line in os.fsdecode(read_figures(os.fspath(path))).split("\n"):
        before, _, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(types) >= 3:
            options = frozenset(types[2].split(","))
            mounts.append(Mount(_plain(fields[3]), _plain(fields[4]), types[0], options))
    return mounts


def _plain(name: str) -> str:
    """The name without the kernel's octal escapes."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), name)
