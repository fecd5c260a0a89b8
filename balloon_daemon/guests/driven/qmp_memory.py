"""Where a QEMU has its VM's memory, by its memory backends; refuses huge pages of hugetlbfs.

Whether a file lies on hugetlbfs is told by our own list of mounts: stat(2) of such a file could
wait for good where the server of its file system (FUSE, NFS) does not answer.
"""

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_answers as answers
from balloon_daemon.guests.driven import vmm_process
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.qmp_wire import Monitor, Question, property_of
from balloon_daemon.linux.mountinfo import Mount, read_mounts

T = TypeVar("T")


async def find_memory(monitor: Monitor, backends: list[str], pid: int | None) -> str:
    """The path in /proc of the file that is the VM's memory; "": none is, or several are.

    Args:
        monitor: asks QEMU.
        backends: the names of its memory backends.
        pid: its process; None: unknown.

    Raises:
        ControlError: the memory is in huge pages of hugetlbfs. QEMU frees a huge page only when 1
            MiB of balloon pages in a row has all of the huge page's 4 KiB pages.
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
    pooled = on_hugetlbfs(filter(None, files))
    for each, kind, is_huge, file in zip(paths, kinds, huge, files, strict=True):
        if is_huge or file in pooled:
            raise ControlError(Fault.HUGETLB, answers.shown(os.path.basename(each)))
        if file or kind == "memory-backend-memfd":  # QEMU names a memfd by its object's type.
            found[each] = file or f"/memfd:{kind}"
    # "" where the memory is of several NUMA nodes, each with a backend of its own.
    is_other = main.value and main.value not in found
    if pid is None or len(found) != 1 or is_other:
        return ""
    opened = await vmm_process.open_files(pid, [*found.values()])
    return opened.found[0].path if opened.found else ""


def on_hugetlbfs(paths: Iterable[str]) -> set[str]:
    """Those paths that lie on a mounted hugetlbfs, by our own list of mounts."""
    try:
        mounts = read_mounts()  # Once for all paths: a host may have thousands of mounts.
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
