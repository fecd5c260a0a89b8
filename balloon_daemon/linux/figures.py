"""Reads small files of the kernel's, such as /proc/meminfo, which other users may lock.

Runs in the controller. Whoever may read a file may put locks on it, by the million (fcntl(2),
F_RDLCK), and each close(2) of that file, by any process, looks at all of them (fs/locks.c,
locks_remove_posix): 25 ms for 200,000. So a file that is read again and again stays open, and
closes that take long are left to a child (``Closes``). The same holds for pidfds, of any process,
and for eventfds and epoll instances, all of which have one file: these are ``lockable``, too.

A file's owner may also have a lease on it (fcntl(2), F_SETLEASE); the files in /proc/PID belong to
that process's user. open(2) then waits until the owner gives the lease back, up to
/proc/sys/fs/lease-break-time (45 s). With O_NONBLOCK, open(2) fails at once with EAGAIN instead,
and does not block on a FIFO either.
"""

import errno
import os
import time
from collections.abc import Callable

from balloon_daemon.linux.closing_child import ClosingChild
from balloon_daemon.linux.events import OwnedFd

CLOSED_HERE_S, REGAINED = 0.1, 1 / 100
"""How many seconds this process may spend on closing such files itself, before a child closes
them; and how much of that allowance, in seconds, comes back in each second. A close takes some 2
µs where nobody has locked the file."""

TOGETHER = 16
"""Descriptors that a child closes at a time."""

MOST_LEFT = 256
"""While so many descriptors wait for their close, this module opens no further file."""

MOST_KEPT = 256
"""Files that ``read_figures`` keeps open; a host without deeply nested cgroups has some 20."""

LOOK_EVERY = 16
"""A file that the kernel makes as it is read is looked up by its path before so many readings, not
before each: nobody can rename another file over it, only mount one. If it is gone, as a cgroup's
is, reading it fails (kernfs: ENODEV; procfs: ESRCH), and the next reading looks it up."""

MOST_BYTES = 1 << 24
"""More than any such file has: a list of 1,000 mounts has some 150 KiB."""

Content = Callable[[int, int], bytes]
"""Reads a descriptor's file from its beginning, so many bytes at most."""

_CHUNK_BYTES = 1 << 16
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class Closes:
    """Closes files that others may have locked: here, while such closes are quick, else in a
    child."""

    def __init__(self) -> None:
        self._here_s, self._at_s = 0.0, 0.0
        self._left: list[int] = []
        self._child: ClosingChild | None = None

    @property
    def is_behind(self) -> bool:
        """Whether too many descriptors wait for their close. If so, starts a child that closes
        them, where that is possible now: callers then open no further file, so there may be no
        later ``close`` that would start it."""
        if len(self._left) >= MOST_LEFT:
            self.close_left()
        return len(self._left) >= MOST_LEFT

    def close_here(self, close: Callable[[], None]) -> bool:
        """Closes a file by ``close``; False: such closes have taken long, and it is left open."""
        began_s = time.monotonic()
        self._here_s = max(0.0, self._here_s - (began_s - self._at_s) * REGAINED)
        self._at_s = began_s
        if self._here_s >= CLOSED_HERE_S:
            return False
        close()
        self._here_s += time.monotonic() - began_s
        return True

    def close(self, fd: int) -> None:
        """Closes a descriptor, now or later."""
        if self.close_here(lambda: os.close(fd)):
            return
        self._left.append(fd)
        if len(self._left) >= TOGETHER:
            self.close_left()

    def close_left(self) -> None:
        """Forks a child that closes all waiting descriptors, unless an earlier child is still at
        work or the kernel allows no process."""
        if self._child is not None:
            if not self._child.is_done():
                return
            done, self._child = self._child, None
            done.end()
        # ``done.end()`` closes the child's pidfd by ``close`` of this object, which may have
        # called this method and so have forked the next child.
        if self._left and self._child is None:
            try:
                self._child = ClosingChild(self._left, lockable)
            except OSError:
                return
            self._left = []


_CLOSES = Closes()


class _FigureFd(OwnedFd):
    """A descriptor of a file that others may have locked, so that its close may take long: it is
    closed by way of ``Closes``."""

    __slots__ = ()

    def close(self) -> None:
        if self._fd >= 0:
            _CLOSES.close(self.detach())


def lockable(fd: int) -> OwnedFd:
    """Makes an object that owns a descriptor of a file that others may have locked."""
    return _FigureFd(fd)


def close_here(close: Callable[[], None]) -> bool:
    """Closes a file that others may have locked, by an object of Python's such as ``epoll``, which
    no child can close.

    Args:
        close: closes the file.

    Returns:
        False: closes of such files have taken long lately, and it is left open.
    """
    return _CLOSES.close_here(close)


def closes_are_behind() -> bool:
    """Whether so many descriptors from ``lockable`` wait for their close that no further one is to
    be opened."""
    return _CLOSES.is_behind


