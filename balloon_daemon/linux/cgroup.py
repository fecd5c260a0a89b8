"""How much memory the limits of this process's cgroups still allow.

A process in a container or below a slice with a limit meets the OOM killer (or, at memory.high, is
throttled) while the host has memory to spare. So the memory left below the limit of any of its
cgroups, from its own up to the root, matters as much as the host's.

The memory left is the limit, less the usage, plus what the kernel would reclaim inside before it
kills: file pages (active_file, inactive_file; shared memory is not among them) and, where the
kernel reports them (cgroup v2), reclaimable slabs. The kernel computes a host's MemAvailable from
the same parts.

Source: admin-guide/cgroup-v2.rst, "Memory Interface Files"; admin-guide/cgroup-v1/memory.rst, 5.2.
"""

import errno
import glob
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from balloon_daemon.linux.figures import one_read_of, read_figures, read_once
from balloon_daemon.linux.mountinfo import Mount, read_mounts
from balloon_daemon.linux.systemd import is_process_of_unit
from balloon_daemon.named_tuple import NamedTuple

PROC_SELF = Path("/proc/self")

MOST_SEARCHED = 4096
"""How many cgroups are searched at most for this process's own, where the mount hides its path;
each takes some 10 µs."""


class CgroupLimit(NamedTuple):
    """A cgroup's limit, and the memory left below it.

    Attributes:
        path: The file that holds the limit.
        limit_bytes: The limit.
        available_bytes: The memory that can still be used below the limit, from 0 to the limit.
    """

    path: str
    limit_bytes: int
    available_bytes: int


