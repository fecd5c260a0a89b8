"""What is mounted where, as this process sees it."""

import os
import re
from pathlib import Path
from typing import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")

_ESCAPED = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount.

    Attributes:
        root: The directory of the file system that is mounted; of a cgroup file system as seen
            from the cgroup namespace, which may begin with ``/..``.
        point: Where it is mounted.
        fstype: The file system's type, such as ``cgroup2`` or ``fuse.lxcfs``.
        options: The super block's options.
    """

    root: str
    point: str
    fstype: str
    options: frozenset[str]


def read_mounts(path: Path = MOUNTINFO) -> list[Mount]:
    """All mounts, in the order in which they were made; a line that is none is left out.

    Source: proc_pid_mountinfo(5).

    Raises:
        OSError: the kernel's reason.
    """
    mounts = []
    # Only blanks, tabs, newlines and backslashes are escaped (fs/proc_namespace.c, mangle): a
    # mount point may have any other kind of space or line end in its name.
    for line in os.fsdecode(path.read_bytes()).split("\n"):
        before, _, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(types) >= 3:
            options = frozenset(types[2].split(","))
            mounts.append(Mount(_plain(fields[3]), _plain(fields[4]), types[0], options))
    return mounts


def _plain(name: str) -> str:
    """A name without the kernel's octal escapes."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), name)
