"""Reads, writes and removes files below a root directory, such as that of an image."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_BYTES = 1 << 16


class RootedFiles:
    """Files below a root directory, by names such as ``etc/balloond/balloond.toml``.

    Another user may write to an image, and put a symbolic link to a directory of this host in the
    place of one of the image's, at any moment. So each directory on the way is opened relative to
    the one before, and nothing is done by a path.

    Args:
        root: the root directory.
        follows: whether symbolic links to directories are followed, as on this host, where they
            are root's.
    """

    def __init__(self, root: Path, *, follows: bool) -> None:
        self._root = root
        self._flags = _DIRECTORY if follows else _DIRECTORY | os.O_NOFOLLOW

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name, a symbolic link for example.

        Raises:
            OSError: a directory on the way cannot be opened, or is a symbolic link.
        """
        try:
            with self._directory_of(name) as fd:
                os.stat(os.path.basename(name), dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def first_line(self, name: str) -> str:
        """The first line of a regular file; "" of anything else.

        Raises:
            OSError: it cannot be read.
        """
        with self._directory_of(name) as fd, self._named(name):
            base = os.path.basename(name)
            if not stat.S_ISREG(os.stat(base, dir_fd=fd, follow_symlinks=False).st_mode):
                return ""
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(base, flags, dir_fd=fd), "rb") as file:
                return file.readline(_MOST_BYTES).decode(errors="replace")

    def write(self, name: str, text: str) -> None:
        """Writes a file, whole or not at all, and makes the directories that it needs.

        Raises:
            OSError: it cannot be written.
        """
        with self._directory_of(name, make=True) as fd, self._named(name):
            base = os.path.basename(name)
            beside = f".{base}.new"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=fd)
            # O_EXCL follows no link that whoever has the image makes in between: the host's own
            # file, to which it leads, would be written.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(beside, flags, 0o644, dir_fd=fd), "w") as file:
                os.fchmod(file.fileno(), 0o644)
                file.write(text)
            os.replace(beside, base, src_dir_fd=fd, dst_dir_fd=fd)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there.

        Raises:
            OSError: it cannot be removed.
        """
        with (
            contextlib.suppress(FileNotFoundError),
            self._directory_of(name) as fd,
            self._named(name),
        ):
            os.unlink(os.path.basename(name), dir_fd=fd)

    @contextlib.contextmanager
    def _directory_of(self, name: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of the directory that a file is in."""
        fd, reached = os.open(self._root, _DIRECTORY), ""
        try:
            for each in os.path.dirname(name).split("/"):
                reached = os.path.join(reached, each)
                with self._named(reached):
                    below = self._open(each, fd, make=make)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _open(self, name: str, fd: int, *, make: bool) -> int:
        """Opens a directory in the directory ``fd``."""
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=fd)
        try:
            return os.open(name, self._flags, dir_fd=fd)
        except OSError as err:
            if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                why = "it is a symbolic link, and none is followed in an image; remove it"
                raise OSError(err.errno, why) from None
            raise

    @contextlib.contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Has an error name the whole path."""
        try:
            yield
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(self._root / name)) from err
