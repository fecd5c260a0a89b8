"""Opens a path one name at a time, and notes the owners of the symbolic links and directories on
the way.

Runs in a child (``asked_child.py``): each lookup of a name takes the lock of the name's directory,
which any user who may list the directory can hold for long.
"""

import errno
import os
import stat
from collections.abc import Callable
from types import TracebackType

_MOST_LINKS = 40  # include/linux/namei.h: MAXSYMLINKS
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class WalkedPath:
    """A path that is being opened, by openat(2) with O_PATH and O_NOFOLLOW for each name.

    Args:
        enters: called before a name is looked up in a directory that belongs neither to root nor
            to this process's user, with the directory's owner.

    Attributes:
        fd: the file that the path leads to, or the last directory that could be entered.
        path: the path of ``fd`` without symbolic links.
        status: the status of ``fd``.
        link_owners: the owners of the symbolic links that were followed.
        waits: whether the path led through a directory where other users may write: a lookup there
            may wait for these users.
    """

    def __init__(self, enters: Callable[[int], None] = lambda owner: None) -> None:
        self._enters = enters
        self.fd = os.open("/", _PATH)
        self.path = "/"
        self.status = os.fstat(self.fd)
        self.link_owners = set[int]()
        self.waits = False

    def __enter__(self) -> "WalkedPath":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        os.close(self.fd)

    @property
    def is_trusted(self) -> bool:
        """Whether each link was made by root, by this process's user, or by the owner of the file
        that the path leads to: another user's link may lead to a file that its maker may not
        reach."""
        return self.link_owners <= {0, os.geteuid(), self.status.st_uid}

    def enter(self) -> None:
        """Notes that a name is looked up in the directory that has been reached."""
        is_others = self.status.st_uid not in (0, os.geteuid())
        self.waits |= is_others or bool(self.status.st_mode & _OTHERS)
        if is_others:
            self._enters(self.status.st_uid)

    def go(self, path: str) -> "WalkedPath":
        """Follows a path from the root on; returns this object.

        Raises:
            OSError: a name cannot be opened.
        """
        names, links = _names(path), 0
        while names:
            name = names.pop()
            self.enter()
            fd = os.open(name, _PATH, dir_fd=self.fd)
            status = os.fstat(fd)
            if not stat.S_ISLNK(status.st_mode):
                self._reach(fd, status, _joined(self.path, name))
                continue
            links += 1
            self.link_owners.add(status.st_uid)
            if links > _MOST_LINKS or status.st_dev == os.stat("/proc").st_dev:
                # Follow no link in /proc: a link of /proc/PID leads to an open file, not to the
                # path in its text.
                os.close(fd)
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink("", dir_fd=fd)
            os.close(fd)
            names += _names(target)
            if target.startswith("/"):
                root = os.open("/", _PATH)
                self._reach(root, os.fstat(root), "/")
        return self

    def _reach(self, fd: int, status: os.stat_result, path: str) -> None:
        os.close(self.fd)
        self.fd, self.status, self.path = fd, status, path


def _names(path: str) -> list[str]:
    """A path's names, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _joined(path: str, name: str) -> str:
    return os.path.dirname(path) if name == ".." else os.path.join(path, name)
