"""Calls that show a difference between two programs of one policy, if there is any. Pure.

First come calls with values at each comparison's boundary: the constant, its neighbours, the same
values in the other 32 bits, single bits of masks. Their other arguments satisfy the rest of the
comparison's clause. Then come all call numbers, and those of other architectures and ABIs. Last
come calls with arguments drawn at random, from all of these values and others.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.constants import NO_SYSCALL
from balloon_daemon.seccomp.policy import (
    MAX_ARGUMENTS,
    MAX_U64,
    Atom,
    CallRules,
    Operator,
    ParsedPolicy,
)
from balloon_daemon.seccomp.span import spans_of

BOUNDARIES_LIMIT = 20_000
"""The most boundary calls of one policy; the rest is left out."""

AUDIT_ARCHES = (0xC000003E, 0x40000003, 0xC00000B7, 0x40000028, 0xC00000F3, 0x0, 0xFFFFFFFF)
"""linux/audit.h: x86_64, i386, aarch64, arm, riscv64; and two values that no architecture has."""

_NUMBERS = 1024
"""Higher than any of the kernel's call numbers; x86-64's newest is number 471."""

_LOW = 0xFFFFFFFF
_EDGES = (0, 1, 0x7FFFFFFF, 0x80000000, _LOW, 1 << 32, 1 << 63, MAX_U64)

Draw = Callable[[int], int]
"""Gives a random number from 0 up to, but not including, its argument."""


class Probe(NamedTuple):
    """One system call as a filter sees it.

    Attributes:
        audit_arch: AUDIT_ARCH_* of the ABI that makes it.
        number: the call's number, unsigned 32-bit.
        arguments: six unsigned 64-bit numbers.
    """

    audit_arch: int
    number: int
    arguments: tuple[int, ...]


def probes(policy: ParsedPolicy, drawn: int, draw: Draw) -> Iterator[Probe]:
    """Calls to test a policy's programs with.

    Args:
        policy: the policy; its call numbers and constants are used.
        drawn: how many calls to draw beside the boundaries.
        draw: draws them.
    """
    yield from islice(_boundaries(policy), BOUNDARIES_LIMIT)
    yield from _numbers(policy)
    if policy.calls:
        yield from _drawn(policy, drawn, draw)


def _boundaries(policy: ParsedPolicy) -> Iterator[Probe]:
    for call in policy.calls:
        for rule in call.filters:
            for clause in rule.clauses or ():
                met = _meets(clause)
                for atom in clause:
                    for value in _near(atom):
                        arguments = list(met)
                        arguments[atom.argument] = value
                        yield Probe(policy.abi.audit_arch, call.number, tuple(arguments))


def _meets(clause: Sequence[Atom]) -> tuple[int, ...]:
    """Arguments for which a whole clause is true, where they are easily found."""
    found = [0] * MAX_ARGUMENTS
    for atom in clause:
        span = next(spans_of(atom, holds=True), None)
        if span is not None:
            least = max(span.low, span.bits)
            found[atom.argument] = least if span.has(least) else span.high
    return tuple(found)


def _near(atom: Atom) -> Iterator[int]:
    """The values around the boundary of one comparison."""
    value = atom.value
    for base in (value, value ^ MAX_U64) if atom.operator in _MASKS else (value,):
        yield from ((base + step) & MAX_U64 for step in (-1, 0, 1))
        yield from (base ^ 1 << 31, base ^ 1 << 32, base ^ 1 << 63, base & _LOW, base & ~_LOW)
        yield from ((base + (1 << 32)) & MAX_U64, (base - (1 << 32)) & MAX_U64)
    if atom.operator in _MASKS:
        yield from (1 << bit for bit in range(64))
        yield from (value ^ 1 << bit for bit in range(64))
    yield from _EDGES


_MASKS = (Operator.ANY, Operator.IN)


def _numbers(policy: ParsedPolicy) -> Iterator[Probe]:
    """Every number that a call may have, without arguments, and numbers of other ABIs."""
    foreign = policy.abi.foreign_bit or 1 << 30
    named = {call.number for call in policy.calls}
    near = {number + step for number in named for step in (0, 1)} | set(range(_NUMBERS))
    far = {number | foreign for number in named}
    edges = {foreign - 1, foreign, 1 << 31, NO_SYSCALL - 1, NO_SYSCALL}
    for number in sorted(near | far | edges):
        yield Probe(policy.abi.audit_arch, number, (0,) * MAX_ARGUMENTS)
    for audit_arch in AUDIT_ARCHES:
        for number in sorted(named):
            yield Probe(audit_arch, number, (0,) * MAX_ARGUMENTS)


def _drawn(policy: ParsedPolicy, count: int, draw: Draw) -> Iterator[Probe]:
    conditional = [call for call in policy.calls if len(call.filters) > 1]
    values = {call.number: tuple(_values(call)) for call in conditional}
    for _ in range(count):
        # Draw from all calls only once in eight times, else from those with conditions: for a call
        # without conditions the arguments change nothing.
        calls = conditional if conditional and draw(8) else policy.calls
        call = calls[draw(len(calls))]
        known = values.get(call.number, _EDGES)
        arguments = (
            known[draw(len(known))] if draw(4) else draw(MAX_U64 + 1) for _ in range(MAX_ARGUMENTS)
        )
        yield Probe(policy.abi.audit_arch, call.number, tuple(arguments))


def _values(call: CallRules) -> Iterator[int]:
    for rule in call.filters:
        for clause in rule.clauses or ():
            for atom in clause:
                yield from (atom.value, (atom.value + 1) & MAX_U64, (atom.value - 1) & MAX_U64)
    yield from _EDGES
