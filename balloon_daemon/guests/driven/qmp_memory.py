"""Which of QEMU's memory backends lie on hugetlbfs, by our own list of mounts.

stat(2) of such a file could wait for good where the server of its file system (FUSE, NFS) does not
answer.
"""

from collections.abc import Iterable

from balloon_daemon.linux.mountinfo import Mount, read_mounts


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
