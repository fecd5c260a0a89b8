"""Started by somebody who has closed, ignored, limited or occupied what a daemon relies on."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.cli.default_directory import make_directory
from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.machine import run
from balloon_daemon.handover.keeper_start import start_keeper
from tests.harness.daemon import BALLOOND, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MakeGuest, StartDaemon
from tests.harness.other_user import AS_NOBODY, NOBODY
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach, wait_for_device


class Start:
    """A balloond that was started in an odd way, until it listens or ends."""

    def __init__(self, directory: Path, odd: Callable[[], object]) -> None:
        self.socket = directory / "s"
        self.errors = directory / "errors"
        with self.errors.open("w") as errors:
            self._process = subprocess.Popen(
                [str(BALLOOND), "--socket", str(self.socket)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                preexec_fn=odd,
            )
        wait_until(
            lambda: self._process.poll() is not None or "listening on" in self.said,
            what="it listens or ends",
        )

    @property
    def said(self) -> str:
        return self.errors.read_text()

    def send(self, number: int) -> None:
        """Sends a signal, and waits until the kernel has delivered it."""
        self._process.send_signal(number)
        status = Path(f"/proc/{self._process.pid}/status")
        wait_until(
            lambda: "ShdPnd:\t0000000000000000\n" in status.read_text(),
            what="the signal is delivered",
        )

    def status(self) -> int:
        """Its exit status, once it has ended; it is ended where it does not."""
        try:
            return self._process.wait(HANG_S)
        finally:
            self._process.kill()
            self._process.wait()


@fault("standard streams closed")
@pytest.mark.parametrize("fd", [0, 1])
def test_standard_stream_closed_runs_all_the_same(fd: int, tmp_path: Path) -> None:
    start = Start(tmp_path, lambda: os.close(fd))
    start.send(signal.SIGTERM)

    assert start.status() == 0
    assert "Traceback" not in start.said
    assert "ending" in start.said


@fault("standard streams closed")
def test_all_standard_streams_closed_ends_when_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    command = [str(BALLOOND), "--socket", str(path)]
    process = subprocess.Popen(command, preexec_fn=lambda: os.closerange(0, 3))
    try:
        wait_until(path.is_socket, what="it listens")
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.wait()


@fault("fewer than 64 descriptors allowed")
@pytest.mark.parametrize("limit", [8, 9, 20])
def test_few_descriptors_one_line_status_1(limit: int, tmp_path: Path) -> None:
    few = Start(tmp_path, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))

    assert few.status() == 1
    assert few.said == (
        f"balloond: {limit} files may be open here, and a VM alone needs some forty; allow more "
        "(ulimit -n, LimitNOFILE=)\n"
    )


@fault("started by nohup, or by a script's `&`")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_signal_that_nohup_or_a_script_ignores_stays_ignored(
    number: signal.Signals, tmp_path: Path
) -> None:
    start = Start(tmp_path, lambda: signal.signal(number, signal.SIG_IGN))
    start.send(number)
    start.send(signal.SIGTERM)

    assert start.status() == 0
    assert f"{number.name}: ending" not in start.said
    assert "SIGTERM: ending" in start.said


@fault("SIGCHLD ignored by whoever starts it")
def test_ends_of_children_ignored_by_whoever_starts_it_a_device_is_replaced_all_the_same(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        daemon: Daemon = start_daemon()
    finally:
        signal.signal(signal.SIGCHLD, previous)
    guest = attach(make_guest(), daemon)
    device = wait_for_device([guest], daemon, "vm1")

    os.kill(device, signal.SIGKILL)
    run([guest], lambda: any(r["event"] == "device-died" for r in daemon.records()))

    assert wait_for_device([guest], daemon, "vm1") != device


@fault("SIGCHLD ignored by whoever starts it")
def test_ends_of_children_ignored_check_says_that_all_is_well(tmp_path: Path) -> None:
    run = subprocess.run(
        [str(BALLOOND), "--check", "--socket", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )

    assert (run.returncode, run.stderr) == (0, "")


@fault("default socket's directory cannot be made; keeper cannot be started")
@pytest.mark.parametrize(
    ("below", "complaint"),
    [("balloond", "File exists"), ("balloond/deeper", "Not a directory")],
)
def test_directory_of_the_default_socket_cannot_be_made_one_line(
    below: str, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "balloond").touch()
    path = tmp_path / below / "balloond.sock"

    with pytest.raises(ConfigError, match=f"cannot be made a directory: {complaint}; name ano"):
        make_directory(path)


@fault("default socket's directory cannot be made; keeper cannot be started")
def test_keeper_that_cannot_be_started_is_said_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))

    with pytest.raises(ConfigError, match="no keeper can be started: No such file or directory; "):
        start_keeper(tmp_path / "s")


@fault("margin beyond the host's memory, or `--user` without root")
def test_margin_beyond_the_hosts_memory_is_warned_of(
    start_daemon: StartDaemon, low_mem: LowMemDir, tmp_path: Path
) -> None:
    options = ("--margin", "9999G", "--low-mem-dir", str(low_mem.path))
    checked = subprocess.run(
        [str(BALLOOND), "--check", "--socket", str(tmp_path / "c"), *options],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    daemon = start_daemon(*options)

    said = "a margin of 9999 GiB is as much as this host can have, or more ("
    assert (checked.returncode, checked.stderr[: len(said) + 9]) == (0, f"warning: {said}")
    assert [
        record for record in daemon.records()
        if record["event"] == "source-trouble" and record["what"].startswith(said)
    ]  # fmt: skip


@fault("margin beyond the host's memory, or `--user` without root")
def test_user_for_devices_is_warned_of_without_root() -> None:
    with tempfile.TemporaryDirectory() as directory:
        launcher: list[str] = []
        if os.geteuid() == 0:
            launcher = ["setpriv", *AS_NOBODY]
            os.chown(directory, NOBODY, NOBODY)
        checked = subprocess.run(
            [*launcher, str(BALLOOND), "--check", "--socket", f"{directory}/s", "--user", "vms"],
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )

    assert checked.returncode == 0, checked.stderr
    assert "warning: --user vms has no effect, as only root can" in checked.stderr


@fault("low-memory file or its directory vanishes")
def test_figures_that_are_garbage_at_the_start_are_told_without_any_vm(
    start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    low_mem.set_content("much\n")
    daemon = start_daemon()

    daemon.wait(
        lambda: any(r["event"] == "source-unknown" for r in daemon.records()),
        what="the log says that the figures are unknown",
    )
