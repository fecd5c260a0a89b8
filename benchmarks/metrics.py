"""Metrics: what they cost the controller, by turns: without, on the API's socket, over TCP, in a
file; and what a scrape costs a VM's target.

Each way has a daemon of its own with 16 VMs, each squeezed once; it is asked for its metrics some
times where it has any. The delay is measured on one daemon with 64 VMs, with a scrape under way
and without, by turns.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, at_most, of_count, of_percentile, of_samples
from benchmarks.processes import Balloond, memory_kib, wakeups
from benchmarks.tiny_guest import VM_MEM, connect, raise_file_limit, wait_told

RUNS = 5
VMS, MANY = 16, 64
SCRAPES = 5
IDLE_S = 4.0
ROUNDS = 40
SPEED = 20
BETWEEN_S = 0.5
MIB = 1024
"""KiB in one."""

RSS_GOAL, USS_GOAL = at_most(3), at_most(0.1)

WAYS = ("no API", "API", "API, scraped", "TCP, scraped", "file")


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    raise_file_limit()
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for run in range(RUNS):
        for way in WAYS if run % 2 else reversed(WAYS):
            found[way].append(_cost(way))
    for way, beside in zip(WAYS[1:], ("no API", "API", "API", "no API"), strict=True):
        pairs = list(zip(found[way], found[beside], strict=True))
        rss, uss, woken = ([one[n] - other[n] for one, other in pairs] for n in range(3))
        goals = (RSS_GOAL, USS_GOAL) if way != "API" else (None, None)
        title = f"metrics, {way}: beside {beside},"
        yield of_samples(f"{title} controller's RSS", "MiB", rss, goals[0])
        yield of_samples(f"{title} a device's USS", "MiB", uss, goals[1])
        yield of_samples(f"{title} wake-ups when idle", "1/s", woken)
    yield from _delays()


def _scraped(address: Path | int) -> int:
    """Reads the metrics once; returns the answer's length."""
    if isinstance(address, Path):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(str(address))
    else:
        client = socket.create_connection(("127.0.0.1", address))
    with client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        length = 0
        while some := client.recv(1 << 16):
            length += len(some)
    return length


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _cost(way: str) -> tuple[float, float, float]:
    """The controller's RSS, a device's USS, and the controller's wake-ups a second when idle."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="balloond-bench-")))
        api, port, file = directory / "api.sock", _free_port(), directory / "balloond.prom"
        options = ["--vm-mem", VM_MEM, *(["--api", str(api)] if way != "no API" else [])]
        if way == "TCP, scraped":
            options += ["--metrics", f"127.0.0.1:{port}"]
        elif way == "file":
            options += ["--metrics", str(file)]
        daemon = stack.enter_context(Balloond(options, woken=True))
        guests = connect(VMS, daemon.socket)
        devices = daemon.wait_devices(VMS)
        daemon.host.set_low()
        wait_told(guests)
        daemon.host.set_enough()
        if way.endswith("scraped"):
            for _ in range(SCRAPES):
                _scraped(api if way.startswith("API") else port)
        rss = memory_kib(daemon.pid)["Rss"] / MIB
        uss = median(memory_kib(device)["Uss"] / MIB for device in devices)
        time.sleep(BETWEEN_S)
        before = wakeups(daemon.pid)
        time.sleep(IDLE_S)
        woken = (wakeups(daemon.pid) - before) / IDLE_S
        for guest in guests:
            guest.close()
    return rss, uss, woken


def _delays() -> Iterator[Figure]:
    """Milliseconds from a signal to all VMs' targets, with a scrape under way and without."""
    told_ms: dict[bool, list[float]] = {False: [], True: []}
    took_ms: list[float] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="balloond-bench-")))
        api = directory / "api.sock"
        options = ["--vm-mem", VM_MEM, "--speed", str(SPEED), "--api", str(api)]
        daemon = stack.enter_context(Balloond(options, woken=True))
        guests = connect(MANY, daemon.socket)
        daemon.wait_devices(MANY)
        for _ in range(SCRAPES):
            begun = time.perf_counter()
            length = _scraped(api)
            took_ms.append((time.perf_counter() - begun) * 1000)
        for number in range(ROUNDS // 2):
            for scrapes in (False, True) if number % 2 else (True, False):
                if number * 2 % 14 == 0:
                    for guest in guests:
                        guest.close()
                    daemon.wait_devices(0)
                    guests = connect(MANY, daemon.socket)
                    daemon.wait_devices(MANY)
                with ExitStack() as asked:
                    if scrapes:
                        client = asked.enter_context(
                            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                        )
                        client.connect(str(api))
                        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                    begun = time.perf_counter()
                    daemon.host.set_low()
                    wait_told(guests)
                    told_ms[scrapes].append((time.perf_counter() - begun) * 1000)
                    daemon.host.set_enough()
                    time.sleep(BETWEEN_S)
        for guest in guests:
            guest.close()
    yield of_samples(f"metrics, {MANY} VMs: an answer takes", "ms", took_ms)
    yield of_count(f"metrics, {MANY} VMs: an answer's length", "KiB", length / 1024)
    for scrapes, samples in told_ms.items():
        way = "a scrape under way" if scrapes else "no scrape"
        yield of_percentile(f"metrics, {MANY} VMs, {way}: signal to last, p50", "ms", samples, 50)
    later = median(told_ms[True]) - median(told_ms[False])
    yield of_count(f"metrics, {MANY} VMs: the last target is later by", "ms", later)
