"""Compiles a parsed policy into BPF, with exactly the meaning of the text. Pure.

libseccomp is not used: it says nothing when rules clash, takes one comparison of an argument per
rule, and loses the order of a filter list (docs/policy-files.md). Here a list of filters becomes a
chain of tests in the order of the text.

The program first kills calls of other architectures, then finds the call by bisection over ranges
of call numbers with the same answer, then tests its arguments, 32 bits at a time::

    AUDIT_ARCH is ours? ── no ─► kill
      └ bisect the call's number ─► unconditional: return
                                  ─► conditional: words of arguments ─► return

Calls of another ABI under the same AUDIT_ARCH (x32) are always killed, whatever the default.
"""

from collections.abc import Sequence
from typing import assert_never

from balloon_daemon.errors import PolicyFileError, PolicyProblem
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.bpf import (
    ARCH_OFFSET,
    BPF_MAXINSNS,
    NR_OFFSET,
    SOCK_FILTER,
    Graph,
    Jump,
    Node,
    TooManyTestsError,
    argument_offset,
)
from balloon_daemon.seccomp.constants import NO_SYSCALL
from balloon_daemon.seccomp.policy import (
    KILL_PROCESS,
    MAX_U64,
    Atom,
    CallRules,
    Operator,
    ParsedPolicy,
)

_LOW = 0xFFFFFFFF
_WEIGHT_STEPS = 1024
"""The weight of the commonest call relative to a call never made; bounds the depth of the search
tree."""


class _Range(NamedTuple):
    """Call numbers from ``start`` up to the next range's, with one answer."""

    start: int
    node: Node
    weight: int


def compile_bpf(policy: ParsedPolicy) -> bytes:
    """Compiles a policy.

    Returns:
        An array of struct sock_filter, at most BPF_MAXINSNS long, that the kernel can load.

    Raises:
        PolicyFileError: the program would be longer than the kernel accepts.
    """
    graph = Graph()
    kill = graph.ret(KILL_PROCESS.value)
    try:
        calls = _bisect(graph, _ranges(graph, policy))
        root = graph.test(ARCH_OFFSET, Jump.EQ, policy.abi.audit_arch, calls, kill)
    except TooManyTestsError:
        message = f"would be far too many instructions, and the kernel takes {BPF_MAXINSNS}"
        raise _refused(policy, message) from None
    bpf = graph.assemble(root)
    length = len(bpf) // SOCK_FILTER.size
    if length > BPF_MAXINSNS:
        message = f"compiles to {length} instructions, and the kernel takes {BPF_MAXINSNS}"
        raise _refused(policy, message)
    return bpf


def _refused(policy: ParsedPolicy, message: str) -> PolicyFileError:
    return PolicyFileError([PolicyProblem(policy.files[0], 1, 1, 1, "", message)])


def _ranges(graph: Graph, policy: ParsedPolicy) -> list[_Range]:
    """All 2³² call numbers, cut where the answer changes."""
    unlisted = graph.ret(policy.unlisted.value)
    most = max((call.frequency for call in policy.calls), default=1)
    cuts: list[_Range] = []
    made: dict[tuple[int, ...], Node] = {}  # key: ids of the filters, shared by a group's calls
    free = 0  # the first number that no range covers yet

    def cover(start: int, end: int, node: Node, weight: int) -> None:
        nonlocal free
        if start > free:
            cover(free, start, unlisted, 0)
        if cuts and cuts[-1].node is node:
            cuts[-1] = _Range(cuts[-1].start, node, cuts[-1].weight + weight)
        else:
            cuts.append(_Range(start, node, weight))
        free = end

    for call in sorted(policy.calls, key=lambda call: call.number):
        weight = 1 + call.frequency * _WEIGHT_STEPS // max(most, 1)
        key = tuple(map(id, call.filters))
        if key not in made:
            made[key] = _filters(graph, call)
        cover(call.number, call.number + 1, made[key], weight)
    if policy.abi.foreign_bit:
        foreign = graph.ret(KILL_PROCESS.value)
        cover(policy.abi.foreign_bit, NO_SYSCALL, foreign, 0)
    if free <= NO_SYSCALL:
        cover(free, NO_SYSCALL + 1, unlisted, 0)
    return cuts


