"""API: what 200 clients at once cost a VM's target, and what the API costs the controller.

The delay is from the host's low-memory signal to the target in the config space, with and without
clients, by turns on one daemon. All clients have sent their requests when the signal comes.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, at_most, of_count, of_percentile, of_samples
from benchmarks.processes import ROOT, Balloond, memory_kib
from benchmarks.tiny_guest import VM_MEM, TinyGuest, connect, raise_file_limit, wait_told

CLIENTS = 200
ROUNDS = 40
"""Of each way: without clients, and each kind of them."""
SPEED = 20
BETWEEN_S = 0.5
"""The policy listens again after 55 ms at that speed; 200 clients are answered within 0.4 s."""
LEVELS = 15
"""Signals to one guest; then a new one connects, with an empty balloon."""

RUNS = 5
"""Pairs of daemons, with and without an API."""

DELAY_GOAL, RSS_GOAL = at_most(5), at_most(8)
MIB = 1024
"""KiB in one."""

WAYS = {
    "no client": "",
    "200 ask for the status": "/v1/status",
    "200 ask for a VM": "/v1/vms/vm1",
    "200 follow the events": "/v1/events",
}


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    raise_file_limit()
    told_ms = _delays()
    alone = told_ms["no client"]
    for way, samples in told_ms.items():
        for percent in (50, 99):
            yield of_percentile(
                f"API, {way}: signal to target, p{percent}", "ms", samples, percent
            )
        if samples is not alone:
            later = median(samples) - median(alone)
            yield of_count(f"API, {way}: the target is later by", "ms", later, DELAY_GOAL)
    more = [_rss(api=True) - _rss(api=False) for _ in range(RUNS)]
    yield of_samples("API: controller's RSS, beside that without", "MiB", more, RSS_GOAL)


def _delays() -> dict[str, list[float]]:
    """Milliseconds from each signal to the target, for each way."""
    told_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory(prefix="balloond-bench-")), "api.sock")
        options = ["--vm-mem", VM_MEM, "--speed", str(SPEED), "--api", str(path)]
        daemon = stack.enter_context(Balloond(options, woken=True))
        clients = stack.enter_context(_clients(path))
        steps = LEVELS
        guest: TinyGuest | None = None
        for _ in range(ROUNDS):
            for way, asked in WAYS.items():
                if guest is None or steps == LEVELS:
                    if guest is not None:
                        guest.close()
                        daemon.wait_devices(0)
                    (guest,) = connect(1, daemon.socket)
                    daemon.wait_devices(1)
                    steps = 0
                _ask(clients, asked)
                begun = time.perf_counter()
                daemon.host.set_low()
                wait_told([guest])
                told_ms[way].append((time.perf_counter() - begun) * 1000)
                daemon.host.set_enough()
                time.sleep(BETWEEN_S)
                _ask(clients, "")
                time.sleep(BETWEEN_S)
                steps += 1
        if guest is not None:
            guest.close()
    return told_ms


def _clients(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.api_clients", str(path), str(CLIENTS)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)


def _ask(clients: "subprocess.Popen[str]", path: str) -> None:
    """Has all clients ask, and waits until they have."""
    assert clients.stdin is not None
    assert clients.stdout is not None
    print(path, file=clients.stdin, flush=True)
    clients.stdout.readline()


def _asked(api: Path, path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(api))
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


def _rss(*, api: bool) -> float:
    """The RSS of a controller with 16 VMs, each squeezed once; asked once if it has an API."""
    with ExitStack() as stack:
        path = Path(stack.enter_context(TemporaryDirectory(prefix="balloond-bench-")), "api.sock")
        options = ["--vm-mem", VM_MEM, *(["--api", str(path)] if api else [])]
        daemon = stack.enter_context(Balloond(options, woken=True))
        guests = connect(16, daemon.socket)
        daemon.wait_devices(16)
        daemon.host.set_low()
        wait_told(guests)
        daemon.host.set_enough()
        for asked in list(WAYS.values())[1:3] if api else []:
            with _asked(path, asked) as client:
                while client.recv(1 << 16):
                    pass
        rss = memory_kib(daemon.pid)["Rss"] / MIB
        for guest in guests:
            guest.close()
    return rss
