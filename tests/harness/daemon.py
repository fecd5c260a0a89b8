"""One balloond process, started as by an operator, and its JSON log."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import HANG_S, wait_until

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
BALLOOND = ROOT / ".venv/bin/balloond"

BUGS = ("callback-failed", "vm-failed", "vm-does-not-end", "reader-failed")
"""Event words that only a bug of balloond can cause."""


class DaemonError(AssertionError):
    """balloond ended, or ended in another way than it should; has the end of its log."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """How balloond is started.

    Attributes:
        socket: the path where it listens.
        vm_mem_mib: the value of --vm-mem; None: without.
        low_mem: the host's figures, as balloond reads them.
        speed: how many times faster than crosvm's its balloon policy runs.
        options: further options, as they are typed.
    """

    socket: Path
    vm_mem_mib: int | None
    low_mem: LowMemDir
    speed: float
    options: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The command line."""
        return [
            str(BALLOOND),
            *("--socket", str(self.socket)),
            *(() if self.vm_mem_mib is None else ("--vm-mem", f"{self.vm_mem_mib}M")),
            *("--low-mem-dir", str(self.low_mem.path)),
            *("--speed", f"{self.speed:g}"),
            *("--log", "json", "--verbose"),
            *self.options,
        ]


class Daemon:
    """A running balloond. Call `stop` at the end, whatever happened."""

    def __init__(
        self, config: DaemonConfig, log_dir: Path, launcher: tuple[str, ...] = ()
    ) -> None:
        """Starts it and waits until it listens.

        Args:
            config: its options.
            log_dir: gets `balloond.log` (its log) and `balloond.out` (what it prints).
            launcher: a command that execs balloond.

        Raises:
            DaemonError: it ended instead.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.log_path = log_dir / "balloond.log"
        self._records: list[dict[str, Any]] = []
        self._half_line = ""
        with self.log_path.open("w") as log, (log_dir / "balloond.out").open("w") as out:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *launcher, *config.command()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        self._log = self.log_path.open()
        try:
            # Wait for its log, not for the socket's file, which exists a moment before balloond
            # listens.
            self.wait(
                lambda: any(record["event"] == "listening" for record in self.records()),
                what="balloond listens",
            )
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The controller's process id."""
        return self._process.pid

    def records(self) -> list[dict[str, Any]]:
        """Its log so far, without a line that is not complete yet.

        Raises:
            DaemonError: a line is not JSON, a traceback perhaps.
        """
        *lines, self._half_line = (self._half_line + self._log.read()).split("\n")
        try:
            self._records += [json.loads(line) for line in lines]
        except ValueError as err:
            raise DaemonError(f"balloond's log is not JSON:\n{self._last_lines()}") from err
        return self._records

    def decision(self) -> dict[str, Any]:
        """Its latest decision on the balloon's size; at the beginning a record without one."""
        for record in reversed(self.records()):
            if record["event"] == "decided":
                return dict(record)
        return {"reason": None, "target_bytes": 0}

    def target_bytes(self) -> int:
        """The balloon size that it has last decided on."""
        return int(self.decision()["target_bytes"])

    def guest_statistics(self) -> dict[str, int]:
        """The statistics that the guest's driver has last reported, by the log's field names."""
        for record in reversed(self.records()):
            if record["event"] == "guest-stats":
                return {name: record[name] for name in record if name.startswith("stat_")}
        return {}

    def check_log(self) -> None:
        """Checks that the log has no errors: no guest here gives balloond a reason for one.

        Raises:
            DaemonError: there is an error.
        """
        errors = [record for record in self.records() if record["level"] == "error"]
        if errors:
            raise DaemonError("balloond logged errors:\n" + "\n".join(map(str, errors)))

    def wait(self, condition: Callable[[], T], *, what: str, deadline_s: float = HANG_S) -> T:
        """Waits for a condition, but no longer than balloond lives.

        Raises:
            DaemonError: balloond has ended.
            DeadlineError: the condition stayed false.
        """

        def checked() -> T:
            value = condition()
            if not value and self._process.poll() is not None:
                raise DaemonError(
                    f"balloond ended with status {self._process.returncode} before: {what}\n"
                    f"{self._last_lines()}"
                )
            return value

        return wait_until(checked, deadline_s=deadline_s, what=what, seen=self._last_lines)

    def stop(self) -> None:
        """Ends it by SIGTERM, as systemd does.

        Raises:
            DaemonError: its exit status is not 0, it took too long, or it logged an error.
        """
        if self._process.poll() is None:
            self._process.terminate()
        self.wait_end()

    def wait_end(self) -> None:
        """Waits for the end of a balloond that was told to end.

        Raises:
            DaemonError: its exit status is not 0, or it took too long.
        """
        try:
            status = self._process.wait(HANG_S)
        except subprocess.TimeoutExpired as err:
            self.kill()
            raise DaemonError(
                f"balloond did not end in {HANG_S:g} s\n{self._last_lines()}"
            ) from err
        if status != 0:
            raise DaemonError(f"balloond ended with status {status}\n{self._last_lines()}")
        self.check_log()

    def kill(self) -> None:
        """Kills it by SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _last_lines(self) -> str:
        return "\n".join(self.log_path.read_text().splitlines()[-10:])
