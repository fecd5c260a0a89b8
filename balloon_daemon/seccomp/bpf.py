"""Classic BPF, as seccomp takes it: a graph of tests and returns, and its assembler. Pure.

Jumps go forward only, so a program is laid out from its end: a node is made after the nodes to
which it leads, and nodes are written in the order in which they were made, back to front. A
conditional jump reaches 255 instructions; for a target beyond that, a return or an unconditional
jump is inserted nearby.

Source: linux/bpf_common.h, linux/filter.h, linux/seccomp.h; Documentation/networking/filter.rst.
"""

import struct
from enum import IntEnum
from typing import assert_never

BPF_LD_W_ABS = 0x20
BPF_JMP_JA = 0x05
BPF_RET_K = 0x06
BPF_MAXINSNS = 4096
"""The longest program that the kernel accepts. linux/bpf_common.h"""

MAX_JUMP = 255
"""How far a conditional jump reaches: jt and jf are one byte."""

STEPS_LIMIT = 10_000_000
"""The most tests made and visited for one program, which takes some seconds. The conditions of one
call that compile to n instructions need at most n²/2, and a program has at most 4,096."""

SOCK_FILTER = struct.Struct("<HBBI")
"""struct sock_filter: code, jt, jf, k."""

NR_OFFSET = 0
ARCH_OFFSET = 4


def argument_offset(index: int, *, high: bool) -> int:
    """The offset of half an argument in struct seccomp_data, on a little-endian machine."""
    return 16 + 8 * index + (4 if high else 0)


class Jump(IntEnum):
    """The comparisons of the accumulator with a constant, unsigned."""

    EQ = 0x15
    GT = 0x25
    GE = 0x35
    SET = 0x45

    def holds(self, word: int, k: int) -> bool:
        """Whether the comparison is true of this word."""
        match self:
            case Jump.EQ:
                return word == k
            case Jump.GT:
                return word > k
            case Jump.GE:
                return word >= k
            case Jump.SET:
                return word & k != 0
            case unreachable:
                assert_never(unreachable)


class Return:
    """The filter's answer: a SECCOMP_RET_* value. Equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


class Test:
    """Compares one 32-bit word of struct seccomp_data and goes on at ``yes`` or ``no``. Equal to
    itself only."""

    __slots__ = ("jump", "k", "no", "offset", "yes")

    def __init__(self, offset: int, jump: Jump, k: int, yes: "Node", no: "Node") -> None:
        self.offset = offset
        self.jump = jump
        self.k = k
        self.yes = yes
        self.no = no


Node = Return | Test


class TooManyTestsError(Exception):
    """The policy needs far more tests than a program of BPF_MAXINSNS can hold."""


class Graph:
    """Makes nodes, and returns the same node for an equal test, so that equal parts are shared."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._made: dict[tuple[int, ...], Node] = {}
        self._steps = 0

    def ret(self, value: int) -> Node:
        """The node that returns this value."""
        return self._keep((value,), Return(value))

    def test(self, offset: int, jump: Jump, k: int, yes: Node, no: Node) -> Node:
        """A node that chooses between two nodes; one of the two where the test's result is known.

        Raises:
            TooManyTestsError: more than STEPS_LIMIT tests were needed so far.
        """
        if (jump, k) == (Jump.GE, 0):
            return yes
        if (jump, k) in ((Jump.GT, 0xFFFFFFFF), (Jump.SET, 0)):
            return no
        yes = self.assume(yes, offset, jump, k, holds=True)
        no = self.assume(no, offset, jump, k, holds=False)
        if yes is no:
            return yes
        return self._keep((offset, jump, k, id(yes), id(no)), Test(offset, jump, k, yes, no))

    def assume(self, node: Node, offset: int, jump: Jump, k: int, *, holds: bool) -> Node:
        """Skips the first tests of a node whose results follow from a known comparison of their
        word.

        Raises:
            TooManyTestsError: as for ``test``.
        """
        steps = 1
        while isinstance(node, Test) and node.offset == offset:
            if jump is Jump.EQ and holds:
                node = node.yes if node.jump.holds(k, node.k) else node.no
            elif node.jump is jump and node.k == k:
                node = node.yes if holds else node.no
            else:
                break
            steps += 1
        self._steps += steps
        if self._steps > STEPS_LIMIT:
            raise TooManyTestsError
        return node

    def _keep(self, key: tuple[int, ...], node: Node) -> Node:
        made = self._made.setdefault(key, node)
        if made is node:
            self.nodes.append(node)
        return made

    def assemble(self, root: Node) -> bytes:
        """The program that starts at this node, as an array of struct sock_filter."""
        needed, loads = self._reachable(root)
        code: list[tuple[int, int, int, int]] = []  # the instructions, the last one first
        at_load: dict[int, int] = {}  # a node's first instruction, counted from the end
        at_test: dict[int, int] = {}  # where to enter a node whose word is loaded already
        nearest: dict[int, int] = {}  # instruction -> its latest copy, or the latest jump to it

        def jump_to(node: Node, loaded: int, ahead: int) -> int:
            """The index to which a jump goes that is written after ``ahead`` more instructions."""
            known = isinstance(node, Test) and node.offset == loaded
            target = (at_test if known else at_load)[id(node)]
            reached = nearest.get(target, target)
            if len(code) + ahead - reached - 1 <= MAX_JUMP:
                return reached
            if isinstance(node, Return):
                code.append((BPF_RET_K, 0, 0, node.value))
            else:
                code.append((BPF_JMP_JA, 0, 0, len(code) - target - 1))
            nearest[target] = len(code) - 1
            return len(code) - 1

        for node in self.nodes:
            if id(node) not in needed:
                continue
            if isinstance(node, Return):
                code.append((BPF_RET_K, 0, 0, node.value))
                at_load[id(node)] = len(code) - 1
                continue
            no = jump_to(node.no, node.offset, 1)
            yes = jump_to(node.yes, node.offset, 0)
            here = len(code)
            code.append((node.jump, here - yes - 1, here - no - 1, node.k))
            at_test[id(node)] = here
            if id(node) in loads:
                code.append((BPF_LD_W_ABS, 0, 0, node.offset))
                at_load[id(node)] = here + 1
        return b"".join(SOCK_FILTER.pack(*instruction) for instruction in reversed(code))

    @staticmethod
    def _reachable(root: Node) -> tuple[set[int], set[int]]:
        """The nodes reachable from the root, and those entered with another word loaded."""
        needed, loads = {id(root)}, {id(root)}
        waiting = [root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Return):
                continue
            for target in (node.yes, node.no):
                if not isinstance(target, Test) or target.offset != node.offset:
                    loads.add(id(target))
                if id(target) not in needed:
                    needed.add(id(target))
                    waiting.append(target)
        return needed, loads
