"""A cgroup for one test with a limit on its memory, where this process may make one."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from balloon_daemon.linux.mountinfo import read_mounts
from tests.harness.waiting import wait_until


class MemoryCgroup:
    """A cgroup's directory, of either version."""

    def __init__(self, path: Path, *, v1: bool) -> None:
        self.path = path
        self.limit_file = path / ("memory.limit_in_bytes" if v1 else "memory.max")
        self._usage = path / ("memory.usage_in_bytes" if v1 else "memory.current")

    def limit(self, limit_bytes: int) -> None:
        self.limit_file.write_text(f"{limit_bytes}\n")

    def used_bytes(self) -> int:
        return int(self._usage.read_text())

    def launcher(self) -> tuple[str, ...]:
        """A command that execs another command in the cgroup."""
        return ("sh", "-c", f'echo $$ > "{self.path}/cgroup.procs" && exec "$@"', "sh")


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """Makes a cgroup for as long as the block runs, below this process's own where possible.

    Raises:
        PermissionError: not permitted, or no cgroup here has the memory controller.
    """
    parent, v1 = _parent()
    path = Path(tempfile.mkdtemp(prefix="balloond-test-", dir=parent))
    try:
        cgroup = MemoryCgroup(path, v1=v1)
        cgroup.limit(limit_bytes)
        yield cgroup
    finally:
        # A process that was in the cgroup may have ended without being gone from it yet.
        wait_until(
            lambda: not (path / "cgroup.procs").read_text(), deadline_s=60, what="it is empty"
        )
        path.rmdir()


def _parent() -> tuple[Path, bool]:
    """A cgroup below which one with a memory limit can be made, and whether it is of version 1."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    v1 = next((names for names in groups if "memory" in names.split(",")), None)
    for mount in read_mounts():
        if mount.fstype == "cgroup" and v1 is not None and "memory" in mount.options:
            return _usable(Path(mount.point) / groups[v1].lstrip("/")), True
        if mount.fstype == "cgroup2" and v1 is None:
            own = Path(mount.point) / groups.get("", "/").lstrip("/")
            for path in (own, *own.parents):
                control = path / "cgroup.subtree_control"
                # Not below a cgroup with processes: its children cannot have controllers.
                if control.is_file() and "memory" in control.read_text().split():
                    return _usable(path), False
    raise PermissionError("no cgroup here has the memory controller")


def _usable(path: Path) -> Path:
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path} may not be written to")
    return path
