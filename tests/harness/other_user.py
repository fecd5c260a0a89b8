"""Acts as another user, in this process or in a daemon of its own; for root."""

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Iterator

from tests.harness.daemon import DaemonConfig

NOBODY = 65534

UIDS = range(64101, 64501)
"""User ids that an ordinary host does not use: neither root's, nor devices', nor an account's."""


def take_uids(count: int, stack: contextlib.ExitStack) -> tuple[int, ...]:
    """User ids that no other test uses meanwhile, in whatever checkout or worker it runs.

    The kernel counts a user's descriptors in flight for the whole host (unix(7), ETOOMANYREFS):
    two tests that attack as one user would make each other fail.

    Args:
        count: how many.
        stack: frees the ids.
    """
    taken: list[int] = []
    for uid in UIDS:
        # An abstract name can be bound by one socket of the host at a time.
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        stack.callback(lock.close)
        try:
            lock.bind(f"\0balloond-tests-uid-{uid}")
        except OSError as err:
            if err.errno != errno.EADDRINUSE:
                raise
            continue
        taken.append(uid)
        if len(taken) == count:
            return tuple(taken)
    raise AssertionError(f"all user ids of {UIDS} are taken")


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Acts as this user during the block, for a connect(2) for example."""
    before = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)


@contextlib.contextmanager
def as_member(gid: int, others: list[int]) -> Iterator[None]:
    """Acts as nobody in these groups during the block.

    Args:
        gid: the effective group.
        others: the supplementary groups.
    """
    groups, before = os.getgroups(), os.getegid()
    os.setgroups(others)
    os.setegid(gid)
    try:
        with as_user(NOBODY):
            yield
    finally:
        os.setegid(before)
        os.setgroups(groups)


AS_NOBODY = ("--reuid", "65534", "--regid", "65534", "--clear-groups")


class OtherUserConfig(DaemonConfig):
    """A balloond of another user where the tests run as root, because RLIMIT_NPROC does not bind
    root."""

    def command(self) -> list[str]:
        # It must still be able to read this checkout, wherever that is.
        kept = "+dac_override"
        caps = ["--inh-caps", kept, "--ambient-caps", kept, "--pdeathsig", "KILL"]
        return [*(["setpriv", *AS_NOBODY, *caps] if os.geteuid() == 0 else []), *super().command()]


def limit_processes(pid: int, limit: str) -> None:
    """Sets RLIMIT_NPROC as the process's own user: root may lack CAP_SYS_RESOURCE."""
    as_user = ["setpriv", *AS_NOBODY] if os.geteuid() == 0 else []
    subprocess.run([*as_user, "prlimit", "--pid", str(pid), f"--nproc={limit}:"], check=True)
