"""The compiled program's shape: short, bounded, the same every time, and sound."""

import struct
from pathlib import Path

import pytest

from balloon_daemon.errors import PolicyFileError
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.evaluator import evaluate
from balloon_daemon.seccomp.filter import compile_policy, load_arch
from balloon_daemon.seccomp.machine import BadProgramError, BpfMachine
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import ParsedPolicy

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "policies" / "balloon_device.policy"
X86_64 = load_arch()
AUDIT = 0xC000003E
ALLOW, KILL = 0x7FFF0000, 0x80000000
MAX = 2**64 - 1


def parse(text: str, files: dict[str, str] | None = None) -> ParsedPolicy:
    return parse_policy(text, path="test.policy", arch=X86_64, read=(files or {}).__getitem__)


def listing(bpf: bytes) -> list[str]:
    names = {0x20: "ld", 0x15: "jeq", 0x25: "jgt", 0x35: "jge", 0x45: "jset", 0x05: "ja"}
    lines = []
    for code, yes, no, k in struct.iter_unpack("<HBBI", bpf):
        if code == 6:
            lines.append(f"ret {k:#x}")
        elif code == 0x20:
            lines.append(f"ld [{k}]")
        else:
            lines.append(f"{names[code]} {k:#x} {yes} {no}")
    return lines


def test_program_of_a_small_policy_is_this_one() -> None:
    # The one golden listing: the load of a word that is already there, and the test of a half
    # that is already decided, are left out.
    assert listing(compile_bpf(parse("read: arg0 == 5 || arg0 == 0x100000006\nclose: 1"))) == [
        "ld [4]",
        "jeq 0xc000003e 0 12",
        "ld [0]",
        "jge 0x3 0 1",
        "jge 0x4 9 8",
        "jge 0x1 8 0",
        "ld [20]",
        "jeq 0x0 0 2",
        "ld [16]",
        "jeq 0x5 3 4",
        "jeq 0x1 0 3",
        "ld [16]",
        "jeq 0x6 0 1",
        "ret 0x7fff0000",
        "ret 0x80000000",
    ]


def test_program_is_the_same_every_time() -> None:
    assert len({compile_policy(POLICY).bpf for _ in range(3)}) == 1


def test_balloon_policy_is_short() -> None:
    # Of the same rules libseccomp makes 51, minijail's Python compiler 57 or 59.
    assert len(compile_policy(POLICY).bpf) // 8 <= 50


def test_every_call_with_its_own_answer_needs_far_jumps_and_is_right() -> None:
    names = sorted(X86_64.calls, key=lambda name: X86_64.calls[name])[:250]
    text = "\n".join(
        f"{name}: {{ arg0 == {n}; return {n + 1}, arg1 > {n}; trap, return {n + 2000} }}"
        for n, name in enumerate(names)
    )
    machine = BpfMachine(compile_bpf(parse(text)))
    assert len(machine.code) > 1000
    for n, name in enumerate(names):
        nr = X86_64.calls[name]
        assert machine.run(AUDIT, nr, [n]) == 0x50000 + n + 1
        assert machine.run(AUDIT, nr, [n + 1, n + 1]) == 0x30000
        assert machine.run(AUDIT, nr, [n + 1, n]) == 0x50000 + n + 2000


def test_long_list_of_values_stays_linear() -> None:
    values = [n * 3 for n in range(1200)]
    text = "ioctl: " + " || ".join(f"arg1 == {v}" for v in values)
    machine = BpfMachine(compile_bpf(parse(text)))
    # One comparison each, and now and then a return of their own for those beyond 255.
    assert len(machine.code) < 1200 * 1.1 + 20
    for v in [*values, 1, 3599, 3600, 2**32 + 3]:
        assert machine.run(AUDIT, 16, [0, v]) == (ALLOW if v in values else KILL)


