"""A tmpfs with a size limit, mounted in a namespace of its own."""

import os
import subprocess
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o "size=$1" none "$2" && echo mounted && exec cat'


class SmallTmpfs:
    """A tmpfs in a mount namespace of its own, for as long as this object lives.

    Args:
        folder: an empty directory, which stays empty outside of that namespace.
        size_mib: its size limit; 0: none.
        files: how many files and directories it has at most, itself included; 0: no limit.

    Raises:
        PermissionError: a tmpfs cannot be mounted here.
    """

    def __init__(self, folder: Path, size_mib: int, files: int = 0) -> None:
        folder.mkdir()
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        self._holder = subprocess.Popen(
            [
                "unshare", "--mount", "--propagation", "private", *as_root,
                "sh", "-c", _MOUNT, "sh", f"{size_mib}M,nr_inodes={files}", str(folder),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            self.close()
            raise PermissionError("a tmpfs cannot be mounted here")
        self.root = Path(f"/proc/{self._holder.pid}/root{folder}")
        """The tmpfs, as others outside of the namespace reach it."""

    def open(self, name: str, size_bytes: int) -> int:
        """A file of this length in the tmpfs, which uses no memory until it is written to."""
        fd = os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(fd, size_bytes)
        return fd

    def free_bytes(self) -> int:
        """The free bytes below its limit."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def fill(self, *, but_bytes: int) -> None:
        """Fills the tmpfs with another file, up to so many free bytes."""
        fd = os.open(self.root / "other", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        wanted = self.free_bytes() - but_bytes
        if wanted > 0:
            os.posix_fallocate(fd, os.fstat(fd).st_size, wanted)
        os.close(fd)

    def empty(self) -> None:
        """Removes that file."""
        os.unlink(self.root / "other")

    def close(self) -> None:
        """Ends the namespace; the tmpfs goes with its last open file."""
        self._holder.communicate()
