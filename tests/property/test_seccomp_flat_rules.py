"""Rules for libseccomp say what a policy's filters say: each span, each rule, no two at once."""

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from balloon_daemon.seccomp.constants import Abi
from balloon_daemon.seccomp.evaluator import compare, evaluate
from balloon_daemon.seccomp.flat_rules import TooManyRulesError, flat_rules
from balloon_daemon.seccomp.policy import (
    ALLOW,
    KILL_PROCESS,
    MAX_U64,
    Action,
    Atom,
    CallRules,
    Filter,
    Operator,
    ParsedPolicy,
    Verdict,
)
from balloon_daemon.seccomp.span import ANYTHING, Comparator, spans_of
from tests.fakes.seccomp_policies import EDGES

ABI = Abi("x86_64", 0xC000003E, 0x40000000)
VALUES = st.one_of(st.sampled_from(EDGES), st.integers(0, MAX_U64), st.integers(0, 20))
ALLOWED = st.sampled_from([frozenset(Comparator), frozenset([Comparator.NE]), frozenset()])


def near(values: list[int]) -> list[int]:
    """Values around these: the neighbours, and each with one bit turned over."""
    steps = [(value + step) & MAX_U64 for value in values for step in (-1, 0, 1)]
    return [*steps, *(value ^ 1 << bit for value in values for bit in range(64)), *EDGES]


@st.composite
def atoms(draw: st.DrawFn, arguments: int) -> Atom:
    index = draw(st.integers(0, arguments - 1))
    return Atom(index, draw(st.sampled_from(Operator)), draw(VALUES))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(atoms(1), st.booleans()), min_size=1, max_size=3), ALLOWED)
def test_comparisons_of_spans_hold_once_where_all_atoms_do(
    known: list[tuple[Atom, bool]], allowed: frozenset[Comparator]
) -> None:
    spans = [ANYTHING]
    for atom, holds in known:
        parts = list(spans_of(atom, holds=holds))
        met = [span.meet(part) for span in spans for part in parts]
        spans = [span for span in met if span is not None]
        assume(len(spans) <= 200)
    comparisons = [c for span in spans for c in span.comparisons(0, allowed)]
    for value in near([atom.value for atom, _ in known]):
        right = all(compare(atom, value) == holds for atom, holds in known)
        assert sum(span.has(value) for span in spans) == right
        assert sum(comparison.holds(value) for comparison in comparisons) == right


VERDICTS = st.sampled_from(
    [ALLOW, KILL_PROCESS, Verdict(Action.ERRNO, 1), Verdict(Action.TRAP)],
)


@st.composite
def policies(draw: st.DrawFn) -> ParsedPolicy:
    clause = st.lists(atoms(2), min_size=1, max_size=2).map(tuple)
    clauses = st.lists(clause, min_size=1, max_size=2).map(tuple)
    conditional = [
        Filter(draw(clauses), draw(VERDICTS), None) for _ in range(draw(st.integers(0, 2)))
    ]
    call = CallRules("read", 0, 1, (*conditional, Filter(None, draw(VERDICTS), None)))
    return ParsedPolicy(ABI, (call,), KILL_PROCESS, (), ("p",), denylist=False)


@settings(max_examples=100, deadline=None)
@given(policies(), st.data())
def test_one_rule_at_most_holds_and_has_the_policys_answer(
    policy: ParsedPolicy, data: st.DataObject
) -> None:
    try:
        rules = flat_rules(policy)
    except TooManyRulesError:
        assume(False)
    values = [
        atom.value
        for rule in policy.calls[0].filters
        for clause in rule.clauses or ()
        for atom in clause
    ]
    interesting = st.sampled_from(near(values[:3]))
    for _ in range(20):
        arguments = [data.draw(interesting), data.draw(interesting), 0, 0, 0, 0]
        found = [
            rule.verdict
            for rule in rules
            if all(c.holds(arguments[c.argument]) for c in rule.comparisons)
        ]
        assert len(found) <= 1
        right = evaluate(policy, ABI.audit_arch, 0, arguments).verdict
        assert (found or [policy.unlisted]) == [right]


@settings(max_examples=100, deadline=None)
@given(policies())
def test_call_of_several_rules_is_said_with_what_libseccomp_gets_right(
    policy: ParsedPolicy,
) -> None:
    try:
        rules = flat_rules(policy)
    except TooManyRulesError:
        assume(False)
    assume(len(rules) > 1)
    comparisons = [comparison for rule in rules for comparison in rule.comparisons]
    used = {comparison.comparator for comparison in comparisons}
    several = len({comparison.argument for comparison in comparisons}) > 1
    right = {Comparator.EQ, Comparator.MASKED_EQ} | (set() if several else {Comparator.NE})
    assert used <= right
