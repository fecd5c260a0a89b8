"""Our program of a policy beside another compiler's: what is asked, found and said."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.filter import load_arch
from balloon_daemon.seccomp.flat_rules import FlatRule, TooManyRulesError, flat_rules
from balloon_daemon.seccomp.judge import (
    Agreement,
    CannotSayError,
    Disagreement,
    NoOpinion,
    Opinion,
    OtherProgram,
    judge,
    opinion_in_words,
)
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import ParsedPolicy
from balloon_daemon.seccomp.probes import probes
from tests.harness.faults import fault

POLICY = Path(__file__).parents[2] / "policies" / "balloon_device.policy"
ARCH = load_arch()
ALLOW, KILL = 0x7FFF0000, 0x80000000
# Allowed: one of two ways to call madvise, and what has no bit of PROT_EXEC.
TEXT = "madvise: arg2 == 9 && arg0 != 0 || arg2 == 4\nmprotect: arg2 in ~4\nread: 1\n"


def parse(text: str) -> ParsedPolicy:
    return parse_policy(text, path="test.policy", arch=ARCH, read=str)


def opinion(text: str, *, theirs: str, ours: str | None = None) -> Opinion:
    """Of a policy, where the other compiler, or ours, made a program of another text."""

    def compile_rules(_policy: ParsedPolicy, _rules: Sequence[FlatRule]) -> OtherProgram:
        return OtherProgram("other 1.0", compile_bpf(parse(theirs)))

    bpf = compile_bpf(parse(ours if ours is not None else text))
    return judge(parse(text), bpf, compile_rules, Random(0).randrange)


def said_rules(text: str) -> list[str]:
    return [
        f"{rule.name} {rule.verdict.value:#x}"
        + "".join(
            f" arg{c.argument} {c.comparator.name} {c.value:#x}" + (f"/{c.mask:#x}" * bool(c.mask))
            for c in rule.comparisons
        )
        for rule in flat_rules(parse(text))
    ]


def test_same_program_agrees_and_says_how_many_calls_were_compared() -> None:
    result = opinion(TEXT, theirs=TEXT)

    assert isinstance(result, Agreement)
    assert result.rules == len(flat_rules(parse(TEXT)))
    assert result.calls > 4000
    told = f"other 1.0 agrees: {result.rules} rules, {result.calls:,} calls"
    assert opinion_in_words(result) == told


@fault("our compiler")
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("arg2 == 9", "arg2 == 10"),
        ("arg2 == 9", "arg2 == 0x100000009"),
        ("arg2 == 9", "arg2 <= 9"),
        ("arg2 == 4", "arg2 & 4"),
        ("arg0 != 0", "arg0 != 0x8000000000000000"),
        ("arg0 != 0", "arg0 > 1"),
        ("arg2 in ~4", "arg2 in 0xfffffffb"),
        ("arg2 in ~4", "arg2 in ~0x8000000000000004"),
        ("arg2 in ~4", "arg2 in ~5"),
        ("arg2 in ~4", "arg3 in ~4"),
        ("read: 1", "read: return EPERM"),
        ("read: 1", "write: 1"),
        ("read: 1", "read: 1\nwrite: 1"),
        ("read: 1", "read: 1\nmembarrier: 1"),
    ],
)
def test_program_of_almost_the_same_text_disagrees(right: str, wrong: str) -> None:
    other = TEXT.replace(right, wrong)
    assert other != TEXT

    result = opinion(TEXT, theirs=other)

    assert isinstance(result, Disagreement)
    assert evaluate(parse(TEXT), *result.call).verdict.value == result.ours == result.text
    assert evaluate(parse(other), *result.call).verdict.value == result.theirs != result.text


def test_our_program_that_is_not_the_texts_is_found_too() -> None:
    result = opinion("read: arg0 == 1\n", theirs="read: arg0 == 1\n", ours="read: arg0 == 2\n")

    assert isinstance(result, Disagreement)
    assert opinion_in_words(result) == (
        "other 1.0 disagrees on read(0x1, 0x0, 0x0, 0x0, 0x0, 0x0) of AUDIT_ARCH 0xc000003e: it "
        "says ALLOW, balloond's program KILL_PROCESS, and the policy means ALLOW"
    )


def test_error_number_is_part_of_the_answer() -> None:
    result = opinion("read: return 1\n", theirs="read: return 2\n")

    assert "it says ERRNO(2), balloond's program ERRNO(1)" in opinion_in_words(result)


def test_call_by_another_abi_that_is_let_through_is_found() -> None:
    always = bytes.fromhex("06000000 0000ff7f".replace(" ", ""))

    result = judge(
        parse("@denylist\nread: return 1\n"),
        compile_bpf(parse("@denylist\nread: return 1\n")),
        lambda _policy, _rules: OtherProgram("other 1.0", always),
        Random(0).randrange,
    )

    assert isinstance(result, Disagreement)


def test_compiler_that_cannot_say_it_is_quoted() -> None:
    def compile_rules(_policy: ParsedPolicy, _rules: Sequence[FlatRule]) -> OtherProgram:
        raise CannotSayError("pyseccomp is not installed")

    result = judge(parse(TEXT), compile_bpf(parse(TEXT)), compile_rules, Random(0).randrange)

    assert result == NoOpinion("pyseccomp is not installed")
    assert opinion_in_words(result) == "no second opinion: pyseccomp is not installed"


def test_program_that_the_kernel_refuses_is_no_opinion() -> None:
    result = judge(
        parse(TEXT),
        compile_bpf(parse(TEXT)),
        lambda _policy, _rules: OtherProgram("other 1.0", b""),
        Random(0).randrange,
    )

    assert result == NoOpinion("the kernel would not take other 1.0's program: 0 instructions")


def test_policy_that_takes_too_many_rules_is_not_compiled_by_the_other() -> None:
    # Each of the values that are left out cuts what is left into some sixty blocks.
    left_out = ", ".join(f"arg1 == {n * 0x123456789:#x}; return {n}" for n in range(1, 90))
    text = f"ioctl: {{ {left_out}, allow }}\n"

    result = opinion(text, theirs=text)

    assert result == NoOpinion("ioctl would take too many of libseccomp's rules")
    with pytest.raises(TooManyRulesError):
        flat_rules(parse(text))


def test_same_policy_is_asked_the_same_calls_every_time() -> None:
    policy = parse(POLICY.read_text())

    first, second = (list(probes(policy, 500, Random(3).randrange)) for _ in range(2))

    assert first == second
    assert len(set(first)) > 700


def test_boundaries_of_each_rule_are_asked_from_both_sides() -> None:
    policy = parse(POLICY.read_text())
    answers: dict[int, set[int]] = {}
    for call in probes(policy, 0, Random(0).randrange):
        if call.audit_arch == policy.abi.audit_arch:
            verdict = evaluate(policy, *call).verdict.value
            answers.setdefault(call.number, set()).add(verdict)

    conditional = [rules.number for rules in policy.calls if len(rules.filters) > 1]
    assert len(conditional) == 5
    assert [answers[number] for number in conditional] == [{ALLOW, KILL}] * 5


# --- a policy as rules that may stand in any order ---------------------------------------------


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("read: 1", ["read 0x7fff0000"]),
        ("read: kill", []),  # what unlisted calls get: libseccomp refuses a rule for it
        ("read: arg0 > 5", ["read 0x7fff0000 arg0 GE 0x6"]),
        ("read: arg0 != 5", ["read 0x7fff0000 arg0 NE 0x5"]),
        ("read: arg0 in 0xff", ["read 0x7fff0000 arg0 MASKED_EQ 0x0/0xffffffffffffff00"]),
        # Which bit is the lowest one set: no two of the rules hold.
        (
            "read: arg0 & 6",
            ["read 0x7fff0000 arg0 MASKED_EQ 0x4/0x6", "read 0x7fff0000 arg0 MASKED_EQ 0x2/0x2"],
        ),
        # The filter that comes first has the value that both name.
        (
            "read: { arg0 == 5; return 1, arg0 == 5 || arg0 == 6 }",
            ["read 0x50001 arg0 EQ 0x5", "read 0x7fff0000 arg0 EQ 0x6"],
        ),
        (
            "read: { arg0 == 5; return 1, allow }",
            ["read 0x50001 arg0 EQ 0x5", "read 0x7fff0000 arg0 NE 0x5"],
        ),
        ("read: arg0 >= 5 && arg0 <= 5", ["read 0x7fff0000 arg0 EQ 0x5"]),
        ("read: arg0 == 5 && arg0 != 5", []),
    ],
)
def test_filters_become_disjoint_rules(text: str, rules: list[str]) -> None:
    assert said_rules(text) == rules


def test_two_orderings_of_one_argument_become_blocks() -> None:
    # Of LE and GE in two rules of a call libseccomp 2.5.4 makes a wrong program.
    told = said_rules("read: arg0 < 0x100000000 || arg0 >= 0xffffffffffffff00")

    assert told == [
        "read 0x7fff0000 arg0 MASKED_EQ 0x0/0xffffffff00000000",
        "read 0x7fff0000 arg0 MASKED_EQ 0xffffffffffffff00/0xffffffffffffff00",
    ]


def test_not_equal_beside_another_argument_becomes_blocks() -> None:
    # libseccomp 2.5.4 makes wrong programs with NE there, or never comes to an end.
    told = said_rules("read: { arg0 != 0x8000000000000000; return 1, arg1 == 5 }")

    assert len(told) == 65
    assert not any(" NE " in rule for rule in told)
