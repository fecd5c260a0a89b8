"""Start: from the command to listening, from fork to a jailed device, and what imports take."""

import subprocess
import sys
import time
from collections.abc import Iterator

from balloon_daemon.config.model import default_policy_file
from balloon_daemon.seccomp.filter import compile_policy
from benchmarks.figures import Figure, at_most, of_samples
from benchmarks.processes import ENVIRONMENT, ROOT, Balloond

RUNS = 11

_FORKS = """\
import os, select, time
from balloon_daemon.device.template import Template
template = Template()
from balloon_daemon.cli import run as cli
from balloon_daemon.config.model import default_policy_file
from balloon_daemon.device.process import spawn
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.seccomp.filter import compile_policy
policy = compile_policy(default_policy_file())
template.prepare(policy.bpf, print, print)
template.wait_until_ready()
spec = DeviceSpec("bench", (), (), None, b"", None, must_tell_host=True)
for _ in range({runs}):
    begun = time.perf_counter()
    device = spawn(spec, template.fork)
    forked = time.perf_counter()
    select.select([device.tube], [], [])
    ready = time.perf_counter()
    assert device.tube.receive()
    device.kill()
    os.waitpid(device.pid, 0)
    device.close()
    print((ready - begun) * 1000, (forked - begun) * 1000)
"""


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    # Once before: only an installed package has its bytecode from the beginning.
    Balloond().kill()
    starts, cpu, imports, empty = [], [], [], []
    for _ in range(RUNS):
        with Balloond() as daemon:
            starts.append(daemon.start_s * 1000)
            cpu.append(daemon.start_cpu_s * 1000)
        empty.append(_python_ms("pass"))
        imports.append(_python_ms("import balloon_daemon.cli.run"))
    yield of_samples("start: command to listening", "ms", starts, at_most(200))
    yield of_samples("start: command to listening, CPU", "ms", cpu)
    yield of_samples("start: the interpreter alone", "ms", empty)
    own = [one - other for one, other in zip(imports, empty, strict=True)]
    yield of_samples("start: imports", "ms", own)
    yield of_samples("start: compiling the seccomp policy", "ms", _compile_ms())
    ready, forked = _fork_ms()
    yield of_samples("device: fork to ready", "ms", ready)
    yield of_samples("device: fork, seen by the controller", "ms", forked)


def _python_ms(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT, env=ENVIRONMENT)
    return (time.perf_counter() - begun) * 1000


def _compile_ms() -> list[float]:
    took = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        compile_policy(default_policy_file())
        took.append((time.perf_counter() - begun) * 1000)
    return took


def _fork_ms() -> tuple[list[float], list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", _FORKS.format(runs=RUNS)],
        check=True,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return [float(line[0]) for line in lines], [float(line[1]) for line in lines]