@pytest.mark.parametrize("joined", ["||", "&&"])
def test_jumps_around_the_farthest_distance_are_right(joined: str) -> None:
    # Both ends of a conditional jump, alone and together, at 253 … 258 instructions.
    operator = "==" if joined == "||" else "!="
    for length in [*range(122, 132), *range(246, 262)]:
        values = range(3, 3 + length)
        tests = f" {joined} ".join(f"arg1 {operator} {v}" for v in values)
        text = f"ioctl: {{ {tests}; return 1, arg1 < {length}; return 2, return 3 }}"
        policy = parse(f"{text}\nread: arg0 == 1\ngetpid: 1")
        machine = BpfMachine(compile_bpf(policy))
        for value in (0, 1, 2, 3, 4, length, length + 2, length + 3, 2**32 + 3):
            call = [1, value, 0, 0, 0, 0]
            right = evaluate(policy, AUDIT, 16, call).verdict.value
            assert machine.run(AUDIT, 16, call) == right, (length, value)
        assert machine.run(AUDIT, 0, [1]) == machine.run(AUDIT, 39) == ALLOW


def test_jump_with_both_ends_far_is_right() -> None:
    # Calls 3 and 4 share the tests of 1 and 0. Between those and the choice of the two stands the
    # chain of call 2, one instruction longer each time.
    for length in range(225, 262):
        chain = " || ".join(f"arg1 == {v}" for v in range(length))
        policy = parse(
            f"{{read, stat}}: arg0 == 9; trap\n{{write, close}}: arg0 == 8; return 5\n"
            f"open: {chain}\nfstat: 1"
        )
        machine = BpfMachine(compile_bpf(policy))
        for nr in range(7):
            for call in ([9, length, 0, 0, 0, 0], [8, length - 1, 0, 0, 0, 0]):
                right = evaluate(policy, AUDIT, nr, call).verdict.value
                assert machine.run(AUDIT, nr, call) == right, (length, nr)


def test_program_too_long_for_the_kernel_is_refused_by_name() -> None:
    text = "ioctl: " + " || ".join(f"arg1 == {n << 32 | n}" for n in range(1, 2500))
    with pytest.raises(
        PolicyFileError, match=r"test\.policy.* instructions, and the kernel takes 4096"
    ):
        compile_bpf(parse(text))


def test_all_calls_allowed_find_their_answer_in_few_steps() -> None:
    scattered = [name for name, nr in X86_64.calls.items() if nr % 2]
    machine = BpfMachine(compile_bpf(parse("".join(f"{name}: 1\n" for name in scattered))))
    steps = [machine.run_counted(AUDIT, X86_64.calls[name])[1] for name in scattered]
    # Two loads, the architecture, the bisection of some 190 calls, the return.
    assert max(steps) <= 3 + 10 + 1


def test_frequent_call_is_found_sooner() -> None:
    names = [name for name, nr in X86_64.calls.items() if nr % 2]
    text = "".join(f"{name}: 1\n" for name in names)
    plain = BpfMachine(compile_bpf(parse(text)))
    files = {"f": "ppoll: 754417\n" + "".join(f"{n}: 3\n" for n in names if n != "ppoll")}
    hot = BpfMachine(compile_bpf(parse(f"@frequency ./f\n{text}", files)))
    nr = X86_64.calls["ppoll"]
    assert hot.run_counted(AUDIT, nr)[1] <= 6 < plain.run_counted(AUDIT, nr)[1]
    assert {hot.run(AUDIT, n) == plain.run(AUDIT, n) for n in range(600)} == {True}


@pytest.mark.parametrize("text", ["@default trap\nread: trap", "@default kill\nread: arg0 & 0"])
def test_policy_with_one_answer_for_all_is_nothing_but_it(text: str) -> None:
    machine = BpfMachine(compile_bpf(parse(text)))
    assert machine.run(AUDIT, 0) == machine.run(AUDIT, 1)
    assert machine.run(0x40000003, 0) == KILL


@pytest.mark.parametrize(
    "bpf",
    [
        b"",
        b"\x06\0\0\0\0\0\0",
        struct.pack("<HBBI", 0x20, 0, 0, 0),  # no return at the end
        struct.pack("<HBBIHBBI", 0x15, 1, 0, 0, 6, 0, 0, 0),  # jumps past the end
        struct.pack("<HBBIHBBI", 0x20, 0, 0, 64, 6, 0, 0, 0),  # loads past the data
        struct.pack("<HBBIHBBI", 0x28, 0, 0, 0, 6, 0, 0, 0),  # loads half a word
        struct.pack("<HBBIHBBI", 0x05, 0, 0, 1, 6, 0, 0, 0),
    ],
)
def test_machine_refuses_what_the_kernel_refuses(bpf: bytes) -> None:
    with pytest.raises(BadProgramError):
        BpfMachine(bpf)
