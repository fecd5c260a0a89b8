"""Judges a random policy by its known meaning, by the evaluator and by the compiled program."""

from random import Random

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
