"""A process in as many groups as the kernel allows."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.other_user import NOBODY

MOST_GROUPS = 65_536  # linux/limits.h, NGROUPS_MAX

_PROGRAM = f"""
import os, sys, threading
os.setgroups(range({MOST_GROUPS}))
os.setresgid(*3 * [{NOBODY}])
os.setresuid(*3 * [{NOBODY}])
for _ in range(int(sys.argv[1])):
    threading.Thread(target=input, daemon=True).start()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def in_many_groups(threads: int = 0) -> Iterator[int]:
    """A process of the user nobody that is in 65,536 groups; yields its number.

    An ordinary user has such a process in a user namespace of its own with one group mapped.

    Args:
        threads: how many it has beside its first one.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root, to be in other groups")
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.kill()
