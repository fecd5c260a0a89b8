"""Two guests whose working set does not fit into what a balloon leaves: ``seed`` and ``careful``.

One balloond squeezes both, side by side, on a host that wants more whenever it has what it asked
for. Each reads random pieces of more data than its memory holds once it is squeezed, from a slow
disk. What the guests suffer is asked of their own kernels, which balloond cannot ask: a guest is
in need while it reads pages again that its page cache had (workingset_refault_file) and has no
free memory to keep them in. A guest that has its memory back reads again, too, until its cache is
full, and is not in need: `measured.txt`, beside the logs, has that as well.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import wait_until
from tests.vm.guest import Guest
from tests.vm.images import Images
from tests.vm.qemu import MIB, QemuConfig
from tests.vm.running import SESSION_LOGS

pytestmark = pytest.mark.vm

VM_MIB = 512
MAX_MIB = VM_MIB // 2
WORKING_SET_MIB = 360
"""Fits into the VM, beside a kernel of 80 MiB; with MAX_MIB in the balloon half of it does."""

MARGIN_MIB = 400

PIECE_MIB = 4
DISK = {"bps": 10 * MIB, "iops": 400}
"""What the disk can do in a second: that of a virtual server of the cheaper kind."""

REFAULTS = 512
"""A guest that reads more pages again in a second is in need: 2 MiB, a fifth of the disk."""

MEAN_S = 3.0
"""The least time over which that is a mean: a single piece is no need."""

FREE_MIB = 32
"""A guest with more free memory is not in need. Linux leaves some 10 MiB free in a VM of this size
before it drops page cache; with its whole working set in memory the guest has 60."""

NEED_S = 30.0
"""For so long the guest of ``seed`` is watched in need; ``careful`` leaves one alone for 60 s."""

SHARE = 0.5
"""How much of that time a guest of ``careful`` may be in need at most. On a busy machine of two
processors it was 0.1 at most; this is for one that is busier still."""

DEADLINE_S = 180.0

_LOAD = (
    "while :; do"
    f" dd if=/dev/vda of=/dev/null bs={PIECE_MIB}M count=1"
    f" skip=$((RANDOM % {WORKING_SET_MIB // PIECE_MIB})) 2>/dev/null;"
    " echo >>/tmp/work; usleep 100000; done"
)


class LoadedGuest:
    """A guest with QEMU's own balloon that has read its working set, and goes on reading it."""

    def __init__(self, images: Images, profile: str) -> None:
        config = QemuConfig("bookworm", VM_MIB, qemu_balloon=True)
        self.guest = Guest(images, config, SESSION_LOGS / f"thrash-{profile}")
        self.profile = profile
        self.balloon_mib = 0
        self.need_s = 0.0
        self.refaults = 0
        self._at_s = 0.0

    def work(self) -> None:
        """Fills its page cache from a fast disk, and begins to read from a slow one."""
        # The device is kept open: closing it would drop the pages of its cache.
        fill = f"dd if=/dev/vda of=/dev/null bs=1M count={WORKING_SET_MIB}"
        self.guest.run(f"exec 9</dev/vda && {fill}")
        monitor = self.guest.qemu.monitor
        (disk,) = (drive["qdev"] for drive in monitor.execute("query-block"))
        none = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
        monitor.execute("block_set_io_throttle", id=disk, **DISK, **none)
        self.guest.run(f": >/tmp/work; ({_LOAD}) >/dev/null 2>&1 &")
        done = self.done()
        wait_until(lambda: self.done() > done, what="the guest works")

    def done(self) -> int:
        """How many pieces it has read."""
        return int(self.guest.run("wc -c </tmp/work"))

    def account(self) -> None:
        """Asks for its balloon, and adds up the time in which it was in need."""
        lines = self.guest.run("cat /proc/vmstat").splitlines()
        counts = {name: int(count) for name, count in map(str.split, lines)}
        pages = counts["balloon_inflate"] - counts["balloon_deflate"]
        self.balloon_mib = pages * 4096 // MIB
        refaults, now_s = counts["workingset_refault_file"], time.monotonic()
        seconds = now_s - self._at_s
        if seconds < MEAN_S:
            return
        has_none = counts["nr_free_pages"] * 4096 < FREE_MIB * MIB
        if self._at_s and has_none and refaults - self.refaults > REFAULTS * seconds:
            self.need_s += seconds
        self.refaults, self._at_s = refaults, now_s

    def kills(self) -> list[str]:
        """What its kernel said of processes that it had to kill."""
        return re.findall(r".*(?:oom-kill|Out of memory).*", self.guest.kernel_log())


