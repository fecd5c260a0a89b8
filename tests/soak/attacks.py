"""A hostile VMM user, or a taken-over device, against a running balloond and an honest guest.

Each attack has a balloond of its own. Before, during and after it the neighbour's accesses to its
config space are timed, and it reboots in the midst of it; then the controller is killed in the
midst of it, and the next one is told to end. What must hold on any machine and does not is a
*failure*; what took too long is *slow*, and for a soak alone to judge.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from balloon_daemon.fake_guest.client import FakeGuestProcess
from tests.harness.daemon import BUGS, Daemon, DaemonConfig
from tests.harness.invariants import open_fds
from tests.harness.jail_watch import is_alive, template_of
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.other_user import take_uids
from tests.harness.waiting import wait_until
from tests.soak.hostile_acts import BY_A_DEVICE, BY_A_USER
from tests.soak.hostile_user import HostileUser
from tests.soak.neighbour import Delays, LostNeighbourError, NeighbourHandle
from tests.soak.neighbour_process import MEM_BYTES

SPEED = 200.0
MAXIMUM_BYTES = MEM_BYTES // 2
PATIENCE_S = 60.0
AT_WORK_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
"""The unit's TimeoutStopSec=."""

FDS_BACK_WITHIN_S = 10.0
P99_MS, TIMES_UNDISTURBED = 2.0, 3.0
TIMES_BESIDE_A_DEVICE = 2.0
TAKEN_OVER = "balloon-vm2"
"""The device that an enemy has: that of the VM which attaches behind the neighbour."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One attack.

    Attributes:
        act: what the enemy does.
        as_neighbour: the enemy is who the neighbour's VMM is, as all VMMs under libvirt are one.
    """

    act: str
    as_neighbour: bool = False

    @property
    def name(self) -> str:
        return f"{self.act}-as-neighbour" if self.as_neighbour else self.act

    @property
    def by_a_device(self) -> bool:
        return self.act in BY_A_DEVICE

    @property
    def needs_root(self) -> bool:
        """Who else has other users, and gets at a device's descriptors?"""
        return not self.as_neighbour


CONTROL = Plan("nothing", as_neighbour=True)
"""An enemy that takes processor time and asks balloond for nothing."""

PLANS = {
    plan.name: plan
    for plan in (
        CONTROL,
        *(Plan(act) for act in BY_A_USER),
        Plan("linger", as_neighbour=True),
        Plan("everything", as_neighbour=True),
        *(Plan(act) for act in BY_A_DEVICE),
    )
}


def possible_plans() -> dict[str, Plan]:
    """The attacks that this user can make, by name."""
    root = os.geteuid() == 0
    return {name: plan for name, plan in PLANS.items() if root or not plan.needs_root}


@dataclass(slots=True)
class Outcome:
    """What an attack did.

    Attributes:
        undisturbed: the neighbour's delays before, and again afterwards; the worse of the two is
            what the attack is held against.
        beside_computing: the neighbour's delays in the same run beside an enemy that only
            computes (``CONTROL``); if worse than ``undisturbed``, they are what counts.
        cpu_share: the controller's part of a core under the attack.
        fds: descriptors of controller, template and keeper before, at the end of the attack, and
            when they were looked at last.
        fds_back_s: how long after the attack they were what they had been; None: never.
        stop_s: from SIGTERM, in the midst of the attack, to the end.
    """

    attack: str
    seconds: float
    by_a_device: bool
    undisturbed: list[Delays] = field(default_factory=list)
    beside_computing: Delays | None = None
    attacked: Delays | None = None
    cpu_share: float = 0.0
    log_lines_a_second: float = 0.0
    fds: list[dict[str, int]] = field(default_factory=list)
    fds_back_s: float | None = None
    stop_s: float | None = None
    enemy: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def usual_p99_ms(self) -> float:
        """What an access of the neighbour takes on this machine without an attack."""
        known = [*self.undisturbed, *([self.beside_computing] if self.beside_computing else [])]
        return max((each.p99_ms for each in known), default=0.0)

    def slow(self) -> list[str]:
        """What took longer than it may."""
        found = []
        if self.attacked is not None and (usual := self.usual_p99_ms):
            limit = max(P99_MS, TIMES_UNDISTURBED * usual)
            if self.by_a_device:
                limit = TIMES_BESIDE_A_DEVICE * usual
            if self.attacked.p99_ms > limit:
                found.append(f"neighbour's p99 {self.attacked.p99_ms:.2f} ms, at most {limit:.2f}")
        if self.stop_s is not None and self.stop_s >= STOP_WITHIN_S:
            found.append(f"SIGTERM to end {self.stop_s:.1f} s, at most {STOP_WITHIN_S:g}")
        if self.fds_back_s is not None and self.fds_back_s > FDS_BACK_WITHIN_S:
            found.append(f"descriptors back after {self.fds_back_s:.1f} s")
        return found

    def as_json(self) -> dict[str, object]:
        """Its part of the soak's last line."""
        slow = self.slow()
        return asdict(self) | {"slow": slow, "ok": not slow and not self.failures}


