"""Random policies, random calls: text, evaluator and compiled program agree, everywhere.

Run as a program this is the long campaign (``make fuzz-seccomp``)::

    python tests/property/test_seccomp_compiler.py [COMPARISONS [SEED]]
"""

import sys
import time
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.machine import BpfMachine
from balloon_daemon.seccomp.parser import parse_policy
from tests.fakes.seccomp_policies import KILL, near_calls, random_policy

ARCHES = {name: load_arch(name) for name in ("x86_64", "aarch64", "riscv64")}
AUDIT = {
    "x86_64": 0xC000003E,
    "aarch64": 0xC00000B7,
    "riscv64": 0xC00000F3,
    "i386": 0x40000003,
    "arm": 0x40000028,
}


def compare(rng: Random, each: int) -> int:
    """Makes one policy and calls for it. Returns how many comparisons were made."""
    name = rng.choice(list(ARCHES))
    arch = ARCHES[name]
    expected = random_policy(rng, dict(arch.calls), name)
    policy = parse_policy(
        expected.text, path="d/test.policy", arch=arch, read=expected.includes.__getitem__
    )
    machine = BpfMachine(compile_bpf(policy))
    made = 0
    for number, args in near_calls(rng, expected, each):
        right = expected.judge(number, args)
        decided = evaluate(policy, AUDIT[name], number, args).verdict.value
        ran = machine.run(AUDIT[name], number, args)
        assert decided == ran == right, (expected.text, name, number, args, decided, ran, right)
        made += 1
    for foreign in AUDIT.keys() - {name}:
        number = rng.choice(list(expected.calls))
        assert machine.run(AUDIT[foreign], number) == KILL
        assert evaluate(policy, AUDIT[foreign], number, [0] * 6).verdict.value == KILL
        made += 1
    for number in (0x40000000, 0x40000000 | rng.choice(list(expected.calls)), 2**31, 2**32 - 2):
        right = KILL if name == "x86_64" else expected.default
        assert machine.run(AUDIT[name], number) == right
        assert evaluate(policy, AUDIT[name], number, [0] * 6).verdict.value == right
        made += 1
    assert machine.run(AUDIT[name], 2**32 - 1) == expected.default
    return made + 1


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_compiled_policy_has_the_meaning_of_its_text(rng: Random) -> None:
    compare(rng, each=4)


def campaign(comparisons: int, seed: int) -> int:
    """Compares until that many comparisons were made. Returns how many it was."""
    made = policies = 0
    started = reported = time.monotonic()
    while made < comparisons:
        made += compare(Random(f"{seed}/{policies}"), each=20)
        policies += 1
        if time.monotonic() - reported > 10:
            reported = time.monotonic()
            print(f"  {made:,} comparisons, {policies:,} policies", flush=True)
    took = time.monotonic() - started
    print(f"seed {seed}: {made:,} comparisons, {policies:,} policies, no difference, {took:.0f} s")
    return made


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    print(f"seed {seed}")
    campaign(wanted, seed)