def content_of(fd: int, most_bytes: int) -> bytes:
    """Reads a file in this process, whole or up to ``most_bytes``. Used as a ``Content``."""
    content = bytearray()
    try:
        while part := os.pread(fd, min(_CHUNK_BYTES, most_bytes - len(content)), len(content)):
            content += part
    except OSError as err:
        if err.errno != errno.ESPIPE:
            raise
        return os.read(fd, most_bytes)  # A FIFO in the file's place.
    return bytes(content)


def one_read_of(fd: int, most_bytes: int) -> bytes:
    """Reads, by one read(2), a file that the kernel gives whole. Used as a ``Content``.

    Such are the files of sysfs (``sysfs_kf_seq_show``), those of a cgroup with one number or
    ``memory.stat``, /proc/meminfo and /proc/PID/cgroup: each is one record to fs/seq_file.c, whose
    buffer grows until the record fits. A list of mounts has a record for each mount, and may come
    in parts.
    """
    try:
        return os.pread(fd, min(_CHUNK_BYTES, most_bytes), 0)
    except OSError as err:
        if err.errno != errno.ESPIPE:
            raise
        return os.read(fd, most_bytes)  # A FIFO in the file's place.


class FigureFile:
    """A file that is read again and again, and is open from the first reading on.

    Args:
        path: the file. If another file replaces it, the next reading notices that by stat(2); see
            ``LOOK_EVERY`` for the kernel's own files.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = _FigureFd(-1)
        self._identity = (-1, -1)
        self._unlooked = 0
        """How many readings are still to come before the path is looked up again."""

    def read(self, most_bytes: int = MOST_BYTES, content: Content = content_of) -> bytes:
        """The present content.

        Args:
            most_bytes: how much of it is read at most.
            content: reads the open file.

        Raises:
            OSError: the kernel's reason, with the file's name; the file is closed.
        """
        try:
            if self._unlooked:
                self._unlooked -= 1
                return content(self._fd.fileno(), most_bytes)
            found = os.stat(self.path)
            if self._identity != (found.st_dev, found.st_ino):
                # Close the old file first: where no descriptor is free, the new file needs its
                # number.
                self.close()
                self._fd = _opened(self.path)
                # If the file was replaced between stat(2) and open(2), the next reading finds
                # another identity and opens the path again.
                self._identity = (found.st_dev, found.st_ino)
            read = content(self._fd.fileno(), most_bytes)
            # procfs and cgroups' file systems say of their files that they are empty. A file that
            # says so and is not is none that was written.
            if read and not found.st_size:
                self._unlooked = LOOK_EVERY - 1
            return read
        except OSError as err:
            self.close()
            raise OSError(err.errno, err.strerror, self.path) from err

    def close(self) -> None:
        """Closes the file; the next reading opens it again."""
        self._fd.close()
        self._identity, self._unlooked = (-1, -1), 0

    def forget(self) -> None:
        """Takes the file's descriptor for closed; the next reading opens the file again."""
        self._fd.detach()
        self._identity, self._unlooked = (-1, -1), 0


_kept: dict[str, FigureFile] = {}


def read_figures(path: str, content: Content = content_of) -> bytes:
    """The present content of a file that this process reads again and again.

    Args:
        path: the file, which stays open. Where more than ``MOST_KEPT`` are open, the file that was
            opened first is closed.
        content: reads the open file.

    Raises:
        OSError: the kernel's reason, with the file's name.
    """
    file = _kept.get(path)
    if file is None:
        file = _kept[path] = FigureFile(path)
        if len(_kept) > MOST_KEPT:
            _kept.pop(next(iter(_kept))).close()
    return file.read(content=content)


def forget_kept() -> None:
    """Takes all files that ``read_figures`` keeps open for closed, in a child that has closed what
    it inherited: by their old numbers it would read nothing, or another file."""
    for file in _kept.values():
        file.forget()


def read_once(path: str, most_bytes: int = MOST_BYTES, content: Content = content_of) -> bytes:
    """The content of a file that is seldom read, which is closed afterwards.

    Args:
        path: the file.
        most_bytes: how much of it is read at most.
        content: reads the open file.

    Raises:
        OSError: the kernel's reason, with the file's name.
    """
    try:
        fd = _opened(path)
        try:
            return content(fd.fileno(), most_bytes)
        finally:
            fd.close()
    except OSError as err:
        raise OSError(err.errno, err.strerror, path) from err


def _opened(path: str) -> _FigureFd:
    if _CLOSES.is_behind:
        raise OSError(errno.EAGAIN, "closing files that somebody has locked takes too long", path)
    try:
        return _FigureFd(os.open(path, _FLAGS))
    except OSError as err:
        if err.errno == errno.EMFILE:
            _CLOSES.close_left()
        raise
