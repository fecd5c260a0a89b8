"""Three real guests on one host's budget of memory, and what happens to them in a minute.

The host's memory is a sum: the budget, less what the host really holds for its guests (the blocks
of their memory), less what a script says that the host wants for itself. balloond reads the rest
as what the host has available. So memory that a guest gives back counts when the kernel has it.
"""

import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from balloon_daemon.ctl.simulate.live_guest import LEFT_MIB, LEFT_SHARE
from benchmarks.loaded_guest import LoadedGuest
from benchmarks.processes import Balloond, DaemonError, LowMemory
from benchmarks.real_scores import Change, Course, Moment, Spell
from tests.vm.images import Images
from tests.vm.qemu import MIB

MARGIN_MIB = LowMemory.MARGIN_MIB
ROOM_MIB = 200
"""What the host has beyond its margin when a run begins."""

DEMAND_MIB = 650
DEMAND_FROM_S, DEMAND_UNTIL_S = 5.0, 42.0
DEMAND_MIB_S = 60.0
"""The host itself wants so much more, at this speed, and has it from 16 s to 42 s."""

END_S = 50.0
TICK_S = 0.2
LOOK_S = 1.0
DRIVEN_S = 60.0

BURST_AT_S, BURST_MIB, BURST_MIB_S, BURST_FOR_S = 26, 400, 50, 16

NO_BALLOON = "none"
"""A run without a balloond."""


@dataclass(frozen=True, slots=True)
class Vm:
    """One guest of the scene.

    Attributes:
        suite: whose kernel.
        memory_mib: its memory.
        rate: operations a second that it wishes to do; 0: it is idle.
    """

    suite: str
    memory_mib: int
    rate: int = 0


SET_MIB, SET_RATE = 540, 200
COLD_MIB = 850

VMS = {
    "cold": Vm("bookworm", 1024),
    "works": Vm("forky", 768, SET_RATE),
    "burst": Vm("bookworm", 768, BURST_MIB_S),
}
"""One with page cache that nobody reads again, one whose working set nearly fills it, and one that
is idle with free memory and needs some of it at once later."""


def demand_mib(at_s: float) -> int:
    """What the host wants for itself."""
    if at_s >= DEMAND_UNTIL_S:
        return 0
    return int(min(DEMAND_MIB, max(0.0, at_s - DEMAND_FROM_S) * DEMAND_MIB_S))


def wished(vm: str, from_s: float, to_s: float, done: int) -> float:
    """How many operations a guest wishes to do in a time.

    Args:
        vm: which guest.
        from_s: the time's beginning.
        to_s: its end.
        done: how many operations it had done at the beginning.
    """
    if vm != "burst":
        return VMS[vm].rate * (to_s - from_s)
    wish = BURST_MIB_S * max(0.0, to_s - max(from_s, BURST_AT_S))
    return min(wish, BURST_MIB - done)


class _Watched:
    """A guest of the scene, and what was last seen of it."""

    def __init__(self, vm: str, guest: LoadedGuest) -> None:
        self.vm, self.guest = vm, guest
        self.balloon_mib = 0
        self._seen: dict[str, int] = {}
        self._at_s = self._asked_s = 0.0

    def prepare(self) -> None:
        """Lets it use its memory, so that the host holds all of it."""
        guest = self.guest
        match self.vm:
            case "cold":
                guest.read_once(COLD_MIB, 0)
            case "works":
                guest.start("map", SET_MIB, 0, SET_RATE)
            case _:
                guest.guest.run("dd if=/dev/zero of=/tmp/fill bs=1M count=600 2>/dev/null")
                guest.guest.run("rm /tmp/fill")
        guest.slow_disk()

    def begin(self) -> None:
        """The scene begins now."""
        self._seen = self.guest.look() or {}
        if self.vm == "burst":
            self.guest.start("burst", BURST_MIB, BURST_MIB_S, BURST_AT_S, BURST_FOR_S)
        self.balloon_mib = self.guest.balloon_mib()

    def ask(self, at_s: float) -> None:
        """Asks for its figures, from outside and from inside, unless an answer is missing."""
        self.balloon_mib = self.guest.balloon_mib()
        if self.guest.begin_look():
            self._asked_s = at_s

    def spell(self, *, wait: bool = False) -> Spell | None:
        """What it has done since the last look, if its answer has come."""
        found = self.guest.looked(wait=wait)
        if found is None:
            return None
        from_s, self._at_s = self._at_s, self._asked_s
        before, self._seen = self._seen, found

        def more(name: str) -> int:
            return found[name] - before[name]

        seconds, size_mib = max(self._at_s - from_s, 0.001), self.guest.memory_mib
        return Spell(
            vm=self.vm,
            at_s=from_s,
            to_s=self._at_s,
            wished=wished(self.vm, from_s, self._at_s, before["work"]),
            done=more("work"),
            waited=more("psi_some") / 1e6 / seconds,
            refaults=more("workingset_refault_file") + more("workingset_refault_anon"),
            spare_mib=found["MemAvailable:"] // 1024 - max(LEFT_MIB, int(LEFT_SHARE * size_mib)),
            oom_kills=more("oom_kill"),
        )


