"""Looks up paths for driven VMs: finds sockets that match, watches directories, connects sockets,
reads process ids.

Runs in a child of the controller's (``lookups.py``), or in a process that serves no VMs. A lookup
of a name waits for the lock of the directory that the name is in, and whoever may list a directory
can keep others waiting for that lock.
"""

import contextlib
import errno
import fnmatch
import glob
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from balloon_daemon.guests.driven import process_orders
from balloon_daemon.linux.walked_path import WalkedPath
from balloon_daemon.named_tuple import NamedTuple

LOOK_FOR_S, PAUSE_S = 0.001, 0.02
"""How long names are looked at before a pause, and how long the pause is. A user who may write to
a directory can make any number of names there, so their lookup may use 5 % of a processor."""

MOST_NAMES = 1 << 20
"""The most names of one directory that are looked at."""

_BATCH_BYTES = 16 * 1024
"""A batch of matches is answered as soon as its paths have more bytes than this, so that it fits
into one message (``linux/asked_child.py``). JSON makes up to six bytes of each byte, as of a
control character (``\\u0001``). A path has up to 4,096 bytes."""

_NUMBER_BYTES = 32
"""More than a process's number has, with the line's end."""

Enters = Callable[[int], None]
"""Called before a name is looked up in a directory that belongs neither to root nor to this
process's user, with the directory's owner."""


class Match(NamedTuple):
    """A file whose name matches.

    Attributes:
        path: its path, as the pattern has it.
        resolved: its path without symbolic links.
        mode: its kind and permissions, as st_mode has them.
        owner: its user.
        identity: its device and inode numbers.
    """

    path: str
    resolved: str
    mode: int
    owner: int
    identity: tuple[int, int]


class Watched(NamedTuple):
    """A directory as it is now.

    Attributes:
        mtime_ns: when its names last changed; None: it does not exist.
        nearest: the path of the nearest directory that exists, this one or one above it; "" where
            another user can keep a stat(2) of that path waiting.
    """

    mtime_ns: int | None
    nearest: str


def answers(order: Sequence[object], fd: int, enters: Enters) -> Iterator[object]:
    """Carries an order out, and yields the answer in JSON's types, in one part or more.

    Args:
        order: a function's name and its arguments.
        fd: the socket to connect, where the order is to connect one.
        enters: called with a user whenever a lookup may wait for that user from then on.

    Raises:
        OSError: the kernel's reason why the order cannot be carried out.
        ValueError: a path that no file can have.
    """
    match order:
        case ["match", str(directory), str(name)]:
            yield from _batches(_matches(directory, name, enters))
        case ["watch", str(directory)]:
            yield _watched(directory, enters)
        case ["identify", str(path)]:
            yield _identity(path, enters)
        case ["number", str(path)]:
            yield _number(path, enters)
        case ["connect", str(path), identity, *refused]:
            yield _connect(fd, path, identity, refused, enters)
        case _:
            yield process_orders.answer(order)


def _batches(matches: Iterator[Match | None]) -> Iterator[list[Match]]:
    """Yields matches in batches, one after each ``LOOK_FOR_S``; ``matches`` has None for each name
    that does not match."""
    batch, n_bytes = list[Match](), 0
    ends_s = time.monotonic() + LOOK_FOR_S
    for match in matches:
        if match is not None:
            batch.append(match)
            n_bytes += len(os.fsencode(match.path)) + len(os.fsencode(match.resolved))
        if n_bytes > _BATCH_BYTES or time.monotonic() >= ends_s:
            yield batch
            batch, n_bytes = [], 0
            time.sleep(PAUSE_S)
            ends_s = time.monotonic() + LOOK_FOR_S
    yield batch


def _matches(directory: str, pattern: str, enters: Enters) -> Iterator[Match | None]:
    """The files of a directory whose name matches, and None for each name that does not.

    The kernel lists some 1,000 names with each getdents64(2), so that reading stops soon after
    ``MOST_NAMES``, however many names the directory has.
    """
    with WalkedPath(enters) as walked:
        try:
            walked.go(directory)
            if not walked.is_trusted:
                return
            walked.enter()
            if not glob.has_magic(pattern):
                yield _match(directory, pattern, walked, enters)
                return
            listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=walked.fd)
        except OSError:
            return  # The directory is gone or out of reach, or the path is no directory.
        matches = re.compile(fnmatch.translate(pattern)).match
        try:
            with os.scandir(listed) as entries:
                for _, entry in zip(range(MOST_NAMES), entries, strict=False):
                    hidden = entry.name.startswith(".") and not pattern.startswith(".")
                    fits = not hidden and matches(entry.name)
                    yield _match(directory, entry.name, walked, enters) if fits else None
        except OSError:
            return
        finally:
            os.close(listed)


