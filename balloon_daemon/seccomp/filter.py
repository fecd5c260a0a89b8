"""Seccomp filters from policy files: reads the files, compiles, loads.

The controller calls ``compile_policy`` at start-up, before any fork, so that the operator sees the
mistakes in a policy file. The forked device calls ``CompiledFilter.load`` as the last step of its
jail: one system call on memory allocated long before.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from balloon_daemon.errors import PolicyProblem, StateError
from balloon_daemon.linux.seccomp import Program
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.constants import Arch, canonical_arch, parse_table
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import Action, Dialect, ParsedPolicy
from balloon_daemon.seccomp.policy_file import read_text

NATIVE_ARCH = canonical_arch(os.uname().machine)
"""This machine's architecture, by our name."""

ARCH = "x86_64"
"""The architecture of the daemon's policies; the daemon runs on no other."""

TABLE = Path(__file__).parent / "tables" / f"{ARCH}.txt"


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter ready to load.

    Attributes:
        bpf: the program, an array of struct sock_filter.
        policy: the policy that was compiled.
    """

    bpf: bytes = field(repr=False)
    policy: ParsedPolicy = field(repr=False)
    _program: Program | None = field(default=None, repr=False, compare=False)

    @property
    def arch(self) -> str:
        """The architecture whose calls the filter judges, one of ARCH_NAMES."""
        return self.policy.abi.name

    @property
    def warnings(self) -> tuple[PolicyProblem, ...]:
        """The warnings about the policy file, for the log."""
        return self.policy.warnings

    def load(self) -> None:
        """Puts this thread under the filter for good. The caller must have set no_new_privs.

        Raises:
            OSError: the kernel refuses.
            StateError: the filter is for another architecture, so it would kill every call.
        """
        if self._program is None:
            raise StateError(f"a filter for {self.arch} cannot be loaded on {NATIVE_ARCH}")
        self._program.load()


def compile_policy(
    path: Path,
    *,
    default: Action = Action.KILL_PROCESS,
    arch: Arch | None = None,
    dialect: Dialect = Dialect.PYTHON,
) -> CompiledFilter:
    """Reads and compiles a policy file and its includes.

    Args:
        path: the file, as the user named it: a pipe is read too.
        default: the answer to calls that no rule allows, unless the file has a @default.
        arch: the architecture's calls and constants; None: x86-64's.
        dialect: which of minijail's compilers to follow.

    Raises:
        PolicyFileError: with every mistake in the files.
        OSError: the policy file itself cannot be read.
    """
    policy = read_policy(path, default=default, arch=arch, dialect=dialect)
    bpf = compile_bpf(policy)
    program = Program(bpf) if policy.abi.name == NATIVE_ARCH else None
    return CompiledFilter(bpf, policy, program)


def read_policy(
    path: Path,
    *,
    default: Action = Action.KILL_PROCESS,
    arch: Arch | None = None,
    dialect: Dialect = Dialect.PYTHON,
    read: Callable[[str], str] = read_text,
) -> ParsedPolicy:
    """Reads and parses a policy file and its includes.

    Args:
        path: the file, as the user named it: a pipe is read too.
        default: the answer to calls that no rule allows, unless the file has a @default.
        arch: the architecture's calls and constants; None: x86-64's.
        dialect: which of minijail's compilers to follow.
        read: reads included files; for tests with files elsewhere.

    Raises:
        PolicyFileError, OSError: as for ``compile_policy``.
    """
    text = read_text(str(path), named_by_user=True)
    return parse_policy(
        text,
        path=str(path),
        arch=load_arch() if arch is None else arch,
        read=read,
        default=default,
        dialect=dialect,
        is_another=_is_another,
    )


def _is_another(name: str, other: str) -> bool:
    try:
        return os.path.isfile(other) and not os.path.samefile(name, other)
    except (OSError, ValueError):
        return False  # the parser fails to read the file, too, and tells the include's place


def load_arch() -> Arch:
    """x86-64's calls and constants."""
    # The parsed table is not cached. Its text is a third of a megabyte, and the daemon needs it
    # only once, at its start.
    return parse_table(TABLE.read_text("ascii"))


@functools.cache
def _call_names() -> dict[int, str]:
    return {number: name for name, number in load_arch().calls.items()}


def syscall_name(number: int) -> str:
    """The name of an x86-64 system call, ``call 999`` for a number without a name."""
    return _call_names().get(number, f"call {number}")
