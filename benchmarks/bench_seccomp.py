"""The policy compiler's speed, and what its filters cost a system call.

``python -m benchmarks.bench_seccomp`` prints a table. Filters are measured in a C program that
makes one call millions of times, beside no filter at all and beside the same rules as one linear
chain of comparisons, which is what minijail's C compiler makes. Linux ≥ 5.11 answers calls that
are allowed whatever their arguments from a bitmap, without running the filter; so each filter is
measured twice: on ``getpid: 1``, and on a call whose argument is tested.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from balloon_daemon.seccomp.bpf import SOCK_FILTER
from balloon_daemon.seccomp.filter import compile_policy, load_arch, read_policy
from balloon_daemon.seccomp.policy import ParsedPolicy

HERE = Path(__file__).parent
SEED = HERE.parent / "policies" / "balloon_device.policy"

RUNS = 9
CALLS = 2_000_000

Record = dict[str, object]


def record(
    name: str, unit: str, samples: Sequence[float], goal: float | None = None, note: str = ""
) -> Record:
    """One figure: the median of the samples, their range, and the limit it is held to."""
    value = median(samples)
    found: Record = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "min": round(min(samples), 3),
        "max": round(max(samples), 3),
        "n": len(samples),
        "goal": None if goal is None else f"≤ {goal:g}",
        "met": None if goal is None else value <= goal,
    }
    return found | ({"note": note} if note else {})


def compile_figures() -> list[Record]:
    """How long policy files take to compile, after import."""
    with tempfile.TemporaryDirectory() as directory:
        large = large_policy(Path(directory))
        return [
            record("seccomp: compile crosvm's file", "ms", times_ms(SEED), 5),
            record("seccomp: compile 150 calls with includes", "ms", times_ms(large), 50),
            record("seccomp: import, in a new process", "ms", import_ms()),
        ]


def times_ms(path: Path) -> list[float]:
    """Milliseconds to read and compile a file, some dozens of times."""
    samples = []
    for _ in range(40):
        started = time.perf_counter()
        compile_policy(path)
        samples.append((time.perf_counter() - started) * 1000)
    return samples


def import_ms() -> list[float]:
    """Milliseconds that the imports take which the daemon has not made anyway."""
    code = (
        "import time, re, os, ctypes, dataclasses, functools, pathlib, enum, struct\n"
        "t = time.perf_counter()\n"
        "import balloon_daemon.seccomp.filter\n"
        "print((time.perf_counter() - t) * 1000)"
    )
    command = [sys.executable, "-c", code]
    return [float(subprocess.check_output(command, cwd=HERE.parent)) for _ in range(RUNS)]


def large_policy(directory: Path) -> Path:
    """A policy of 150 calls in three files, a third of them with conditions."""
    names = sorted(load_arch().calls)[::2][:150]
    rules = [
        f"{name}: arg0 == {n} || arg1 in PROT_READ|PROT_WRITE && arg2 & CLONE_VM; return EPERM"
        if n % 3 == 0
        else f"{name}: 1"
        for n, name in enumerate(names)
    ]
    (directory / "second.policy").write_text("\n".join(rules[50:100]))
    (directory / "third.policy").write_text("\n".join(rules[100:]))
    path = directory / "first.policy"
    includes = "@include ./second.policy\n@include ./third.policy\n"
    path.write_text(includes + "\n".join(rules[:50]) + "\n")
    return path


def filter_figures() -> list[Record]:
    """Nanoseconds that a filter adds to a system call."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        program = build(place)
        if program is None:
            return []
        return [
            *of_policy("crosvm's rules", SEED.read_text(), place, program, goal=50),
            *of_policy("150 calls", many_calls(), place, program, goal=None),
        ]


def many_calls() -> str:
    """150 unconditional calls, spread over all numbers; getpid, exit_group and write with them."""
    calls = load_arch().calls
    needed = ["getpid", "getppid", "exit_group", "write"]
    spread = [name for name in sorted(calls, key=lambda n: calls[n]) if name not in needed][::2]
    return "".join(f"{name}: 1\n" for name in [*spread[:146], *needed])


