"""The mounts, as this process sees them."""

import os
import re
from pathlib import Path

from balloon_daemon.linux import figures
from balloon_daemon.linux.figures import content_of, read_figures
from balloon_daemon.named_tuple import NamedTuple

MOUNTINFO = Path("/proc/self/mountinfo")

MOST_BYTES = 256 * 1024
"""How many bytes of the list of mounts are read while VMs wait: this takes 3 to 6 ms, and covers
some 2,000 mounts on a usual host. Any user may make 1,000 mounts (fusermount3(1)), whose lines
have thousands of bytes each where their paths are long: the whole list would take over 30 ms."""

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


def read_lines(path: Path = MOUNTINFO, most_bytes: int = MOST_BYTES) -> list[bytes]:
    """The first lines of a list of mounts.

    Args:
        path: the list, such as /proc/self/mountinfo.
        most_bytes: how much of it is read; a line that goes on beyond that is left out.

    Raises:
        OSError: the kernel's reason.
    """
    content = read_figures(
        os.fspath(path), content=lambda fd, most: content_of(fd, min(most, most_bytes))
    )
    # Split lines at newlines only: the kernel escapes blanks, tabs, newlines and backslashes in a
    # mount point's name (fs/proc_namespace.c, mangle), but no other white space.
    lines = content.split(b"\n")
    return lines[:-1] if len(content) >= most_bytes else lines


def read_mounts(path: Path = MOUNTINFO, most_bytes: int = figures.MOST_BYTES) -> list[Mount]:
    """The mounts, in the order in which they were made; a line of another format is left out.

    Source: proc_pid_mountinfo(5).

    Args:
        path: the list.
        most_bytes: how much of it is read.

    Raises:
        OSError: the kernel's reason.
    """
    mounts = []
    for line in read_lines(path, most_bytes):
        # Split fields at blanks only, as lines at newlines (``read_lines``).
        before, _, after = os.fsdecode(line).partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if len(fields) >= 6 and len(types) >= 3:
            options = frozenset(types[2].split(","))
            mounts.append(Mount(_plain(fields[3]), _plain(fields[4]), types[0], options))
    return mounts


def _plain(name: str) -> str:
    """The name without the kernel's octal escapes."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), name)