class _Plain(DaemonConfig):
    """As an operator starts it: what -v adds is not what an enemy may fill a log with."""

    def command(self) -> list[str]:
        return [word for word in DaemonConfig.command(self) if word != "--verbose"]


class Ground:
    """One balloond with an honest guest, under one attack.

    Args:
        plan: the attack.
        folder: for its socket, files and logs.
        stack: ends what was started.
        speed: how many times faster than crosvm's its balloon policy runs.
    """

    def __init__(
        self, plan: Plan, folder: Path, stack: contextlib.ExitStack, speed: float
    ) -> None:
        self.plan = plan
        self._folder = folder.resolve()
        self._stack = stack
        self._low_mem = LowMemDir(self._folder / "low-mem", margin_mib=100)
        self._sockets = self._folder / "run"
        self._sockets.mkdir(mode=0o711)
        path, options = self._sockets / "sock", ("--keep-fds",)
        self.config = _Plain(path, MEM_BYTES >> 20, self._low_mem, speed, options)
        self._lives = 0
        stack.callback(self._end_keepers)
        self.daemon = self._start()
        root = os.geteuid() == 0
        self._uids = take_uids(2, stack) if root else (None, None)
        self._open_to_all()
        self._lasting = self._find_lasting()
        self.neighbour = stack.enter_context(
            NeighbourHandle(self.config.socket, uid=self._uids[0], folder=self._folder)
        )
        if plan.by_a_device:
            stack.enter_context(
                FakeGuestProcess(
                    ["--socket", str(self.config.socket), "--mem", "512M", "--touched", "8M"]
                )
            )

    def _start(self) -> Daemon:
        daemon = Daemon(self.config, self._folder / f"log-{self._lives}")
        self._lives += 1
        self._stack.callback(daemon.kill)
        return daemon

    def _open_to_all(self) -> None:
        """As an administrator does where VMs run as somebody else; here, two of them."""
        if os.geteuid() == 0:
            self.config.socket.chmod(0o666)

    def enemy(self) -> HostileUser:
        """The attack, which has begun on return."""
        uid = self._uids[0 if self.plan.as_neighbour else 1]
        device = self.plan.by_a_device
        enemy = HostileUser(
            self.plan.act,
            self.config.socket,
            uid=None if device else uid,
            device=TAKEN_OVER if device else "",
            folder=self._folder,
        )
        try:
            enemy.wait_at_work(AT_WORK_WITHIN_S)
        except BaseException:
            enemy.kill()
            raise
        return enemy

    def fds(self) -> dict[str, int]:
        """Descriptors of what must not gain any, by its name."""
        return {name: open_fds(pid) for name, pid in self._lasting.items()}

    def _find_lasting(self) -> dict[str, int]:
        # The first: what it closes for others it forks itself for.
        keeper = min(self._keepers(), key=lambda process: process.info["create_time"])
        template = template_of(self.daemon.pid)
        return {"controller": self.daemon.pid, "template": template, "keeper": keeper.pid}

    def _keepers(self) -> list[psutil.Process]:
        """The process that keeps this balloond's VMs, and its own children."""

        def is_ours(words: list[str]) -> bool:
            beside = any(word.startswith(str(self._sockets)) for word in words)
            return beside and any("fd_keeper" in word for word in words)

        return [
            process
            for process in psutil.process_iter(["cmdline", "create_time"])
            if is_ours(process.info["cmdline"] or [])
        ]

    def _end_keepers(self) -> None:
        """It would stay for the next balloond where this one did not end in order."""
        for process in self._keepers():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def move_balloon(self) -> None:
        """The neighbour's balloon goes to its maximum and back, and no page is lost.

        Raises:
            LostNeighbourError: it does not.
        """
        self._low_mem.set_low()
        self.neighbour.wait_balloon(MAXIMUM_BYTES)
        self._low_mem.set_plenty()
        self.neighbour.wait_balloon(0)
        self.neighbour.check()

    def cpu_s(self) -> float:
        """CPU time of the controller so far."""
        times = psutil.Process(self.daemon.pid).cpu_times()
        return float(times.user + times.system)

    def log_lines(self) -> int:
        """Lines in the present log."""
        with self.daemon.log_path.open("rb") as log:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: log.read(1 << 20), b""))

    def bugs(self) -> list[str]:
        """What balloond complains of itself, in any of its lives."""
        logs = sorted(self._folder.glob("log-*/balloond.log"))
        lines = [line for log in logs for line in log.read_text().splitlines()]
        return [line for line in lines if any(f'"event": "{word}"' in line for word in BUGS)]

    def kill_controller(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills the controller; the next one goes on with the neighbour.

        Args:
            number: SIGKILL, or SIGUSR1 to let it make way in order.

        Raises:
            AssertionError: it does not.
        """
        os.kill(self.daemon.pid, number)
        wait_until(
            lambda: not is_alive(self.daemon.pid), deadline_s=PATIENCE_S, what="it was killed"
        )
        self.daemon.kill()
        self.daemon = self._start()
        self._open_to_all()
        self._lasting = self._find_lasting()
        said = [record for record in self.daemon.records() if record.get("vm") == "vm1"]
        if not any(record["event"] == "taken-over" for record in said):
            raise LostNeighbourError(f"the neighbour was not kept: {said}")
        self.neighbour.status()

    def stop(self) -> float:
        """Fills the neighbour's balloon, and ends balloond in order.

        Returns:
            Seconds from SIGTERM to the end.

        Raises:
            AssertionError: its status is not 0, or the neighbour did not get its memory back.
        """
        self._low_mem.set_low()
        self.neighbour.wait_balloon(MAXIMUM_BYTES)
        began = time.monotonic()
        os.kill(self.daemon.pid, signal.SIGTERM)
        wait_until(
            lambda: not is_alive(self.daemon.pid), deadline_s=2 * PATIENCE_S, what="it ends"
        )
        took = time.monotonic() - began
        self.daemon.kill()
        left = self.neighbour.last_status()["actual_bytes"]
        if left:
            raise LostNeighbourError(f"balloond ended and left the neighbour's balloon at {left}")
        self.neighbour.check()
        return took


def attack(
    plan: Plan,
    seconds: float,
    folder: Path,
    *,
    beside_computing: Delays | None = None,
    speed: float = SPEED,
) -> Outcome:
    """Makes one attack for a time, and tells what it did.

    Args:
        plan: which one.
        seconds: how long its main part goes on.
        folder: for socket, files and logs; made anew.
        beside_computing: what ``CONTROL`` has found in this run.
        speed: how many times faster than crosvm's the balloon policy runs.
    """
    outcome = Outcome(plan.name, seconds, plan.by_a_device, beside_computing=beside_computing)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        ground = Ground(plan, folder, stack, speed)

        def attempt(what: str, *actions: Callable[[], None]) -> bool:
            try:
                for action in actions:
                    action()
            except (AssertionError, OSError, RuntimeError, psutil.Error) as err:
                outcome.failures.append(f"{what}: {type(err).__name__}: {err}")
                return False
            return True

        quiet_s = max(0.3, seconds / 4)

        def undisturbed() -> None:
            outcome.undisturbed.append(_measure(ground, quiet_s))

        if attempt(
            "before",
            ground.move_balloon,
            undisturbed,
            lambda: outcome.fds.append(ground.fds()),
            lambda: _under_attack(ground, seconds, outcome),
        ):
            attempt("descriptors", lambda: _wait_for_fds(ground, outcome))
            attempt("afterwards", ground.move_balloon, undisturbed)
            attempt("in the midst of it", lambda: _ends(ground, outcome))
        outcome.failures += [f"bug: {line}" for line in ground.bugs()[:3]]
    return outcome


def _measure(ground: Ground, seconds: float) -> Delays:
    ground.neighbour.begin()
    time.sleep(seconds)
    return ground.neighbour.end()


def _under_attack(ground: Ground, seconds: float, outcome: Outcome) -> None:
    with ground.enemy() as enemy:
        enemy.give_way()
        cpu_s, lines, began = ground.cpu_s(), ground.log_lines(), time.monotonic()
        outcome.attacked = _measure(ground, seconds)
        took = time.monotonic() - began
        outcome.cpu_share = round((ground.cpu_s() - cpu_s) / took, 3)
        outcome.log_lines_a_second = round((ground.log_lines() - lines) / took, 1)
        outcome.fds.append(ground.fds())
        if not ground.plan.as_neighbour:
            # It needs room for descriptors again. What one user may have on the way in sockets the
            # kernel limits itself (unix(7), ETOOMANYREFS): under one user the enemy takes it all.
            ground.neighbour.reboot()
    outcome.enemy = enemy.counts


def _wait_for_fds(ground: Ground, outcome: Outcome) -> None:
    before, began = outcome.fds[0], time.monotonic()

    def back() -> bool:
        now = ground.fds()
        return all(now.get(name, 0) <= count for name, count in before.items())

    try:
        what = f"descriptors as before: {before}"
        wait_until(back, deadline_s=PATIENCE_S, what=what, seen=ground.fds)
        outcome.fds_back_s = round(time.monotonic() - began, 2)
    finally:
        outcome.fds.append(ground.fds())


def _ends(ground: Ground, outcome: Outcome) -> None:
    if ground.plan.by_a_device:
        # That balloon has stopped by now, after six deaths; the next controller begins anew.
        ground.kill_controller()
    with ground.enemy():
        if not ground.plan.by_a_device:
            ground.kill_controller()
        outcome.stop_s = round(ground.stop(), 2)
