"""Where a QEMU has its VM's memory, by its memory backends; refuses huge pages of hugetlbfs.

Whether a file lies on hugetlbfs is told by our own list of mounts: stat(2) of such a file could
wait for good where the server of its file system (FUSE, NFS) does not answer.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_answers as answers
from balloon_daemon.guests.driven import vmm_process
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.qmp_wire import Monitor, Question, property_of
from balloon_daemon.linux.mountinfo import MOST_BYTES, MOUNTINFO, Mount, read_mounts

REST_S = 1.0
"""How long a list of mounts is used before it is read anew."""

HUGETLBFS = "hugetlbfs"

T = TypeVar("T")


async def find_memory(monitor: Monitor, backends: list[str], pid: int | None) -> str:
    """The path in /proc of the file that is the VM's memory; "": none is, or several are.

    Args:
        monitor: asks QEMU.
        backends: the names of its memory backends.
        pid: its process; None: unknown.

    Raises:
        ControlError: the memory is in huge pages of hugetlbfs. QEMU frees a huge page only if one
            buffer of the driver has all of its 4 KiB pages, and Linux's driver puts 1 MiB of
            pages into a buffer.
    """
    paths = [f"/objects/{name}" for name in backends]

    async def of_all(name: str, read: Callable[[object], T]) -> list[T]:
        asked = [Question("qom-get", read, property_of(path, name)) for path in paths]
        await monitor.ask(*asked)
        return [each.value for each in asked]

    main = Question("qom-get", answers.text, property_of("/machine", "memory-backend"))
    await monitor.ask(main)
    kinds = await of_all("type", answers.text)
    huge = await of_all("hugetlb", answers.is_true)
    files = await of_all("mem-path", answers.text)
    found = {}
    pooled = MOUNTS.on_hugetlbfs(filter(None, files))
    for each, kind, is_huge, file in zip(paths, kinds, huge, files, strict=True):
        if is_huge or file in pooled:
            raise ControlError(Fault.HUGETLB, answers.shown(os.path.basename(each)))
        if file or kind == "memory-backend-memfd":  # QEMU names a memfd by its object's type.
            found[each] = file or f"/memfd:{kind}"
    # The machine names no backend ("") where its memory is of several NUMA nodes, each with a
    # backend of its own.
    is_other = main.value and main.value not in found
    if pid is None or len(found) != 1 or is_other:
        return ""
    opened = await vmm_process.open_files(pid, [*found.values()])
    return opened.found[0].path if opened.found else ""


class Mounts:
    """Those of our own mounts that tell whether a path lies on hugetlbfs; read once in ``REST_S``
    at most.

    A host of containers has thousands of mounts, and any user may make a thousand with
    fusermount3. Reading one takes 8 µs, comparing it with 64 paths in a pool as long. One
    user may have hundreds of monitors, to each of which balloond connects again and again.

    Args:
        path: the kernel's list of mounts.
    """

    def __init__(self, path: Path = MOUNTINFO) -> None:
        self._path = path
        self._mounts: list[Mount] = []
        self._again_s = 0.0

    def on_hugetlbfs(self, paths: Iterable[str]) -> set[str]:
        """Those paths that lie on a mounted hugetlbfs."""
        mounts = self._present()
        pools = tuple({_within(mount) for mount in mounts if mount.fstype == HUGETLBFS})
        # Compare a path with all mounts only where it lies below the mount point of a hugetlbfs.
        below = [path for path in paths if f"{path}/".startswith(pools)]
        return {path for path in below if _file_system(path, mounts) == HUGETLBFS}

    def _present(self) -> list[Mount]:
        now_s = time.monotonic()
        if now_s >= self._again_s:
            self._again_s = now_s + REST_S
            try:
                self._mounts = _in_pools(read_mounts(self._path, MOST_BYTES))
            except OSError:
                self._mounts = []
        return self._mounts


MOUNTS = Mounts()


def _in_pools(mounts: list[Mount]) -> list[Mount]:
    """The mounts of hugetlbfs, and those at or below their mount points. No other mount decides
    about a path in a pool: the longest mount point above the path counts."""
    pools = tuple({_within(mount) for mount in mounts if mount.fstype == HUGETLBFS})
    return [mount for mount in mounts if _within(mount).startswith(pools)]


def _within(mount: Mount) -> str:
    """The beginning of the path of each file that lies on this mount or on one below it."""
    return f"{mount.point.rstrip('/')}/"


def _file_system(path: str, mounts: Iterable[Mount]) -> str:
    fstype, longest, path = "", 0, f"{path}/"
    for mount in mounts:
        # Of two mounts at one place the later one hides the other.
        if path.startswith(within := _within(mount)) and len(within) >= longest:
            fstype, longest = mount.fstype, len(within)
    return fstype