def of_policy(
    title: str, text: str, place: Path, program: Path, goal: float | None
) -> Iterable[Record]:
    """Figures for getpid allowed unconditionally, and for getppid with its argument tested."""
    path = place / "policy"
    text = "\n".join(line for line in text.splitlines() if not line.startswith("getppid"))
    path.write_text(text + "\ngetppid: arg0 in 0xff\n")
    ours = place / "ours.bpf"
    ours.write_bytes(compile_policy(path).bpf)
    chain = place / "chain.bpf"
    chain.write_bytes(linear(read_policy(path)))
    calls = load_arch().calls
    for call, how in (("getpid", "always allowed"), ("getppid", "argument tested")):
        samples = interleaved(
            lambda name, call=call: run(program, name, calls[call]),  # type: ignore[misc]
            ["-", str(ours), str(chain)],
        )
        plain = samples["-"]
        yield record(f"seccomp: {call} without a filter", "ns", plain)
        limit = goal if call == "getpid" else None
        for name, label, held_to in ((ours, "ours", limit), (chain, "linear chain", None)):
            added = [with_ - without for with_, without in zip(samples[str(name)], plain)]  # noqa: B905
            length = name.stat().st_size // SOCK_FILTER.size
            yield record(
                f"seccomp: {title}, {label} ({length} instructions), {call} {how}: added",
                "ns",
                added,
                held_to,
            )


def linear(policy: ParsedPolicy) -> bytes:
    """The rules as a chain of comparisons in the order of the file, for this benchmark alone.

    Every condition here is ``arg0 in 0xff`` or is replaced by it: the chain's length counts.
    """
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, policy.abi.audit_arch), (0x06, 0, 0, 0x80000000)]
    code.append((0x20, 0, 0, 0))
    for rules in policy.calls:
        if rules.filters[0].clauses is None:
            code += [(0x15, 0, 1, rules.number), (0x06, 0, 0, 0x7FFF0000)]
            continue
        code += [
            (0x15, 0, 6, rules.number),
            (0x20, 0, 0, 20),
            (0x45, 3, 0, 0xFFFFFFFF),
            (0x20, 0, 0, 16),
            (0x45, 1, 0, 0xFFFFFF00),
            (0x06, 0, 0, 0x7FFF0000),
            (0x06, 0, 0, 0x80000000),
        ]
    code.append((0x06, 0, 0, 0x80000000))
    return b"".join(SOCK_FILTER.pack(*instruction) for instruction in code)


def interleaved(measure: Callable[[str], float], names: list[str]) -> dict[str, list[float]]:
    """Takes each measurement in turn, RUNS times: all of them meet the same weather."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(RUNS):
        for name in names:
            samples[name].append(measure(name))
    return samples


def build(place: Path) -> Path | None:
    """Compiles the C program; None without a compiler."""
    program = place / "seccomp_getpid"
    command = ["cc", "-O2", "-o", str(program), str(HERE / "seccomp_getpid.c")]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        print("no C compiler (cc): filters are not measured", file=sys.stderr)
        return None
    return program


def run(program: Path, filter_: str, number: int) -> float:
    """Nanoseconds of one call under a filter."""
    command = [str(program), filter_, str(number), str(CALLS)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def figures() -> list[Record]:
    """Everything, in the order of the table."""
    return [*compile_figures(), *filter_figures()]


def main() -> int:
    """Prints the table. Returns 1 if a goal is missed."""
    print(f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} cores")
    found = figures()
    for f in found:
        goal = "" if f["goal"] is None else f"{f['goal']:>6} {'met' if f['met'] else 'MISSED'}"
        print(f"{f['value']:>9} {f['unit']:3} [{f['min']} … {f['max']}] {goal:13} {f['name']}")
    return 1 if any(f["met"] is False for f in found) else 0


if __name__ == "__main__":
    sys.exit(main())
