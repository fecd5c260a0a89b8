"""Random policies with their meaning, and random calls close to their constants.

The meaning is made together with the text, as plain tuples judged by ``operator`` functions,
without the parser and the evaluator under test. The texts use the whole language: number formats,
``|``, ``~``, parentheses, names, groups, lists, repeated statements, includes, continuations,
comments, [arch=…].
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

MAX = 2**64 - 1
ALLOW = 0x7FFF0000
KILL = 0x80000000

OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "&": lambda argument, value: bool(argument & value),
    "in": lambda argument, value: (argument | value) == value,
}
ACTIONS = {
    "allow": ALLOW,
    "1": ALLOW,
    "kill": KILL,
    "kill-process": KILL,
    "kill-thread": 0,
    "trap": 0x30000,
    "trace": 0x7FF00000,
    "log": 0x7FFC0000,
    "user-notify": 0x7FC00000,
    "return EPERM": 0x50001,
    "return 0": 0x50000,
    "return 0x26": 0x50026,
    "return ENOSYS": 0x50026,
}
DEFAULTS = ("kill", "kill-process", "kill-thread", "trap", "user-notify")
NAMES = {"PROT_EXEC": 4, "MADV_REMOVE": 9, "O_RDONLY": 0, "CLONE_VM": 256, "AT_FDCWD": MAX - 99}

EDGES = [
    0, 1, 2, 3, 4, 7, 8, 9, 15, 0xFF, 0x100, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFB,
    0xFFFFFFFE, 0xFFFFFFFF, 0x100000000, 0x100000001, 0x1FFFFFFFF, 0x7FFFFFFF00000000,
    0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0x8000000000000001, 0xFFFFFFFF00000000,
    0xFFFFFFFFFFFFFFFE, MAX,
]  # fmt: skip

Atom = tuple[int, str, int]
Meaning = tuple[list[list[Atom]] | None, int]


@dataclass
class RandomPolicy:
    """A text, its includes, and its meaning."""

    text: str
    includes: dict[str, str]
    default: int
    calls: dict[int, list[Meaning]] = field(default_factory=dict)

    def judge(self, number: int, args: list[int]) -> int:
        """The right answer to a call of the policy's own ABI."""
        for clauses, verdict in self.calls.get(number, []):
            if clauses is None or any(
                all(OPERATORS[op](args[index], value) for index, op, value in clause)
                for clause in clauses
            ):
                return verdict
        return self.default


def random_value(rng: Random) -> int:
    kind = rng.randrange(6)
    if kind == 0:
        return 1 << rng.randrange(64)
    if kind == 1:
        return rng.getrandbits(64)
    if kind == 2:
        return rng.getrandbits(32)
    if kind == 3:
        return rng.randrange(20)
    return rng.choice(EDGES)


def write_number(rng: Random, value: int) -> str:
    named = [name for name, worth in NAMES.items() if worth == value]
    if named and rng.random() < 0.5:
        return named[0]
    style = rng.randrange(7)
    if style == 0:
        return str(value)
    if style == 1:
        return f"0{value:o}" if value else "00"
    if style == 2:
        return f"0o{value:o}"
    if style == 3 and value >= 2**63:
        return f"-{2**64 - value}"
    if style == 4 and value >= 2**63:
        return f"-0x{2**64 - value:X}"
    return f"0x{value:x}" if style == 5 else f"0X{value:X}"


def write_value(rng: Random, value: int, depth: int = 0) -> str:
    style = rng.randrange(8) if depth < 3 else 0
    if style == 5:
        part = value & rng.getrandbits(64)
        other = value & ~part | value & rng.getrandbits(64)
        return f"{write_value(rng, part, depth + 1)}|{write_value(rng, other, depth + 1)}"
    if style == 6:
        return f"~({write_value(rng, value ^ MAX, depth + 1)})"
    if style == 7:
        return f"( {write_value(rng, value, depth + 1)} )"
    if style == 4:
        return f"~{write_number(rng, value ^ MAX)}"
    return write_number(rng, value)


def random_clauses(rng: Random) -> list[list[Atom]]:
    few = [rng.randrange(6) for _ in range(rng.choice([1, 1, 2, 3]))]
    pool = [random_value(rng) for _ in range(3)]
    return [
        [
            (rng.choice(few), rng.choice(list(OPERATORS)), rng.choice([*pool, random_value(rng)]))
            for _ in range(rng.choice([1, 1, 2, 3]))
        ]
        for _ in range(rng.choice([1, 1, 2, 3, 5]))
    ]


