"""Looks at a VMM's process: its user, its files, its threads.

Runs in a child of the controller's (``lookups.py``), or in a process that serves no VMs. Whoever
may list a directory in /proc/PID can put locks on that directory by the million (fcntl(2)), and
each close(2) of the directory looks at all of these locks: 70 ms for 300,000. Such a user can also
keep lookups of names in that directory waiting, as in any directory.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from balloon_daemon.linux import process_lookups
from balloon_daemon.linux.asked_child import Passed
from balloon_daemon.linux.libc import inode_of, size_of
from balloon_daemon.linux.process_lookups import as_user_of, files_of

MOST_FOUND = 64
"""The most descriptors of one process that an answer lists."""

MAX_THREADS = 256
"""How many threads are looked at, oldest first: the first virtual CPU's is among the oldest."""

MOST_READ, WITHIN_S = 64, 0.02
"""Of how many of these ``MAX_THREADS`` threads the status is read at most, and for how many
seconds at most."""

_MOST_BYTES = 1 << 20
"""A status with all of a process's 65,536 groups has 0.7 MiB."""

_INNER = re.compile(rb"^NSpid:\s+(.*)$", re.MULTILINE)


def answer(order: Sequence[object]) -> object:
    """Carries out an order about a process, and answers in JSON's types or with open files.

    Args:
        order: what is to be done, the process, its user and more.

    Raises:
        ValueError: there is no such order.
    """
    match order:
        case ["owner", int(pid)]:
            return process_lookups.owner_of(pid)
        case ["real-user", int(pid), int()]:
            return process_lookups.real_user_of(pid)
        case ["open", int(pid), int(user)]:
            return _opened(pid, user)
        case ["files", int(pid), int(), [*starts]]:
            return open_files(pid, list(map(str, starts)))
        case ["look", int(pid), int(), int(started), [*starts]]:
            if process_lookups.start_time_of(pid) != started:
                return None
            are_seen, found = open_files(pid, list(map(str, starts)))
            return are_seen, bool(found), process_lookups.huge_page_bytes_of(pid)
        case ["thread", int(pid), int(), int(thread)]:
            return has_thread(pid, thread)
        case ["has-word", int(pid), int(), str(word)]:
            return word.encode() in process_lookups.words_of(pid)
    raise ValueError(f"no such order: {order!r}")


def _opened(pid: int, user: int) -> Passed | None:
    found = process_lookups.opened(pid, user)
    if found is None:
        return None
    files = [found.statm] if found.io is None else [found.statm, found.io]
    return Passed([found.started, found.identity, len(files)], files)


def open_files(pid: int, starts: Sequence[str]) -> tuple[bool, list[tuple[str, int, int]]]:
    """Which descriptors of a process have links that begin in one of these ways.

    Returns:
        Whether any descriptor may be seen; and the path in /proc/PID/fd of each that was found,
        with its file's inode number and length in bytes, 0 where these are unknown.
    """
    files = files_of(pid)
    found = [path for path, link in files if link.startswith(tuple(starts))][:MOST_FOUND]
    with as_user_of(pid):
        # Not os.stat(): a file of FUSE may have such a link, and its server may never answer.
        return bool(files), [(path, inode_of(path) or 0, size_of(path) or 0) for path in found]


def has_thread(pid: int, thread: int) -> bool:
    """Whether a process has this thread, by the number that its own PID namespace gives it.

    SO_PEERCRED gives the process that made the listening socket of the monitor, which is not QEMU
    where another process (libvirt does) has handed the socket to QEMU. And QEMU may be in a
    container, where its threads have other numbers.

    Source: proc_pid_status(5), NSpid.
    """
    try:
        # List only the first threads: a process may have many thousands, and each takes some 2 µs.
        # The kernel lists some 1,000 at a time.
        with os.scandir(f"/proc/{pid}/task") as entries:
            tasks = [entry.name for entry in islice(entries, MAX_THREADS)]
    except OSError:
        return False
    # Outside of containers the number is the same, and no thread's status need be read.
    return str(thread) in tasks or thread in _inner_numbers(pid, tasks)


def _inner_numbers(pid: int, tasks: Iterable[str]) -> Iterator[int]:
    """The numbers that threads have in their process's own PID namespace, until the time is up;
    none where the process is in the PID namespace of this process."""
    until_s = time.monotonic() + WITHIN_S
    for task in islice(tasks, MOST_READ):
        if time.monotonic() >= until_s:
            return
        try:
            status = _read(f"/proc/{pid}/task/{task}/status")
        except (FileNotFoundError, ProcessLookupError):
            continue  # This thread has ended.
        except OSError:
            return
        found = _INNER.search(status)
        numbers = found[1].split() if found is not None else []
        if len(numbers) < 2:
            return
        yield int(numbers[-1])


def _read(path: str) -> bytes:
    # O_NONBLOCK: open(2) of a file that its owner has a lease on fails, instead of waiting.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(_MOST_BYTES)