def _match(directory: str, name: str, walked: WalkedPath, enters: Enters) -> Match | None:
    """The file of this name; None: there is no file, or the name is a link that is not trusted."""
    path, resolved = os.path.join(directory, name), os.path.join(walked.path, name)
    try:
        status = os.stat(name, dir_fd=walked.fd, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            with WalkedPath(enters).go(resolved) as target:
                if not target.is_trusted:
                    return None
                status, resolved = target.status, target.path
    except OSError:
        return None
    identity = (status.st_dev, status.st_ino)
    return Match(path, resolved, status.st_mode, status.st_uid, identity)


def _watched(directory: str, enters: Enters) -> Watched:
    with WalkedPath(enters) as walked:
        with contextlib.suppress(OSError):
            walked.go(directory)
            return Watched(walked.status.st_mtime_ns, "" if walked.waits else directory)
        nearest = "" if walked.waits else walked.path
    try:
        # The directory may exist all the same, behind a link of /proc/PID, which ``go`` refuses.
        return Watched(os.stat(directory).st_mtime_ns, "")
    except OSError:
        return Watched(None, nearest)


def _identity(path: str, enters: Enters) -> tuple[str, tuple[int, int] | None]:
    """A path without symbolic links, and the identity of the socket there. No link of a user's to
    somebody else's socket is followed: that socket's VM would be taken for the user's."""
    try:
        fd, resolved = _opened(path, enters)
    except OSError:
        return path, None
    try:
        # Not the status of what is at the resolved path: a link of /proc/PID leads to an open
        # file, not to the path in its text.
        status = os.fstat(fd)
        identity = (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None
        return resolved, identity
    finally:
        os.close(fd)


def _number(path: str, enters: Enters) -> tuple[int, int] | None:
    """The number that a small file has, such as a process's, and the file's owner; None: it is no
    regular file.

    Raises:
        OSError: the kernel's reason, or ENOTSOCK: another user's link leads there.
        ValueError: the file has no number.
    """
    fd, _ = _opened(path, enters)
    try:
        # Look at the file's kind before it is opened: to open some devices has effects.
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(f"/proc/self/fd/{fd}", flags), "rb") as file:
            return int(file.read(_NUMBER_BYTES)), status.st_uid
    finally:
        os.close(fd)


def _connect(
    sock: int, path: str, identity: object, refused: Sequence[object], enters: Enters
) -> int:
    """Connects a socket to the socket at a path.

    Args:
        sock: the socket to connect.
        path: the path.
        identity: the device and inode numbers that the socket at the path must have; None: any.
        refused: users to whose sockets no connection is to be made.
        enters: as for ``answers``.

    Returns:
        The owner of the socket at the path.
    """
    try:
        fd, _ = _opened(path, enters)
    except FileNotFoundError as err:
        if missing := _missing_directory(path):
            raise OSError(errno.ENOENT, f"there is no directory {missing}") from err
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        if identity is not None and identity != [status.st_dev, status.st_ino]:
            # Another socket has replaced the one that the search has found.
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if status.st_uid in refused:
            raise OSError(errno.EDQUOT, "its user has sent descriptors whose close does not end")
        with socket.socket(fileno=os.dup(sock)) as client:
            # Connect by the descriptor: the path may lead to another socket by now.
            client.connect(f"/proc/self/fd/{fd}")
        return status.st_uid
    finally:
        os.close(fd)


def _opened(path: str, enters: Enters) -> tuple[int, str]:
    """Opens the file at a path with O_PATH; follows no link of a user's to somebody else's file:
    the VM there would be driven by the settings of the VM that is named here.

    Returns:
        The file, and its path without symbolic links.

    Raises:
        OSError: the kernel's reason, or ENOTSOCK: such a link.
    """
    with WalkedPath(enters) as walked:
        try:
            walked.go(path)
        except OSError as err:
            # ``go`` follows no link in /proc, as of a VM in a container (/proc/PID/root). The
            # kernel does, where nobody else's link has led there.
            if err.errno != errno.ELOOP or not walked.link_owners <= {0, os.geteuid()}:
                raise
            return os.open(path, os.O_PATH | os.O_CLOEXEC), os.path.realpath(path)
        if not walked.is_trusted:
            why = "another user's link leads there than the socket's owner; name the socket itself"
            raise OSError(errno.ENOTSOCK, why)
        return os.dup(walked.fd), walked.path


def _missing_directory(path: str) -> str:
    """The topmost directory of a path that does not exist; "" where all exist. A service to which
    its unit shows only a part of /run may miss a directory that the administrator sees."""
    parents = map(str, reversed(Path(path).parents))
    return next((parent for parent in parents if not os.path.exists(parent)), "")
