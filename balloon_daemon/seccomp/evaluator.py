"""Evaluates a policy for one call, straight from the parsed text. Pure.

The evaluator is the reference for the language's meaning: slow and simple. Tests and ``make
fuzz-seccomp`` compare the compiled filter with it.
"""

from collections.abc import Sequence
from typing import assert_never

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.constants import NO_SYSCALL
from balloon_daemon.seccomp.policy import (
    KILL_PROCESS,
    MAX_U64,
    Atom,
    CallRules,
    Filter,
    Operator,
    ParsedPolicy,
    Verdict,
)


class Answer(NamedTuple):
    """The answer to a call, and the filter that gave it.

    Attributes:
        verdict: the filter's answer.
        rules: the call's rules; None if the text does not name the call, or the ABI is foreign.
        filter: the filter that decided, with its place; None where there are no rules.
    """

    verdict: Verdict
    rules: CallRules | None = None
    filter: Filter | None = None


def evaluate(
    policy: ParsedPolicy, audit_arch: int, number: int, arguments: Sequence[int]
) -> Answer:
    """Evaluates one call.

    Args:
        policy: the parsed policy.
        audit_arch: the caller's AUDIT_ARCH_*.
        number: the call's number, unsigned 32-bit.
        arguments: six unsigned 64-bit numbers.
    """
    if audit_arch != policy.abi.audit_arch:
        return Answer(KILL_PROCESS)
    foreign = policy.abi.foreign_bit
    if foreign and foreign <= number < NO_SYSCALL:
        return Answer(KILL_PROCESS)
    for rules in policy.calls:
        if rules.number == number:
            for rule in rules.filters:
                if matches(rule, arguments):
                    return Answer(rule.verdict, rules, rule)
    return Answer(policy.unlisted)


def matches(rule: Filter, arguments: Sequence[int]) -> bool:
    """Whether a filter's expression is true of these arguments."""
    if rule.clauses is None:
        return True
    return any(
        all(compare(atom, arguments[atom.argument]) for atom in clause) for clause in rule.clauses
    )


def compare(atom: Atom, argument: int) -> bool:
    """Whether one comparison is true of this unsigned 64-bit argument."""
    value = atom.value
    match atom.operator:
        case Operator.EQ:
            return argument == value
        case Operator.NE:
            return argument != value
        case Operator.LT:
            return argument < value
        case Operator.LE:
            return argument <= value
        case Operator.GT:
            return argument > value
        case Operator.GE:
            return argument >= value
        case Operator.ANY:
            return argument & value != 0
        case Operator.IN:
            return argument & (value ^ MAX_U64) == 0
        case unreachable:
            assert_never(unreachable)