@pytest.fixture
def guests(images: Images) -> Iterator[dict[str, LoadedGuest]]:
    """One guest of each profile, by its name."""
    running: dict[str, LoadedGuest] = {}
    try:
        for profile in ("seed", "careful"):
            running[profile] = LoadedGuest(images, profile)
        for loaded in running.values():
            loaded.work()
        yield running
    finally:
        for loaded in running.values():
            loaded.guest.stop()


@pytest.fixture
def low_mem(tmp_path: Path) -> LowMemDir:
    return LowMemDir(tmp_path / "low-mem", margin_mib=MARGIN_MIB)


@pytest.fixture
def daemon(guests: dict[str, LoadedGuest], low_mem: LowMemDir, tmp_path: Path) -> Iterator[Daemon]:
    """A balloond that drives both, at the balloon policy's own speed: a step each second."""
    config = tmp_path / "balloond.toml"
    config.write_text(
        "".join(
            f'[vm.{profile}]\nqmp = "{loaded.guest.qemu.monitor_path}"\nprofile = "{profile}"\n'
            for profile, loaded in guests.items()
        )
    )
    options = ("--config", str(config))
    started = DaemonConfig(tmp_path / "own.sock", None, low_mem, 1, options)
    daemon = Daemon(started, SESSION_LOGS / "thrash")
    try:
        daemon.wait(lambda: len(said(daemon, "vm-attached")) == 2, what="both are driven")
        yield daemon
    finally:
        daemon.kill()


def said(daemon: Daemon, event: str, vm: str | None = None) -> list[dict[str, Any]]:
    return [r for r in daemon.records() if r["event"] == event and vm in (None, r["vm"])]


def target_mib(daemon: Daemon, vm: str) -> int:
    return int(said(daemon, "decided", vm)[-1]["target_bytes"]) // MIB


@fault("a guest is in need")
def test_guest_whose_working_set_does_not_fit_is_let_go_by_careful_and_not_by_seed(
    guests: dict[str, LoadedGuest], low_mem: LowMemDir, daemon: Daemon
) -> None:
    seed, careful = guests["seed"], guests["careful"]

    def squeezed() -> bool:
        for loaded in guests.values():
            loaded.account()
        # A host of two busy guests may starve them, and a slow balloon is no need: ask for more
        # only when all that was asked for is there.
        owed = any(target_mib(daemon, name) > guests[name].balloon_mib for name in guests)
        low_mem.set_available(MARGIN_MIB + 1 if owed else 0)
        return seed.need_s >= NEED_S

    low_mem.set_low()
    daemon.wait(lambda: len(said(daemon, "decided")) >= 2, what="both are squeezed")
    daemon.wait(squeezed, deadline_s=DEADLINE_S, what="the guest of seed has been in need")
    balloons = {name: loaded.balloon_mib for name, loaded in guests.items()}
    let_go = said(daemon, "guest-in-need")
    (SESSION_LOGS / "thrash/measured.txt").write_text(
        "".join(
            f"{name}: {loaded.need_s:.1f} s in need, {loaded.done()} pieces read,"
            f" {loaded.refaults * 4096 // MIB} MiB read again\n"
            for name, loaded in guests.items()
        )
    )
    low_mem.set_plenty()
    daemon.stop()
    wait_until(
        lambda: not any(loaded.guest.balloon_bytes() for loaded in guests.values()),
        what="both have their memory back",
        deadline_s=DEADLINE_S,
    )

    assert {record["vm"] for record in let_go} == {"careful"}
    assert balloons["careful"] == 0
    assert balloons["seed"] > MAX_MIB // 2
    assert careful.need_s <= SHARE * seed.need_s
    assert [loaded.kills() for loaded in guests.values()] == [[], []]
