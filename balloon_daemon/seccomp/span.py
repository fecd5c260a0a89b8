"""A set of values of one argument, as single comparisons of libseccomp's. Pure.

A rule of libseccomp's compares an argument once. A span is the set of an argument's values that
remain after several comparisons of a policy: bounds, known bits, and single values left out.
``Span.comparisons`` returns comparisons of which exactly one holds for each value of the span.
"""

from collections.abc import Iterator, Set
from enum import IntEnum
from typing import assert_never

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.seccomp.policy import MAX_U64, Atom, Operator


class Comparator(IntEnum):
    """enum scmp_compare of libseccomp's seccomp.h."""

    NE = 1
    LT = 2
    LE = 3
    EQ = 4
    GE = 5
    GT = 6
    MASKED_EQ = 7


class Comparison(NamedTuple):
    """struct scmp_arg_cmp: ``argument OP value``, or ``argument & mask == value``.

    Attributes:
        argument: its index, 0 to 5.
        comparator: how it is compared, all 64 bits, unsigned.
        value: the value compared with; for MASKED_EQ compared after the mask.
        mask: for MASKED_EQ alone.
    """

    argument: int
    comparator: Comparator
    value: int
    mask: int = 0

    def holds(self, word: int) -> bool:
        """Whether the comparison is true of this value of the argument."""
        match self.comparator:
            case Comparator.NE:
                return word != self.value
            case Comparator.LT:
                return word < self.value
            case Comparator.LE:
                return word <= self.value
            case Comparator.EQ:
                return word == self.value
            case Comparator.GE:
                return word >= self.value
            case Comparator.GT:
                return word > self.value
            case Comparator.MASKED_EQ:
                return word & self.mask == self.value
            case unreachable:
                assert_never(unreachable)


class Span(NamedTuple):
    """Values from ``low`` to ``high`` whose bits under ``mask`` are ``bits``, without ``never``.

    Attributes:
        low: the least value.
        high: the greatest value.
        mask: the bits that are known.
        bits: their values; no bit outside the mask is set.
        never: values left out, although they satisfy the other conditions.
    """

    low: int = 0
    high: int = MAX_U64
    mask: int = 0
    bits: int = 0
    never: frozenset[int] = frozenset()

    def has(self, value: int) -> bool:
        """Whether the value is in the span."""
        inside = self.low <= value <= self.high and value & self.mask == self.bits
        return inside and value not in self.never

    def meet(self, other: "Span") -> "Span | None":
        """The values in both spans; None where it is easily seen that no value is in both."""
        if self.mask & other.mask & (self.bits ^ other.bits):
            return None
        low, high = max(self.low, other.low), min(self.high, other.high)
        mask, bits = self.mask | other.mask, self.bits | other.bits
        never = self.never | other.never
        # A value in both spans has all known bits that are set, `bits`, so it is at least `bits`.
        # It is at most `bits` with all unknown bits set.
        low, high = max(low, bits), min(high, bits | mask ^ MAX_U64)
        while low in never:
            low += 1
        while high in never:
            high -= 1
        if low > high:
            return None
        if low == high:
            return Span(low, low) if low & mask == bits else None
        if never:
            never = frozenset(v for v in never if low < v < high and v & mask == bits)
        return Span(low, high, mask, bits, never)

    def comparisons(self, argument: int, allowed: Set[Comparator]) -> list[Comparison]:
        """Comparisons of which exactly one holds for each value of the span, and none for another.

        Args:
            argument: the argument's index.
            allowed: the comparators that may be used besides EQ and MASKED_EQ. Where no single
                comparison expresses the span, the span is cut into blocks of values that share
                their upper bits, up to 63 blocks for each bound.

        Returns:
            At least one comparison; for the span of all values one that always holds.
        """
        low, high = max(self.low, self.bits), min(self.high, self.bits | self.mask ^ MAX_U64)
        at_bottom, at_top = low == self.bits, high == self.bits | self.mask ^ MAX_U64
        if low == high:
            return [Comparison(argument, Comparator.EQ, low)]
        if at_bottom and at_top and not self.never:
            return [Comparison(argument, Comparator.MASKED_EQ, self.bits, self.mask)]
        one: Comparison | None = None
        if not self.mask:
            if at_bottom and at_top and len(self.never) == 1:
                one = Comparison(argument, Comparator.NE, *self.never)
            elif at_bottom and not self.never:
                one = Comparison(argument, Comparator.LE, high)
            elif at_top and not self.never:
                one = Comparison(argument, Comparator.GE, low)
        if one is not None and one.comparator in allowed:
            return [one]
        return list(self._blocks(argument, low, high))

    def _blocks(self, argument: int, low: int, high: int) -> Iterator[Comparison]:
        for end in (*sorted(self.never), high + 1):
            while low < end:
                size = min(low & -low or 1 << 64, 1 << (end - low).bit_length() - 1)
                upper = MAX_U64 ^ size - 1
                if not self.mask & upper & (low ^ self.bits):
                    mask, bits = self.mask | upper, low | self.bits
                    yield Comparison(argument, Comparator.MASKED_EQ, bits & mask, mask)
                low += size
            low = end + 1


ANYTHING = Span()


def spans_of(atom: Atom, *, holds: bool) -> Iterator[Span]:
    """The values for which a comparison is true, or false, in disjoint spans."""
    value = atom.value
    operator = atom.operator if holds else _OPPOSITE[atom.operator]
    match operator:
        case Operator.EQ:
            yield Span(value, value)
        case Operator.NE:
            yield Span(never=frozenset([value]))
        case Operator.LT if value:
            yield Span(0, value - 1)
        case Operator.LE:
            yield Span(0, value)
        case Operator.GT if value < MAX_U64:
            yield Span(value + 1, MAX_U64)
        case Operator.GE:
            yield Span(value, MAX_U64)
        case Operator.LT | Operator.GT:
            return  # nothing is below 0 or above the greatest number
        case Operator.ANY:
            yield from _any_bit(value if holds else value ^ MAX_U64)
        case Operator.IN:
            yield Span(mask=value ^ MAX_U64 if holds else value)
        case unreachable:
            assert_never(unreachable)


# The opposite of ANY ("a bit of the value is set") is IN ("no bit outside the value is set") with
# the value inverted, and the other way round. This table gives only the operator; `spans_of`
# inverts the value.
_OPPOSITE = {
    Operator.EQ: Operator.NE,
    Operator.NE: Operator.EQ,
    Operator.LT: Operator.GE,
    Operator.GE: Operator.LT,
    Operator.LE: Operator.GT,
    Operator.GT: Operator.LE,
    Operator.ANY: Operator.IN,
    Operator.IN: Operator.ANY,
}


def _any_bit(mask: int) -> Iterator[Span]:
    """The values in which at least one bit of the mask is set: for each bit of the mask the span
    in which that bit is set and the mask's lower bits are not."""
    seen = 0
    while seen != mask:
        rest = mask & ~seen
        bit = rest & -rest
        seen |= bit
        yield Span(mask=seen, bits=bit)
