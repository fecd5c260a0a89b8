"""The tables of every architecture that ``balloonctl seccomp`` knows.

The daemon carries the table of x86-64 only, as it runs on no other machine; the others are here.
"""

from pathlib import Path

from balloon_daemon.errors import StateError
from balloon_daemon.seccomp.constants import ARCH_NAMES, Arch, canonical_arch, parse_table
from balloon_daemon.seccomp.filter import ARCH, TABLE

TABLES = {
    name: TABLE if name == ARCH else Path(__file__).parent / f"tables/{name}.txt"
    for name in ARCH_NAMES
}
"""The file of each architecture's table; ``policies/make_constants.py`` writes them."""


def load_arch(name: str) -> Arch:
    """The calls and constants of an architecture, by any of its names.

    Raises:
        StateError: there is no table for it.
    """
    table = TABLES.get(canonical_arch(name))
    if table is None:
        known = ", ".join(ARCH_NAMES)
        raise StateError(f"no table of system calls for {canonical_arch(name)}; there are {known}")
    return parse_table(table.read_text("ascii"))
