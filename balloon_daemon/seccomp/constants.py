"""Architectures: their names, their system calls and the constants of their headers. Pure.

``policies/make_constants.py`` makes the tables, as text: ``tables/x86_64.txt``, which
``filter.py`` reads, and those of other architectures in ``ctl/seccomp/tables/``. A table stays
text, because a policy names some dozens of its thirteen thousand constants: finding those in the
text takes less time and memory than a dictionary of all.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from balloon_daemon.errors import StateError
from balloon_daemon.named_tuple import NamedTuple

X32_SYSCALL_BIT = 0x40000000
"""The bit that marks the number of every call of the x32 ABI, whose AUDIT_ARCH is x86_64's.
asm/unistd.h"""

NO_SYSCALL = 0xFFFFFFFF
"""Call number −1, which is no call. It is not x32's either, though X32_SYSCALL_BIT is set in it.
kernel/seccomp.c"""

# Names that minijail and Debian give these architectures, each with our name for it.
_ALIASES = {"arm64": "aarch64", "amd64": "x86_64", "x64": "x86_64"}

ARCH_NAMES = ("x86_64", "aarch64", "riscv64")
"""Every architecture that has a table, here or in ``ctl/seccomp/``."""

# Architectures that minijail knows and for which there is no table of constants here. A policy
# file may name them in [arch=...]; a name that is in neither list is warned of as a typing error.
KNOWN_ELSEWHERE = frozenset(
    [
        "x86", "i386", "arm", "hppa", "parisc", "ia64", "loong64", "loongarch64", "mips", "mips64",
        "mipsel", "mipsel64", "ppc", "ppc64", "s390", "s390x", "sparc", "sparc64",
    ]
)  # fmt: skip


def canonical_arch(name: str) -> str:
    """Our name of an architecture with several names: ``arm64`` is ``aarch64``."""
    return _ALIASES.get(name, name)


class Abi(NamedTuple):
    """The values by which a filter tells one ABI's calls from all others.

    Attributes:
        name: our name of the architecture, one of ARCH_NAMES.
        audit_arch: its AUDIT_ARCH_* (linux/audit.h), as the kernel puts it into seccomp_data.
        foreign_bit: calls with this bit belong to another ABI of the same AUDIT_ARCH; 0 if none.
    """

    name: str
    audit_arch: int
    foreign_bit: int = 0


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture's names.

    Attributes:
        abi: the values by which a filter recognizes its calls.
        calls: each system call's number by its name.
        origin: when, and from which headers, the table was made.
    """

    abi: Abi
    calls: Mapping[str, int]
    origin: str
    _text: str = field(repr=False)

    @property
    def name(self) -> str:
        """Our name of the architecture, one of ARCH_NAMES."""
        return self.abi.name

    def constant(self, name: str) -> int | None:
        """The value of a name of the C headers, as an unsigned 64-bit number; None if unknown."""
        if not name.isidentifier():
            return None
        at = self._text.find(f"\n{name} ")
        if at < 0:
            return None
        start = at + len(name) + 2
        end = self._text.find("\n", start)
        return int(self._text[start : end if end >= 0 else None])

    def constant_names(self) -> list[str]:
        """All names that ``constant`` knows, for suggestions."""
        return re.findall(r"^(\w+) \d+$", self._text, re.MULTILINE)

    def constant_name(self, value: int, pattern: str) -> str | None:
        """The shortest name that has exactly this value and matches the pattern."""
        found = re.findall(rf"^({pattern}) {value}$", self._text, re.MULTILINE)
        return min(found, key=len, default=None)

    def call_name(self, number: int) -> str | None:
        """The name of a system call; None for a number without one."""
        return next((name for name, n in self.calls.items() if n == number), None)


def parse_table(text: str) -> Arch:
    """Reads a table: comments, ``arch``, then counted calls, then constants.

    Raises:
        StateError: the table is not one that ``policies/make_constants.py`` wrote.
    """
    head = re.match(r"# (.*)\n(?:#.*\n)*arch (\w+) (0x\w+)\ncalls (\d+)\n", text)
    if head is None:
        raise StateError("the table of system calls has no head")
    origin, name, audit_arch, count = head.groups()
    start = head.end()
    end = text.find("\nconstants ", start)
    calls = {}
    for line in text[start:end].split("\n"):
        call, _, number = line.partition(" ")
        calls[call] = int(number)
    if len(calls) != int(count):
        raise StateError(f"the table of {name} has {len(calls)} calls, and says {count}")
    foreign_bit = X32_SYSCALL_BIT if name == "x86_64" else 0
    abi = Abi(name, int(audit_arch, 16), foreign_bit)
    return Arch(abi, calls, origin, text[text.find("\n", end + 1) :])
