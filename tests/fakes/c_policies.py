"""Random policies of the kind that minijail0 -S accepts, with the meaning that its C compiler
gives.

The meaning is implemented here once more: a line is one call. The call is allowed if the condition
holds; if not, it fails with the error behind ``return``, or gets the default without one. No code
of the reader under test is used.
"""

from dataclasses import dataclass, field
from random import Random

from tests.fakes.seccomp_policies import (
    ALLOW,
    KILL,
    OPERATORS,
    Atom,
    RandomPolicy,
    random_clauses,
    write_value,
)

ERRNO = 0x50000
ERRORS = {
    "EPERM": 1, "ENOSYS": 38, "1": 1, "0": 0, "0x26": 38, "EPERM|ENOSYS": 39, "4095": 4095,
    "(EPERM)": 1, "0xfffff": 0xFFFF, "~0xfffffffffffffff0": 15,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The meaning of one line: a condition if it has one, and its error."""

    clauses: list[list[Atom]] | None
    otherwise: int

    def judge(self, args: list[int]) -> int:
        """The answer of C's filter to a call with these arguments."""
        if self.clauses is None:
            return self.otherwise
        for clause in self.clauses:
            if all(OPERATORS[op](args[index], value) for index, op, value in clause):
                return ALLOW
        return self.otherwise


@dataclass
class CPolicy(RandomPolicy):
    """A text for the C compiler; ``calls`` has its conditions, from which calls near them are
    made."""

    lines: dict[int, Line] = field(default_factory=dict)

    def judge(self, number: int, args: list[int]) -> int:
        """The right answer to a call of the policy's own ABI."""
        return self.lines[number].judge(args) if number in self.lines else self.default


def random_c_policy(rng: Random, calls: dict[str, int], folder: str) -> CPolicy:
    """Makes one policy. Args: ``folder`` names the included file from the working directory."""
    policy = CPolicy("", {}, KILL)
    written: list[str] = []
    for name in rng.sample(sorted(calls), rng.choice([1, 2, 5, 20])):
        text, line = _random_line(rng)
        policy.lines[calls[name]] = line
        policy.calls[calls[name]] = [(line.clauses, line.otherwise)]
        gap = rng.choice(["", " ", "  "])
        written += [*_decoration(rng, sorted(calls)), f"{gap}{name}{gap}: {text}{gap}"]
    if rng.random() < 0.3:
        cut = rng.randrange(len(written))
        policy.includes[f"{folder}part.policy"] = "\n".join(written[cut:])
        written[cut:] = [f"@include ./{folder}part.policy"]
    policy.text = "\n".join(written) + rng.choice(["", "\n"])
    return policy


def _random_line(rng: Random) -> tuple[str, Line]:
    kind = rng.randrange(8)
    if kind == 0:
        return "1", Line(None, ALLOW)
    error = rng.choice(sorted(ERRORS))
    refused = ERRNO | ERRORS[error] & 0xFFFF
    if kind == 1:
        return f"return {error}", Line(None, refused)
    if kind == 2:
        return "return", Line(None, KILL)
    clauses = random_clauses(rng)
    joined = rng.choice([" ", " \\\n  "])
    text = f"{joined}|| ".join(
        " && ".join(f"arg{index} {op} {_value(rng, value)}" for index, op, value in clause)
        for clause in clauses
    )
    if kind == 3:
        return f"{text}; return", Line(clauses, KILL)
    if kind == 4:
        return text, Line(clauses, KILL)
    return f"{text}{rng.choice(['', ' '])}; return {error}", Line(clauses, refused)


def _value(rng: Random, value: int) -> str:
    """A value without spaces, and octal numbers as C writes them."""
    text = "0o"
    while "0o" in text:
        text = write_value(rng, value).replace(" ", "")
    return text


def _decoration(rng: Random, names: list[str]) -> list[str]:
    """Lines that mean nothing to the C compiler; some of them mean something to the other one."""
    other = rng.choice(names)
    said = [
        "",
        "# a comment: 1",
        "  \t",
        f"# one that goes on \\\n{other}: 1",
        f"  # one that goes on \\\nand on \\\n{other}: 1\n# and ends",
        f"# one with a carriage return\r{other}: 1",
        "@frequency ./there.is.none",
    ]
    return rng.sample(said, rng.choice([0, 0, 0, 1, 2]))
