"""A policy file's content as plain values, shared by parser, compiler and evaluator. Pure."""

from enum import Enum, IntEnum

from balloon_daemon.errors import PolicyProblem
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.constants import Abi

MAX_ARGUMENTS = 6
"""System calls have six arguments; linux/seccomp.h, struct seccomp_data."""

MAX_U64 = 2**64 - 1


class Dialect(Enum):
    """The language's two dialects: minijail's two compilers differ (docs/policy-files.md)."""

    PYTHON = "python"
    """compile_seccomp_policy's dialect: the whole language."""
    C = "c"
    """minijail0 -S's dialect: ``condition; return E`` allows if the condition holds, else E."""


class Action(IntEnum):
    """The kernel's action for a call: SECCOMP_RET_* of linux/seccomp.h."""

    KILL_PROCESS = 0x80000000
    KILL_THREAD = 0x00000000
    TRAP = 0x00030000
    ERRNO = 0x00050000
    USER_NOTIF = 0x7FC00000
    TRACE = 0x7FF00000
    LOG = 0x7FFC0000
    ALLOW = 0x7FFF0000


class Verdict(NamedTuple):
    """An action and, for ERRNO, the error with which the call fails."""

    action: Action
    errno: int = 0

    @property
    def value(self) -> int:
        """The 32-bit value that a filter returns; its low half is SECCOMP_RET_DATA."""
        return self.action | (self.errno & 0xFFFF)


KILL_PROCESS = Verdict(Action.KILL_PROCESS)
ALLOW = Verdict(Action.ALLOW)


class Place(NamedTuple):
    """A place in a policy file; lines and columns count from 1."""

    file: str
    line: int
    column: int
    source: str
    length: int = 1

    def problem(self, message: str) -> PolicyProblem:
        """A problem at this place, with this message."""
        return PolicyProblem(
            self.file, self.line, self.column, max(self.length, 1), self.source, message
        )


class Operator(Enum):
    """How an argument is compared: all 64 bits, unsigned."""

    EQ = "=="
    NE = "!="
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    ANY = "&"
    """At least one bit of the value is set in the argument."""
    IN = "in"
    """No bit outside the value is set in the argument."""


class Atom(NamedTuple):
    """One comparison: ``argN OP value``.

    Attributes:
        argument: its index, 0 to 5.
        operator: how the argument is compared.
        value: the value that it is compared with, an unsigned 64-bit number.
        text: the value as written in the file, for people.
    """

    argument: int
    operator: Operator
    value: int
    text: str = ""


class Filter(NamedTuple):
    """One ``expression; action`` of a statement.

    Attributes:
        clauses: the expression: true if all atoms of at least one clause are. None: always true.
        verdict: the answer where the expression is true.
        place: its place; None for the default that ends a list of conditional filters.
    """

    clauses: tuple[tuple[Atom, ...], ...] | None
    verdict: Verdict
    place: Place | None


class CallRules(NamedTuple):
    """The rules of a policy file and its includes for one system call.

    Attributes:
        name: the call's name.
        number: the call's number on the policy's architecture.
        frequency: how often the call is made, from @frequency files; 1 where they do not say.
        filters: tried in order; the last one, and no other, has no condition.
    """

    name: str
    number: int
    frequency: int
    filters: tuple[Filter, ...]


class ParsedPolicy(NamedTuple):
    """A whole policy, for one architecture.

    Attributes:
        abi: the architecture.
        calls: one entry for each call that the text names, in the order of first mention.
        unlisted: the answer to all other calls.
        warnings: allowed constructs that may surprise.
        files: every file that was read, the policy itself first.
        denylist: True: the text lists the calls that are refused, not those that are allowed.
    """

    abi: Abi
    calls: tuple[CallRules, ...]
    unlisted: Verdict
    warnings: tuple[PolicyProblem, ...]
    files: tuple[str, ...]
    denylist: bool
