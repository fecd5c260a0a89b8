"""The capabilities that this process may use now, and their numbers."""

import re

from balloon_daemon.linux.figures import read_once

DAC_READ_SEARCH, SYS_PTRACE, SYS_ADMIN = 1 << 2, 1 << 19, 1 << 21
"""The bits of these capabilities in CapEff (linux/capability.h)."""

_EFFECTIVE = re.compile(rb"^CapEff:\s+([0-9a-f]{16})$", re.MULTILINE)


def effective() -> int | None:
    """This process's effective capabilities, a bit for each; None: /proc/self/status cannot be
    read."""
    try:
        found = _EFFECTIVE.search(read_once("/proc/self/status"))
    except OSError:
        return None
    return None if found is None else int(found[1], 16)
