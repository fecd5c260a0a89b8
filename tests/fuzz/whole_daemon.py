"""Campaign: a real balloond between hostile VMMs, hostile guests and an honest neighbour.

Held to: the controller lives; no device of ours fails by itself; every device is in its jail; the
neighbour's balloon reaches its targets and none of its pages is lost; no page of a hostile guest
goes that it never named; file descriptors and memory of the controller do not grow, nor those of
the template, which forks its devices.
"""

import contextlib
import os
import shutil
import signal
import time
import traceback
from pathlib import Path
from random import Random

import psutil

from balloon_daemon.errors import BalloondError
from balloon_daemon.fake_guest.client import FakeGuestProcess
from tests.fuzz.outcome import Finding, Outcome
from tests.harness.daemon import BUGS, Daemon, DaemonConfig
from tests.harness.enemies.hostile import HostileGuest, converse, never_read, shrink_memory
from tests.harness.invariants import InvariantBrokenError, open_fds, require
from tests.harness.jail_watch import JailWatch, is_alive, template_of
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import wait_until

VM_MEM_MIB = 512
MAXIMUM = VM_MEM_MIB // 2 << 20
SPEED = 200.0
CONVERSATIONS_A_ROUND = 25
NEIGHBOUR_WITHIN_S = 60.0
WARM_UP_ROUNDS = 4
_SHRUNK = "the VMM cut it short"
"""A device says so, and fails, whose VMM has taken its memory away."""
MAX_RSS_GROWTH = 12 << 20
"""Bytes by which each process may grow over a campaign: caches, and the allocator's rests."""


def campaign(seconds: float, seed: int, folder: Path) -> Outcome:
    """Attacks until the time is over or something is wrong; one round at least."""
    outcome = Outcome()
    again = f"python -m tests.fuzz.timed whole_daemon {seconds:.0f} {seed}"
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        try:
            battle = Battle(folder, Random(seed), stack)
            end = time.monotonic() + seconds
            outcome.executions += battle.round()
            while time.monotonic() < end:
                outcome.executions += battle.round()
            battle.judge()
        except Exception as err:
            kind = "invariant" if isinstance(err, InvariantBrokenError) else "crash"
            what = f"{type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}"
            details = f"{traceback.format_exc()}logs in {folder}"
            outcome.findings.append(Finding("whole_daemon", kind, what, again, details))
    return outcome


class Battle:
    """One balloond, its neighbour, and whoever attacks it.

    Args:
        folder: for its socket, files and logs.
        random: decides everything that is not the kernel's to decide.
        stack: ends what was started.
    """

    def __init__(self, folder: Path, random: Random, stack: contextlib.ExitStack) -> None:
        self._random = random
        self._low_mem = LowMemDir(folder / "low-mem", margin_mib=100)
        config = DaemonConfig(folder / "sock", VM_MEM_MIB, self._low_mem, SPEED)
        self.daemon = Daemon(config, folder / "log")
        stack.callback(self.daemon.kill)
        self._path = str(config.socket)
        self._neighbour = stack.enter_context(
            FakeGuestProcess(
                [
                    *("--socket", self._path, "--mem", f"{VM_MEM_MIB}M", "--refill"),
                    *("--touched", "32M", "--pinned", "16M", "--seed", "7"),
                ],
                timeout_s=NEIGHBOUR_WITHIN_S,
            )
        )
        self._lasting = {
            "controller": psutil.Process(self.daemon.pid),
            "template": psutil.Process(template_of(self.daemon.pid)),
        }
        self._before: dict[str, tuple[int, int]] = {}
        self._jails = JailWatch()
        self._rounds = 0
        self._low = False
        self._records_seen = 0

    def round(self) -> int:
        """A crowd of hostile visitors, then a look at everything. Returns the attacks made."""
        attacks = 0
        for _ in range(CONVERSATIONS_A_ROUND):
            attacks += converse(self._path, self._random)
        attacks += self._hostile_guest()
        attacks += never_read(self._path)
        if self._rounds % 4 == 0:
            attacks += shrink_memory(self._path, self._random)
        self._check_neighbour()
        self._check_daemon()
        self._rounds += 1
        if self._rounds == WARM_UP_ROUNDS:
            self._wait_for_quiet()
            self._before = self._sizes()
        return attacks

    def _hostile_guest(self) -> int:
        """One guest's life under its own attacks."""
        try:
            guest = HostileGuest(self._path, self._random)
        except (OSError, BalloondError) as err:
            require(is_alive(self.daemon.pid), "balloond is gone", err)
            raise
        times = self._random.choice((1, 10, 60))
        try:
            for _ in range(4):
                guest.misbehave(times)
                self._jails.look(self.daemon.pid)
                guest.check()
                if self._random.random() < 0.2:
                    guest.go_mad()
            guest.check()
        finally:
            guest.close()
        return 4 * times

    def _check_neighbour(self) -> None:
        """Its balloon goes the other way than last time, and all its pages are there."""
        self._low = not self._low
        if self._low:
            self._low_mem.set_low()
        else:
            self._low_mem.set_plenty()
        wanted = MAXIMUM if self._low else 0
        try:
            self._neighbour.wait_status(
                lambda status: status["actual_bytes"] == wanted, f"a balloon of {wanted}"
            )
        except (TimeoutError, RuntimeError) as err:
            raise InvariantBrokenError(f"the neighbour is disturbed: {err}") from err
        checked = self._neighbour.command("check")
        require(checked["pages_corrupt"] == 0, "the neighbour lost pages", checked)

    def _check_daemon(self) -> None:
        require(is_alive(self.daemon.pid), "balloond is gone")
        self._jails.look(self.daemon.pid)
        records = self.daemon.records()
        for record in records[self._records_seen :]:
            said = str(record["message"])
            failed = record.get("death") in ("failed", "filter")
            ours = record["event"] in BUGS or (failed and _SHRUNK not in said)
            require(not ours, "balloond complains of itself", said)
        self._records_seen = len(records)

    def _wait_for_quiet(self) -> None:
        """Waits until only the template and the neighbour's device are left."""
        self.daemon.wait(
            lambda: len(psutil.Process(self.daemon.pid).children()) <= 2,
            deadline_s=NEIGHBOUR_WITHIN_S,
            what="all hostile guests' devices are gone",
        )

    def _sizes(self) -> dict[str, tuple[int, int]]:
        """File descriptors and resident bytes of what lasts as long as balloond."""
        return {
            name: (open_fds(process.pid), process.memory_info().rss)
            for name, process in self._lasting.items()
        }

    def judge(self) -> None:
        """The end: what grew, and whether it still ends in order."""
        if self._rounds > WARM_UP_ROUNDS:
            self._wait_for_quiet()
            for name, (fds, rss) in self._sizes().items():
                fds_before, rss_before = self._before[name]
                require(fds <= fds_before, f"file descriptors of the {name} grew", fds)
                grown = rss - rss_before
                require(grown <= MAX_RSS_GROWTH, f"memory of the {name} grew", grown)
        require(self._jails.seen, "no device was ever seen in its jail")
        self._neighbour.kill()
        os.kill(self.daemon.pid, signal.SIGTERM)
        wait_until(
            lambda: not is_alive(self.daemon.pid),
            deadline_s=NEIGHBOUR_WITHIN_S,
            what="balloond ends when told to",
        )