def write_clauses(rng: Random, clauses: list[list[Atom]]) -> str:
    gap = rng.choice(["", " ", "  "])
    return f"{gap} || {gap}".join(
        f"{gap}&&{gap}".join(f"arg{i} {op} {write_value(rng, v)}" for i, op, v in clause)
        for clause in clauses
    )


def random_policy(rng: Random, calls: dict[str, int], arch: str) -> RandomPolicy:
    """Makes one policy over an architecture's calls."""
    default_word = rng.choice(DEFAULTS) if rng.random() < 0.4 else ""
    default = ACTIONS[default_word] if default_word else KILL
    meaning: dict[str, list[Meaning]] = {}
    statements: list[str] = [f"@default {default_word}"] if default_word else []
    names = rng.sample(sorted(calls), rng.choice([1, 2, 3, 5, 10, 40, 120]))
    if rng.random() < 0.5:  # neighbours, so that ranges of numbers meet
        ordered = sorted(calls, key=lambda name: calls[name])
        start = rng.randrange(len(ordered) - len(names) + 1)
        names = ordered[start : start + len(names)]
        rng.shuffle(names)
    while names:
        group = [names.pop() for _ in range(min(len(names), rng.choice([1, 1, 1, 2, 4])))]
        repeats = rng.choice([1, 1, 2])
        for turn in range(repeats):
            filters: list[Meaning] = []
            written: list[str] = []
            for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
                clauses = random_clauses(rng)
                text = write_clauses(rng, clauses)
                action = rng.choice(["", *ACTIONS])
                filters.append((clauses, ACTIONS[action] if action else ALLOW))
                written.append(f"{text}; {action}" if action else text)
            if turn == repeats - 1 and rng.random() < 0.5:
                action = rng.choice(list(ACTIONS))
                filters.append((None, ACTIONS[action]))
                written.append(action)
                if rng.random() < 0.5:
                    filters, written = filters[-1:], written[-1:]
            for name in group:
                meaning.setdefault(name, []).extend(filters)
            statements.append(_write_statement(rng, group, written, arch))
    includes: dict[str, str] = {}
    if rng.random() < 0.3 and len(statements) > 1:
        cut = rng.randrange(1, len(statements))
        includes["d/part.policy"] = "\n".join(statements[cut:])
        statements[cut:] = ["@include ./part.policy"]
    lines = [line for s in statements for line in ([s, "# allow: 1", ""][: rng.choice([1, 1, 3])])]
    policy = RandomPolicy("\n".join(lines) + rng.choice(["", "\n", "\r\n"]), includes, default)
    policy.calls = {calls[name]: filters for name, filters in meaning.items()}
    return policy


def _write_statement(rng: Random, group: list[str], filters: list[str], arch: str) -> str:
    shown = [name + rng.choice(["", "", f"[arch={arch}]"]) for name in group]
    if rng.random() < 0.1:
        shown.insert(rng.randrange(len(shown) + 1), "no_such_call[arch=nowhere]")
    left = shown[0] if len(shown) == 1 else "{" + ", ".join(shown) + "}"
    right = filters[0] if len(filters) == 1 else "{ " + " , ".join(filters) + " }"
    if rng.random() < 0.2:
        right = right.replace(" ", " \\\n  ", 2)
    return f"{left}: {right}" + rng.choice(["", "", " # why: { not }"])


def near_calls(rng: Random, policy: RandomPolicy, each: int) -> Iterator[tuple[int, list[int]]]:
    """Calls close to the policy's numbers and constants, ``each`` for a named call."""
    for number, filters in policy.calls.items():
        atoms = [a for clauses, _ in filters for clause in clauses or () for a in clause]
        yield from ((n % 2**32, [rng.choice(EDGES)] * 6) for n in (number - 1, number + 1))
        for _ in range(each if atoms else 1):
            args = [rng.choice(EDGES) for _ in range(6)]
            for index, _, value in rng.sample(atoms, min(len(atoms), rng.choice([1, 2, 4]))):
                args[index] = _near(rng, value)
            yield number, args


def _near(rng: Random, value: int) -> int:
    step = rng.randrange(9)
    if step == 0:
        return (value + 1) % 2**64
    if step == 1:
        return (value - 1) % 2**64
    if step == 2:
        return value ^ (1 << rng.randrange(64))
    if step == 3:
        return value ^ (1 << rng.randrange(32, 64))
    if step == 4:
        return value & 0xFFFFFFFF | rng.choice(EDGES) & ~0xFFFFFFFF
    if step == 5:
        return value & rng.getrandbits(64)
    if step == 6:
        return value ^ MAX
    return value
