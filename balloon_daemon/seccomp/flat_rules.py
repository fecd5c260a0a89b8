"""Turns a policy into rules whose order does not matter, as libseccomp needs them. Pure.

A policy's filters are tried in order and may compare one argument several times. A libseccomp rule
compares each argument at most once, and where two rules hold libseccomp picks either without a
warning. So every path through a call's filters becomes a rule of its own: no two of these rules
hold for the same arguments, so their order has no effect.

For some disjoint rules of one call libseccomp 2.5.4 makes wrong programs, or never finishes
(docs/policy-files.md), so a call with several rules may use fewer comparators in them.
"""

from collections.abc import Iterator, Set
from itertools import product

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.policy import (
    MAX_ARGUMENTS,
    Atom,
    Filter,
    ParsedPolicy,
    Verdict,
)
from balloon_daemon.seccomp.span import ANYTHING, Comparator, Comparison, Span, spans_of

RULES_LIMIT = 2000
"""The most rules of one policy; for one call with so many rules libseccomp takes a second."""

STEPS_LIMIT = 100_000
"""The most comparisons visited for one policy, which takes less than a second."""

_ALONE = frozenset(Comparator)
_ONE_ARGUMENT = frozenset([Comparator.NE])
"""The comparators, besides EQ and MASKED_EQ, for several rules of a call that compare the same
argument. LE and GE are not among them: with LE or GE in two rules of a call, libseccomp's program
is wrong."""

_SEVERAL_ARGUMENTS = frozenset[Comparator]()
"""As ``_ONE_ARGUMENT``, for several rules of a call that compare several arguments. NE is not
among them either: with NE in one of these rules, libseccomp's program is wrong or is never
finished."""

Path = tuple[Span, ...]
"""For each argument, the values that it can have on this path."""


class FlatRule(NamedTuple):
    """One rule for libseccomp.

    Attributes:
        name: the call's name.
        number: the call's number on the policy's architecture.
        verdict: the answer, which differs from that to unlisted calls.
        comparisons: all of them must hold; at most one for each argument.
    """

    name: str
    number: int
    verdict: Verdict
    comparisons: tuple[Comparison, ...]


class TooManyRulesError(Exception):
    """The policy needs more rules than RULES_LIMIT; the text is the call's name."""


def flat_rules(policy: ParsedPolicy) -> list[FlatRule]:
    """A policy as rules of which at most one holds for any call.

    A call for which no rule holds gets the answer to unlisted calls.

    Raises:
        TooManyRulesError: more rules are needed than RULES_LIMIT.
    """
    rules: list[FlatRule] = []
    made: dict[tuple[int, ...], list[tuple[Verdict, tuple[Comparison, ...]]]] = {}
    steps_left = STEPS_LIMIT
    for call in policy.calls:
        key = tuple(map(id, call.filters))  # calls of one group share the same filters
        if key not in made:
            paths = []
            for path in _paths(call.filters):
                steps_left -= 1
                if steps_left < 0:
                    raise TooManyRulesError(call.name)
                if path is not None and path[0] != policy.unlisted:
                    paths.append(path)
            made[key] = []
            for rule in _comparisons(paths):
                made[key].append(rule)
                if len(made[key]) > RULES_LIMIT:
                    raise TooManyRulesError(call.name)
        rules += (FlatRule(call.name, call.number, *rule) for rule in made[key])
        if len(rules) > RULES_LIMIT:
            raise TooManyRulesError(call.name)
    return rules


def _paths(filters: tuple[Filter, ...]) -> Iterator[tuple[Verdict, Path] | None]:
    """Each path to a verdict, with the arguments' values there; None for each step on the way."""
    # Each entry is a comparison still to be made. It has the indices of the comparison's filter,
    # of the clause in that filter and of the comparison in that clause, then the arguments'
    # possible values before the comparison.
    waiting: list[tuple[int, int, int, Path]] = [(0, 0, 0, (ANYTHING,) * MAX_ARGUMENTS)]
    while waiting:
        at, number, index, path = waiting.pop()
        clauses = filters[at].clauses
        if clauses is None or index == len(clauses[number]):
            yield filters[at].verdict, path
            continue
        yield None
        atom = clauses[number][index]
        another = (at, number + 1) if number + 1 < len(clauses) else (at + 1, 0)
        waiting += ((*another, 0, known) for known in _split(path, atom, holds=False))
        waiting += ((at, number, index + 1, known) for known in _split(path, atom, holds=True))


def _split(path: Path, atom: Atom, *, holds: bool) -> Iterator[Path]:
    """The arguments' possible values after one more comparison, in disjoint parts."""
    for span in spans_of(atom, holds=holds):
        met = path[atom.argument].meet(span)
        if met is not None:
            yield (*path[: atom.argument], met, *path[atom.argument + 1 :])


def _comparisons(
    paths: list[tuple[Verdict, Path]],
) -> Iterator[tuple[Verdict, tuple[Comparison, ...]]]:
    """One call's paths as rules."""
    compared = {n for _, path in paths for n, span in enumerate(path) if span != ANYTHING}
    allowed = _ONE_ARGUMENT if len(compared) == 1 else _SEVERAL_ARGUMENTS
    if len(paths) == 1 and len(alone := list(_said(paths[0][1], _ALONE))) == 1:
        yield paths[0][0], alone[0]
        return
    for verdict, path in paths:
        yield from ((verdict, said) for said in _said(path, allowed))


def _said(path: Path, allowed: Set[Comparator]) -> Iterator[tuple[Comparison, ...]]:
    return product(
        *(
            span.comparisons(argument, allowed)
            for argument, span in enumerate(path)
            if span != ANYTHING
        )
    )
