"""A real guest with QEMU's own balloon, 1 GiB of 2: balloond by QMP, against one bare command.

Both by turns on one guest, which each time has just deleted a file of 1600 MiB.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from balloon_daemon.units import GIB
from benchmarks.figures import Figure, at_most, missing, of_samples, ratios
from benchmarks.processes import Balloond
from benchmarks.real_vm import SPEED, SUITE, wait
from tests.vm.guest import Guest
from tests.vm.images import ready_images
from tests.vm.qemu import QemuConfig

PAIRS = 5
FILE_MIB = 1600
TIME_GOAL = at_most(1.05)
_NAME = "real guest by QMP, 1 GiB of 2"
_ENOUGH = 0.99


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    ours: list[float] = []
    bare: list[float] = []
    failed = ""
    with ExitStack() as stack:
        try:
            logs = Path(stack.enter_context(TemporaryDirectory()))
            config = QemuConfig(SUITE, memory_mib=2048, qemu_balloon=True)
            guest = Guest(ready_images(), config, logs)
            stack.callback(guest.stop)
            for pair in range(PAIRS):
                # Each is the first as often as the other.
                for by_balloond in (True, False) if pair % 2 else (False, True):
                    seconds = _by_balloond(guest, logs) if by_balloond else _bare(guest)
                    (ours if by_balloond else bare).append(seconds)
        except Exception as err:
            failed = f"{type(err).__name__}: {err}"
    pairs = min(len(ours), len(bare))
    if not pairs:
        yield missing(
            f"{_NAME}: seconds to 99 % freed, to one bare command", "×", failed, TIME_GOAL
        )
        return
    yield of_samples(f"{_NAME}, balloond: to 99 % freed", "s", ours)
    yield of_samples(f"{_NAME}, one bare command: to 99 % freed", "s", bare)
    yield of_samples(
        f"{_NAME}: seconds to 99 % freed, to one bare command",
        "×",
        ratios(ours[:pairs], bare[:pairs]),
        TIME_GOAL,
        failed,
    )


def _by_balloond(guest: Guest, directory: Path) -> float:
    config = directory / "balloond.toml"
    config.write_text(f'[vm.guest]\nqmp = "{guest.qemu.monitor_path}"\n')
    with Balloond(["--config", str(config), "--speed", SPEED], woken=True) as daemon:
        wait(lambda: b'"vm-driven"' in daemon.log_path.read_bytes(), "balloond drives the guest")
        before = _filled(guest)
        begun = time.perf_counter()
        daemon.host.set_low()
        # At this speed a host that stays low is looked at a thousand times a second.
        daemon.wait_target(GIB)
        daemon.host.set_enough()
        seconds = _freed(guest, before) - begun
        daemon.host.set_plenty()
        _wait_empty(guest)
    return seconds


def _bare(guest: Guest) -> float:
    before = _filled(guest)
    begun = time.perf_counter()
    guest.qemu.monitor.execute("balloon", value=GIB)
    seconds = _freed(guest, before) - begun
    guest.qemu.monitor.execute("balloon", value=2 * GIB)
    _wait_empty(guest)
    return seconds


def _filled(guest: Guest) -> int:
    """Lets the guest use memory for a file and delete it; returns what the host holds then."""
    guest.run(f"dd if=/dev/zero of=/tmp/file bs=1M count={FILE_MIB} && rm /tmp/file")
    return guest.qemu.memory_blocks_bytes()


def _freed(guest: Guest, before: int) -> float:
    """When 99 % of 1 GiB was freed, by ``time.perf_counter``."""
    return wait(
        lambda: before - guest.qemu.memory_blocks_bytes() >= _ENOUGH * GIB, "99 % of 1 GiB freed"
    )


def _wait_empty(guest: Guest) -> None:
    query = guest.qemu.monitor.execute
    wait(lambda: query("query-balloon")["actual"] == 2 * GIB, "an empty balloon")
