"""A policy as readable pseudo filter code, in the manner of libseccomp's PFC.

Written from the parsed policy, not by libseccomp, whose listing would show its own reading of the
rules, which may differ from their meaning (docs/policy-files.md).
"""

from collections.abc import Iterable

from balloon_daemon.seccomp.constants import NO_SYSCALL
from balloon_daemon.seccomp.policy import MAX_U64, Action, Atom, Operator, ParsedPolicy, Verdict


def write_pfc(policy: ParsedPolicy) -> Iterable[str]:
    """The lines of the listing, without their ends."""
    abi = policy.abi
    yield "#"
    yield "# pseudo filter code start"
    yield "#"
    yield f"# filter for arch {abi.name} ({abi.audit_arch})"
    yield f"if ($arch == {abi.audit_arch})"
    if abi.foreign_bit:
        yield f"  if ($syscall >= {abi.foreign_bit:#x} && $syscall != {NO_SYSCALL:#x})"
        yield "    action KILL_PROCESS;"
    for rules in sorted(policy.calls, key=lambda rules: rules.number):
        yield f'  # filter for syscall "{rules.name}" ({rules.number})'
        yield f"  if ($syscall == {rules.number})"
        for rule in rules.filters:
            if rule.clauses is None:
                yield f"    action {_action(rule.verdict)};"
                continue
            condition = " || ".join(" && ".join(map(_atom, clause)) for clause in rule.clauses)
            yield f"    if ({condition})"
            yield f"      action {_action(rule.verdict)};"
    yield "  # default action"
    yield f"  action {_action(policy.unlisted)};"
    yield "# invalid architecture action"
    yield "action KILL_PROCESS;"
    yield "#"
    yield "# pseudo filter code end"
    yield "#"


def _action(verdict: Verdict) -> str:
    return f"ERRNO({verdict.errno})" if verdict.action is Action.ERRNO else verdict.action.name


def _atom(atom: Atom) -> str:
    argument = f"$a{atom.argument}"
    match atom.operator:
        case Operator.ANY:
            return f"{argument} & {atom.value:#x}"
        case Operator.IN:
            return f"({argument} & {atom.value ^ MAX_U64:#x} == 0)"
        case _:
            return f"{argument} {atom.operator.value} {atom.value:#x}"
