"""A hostile VMM user, in a process of its own: whoever may connect to balloond and means it ill.

``python -m tests.soak.hostile_user ATTACK SOCKET``. It says in a line of JSON that it is at work,
and every half second what it has done. It ends with its standard input, so that it never outlives
whoever started it, and is meant to be killed in the midst of its work, as a machine monitor is.
"""

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tests.soak.enemy import Enemy
from tests.soak.hostile_acts import ACTS
from tests.soak.other_user import become, enter, environment

STDIN = 0
REPORTS_EVERY_S = 0.5


def asked_to_end() -> bool:
    """Whether standard input has ended."""
    poller = select.poll()
    poller.register(STDIN, select.POLLIN)
    return bool(poller.poll(0))


def main(argv: Sequence[str]) -> int:
    """Attacks until its standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.hostile_user")
    parser.add_argument("attack", choices=ACTS)
    parser.add_argument("socket", type=Path)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--device", default="", help="of which VM one was taken over")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    path = enter(args.socket)
    become(args.uid)
    enemy = Enemy(path, (str(args.socket), args.device), Random(args.seed))
    report_at, told = 0.0, False
    for _ in ACTS[args.attack](enemy):
        if enemy.at_work != told or time.monotonic() >= report_at:
            told = enemy.at_work
            print(json.dumps({"at_work": told, **enemy.counts}), flush=True)
            report_at = time.monotonic() + REPORTS_EVERY_S
            if asked_to_end():
                break
    return 0


class HostileUser:
    """A handle on the enemy's process.

    Args:
        attack: which one.
        path: balloond's socket.
        uid: whom the enemy becomes; None where it stays who we are.
        device: of which VM it has taken over the device, for attacks that need one.
        folder: gets its last words.

    Raises:
        RuntimeError: it ended by itself.
        TimeoutError: it was not at work in time.
    """

    def __init__(
        self, attack: str, path: Path, *, uid: int | None, device: str, folder: Path
    ) -> None:
        command = [sys.executable, "-P", "-m", "tests.soak.hostile_user", attack, str(path)]
        if uid is not None:
            command.append(f"--uid={uid}")
        self.counts: dict[str, int] = {}
        """What it had done when it was last heard."""
        self._half = b""
        self._words = folder / "enemy.err"
        with self._words.open("ab") as words:
            self._process = subprocess.Popen(
                [*command, f"--device={device}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment(),
            )

    def __enter__(self) -> "HostileUser":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def give_way(self) -> None:
        """Lets it run only where nobody else does (sched(7), SCHED_IDLE).

        What an enemy computes for itself takes a processor for 3 to 6 ms at a time. Any process
        can do that, and balloond cannot prevent it. An enemy that gives way to whoever wakes up
        shows what it makes balloond do.
        """
        os.sched_setscheduler(self._process.pid, os.SCHED_IDLE, os.sched_param(0))

    def wait_at_work(self, within_s: float) -> None:
        """Waits until it has done all of its attack once."""
        deadline = time.monotonic() + within_s
        while not self.counts.get("at_work"):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"the enemy is not at work after {within_s:g} s: {self.counts}")
            self._hear(left_s)

    def kill(self) -> None:
        """Kills it in the midst of its work, and takes down what it did."""
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(RuntimeError):
            while True:
                self._hear(0)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _hear(self, timeout_s: float) -> None:
        assert self._process.stdout is not None
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            return
        heard = os.read(self._process.stdout.fileno(), 1 << 16)
        if not heard:
            raise RuntimeError(f"the enemy ended:\n{self._words.read_text()}")
        *lines, self._half = (self._half + heard).split(b"\n")
        if lines:
            self.counts = json.loads(lines[-1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
