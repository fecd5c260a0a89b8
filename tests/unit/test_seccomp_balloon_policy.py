"""The device's seccomp policy: crosvm's file, and the calls that its filter allows.

``policies/balloon_device.policy`` must stay the file of crosvm's change "balloon: Implement device
policy" (2018), rule for rule, and the filter compiled from it must answer each rule's constants,
and their neighbours, as the text does. The expected answers are written here by hand, call by
call, so that they do not come from the parser under test.
"""

from pathlib import Path

import pytest

from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.seccomp.filter import compile_policy
from balloon_daemon.seccomp.machine import BpfMachine

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "policies" / "balloon_device.policy"
SEED = ROOT / "tests" / "data" / "seed" / "balloon_device.policy"
AARCH64 = ROOT / "tests" / "data" / "policies" / "balloon_device.aarch64.policy"

X86_64, AUDIT_AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003
ALLOW, KILL = 0x7FFF0000, 0x80000000
HIGH = 1 << 32

ALWAYS = {
    "read": 0, "write": 1, "close": 3, "poll": 7, "munmap": 11, "dup": 32, "getpid": 39,
    "recvfrom": 45, "sigaltstack": 131, "futex": 202, "sched_getaffinity": 204,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "ppoll": 271,
    "set_robust_list": 273, "eventfd2": 290, "epoll_create1": 291,
}  # fmt: skip

# call, number, argument index, values that pass, values that do not
JUDGED = [
    ("mmap", 9, 2, [0, 1, 2, 3, 8, 0xFFFFFFFB], [4, 5, 7, 0xFFFFFFFF, HIGH, HIGH | 1, 1 << 63]),
    ("mprotect", 10, 2, [0, 1, 2, 3, 0xFFFFFFFB], [4, 6, 7, HIGH, HIGH | 3]),
    ("madvise", 28, 2, [4, 9, 16], [0, 3, 5, 8, 10, 15, 17, 14, HIGH | 9, HIGH | 4, HIGH | 16]),
    ("clone", 56, 0, [0x10000, 0x3D0F00, HIGH | 0x10000], [0, 0xFFFF, 0x20000, 0x11, HIGH]),
    ("prctl", 157, 0, [15], [0, 14, 16, 22, 38, HIGH | 15]),
]

NR_AARCH64 = {
    "read": 63, "write": 64, "close": 57, "dup": 23, "getpid": 172, "recvfrom": 207,
    "sigaltstack": 132, "futex": 98, "sched_getaffinity": 123, "exit_group": 94,
    "epoll_ctl": 21, "ppoll": 73, "set_robust_list": 99, "eventfd2": 19, "epoll_create1": 20,
    "epoll_pwait": 22, "munmap": 215,
}  # fmt: skip
JUDGED_AARCH64 = {"mmap": 222, "mprotect": 226, "madvise": 233, "clone": 220, "prctl": 167}


def rules(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def machine() -> BpfMachine:
    return BpfMachine(compile_policy(POLICY).bpf)


@pytest.fixture(scope="module")
def machine_aarch64() -> BpfMachine:
    return BpfMachine(compile_policy(AARCH64, arch=load_arch("aarch64")).bpf)


def args(index: int, value: int) -> list[int]:
    return [value if i == index else 0x1111 * i for i in range(6)]


def test_policy_is_the_seeds_rule_by_rule() -> None:
    assert rules(POLICY) == rules(SEED)


def test_every_rule_of_the_file_is_judged_here() -> None:
    named = {rule.partition(":")[0] for rule in rules(POLICY)}
    assert named == set(ALWAYS) | {call for call, *_ in JUDGED}


@pytest.mark.parametrize("call", ALWAYS)
def test_unconditional_call_is_allowed(machine: BpfMachine, call: str) -> None:
    assert machine.run(X86_64, ALWAYS[call]) == ALLOW
    assert machine.run(X86_64, ALWAYS[call], [2**64 - 1] * 6) == ALLOW


@pytest.mark.parametrize(("call", "nr", "index", "good", "bad"), JUDGED)
def test_conditional_call_is_judged_by_its_argument(
    machine: BpfMachine, call: str, nr: int, index: int, good: list[int], bad: list[int]
) -> None:
    assert {v: machine.run(X86_64, nr, args(index, v)) for v in good} == dict.fromkeys(good, ALLOW)
    assert {v: machine.run(X86_64, nr, args(index, v)) for v in bad} == dict.fromkeys(bad, KILL)


def test_every_other_call_is_killed(machine: BpfMachine) -> None:
    named = {*ALWAYS.values(), *(nr for _, nr, *_ in JUDGED)}
    others = [nr for nr in range(1024) if nr not in named]
    assert {machine.run(X86_64, nr) for nr in others} == {KILL}


@pytest.mark.parametrize("nr", [0x40000000, 0x40000001, 0x400000E7, 2**32 - 2, 2**32 - 1, 2**31])
def test_number_of_x32_is_killed(machine: BpfMachine, nr: int) -> None:
    assert machine.run(X86_64, nr) == KILL


@pytest.mark.parametrize("arch", [I386, AUDIT_AARCH64, 0])
def test_call_of_another_architecture_is_killed(machine: BpfMachine, arch: int) -> None:
    assert {machine.run(arch, nr) for nr in range(512)} == {KILL}


def test_aarch64_policy_has_the_seeds_rules() -> None:
    # poll and epoll_wait do not exist there; libc makes ppoll and epoll_pwait of them.
    renamed = [rule for rule in rules(SEED) if rule != "poll: 1"]
    renamed = [rule.replace("epoll_wait", "epoll_pwait") for rule in renamed]
    assert rules(AARCH64) == renamed


def test_aarch64_policy_allows_and_kills_as_the_seed_does(machine_aarch64: BpfMachine) -> None:
    for call, nr in NR_AARCH64.items():
        assert machine_aarch64.run(AUDIT_AARCH64, nr) == ALLOW, call
    for call, _, index, good, bad in JUDGED:
        nr = JUDGED_AARCH64[call]
        for value in good:
            assert machine_aarch64.run(AUDIT_AARCH64, nr, args(index, value)) == ALLOW, (
                call,
                value,
            )
        for value in bad:
            assert machine_aarch64.run(AUDIT_AARCH64, nr, args(index, value)) == KILL, (
                call,
                value,
            )
    named = {*NR_AARCH64.values(), *JUDGED_AARCH64.values()}
    assert {machine_aarch64.run(AUDIT_AARCH64, nr) for nr in range(1024) if nr not in named} == {
        KILL
    }
    assert {machine_aarch64.run(X86_64, nr) for nr in range(1024)} == {KILL}
