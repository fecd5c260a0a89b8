"""A machine with a real systemd, booted in a container, with balloond installed as a service.

The unit is the shipped one, unchanged. The tests play the VM: they reach the service's socket, and
the files that stand for the host's memory, through the machine's root directory.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import HANG_S, wait_until
from tests.vm.service_root import nspawn_command

ROOT = Path(__file__).parents[2]
MARGIN_MIB = 100

_PACKAGES = "usr/lib/python3/dist-packages"
_LOW_MEM_DIR = "srv/low_mem"
_ERROR = 3
_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd")

# What a package installs, and one thing more: BALLOOND_STATE_VERSION makes it another version.
_PROGRAM = """\
#!/usr/bin/python3
import os, sys
from balloon_daemon.handover import state
state.VERSION = int(os.environ.get("BALLOOND_STATE_VERSION", state.VERSION))
from balloon_daemon.__main__ import main
sys.exit(main())
"""

_CLIENT = """\
#!/usr/bin/python3
import sys
from balloon_daemon.ctl.main import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the unit's journal.

    Attributes:
        fields: all that the journal has of it, by name.
    """

    priority: int
    pid: int
    text: str
    fields: dict[str, str]


class ServiceHost:
    """The machine, running. `stop` it at the end, whatever happened."""

    def __init__(self, root: Path, log_dir: Path, *, nspawn: Path | None = None) -> None:
        """Boots it and installs balloond, which is not started yet.

        Args:
            root: from `ready_root`; nothing is written to it.
            log_dir: gets `console.log`, `measured.txt` and, at the end, `journal.log`.
            nspawn: the root directory whose systemd-nspawn boots it. Then balloond is not
                installed, and the machine has cgroups of version 2 alone, which systemd needs
                since version 258. None: its own.

        Raises:
            DeadlineError: it does not come up.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        self.log_dir = log_dir
        self._lines_before = 0
        self._init = 0
        self._cgroup = _make_cgroup()
        command = [
            *("setpriv", "--pdeathsig", "KILL"),
            *_inside(self._cgroup),
            *nspawn_command(nspawn or root),
            *(
                f"--machine=balloond-{os.getpid()}",
                "--quiet",
                "--settings=no",
                "--register=no",
                "--keep-unit",
                "--console=pipe",
                # Its own filter has lacked them until systemd 253.
                "--system-call-filter=landlock_create_ruleset landlock_restrict_self",
            ),
            # All that is written lies over the root, in memory.
            *("--directory", str(root), "--volatile=overlay", "--private-network", "--boot"),
        ]
        with (log_dir / "console.log").open("w") as console:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                # It would lock the root, which nothing is written to, by a file beside it: another
                # run could not boot from it, and would take the file for damage.
                env=os.environ
                | {"SYSTEMD_NSPAWN_LOCK": "0"}
                | ({} if nspawn is None else {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}),
            )
        try:
            self._init = wait_until(self._find_init, what="systemd boots")
            self.run("systemctl", "is-system-running", "--wait", check=False)
            if nspawn is None:
                self._install()
            self.low_mem = LowMemDir(self.path(_LOW_MEM_DIR), margin_mib=MARGIN_MIB)
        except BaseException:
            self.stop()
            raise

    @property
    def socket(self) -> Path:
        """The service's socket, as seen from here."""
        return self.path("run/balloond/balloond.sock")

    def path(self, name: str) -> Path:
        """A file of the machine, as seen from here."""
        return Path(f"/proc/{self._init}/root", name)

    def configure(self, *options: str, **environment: str) -> None:
        """Writes /etc/default/balloond: options, and further variables."""
        variables = {"BALLOOND_ARGS": " ".join(("--low-mem-dir", f"/{_LOW_MEM_DIR}", *options))}
        lines = [f'{name}="{value}"\n' for name, value in (variables | environment).items()]
        self.path("etc/default/balloond").write_text("".join(lines))

    @contextlib.contextmanager
    def running(self, *command: str) -> Iterator["subprocess.Popen[str]"]:
        """Runs a command on the machine, as its root; what still runs at the end is killed."""
        with subprocess.Popen(
            ["nsenter", "--target", str(self._init), *_NAMESPACES, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command on the machine to its end and gives what it printed."""
        with self.running(*command) as process:
            output, errors = process.communicate(timeout=HANG_S)
        assert not check or process.returncode == 0, f"{command}: {errors}"
        return output.strip()

    def unit(self, name: str) -> str:
        """A property of the unit, as systemd shows it."""
        return self.run("systemctl", "show", "--value", "--property", name, "balloond")

    def main_pid(self) -> int:
        """The controller's process id; 0 while there is none."""
        return int(self.unit("MainPID"))

    def begin(self) -> None:
        """Makes it as it was after booting: plenty of memory, no line and no failure noted."""
        self.low_mem.set_plenty()
        self.run("systemctl", "reset-failed")
        self._lines_before += len(self.journal())

    def journal(self) -> list[Line]:
        """What balloond and systemd have said about the unit since `begin`."""
        self.run("journalctl", "--sync")
        output = self.run("journalctl", "--unit", "balloond", "--output", "json", "--no-pager")
        entries = [json.loads(line) for line in output.splitlines()]
        return [
            Line(int(entry["PRIORITY"]), int(entry["_PID"]), entry["MESSAGE"], entry)
            for entry in entries
        ][self._lines_before :]

    def errors(self) -> list[str]:
        """What of that is an error."""
        return [line.text for line in self.journal() if line.priority <= _ERROR]

    def said_by(self, pid: int) -> list[str]:
        """What one process has said in the journal."""
        return [line.text for line in self.journal() if line.pid == pid]

    def note(self, line: str) -> None:
        """Adds a line to `measured.txt`, beside the logs."""
        with (self.log_dir / "measured.txt").open("a") as file:
            file.write(f"{line}\n")

    def stop(self) -> None:
        """Keeps the journal and switches the machine off."""
        if self._init and self._process.poll() is None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                journal = self.run(
                    "journalctl", "--no-pager", "--output=short-precise", check=False
                )
                (self.log_dir / "journal.log").write_text(journal)
        self._process.terminate()
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._cgroup is not None:
            _remove_cgroup(self._cgroup)

    def _find_init(self) -> int:
        said = (self.log_dir / "console.log").read_text()
        assert self._process.poll() is None, f"systemd-nspawn has ended: {said}"
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        up = [
            int(pid) for pid in children if Path(f"/proc/{pid}/root/run/systemd/private").exists()
        ]
        return up[0] if up else 0

    def _install(self) -> None:
        packages = self.path(_PACKAGES)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("balloon_daemon", "policies"):
            shutil.copytree(ROOT / name, packages / name, ignore=ignored)
        self.run("python3", "-m", "compileall", "-q", f"/{_PACKAGES}")
        for name, text in (("balloond", _PROGRAM), ("balloonctl", _CLIENT)):
            program = self.path(f"usr/bin/{name}")
            program.write_text(text)
            program.chmod(0o755)
        for unit in ("balloond.service", "balloond.socket", "balloond-api.socket"):
            shutil.copyfile(ROOT / "systemd" / unit, self.path("etc/systemd/system") / unit)
        users = self.path("etc/sysusers.d")
        users.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "systemd" / "balloond.sysusers", users / "balloond.conf")
        self.run("systemd-sysusers")
        self.run("systemctl", "daemon-reload")


def _cgroup_mounts(*types: str) -> list[Path]:
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [Path(words[4]) for words in mounts if words[words.index("-") + 1] in types]


def _make_cgroup() -> Path | None:
    """A cgroup of the machine's own, below ours: two such machines must not share one."""
    mounts = _cgroup_mounts("cgroup2")
    if not mounts:
        return None
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next(line.removeprefix("0::/") for line in lines if line.startswith("0::/"))
    return Path(tempfile.mkdtemp(prefix="balloond-vm-", dir=mounts[0] / own))


def _inside(cgroup: Path | None) -> list[str]:
    """Starts what follows inside a cgroup."""
    if cgroup is None:
        return []
    return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(cgroup)]


def _remove_cgroup(cgroup: Path) -> None:
    """Removes a cgroup with all below it, also where systemd-nspawn has made it a second time."""
    name = cgroup.relative_to(_cgroup_mounts("cgroup2")[0])
    for mount in _cgroup_mounts("cgroup", "cgroup2"):
        for path, _, _ in os.walk(mount / name, topdown=False):
            with contextlib.suppress(OSError):  # Something is dying in it.
                os.rmdir(path)
