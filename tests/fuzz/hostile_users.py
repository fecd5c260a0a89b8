"""Campaign: a real balloond, an honest guest, and one user who makes many connections at once.

The attacks of the soak, several at a time and a random part of each, with hang-ups at random
places and random descriptors in between, up to as many as a message carries; now and then the
controller is killed or replaced in the midst of it. Held to: no bug in the log; the neighbour
keeps its connection, its pages and a balloon that works; descriptors of controller, template and
keeper come back to where they were; balloond ends in order.
"""

import contextlib
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil

from balloon_daemon.errors import BalloondError
from tests.fuzz.outcome import Finding, Outcome
from tests.harness.enemies.choices import Choices
from tests.harness.enemies.descriptors import POOL
from tests.harness.enemies.messages import random_message
from tests.harness.invariants import InvariantBrokenError, require
from tests.harness.waiting import HANG_S, DeadlineError, wait_until
from tests.soak.attacks import PLANS, Ground
from tests.soak.enemy import Enemy
from tests.soak.hostile_acts import BY_A_USER

SPEED = 1000.0
STEPS = (20, 200, 1000)
MOST_FDS = 253
"""include/net/scm.h, SCM_MAX_FD."""


def campaign(seconds: float, seed: int, folder: Path) -> Outcome:
    """Attacks until the time is over or something is wrong; one round at least."""
    outcome = Outcome()
    again = f"python -m tests.fuzz.timed hostile_users {seconds:.0f} {seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        try:
            crowd = Crowd(folder, Random(seed), stack)
            end = time.monotonic() + seconds
            outcome.executions += crowd.round()
            while time.monotonic() < end:
                outcome.executions += crowd.round()
            crowd.ground.stop()
        except (AssertionError, OSError, RuntimeError, BalloondError, psutil.Error) as err:
            kind = "invariant" if isinstance(err, AssertionError) else "crash"
            what = f"{type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''}"
            details = f"{traceback.format_exc()}logs in {folder}"
            outcome.findings.append(Finding("hostile_users", kind, what, again, details))
    return outcome


class Crowd:
    """One balloond, its neighbour, and the user with many connections.

    Args:
        folder: for its socket, files and logs.
        random: decides everything that is not the kernel's to decide.
        stack: ends what was started.
    """

    def __init__(self, folder: Path, random: Random, stack: contextlib.ExitStack) -> None:
        self._random = random
        # Who the enemy is does not matter here: it is this process.
        self.ground = Ground(PLANS["everything-as-neighbour"], folder, stack, SPEED)
        self.ground.move_balloon()
        self._before = self.ground.fds()

    def round(self) -> int:
        """Some attacks, some of the way, then a look at everything. Returns steps made."""
        enemy = Enemy(str(self.ground.config.socket), ("", ""), self._random)
        acts = [act(enemy) for act in self._random.sample(list(BY_A_USER.values()), 2)]
        steps = self._random.choice(STEPS)
        try:
            for _ in range(steps):
                self._step(enemy, acts)
            if self._random.random() < 0.2:
                self._change_controller()
                for _ in range(20):
                    self._step(enemy, acts)
        finally:
            enemy.leave_all()
        self.ground.move_balloon()
        self._wait_for_fds()
        bugs = self.ground.bugs()
        require(not bugs, "balloond complains of itself", bugs)
        return steps

    def _step(self, enemy: Enemy, acts: list[Iterator[None]]) -> None:
        next(self._random.choice(acts))
        match self._random.randrange(12):
            case 0 if enemy.open:
                enemy.leave(self._random.choice(list(enemy.open)))
            case 1 if enemy.open:
                message, expected = random_message(Choices(self._random.randbytes(64)))
                count = self._random.choice((expected, 1, 8, 33, MOST_FDS))
                fds = self._random.choices(POOL, k=count)
                with contextlib.suppress(OSError):
                    self._random.choice(list(enemy.open)).push(message, fds)

    def _change_controller(self) -> None:
        self.ground.kill_controller(self._random.choice((signal.SIGKILL, signal.SIGUSR1)))

    def _wait_for_fds(self) -> None:
        def back() -> bool:
            now = self.ground.fds()
            return all(now[name] <= count for name, count in self._before.items())

        try:
            wait_until(back, deadline_s=HANG_S, what="descriptors come back", seen=self.ground.fds)
        except DeadlineError as err:
            raise InvariantBrokenError(f"{err}; they were {self._before}") from err
