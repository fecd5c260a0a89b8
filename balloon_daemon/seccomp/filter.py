"""Seccomp filters from policy files: reads the files, compiles, loads.

The controller calls ``compile_policy`` at start-up, before any fork, so that a mistake in a
policy file is the operator's to see. The forked device calls ``CompiledFilter.load`` as the last
step of its jail; that is one system call on memory prepared long before.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from balloon_daemon.errors import PolicyProblem, StateError
from balloon_daemon.linux.seccomp import Program
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.constants import ARCH_NAMES, Arch, canonical_arch, parse_table
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import Action, Dialect, ParsedPolicy
from balloon_daemon.seccomp.policy_file import read_text

NATIVE_ARCH = canonical_arch(os.uname().machine)
"""This machine's architecture, by our name."""

_TABLES = Path(__file__).parent / "tables"


@dataclass(frozen=True, slots=True)
class CompiledFilter:
    """A filter ready to load.

    Attributes:
        bpf: the program, an array of struct sock_filter.
        arch: whose calls it judges, one of ARCH_NAMES.
        warnings: what the policy file says that surprises, for the log.
    """

    bpf: bytes = field(repr=False)
    arch: str
    warnings: tuple[PolicyProblem, ...] = ()
    _program: Program | None = field(default=None, repr=False, compare=False)

    def load(self) -> None:
        """Puts this thread under the filter, for ever. The caller has set no_new_privs.

        Raises:
            OSError: the kernel refuses.
            StateError: the filter is for another architecture: it would kill everything.
        """
        if self._program is None:
            raise StateError(f"a filter for {self.arch} cannot be loaded on {NATIVE_ARCH}")
        self._program.load()


def compile_policy(
    path: Path,
    *,
    default: Action = Action.KILL_PROCESS,
    arch: str = NATIVE_ARCH,
    dialect: Dialect = Dialect.PYTHON,
) -> CompiledFilter:
    """Reads and compiles a policy file and its includes.

    Args:
        path: the file, as the user named it: a pipe is read too.
        default: what happens to calls that nothing allows, unless the file has a @default.
        arch: for which architecture, this machine's unless said otherwise.
        dialect: which of minijail's compilers to follow.

    Raises:
        PolicyFileError: with every mistake in the files.
        OSError: the policy file itself cannot be read.
        StateError: there is no table for that architecture.
    """
    policy = read_policy(path, default=default, arch=arch, dialect=dialect)
    bpf = compile_bpf(policy)
    program = Program(bpf) if policy.abi.name == NATIVE_ARCH else None
    return CompiledFilter(bpf, policy.abi.name, policy.warnings, program)


def read_policy(
    path: Path,
    *,
    default: Action = Action.KILL_PROCESS,
    arch: str = NATIVE_ARCH,
    dialect: Dialect = Dialect.PYTHON,
    read: Callable[[str], str] = read_text,
) -> ParsedPolicy:
    """Reads and parses a policy file and its includes.

    Args:
        path: the file, as the user named it: a pipe is read too.
        default: what happens to calls that nothing allows, unless the file has a @default.
        arch: for which architecture.
        dialect: which of minijail's compilers to follow.
        read: what reads included files, where they are not where their names say.

    Raises:
        PolicyFileError, OSError, StateError: as ``compile_policy``.
    """
    text = read_text(str(path), named_by_user=True)
    return parse_policy(
        text,
        path=str(path),
        arch=load_arch(arch),
        read=read,
        default=default,
        dialect=dialect,
        is_another=_is_another,
    )


def _is_another(name: str, other: str) -> bool:
    try:
        return os.path.isfile(other) and not os.path.samefile(name, other)
    except (OSError, ValueError):
        return False  # nothing to read there, which is told where it is read


def load_arch(name: str) -> Arch:
    """The calls and constants of an architecture, by any of its names.

    Raises:
        StateError: there is no table for it.
    """
    name = canonical_arch(name)
    if name not in ARCH_NAMES:
        raise StateError(f"no table of system calls for {name}; there are {', '.join(ARCH_NAMES)}")
    # Not kept: it is a third of a megabyte that is wanted once.
    return parse_table((_TABLES / f"{name}.txt").read_text("ascii"))


@functools.cache
def _call_names(arch: str) -> dict[int, str]:
    return {number: name for name, number in load_arch(arch).calls.items()}


def syscall_name(number: int, arch: str = NATIVE_ARCH) -> str:
    """The name of a system call, ``call 999`` if there is none of that number.

    Raises:
        StateError: there is no table for that architecture.
    """
    return _call_names(canonical_arch(arch)).get(number, f"call {number}")
