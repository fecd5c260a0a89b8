"""Random policies for minijail's C compiler: its rule, our reading and our program agree."""

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.filter import load_arch
from balloon_daemon.seccomp.machine import BpfMachine
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import Dialect
from tests.fakes.c_policies import random_c_policy
from tests.fakes.seccomp_policies import near_calls
from tests.harness.faults import fault

ARCH = load_arch()
AUDIT = 0xC000003E


def compare(rng: Random, each: int) -> int:
    """Makes one policy and calls for it. Returns how many comparisons were made."""
    expected = random_c_policy(rng, dict(ARCH.calls), rng.choice(["", "d/"]))
    policy = parse_policy(
        expected.text,
        path="somewhere/else.policy",
        arch=ARCH,
        read=expected.includes.__getitem__,
        dialect=Dialect.C,
    )
    machine = BpfMachine(compile_bpf(policy))
    made = 0
    for number, args in near_calls(rng, expected, each):
        right = expected.judge(number, args)
        decided = evaluate(policy, AUDIT, number, args).verdict.value
        ran = machine.run(AUDIT, number, args)
        assert decided == ran == right, (expected.text, number, args, decided, ran, right)
        made += 1
    return made


@fault("policy file that minijail's two compilers read differently")
@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_c_dialect_has_the_meaning_that_minijails_c_compiler_gives_it(rng: Random) -> None:
    assert compare(rng, each=4) > 0
