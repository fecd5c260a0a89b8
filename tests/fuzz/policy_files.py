"""Target: seccomp policy files, from text to a program that means what the text means.

PolicyFileError is the only way to refuse one, in either dialect, and it can be shown on any
terminal. What is accepted compiles into a program that the kernel would load, and that judges
calls as the evaluator does.
"""

from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.errors import PolicyFileError, PolicyProblem, printable
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.machine import BpfMachine
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import Dialect, ParsedPolicy
from tests.harness.enemies.choices import INTERESTING
from tests.harness.invariants import require

ARCHES = [load_arch(name) for name in ("x86_64", "aarch64")]
SEPARATOR = "\x00"
"""Between the policy, a file that it includes as ./a and one that it includes as ./b."""


def run(data: bytes) -> None:
    """One policy file and its includes, for one architecture and in one dialect."""
    arch = ARCHES[len(data) % 2]
    dialect = Dialect.C if len(data) % 4 >= 2 else Dialect.PYTHON
    text, _, included = data.decode("utf-8", "surrogateescape").partition(SEPARATOR)
    a, _, b = included.partition(SEPARATOR)
    files = {"d/a": a, "d/b": b} if dialect is Dialect.PYTHON else {"a": a, "b": b}

    def read(name: str) -> str:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    try:
        policy = parse_policy(text, path="d/main", arch=arch, read=read, dialect=dialect)
        for warning in policy.warnings:
            _show(warning)
        bpf = compile_bpf(policy)
    except PolicyFileError as err:
        require(err.problems, "refused without a reason")
        for problem in err.problems:
            inside = problem.line >= 1 and problem.column >= 1 and problem.length >= 1
            require(inside and problem.message, "a place that is none", problem)
            _show(problem)
        return
    _compare(policy, BpfMachine(bpf))


def _show(problem: PolicyProblem) -> None:
    """Whatever stands in the file: its place is told, in few lines, and nothing of it unseen."""
    shown = str(problem)
    require(shown.startswith(f"{printable(problem.file)}:{problem.line}:"), "no place", shown)
    unseen = {c for c in shown if not c.isprintable()} - {"\n", "\t"}
    require(not unseen, "it reaches a terminal unseen", unseen)
    require(shown.count("\n") <= 2 and len(shown) < 8192, "more is shown than a place", shown)


def _compare(policy: ParsedPolicy, machine: BpfMachine) -> None:
    """The program and the evaluator agree on every call that the text names, and near it."""
    audit_arch = policy.abi.audit_arch
    numbers = [call.number for call in policy.calls[:16]]
    for number in {*numbers, *(n + 1 for n in numbers), 0, 511}:
        for value in _values(policy, number):
            arguments = [value] * 6
            decided = evaluate(policy, audit_arch, number, arguments).verdict.value
            ran = machine.run(audit_arch, number, arguments)
            require(decided == ran, "program and text disagree", number, value, decided, ran)


def _values(policy: ParsedPolicy, number: int) -> set[int]:
    """The constants that a call is compared with, and one either side."""
    values = set(INTERESTING[::7])
    for call in policy.calls:
        if call.number == number:
            for rule in call.filters[:8]:
                for clause in (rule.clauses or ())[:4]:
                    values |= {atom.value + d & 2**64 - 1 for atom in clause for d in (-1, 0, 1)}
    return values