def run(images: Images, load: Path, profile: str, directory: Path) -> Course:
    """Lets the scene happen once, with guests that are booted for it.

    Args:
        images: where QEMU and the guests' kernels are.
        load: the image of ``compile_load``.
        profile: of all VMs; `NO_BALLOON` for a run without balloond.
        directory: gets all logs, the configuration file and balloond's trace.

    Raises:
        DaemonError: balloond does not know the profile, or did not start.
    """
    with ExitStack() as stack:
        guests = _boot(images, load, directory, stack)
        if profile == NO_BALLOON:
            return _play(guests, None)
        config = directory / "balloond.toml"
        config.write_text(
            "".join(
                f'[vm.{watched.vm}]\nqmp = "{watched.guest.guest.qemu.monitor_path}"\n'
                f'profile = "{profile}"\n'
                for watched in guests
            )
        )
        options = ["--config", str(config), "--record", str(directory / "trace")]
        # As the scene begins: to a policy that looks at the slope, figures that fall from those of
        # a host with plenty of memory are a surge.
        started = Balloond(options, available_mib=MARGIN_MIB + ROOM_MIB)
        daemon = stack.enter_context(started)
        _wait_driven(daemon, len(guests))
        try:
            return _play(guests, daemon)
        finally:
            shutil.copy(daemon.log_path, directory)


def _boot(images: Images, load: Path, directory: Path, stack: ExitStack) -> list[_Watched]:
    def boot(name: str) -> _Watched:
        vm = VMS[name]
        guest = LoadedGuest(images, load, vm.suite, vm.memory_mib, directory / name)
        stack.callback(guest.stop)
        watched = _Watched(name, guest)
        watched.prepare()
        return watched

    # QEMU asks for SIGKILL at the end of the thread that has started it (PR_SET_PDEATHSIG): so the
    # threads stay until the guests are gone.
    pool = stack.enter_context(ThreadPoolExecutor(len(VMS)))
    return list(pool.map(boot, VMS))


def _wait_driven(daemon: Balloond, count: int) -> None:
    ends_s = time.monotonic() + DRIVEN_S
    while sum(record["event"] == "vm-attached" for record in daemon.records()) < count:
        if time.monotonic() > ends_s:
            raise DaemonError(f"not all guests are driven\n{daemon.last_lines()}")
        time.sleep(0.05)


def _held_mib(guests: Iterable[_Watched]) -> int:
    return sum(watched.guest.guest.qemu.memory_blocks_bytes() for watched in guests) // MIB


def _play(guests: Sequence[_Watched], daemon: Balloond | None) -> Course:
    course = Course(MARGIN_MIB)
    budget_mib = MARGIN_MIB + ROOM_MIB + _held_mib(guests)
    for watched in guests:
        watched.begin()
    begun_s, epoch_s = time.monotonic(), time.time()
    look_at_s, at_s = LOOK_S, 0.0
    while at_s < END_S:
        for watched in guests:
            if spell := watched.spell():
                course.spells.append(spell)
        if at_s >= look_at_s:
            look_at_s += LOOK_S
            for watched in guests:
                watched.ask(at_s)
        available_mib = budget_mib - _held_mib(guests) - demand_mib(at_s)
        balloons = {watched.vm: watched.balloon_mib for watched in guests}
        course.moments.append(Moment(at_s, available_mib, balloons))
        if daemon is not None:
            daemon.host.set_available(max(0, available_mib))
        time.sleep(TICK_S)
        at_s = time.monotonic() - begun_s
    for watched in guests:
        # An answer that was still to come belongs to the run.
        if spell := watched.spell(wait=True):
            course.spells.append(spell)
    if daemon is not None:
        course.changes += changes(daemon.records(), epoch_s)
    return course


def changes(records: Iterable[dict[str, Any]], epoch_s: float) -> list[Change]:
    """The decisions of balloond's log that changed a target.

    Args:
        records: the log.
        epoch_s: when the run began, in seconds since the epoch.
    """
    targets: dict[str, int] = {}
    found = []
    for record in records:
        if record["event"] != "decided":
            continue
        vm, target_bytes = record["vm"], record["target_bytes"]
        if target_bytes != targets.get(vm, 0):
            at_s = datetime.fromisoformat(record["time"]).timestamp() - epoch_s
            found.append(Change(vm, at_s, target_bytes))
        targets[vm] = target_bytes
    return found