class _Files(NamedTuple):
    """The files of one version of cgroups."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: re.Pattern[bytes]


_V1 = _Files(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    # In memory.stat of cgroup v1, only fields whose names begin with "total_" include the cgroup's
    # descendants.
    re.compile(rb"^total_(?:in)?active_file ([0-9]+)$", re.MULTILINE),
)
_V2 = _Files(
    ("memory.max", "memory.high"),
    "memory.current",
    re.compile(rb"^(?:(?:in)?active_file|slab_reclaimable) ([0-9]+)$", re.MULTILINE),
)


class MemoryCgroups:
    """The cgroups of this process, from its own to the outermost that can be seen.

    They are looked up at the first call, and again when this process is moved to another cgroup or
    one of their files is gone. Limits are read anew at each call.

    Args:
        proc: The directory with this process's ``cgroup`` and ``mountinfo``.
        has_unit: Whether a service manager made the innermost cgroup for this process alone; None:
            this process's environment tells.
    """

    def __init__(self, proc: Path = PROC_SELF, *, has_unit: bool | None = None) -> None:
        self._proc = proc
        self._has_unit = is_process_of_unit() if has_unit is None else has_unit
        self._membership = b""
        self._files = _V2
        self._directories: list[str] = []
        self._limited: set[str] = set()
        self._gone = False
        self.problem = ""
        """Why a limit could not be read the last time; "" where all could be."""

    def limits(self, total_bytes: int) -> list[CgroupLimit]:
        """The present limits, the innermost cgroup's first; for each cgroup its lowest limit.

        Args:
            total_bytes: The host's memory: a limit that is not below it does not count.
        """
        membership = self._read_membership()
        if membership == self._membership and not self._gone:
            found = self._read_limits(total_bytes)
            if not self._gone:
                return found
        self._find(membership)
        return self._read_limits(total_bytes)

    def _read_limits(self, total_bytes: int) -> list[CgroupLimit]:
        self.problem, self._gone = "", False
        found = [self._limit(directory, total_bytes) for directory in self._directories]
        return [limit for limit in found if limit is not None]

    def _read_membership(self) -> bytes:
        try:
            return read_figures(f"{self._proc}/cgroup", content=one_read_of)
        except OSError:
            return b""  # A kernel without cgroups has no /proc/self/cgroup.

    def _limit(self, directory: str, total_bytes: int) -> CgroupLimit | None:
        limit_bytes, path = total_bytes, ""
        try:
            for name in self._files.limits:
                limit = _number(f"{directory}/{name}")
                if limit is not None and limit < limit_bytes:
                    limit_bytes, path = limit, f"{directory}/{name}"
            if not path:
                return None
            self._limited.add(directory)
            used = _number(f"{directory}/{self._files.usage}") or 0
            stat = read_figures(f"{directory}/memory.stat", content=one_read_of)
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.ENODEV):
                self.problem = f"{err.filename}: {err.strerror}"
            # The root cgroup and a cgroup without the memory controller have no limit file, which
            # is no problem. A cgroup that had a limit file earlier is gone: `_gone` says that the
            # cgroups have to be looked up again.
            self._gone |= directory in self._limited
            return None
        except ValueError as err:
            self.problem = str(err)
            return None
        reclaimable = sum(map(int, self._files.reclaimable.findall(stat)))
        # Cut `used - reclaimable` off at 0. The counters are read one after the other, and
        # memory.stat may lag behind by seconds, so more may seem reclaimable than is used.
        left = limit_bytes - max(used - reclaimable, 0)
        return CgroupLimit(path, limit_bytes, max(left, 0))

    def _find(self, membership: bytes) -> None:
        self._membership = membership
        self._directories, self._limited = [], set()
        paths: dict[str, str] = {}
        for line in os.fsdecode(membership).splitlines():
            # A line is "hierarchy:controllers:path of this process's cgroup"; the path may hold
            # colons.
            _, _, rest = line.partition(":")
            controllers, _, where = rest.partition(":")
            paths.update(dict.fromkeys(controllers.split(","), where.removesuffix(" (deleted)")))
        self._files = _V1 if "memory" in paths else _V2
        path = paths.get("memory", paths.get(""))
        if path is None:
            return
        try:
            mounts = read_mounts(self._proc / "mountinfo")
        except OSError:
            return
        chains = [
            _directories(path, mount)
            for mount in mounts
            if (mount.fstype == "cgroup2" and self._files is _V2)
            or (mount.fstype == "cgroup" and self._files is _V1 and "memory" in mount.options)
        ]
        chain = max(chains, key=len, default=[])
        if self._has_unit:
            chain = chain[_of_unit(path) :]
        self._directories = _hierarchical(chain) if self._files is _V1 else chain


def _directories(path: str, mount: Mount) -> list[str]:
    """A cgroup's directory and its ancestors' within one mount, the innermost first.

    Path and root are given as the cgroup namespace shows them: above its root they begin with
    ``/..``.
    """
    ours, root = PurePosixPath(path).parts[1:], PurePosixPath(mount.root).parts[1:]
    above, hidden = ours.count(".."), root.count("..") - ours.count("..")
    if hidden > 0:
        # The mount is older than this process's cgroup namespace, and begins above the namespace's
        # root. The kernel shows each directory between the mount's root and the namespace's only
        # as "/..". So the names of these directories are searched for.
        if root.count("..") < len(root):
            return []
        below = _search(mount.point, hidden, ours[above:])
    elif ours[: len(root)] == root and ".." not in ours[len(root) :]:
        below = ours[len(root) :]
    else:
        return []
    point = mount.point.rstrip("/")
    return ["/".join((point, *below[:depth])) for depth in range(len(below), -1, -1)]


def _search(top: str, hidden: int, names: Sequence[str]) -> tuple[str, ...]:
    """Finds this process below ``top``, where only the end of its cgroup's path is known.

    Args:
        top: The directory of an ancestor.
        hidden: How many names are unknown.
        names: The names that follow the unknown ones.

    Returns:
        All names; empty where this process is not found.
    """
    pattern = "/".join([*["*"] * hidden, *map(glob.escape, names), "cgroup.procs"])
    us = str(os.getpid()).encode()
    for found in islice(glob.iglob(pattern, root_dir=top, include_hidden=True), MOST_SEARCHED):
        try:
            if us in read_once(f"{top}/{found}").split():
                return PurePosixPath(found).parent.parts
        except OSError:
            continue  # The cgroup has gone, or is threaded and refuses the read.
    return ()


def _of_unit(path: str) -> int:
    """How many cgroups, from the innermost on, a service manager made for one service.

    A unit's own limit (MemoryMax=) is for the daemon, and no VM runs in the unit, so it is left
    out; the limits of its slices count. In a cgroup namespace of its own
    (ProtectControlGroups=private) the root is the unit's cgroup.
    """
    parts = PurePosixPath(path).parts
    if parts == ("/",):
        return 1
    services = [depth for depth, name in enumerate(parts) if name.endswith(".service")]
    return len(parts) - services[-1] if services else 0


def _hierarchical(chain: Sequence[str]) -> list[str]:
    """The innermost cgroup (v1) of a chain, and its ancestors that count descendants' usage too.

    Before Linux 5.11 memory.use_hierarchy could switch this counting off. An ancestor without it,
    and all further ones, are left out.
    """
    counting = list(chain[:1])
    for directory in chain[1:]:
        try:
            if _number(f"{directory}/memory.use_hierarchy") == 0:
                break
        except (OSError, ValueError):
            pass
        counting.append(directory)
    return counting


def _number(path: str) -> int | None:
    """The number in a file, in bytes where it is an amount; None: the file says ``max``.

    Raises:
        OSError: the file cannot be read; the kernel's reason, with the file's name.
        ValueError: the file holds no number; says which file and what it holds.
    """
    content = read_figures(path, content=one_read_of).strip()
    if content == b"max":
        return None
    if not content.isdigit() or len(content) > 20:
        raise ValueError(f"{path} holds {content[:40]!r}, not a number of bytes")
    return int(content)