def _bisect(graph: Graph, ranges: Sequence[_Range]) -> Node:
    """A search tree over the ranges, with frequent calls nearer to its root."""
    if len(ranges) == 1:
        return ranges[0].node
    first, last = ranges[0], ranges[-1]
    if len(ranges) == 3 and first.node is last.node and ranges[1].start + 1 == last.start:
        return graph.test(NR_OFFSET, Jump.EQ, ranges[1].start, ranges[1].node, first.node)
    # Each range counts as twice its weight plus 1. Without the 1, ranges of weight 0 would be
    # split off one by one, in a long chain of tests.
    total = sum(r.weight * 2 + 1 for r in ranges)
    before, split, best = 0, 1, total
    for index, r in enumerate(ranges[:-1], 1):
        before += r.weight * 2 + 1
        uneven = abs(total - 2 * before)
        if uneven < best:
            split, best = index, uneven
    left = _bisect(graph, ranges[:split])
    right = _bisect(graph, ranges[split:])
    return graph.test(NR_OFFSET, Jump.GE, ranges[split].start, right, left)


def _filters(graph: Graph, call: CallRules) -> Node:
    """One call's filters, tested in order; nodes are made from the last filter to the first."""
    node = graph.ret(call.filters[-1].verdict.value)
    for rule in reversed(call.filters[:-1]):
        decided = graph.ret(rule.verdict.value)
        for clause in reversed(rule.clauses or ()):
            matched = decided
            for atom in reversed(clause):
                matched = _atom(graph, atom, matched, node)
            node = matched
    return node


def _atom(graph: Graph, atom: Atom, yes: Node, no: Node) -> Node:
    """One 64-bit comparison, as one or two tests of 32 bits."""
    value = atom.value
    match atom.operator:
        case Operator.EQ:
            return _equal(graph, atom.argument, value, yes, no)
        case Operator.NE:
            return _equal(graph, atom.argument, value, no, yes)
        case Operator.GT:
            return _greater(graph, atom.argument, Jump.GT, value, yes, no)
        case Operator.LE:
            return _greater(graph, atom.argument, Jump.GT, value, no, yes)
        case Operator.GE:
            return _greater(graph, atom.argument, Jump.GE, value, yes, no)
        case Operator.LT:
            return _greater(graph, atom.argument, Jump.GE, value, no, yes)
        case Operator.ANY:
            return _any_bit(graph, atom.argument, value, yes, no)
        case Operator.IN:
            return _any_bit(graph, atom.argument, value ^ MAX_U64, no, yes)
        case unreachable:
            assert_never(unreachable)


def _equal(graph: Graph, argument: int, value: int, yes: Node, no: Node) -> Node:
    """arg == value: both halves are equal."""
    high, half = argument_offset(argument, high=True), value >> 32
    return graph.test(high, Jump.EQ, half, _low(graph, argument, Jump.EQ, value, yes, no), no)


def _greater(graph: Graph, argument: int, jump: Jump, value: int, yes: Node, no: Node) -> Node:
    """arg > value or arg >= value: true if the high half is greater; if the high halves are equal,
    the low halves decide."""
    high, half = argument_offset(argument, high=True), value >> 32
    low = _low(graph, argument, jump, value, yes, no)
    # Where the value's high half is 0, no test of equality is needed: the argument's high half,
    # which is not greater than 0, is 0 too.
    equal = graph.test(high, Jump.EQ, half, low, no) if half else low
    return graph.test(high, Jump.GT, half, yes, equal)


def _low(graph: Graph, argument: int, jump: Jump, value: int, yes: Node, no: Node) -> Node:
    """The test of the low half, where the high half is known to equal the value's."""
    high, half = argument_offset(argument, high=True), value >> 32
    return graph.test(
        argument_offset(argument, high=False),
        jump,
        value & _LOW,
        graph.assume(yes, high, Jump.EQ, half, holds=True),
        graph.assume(no, high, Jump.EQ, half, holds=True),
    )


def _any_bit(graph: Graph, argument: int, mask: int, yes: Node, no: Node) -> Node:
    """arg & mask: a bit of the mask is set in either half."""
    low = argument_offset(argument, high=False)
    high = argument_offset(argument, high=True)
    either = graph.test(low, Jump.SET, mask & _LOW, yes, no)
    return graph.test(high, Jump.SET, mask >> 32, yes, either)
