"""The file of ``--metrics``: whole whenever it is read, and nobody's but a running balloond's."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from balloon_daemon.api import textfile
from balloon_daemon.api.textfile import MetricsFile
from balloon_daemon.commands import Desk, Tracing
from balloon_daemon.events import Event, MetricsFileEnded, MetricsNotWritten
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.records import scribe
from balloon_daemon.records.counters import Counters
from balloon_daemon.records.recent import Recent
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.status import HostStatus, SourceStatus, VmStatus
from balloon_daemon.units import MIB, VmId
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.makers import StartDaemon
from tests.harness.metric_texts import read_metrics
from tests.harness.waiting import HANG_S, wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    directory = tmp_path / "node-exporter"
    directory.mkdir(mode=0o755)
    return directory / "balloond.prom"


def writing(start_daemon: StartDaemon, file: Path, name: str = "balloond") -> Daemon:
    """A balloond that has written its metrics to a file."""
    daemon = start_daemon("--metrics", str(file), name=name)
    daemon.wait(file.exists, what="the file is written")
    return daemon


def refused(tmp_path: Path, file: Path, *flags: str) -> tuple[int, str]:
    """The exit status of a balloond that does not start, and what it said."""
    command = ["--socket", str(tmp_path / "s.sock"), "--metrics", str(file), *flags]
    done = subprocess.run(
        [sys.executable, "-m", "balloon_daemon", *command],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    return done.returncode, done.stderr


def test_file_has_all_metrics_may_be_read_by_all_and_goes_with_balloond(
    start_daemon: StartDaemon, file: Path
) -> None:
    daemon = writing(start_daemon, file)
    metrics = read_metrics(file.read_text())
    assert metrics.value("balloond_vms") == 0
    assert metrics.value("balloond_host_margin_bytes") == 100 * MIB
    # node_exporter has these itself, and would fail.
    assert [name for name in metrics.kinds if not name.startswith("balloond_")] == []
    assert file.stat().st_mode & 0o777 == 0o644
    daemon.stop()
    wait_until(lambda: not file.exists(), what="the writer has removed it")
    assert [path.name for path in file.parent.iterdir()] == ["balloond.prom-lock"]


def test_file_of_a_killed_balloond_goes_and_the_next_one_writes_its_own(
    start_daemon: StartDaemon, file: Path
) -> None:
    writing(start_daemon, file).kill()
    wait_until(lambda: not file.exists(), what="the writer has removed it")
    writing(start_daemon, file, "next")


@fault("the file of --metrics is another program's, or another balloond writes it")
def test_file_of_something_else_is_refused_and_left_alone(
    start_daemon: StartDaemon, file: Path, tmp_path: Path
) -> None:
    file.write_text("node_cpu_seconds_total 1\n")
    said = "is there and no file of balloond's metrics; name another file"
    for check in ([], ["--check"]):
        status, error = refused(tmp_path, file, *check)
        assert status == 2
        assert f"balloond: --metrics {file}: {said}" in error.splitlines()
    assert file.read_text() == "node_cpu_seconds_total 1\n"
    file.unlink()
    writing(start_daemon, file)
    said = "another balloond that runs writes its metrics there; name another file"
    assert refused(tmp_path, file) == (2, f"balloond: --metrics {file}: {said}\n")


def test_place_that_others_may_write_is_refused(tmp_path: Path, file: Path) -> None:
    file.parent.chmod(0o777)
    status, error = refused(tmp_path, file)
    assert status == 2
    assert f"others may write to {file.parent} (mode 777); use a directory of your own" in error
    assert refused(tmp_path, tmp_path / "none" / "a.prom") == (
        2,
        f"balloond: --metrics {tmp_path}/none/a.prom: there is no such directory; make it, or "
        "name another\n",
    )


# --- the writer, without a daemon ---------------------------------------------------------------


class ManyVms:
    """A host with so many VMs that their text is larger than a socket's buffer."""

    def __init__(self, vms: int) -> None:
        self.vms = [VmId(number, f"vm{number}") for number in range(vms)]

    def host_status(self) -> HostStatus:
        return HostStatus(SourceStatus("meminfo", "", 1, 0, 0, Reading(1000, 400)))

    def vm_ids(self) -> list[VmId]:
        return self.vms

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        return VmStatus(vm_id, frozenset(), None, 0, None, None)


class Written:
    """The writing of a file, with a real writer."""

    def __init__(self, file: Path, desk: ManyVms) -> None:
        self.events: list[Event] = []
        self.desk = desk
        low = LowNumbers()
        self._scribe = Scribe("metrics_writer.py", [str(file)], low)
        low.close()
        pid = os.getpid()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        (self.writer,) = [
            int(child)
            for child in children
            if b"metrics_writer" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        self.service = MetricsFile(self._scribe, Recent(), Counters(), self.events.append)

    def play(self, until: Callable[[], bool], *, close: bool = True) -> None:
        """Runs the event loop until a condition holds."""

        async def whole() -> None:
            self.service.start(cast(Desk, self.desk), cast(Tracing, None))
            while not until():
                await asyncio.sleep(0)

        try:
            asyncio.run(asyncio.wait_for(whole(), HANG_S))
        finally:
            self.service.close()
            if close:
                self._scribe.close()


VMS = 3000
"""Their text has 700 KiB, and the socket of a writer takes some 200."""


def test_text_that_is_larger_than_a_socket_is_whole_whenever_it_is_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "EVERY_S", 0.0)
    monkeypatch.setattr(textfile, "FLUSH_S", 0.0)
    written = Written(file, ManyVms(VMS))
    seen = set[int]()

    def read() -> bool:
        if file.exists() and (number := file.stat().st_ino) not in seen:
            metrics = read_metrics(file.read_text())
            assert len(metrics.labels("balloond_vm_balloon_bytes")) == VMS
            assert len(metrics.labels("balloond_vm_state")) == VMS
            seen.add(number)
        return len(seen) == 3

    written.play(read)
    assert written.events == []


@fault("more metrics than the writer of their file takes")
def test_text_that_is_too_large_is_told_once_and_the_file_keeps_the_one_before(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "EVERY_S", 0.0)
    for module in (scribe, textfile):
        monkeypatch.setattr(module, "MOST_BYTES", 1 << 16)
    desk = ManyVms(1000)
    many = desk.vms
    written = Written(file, desk)

    def vms_in_file() -> int:
        metrics = read_metrics(file.read_text()) if file.exists() else None
        return 0 if metrics is None else len(metrics.labels("balloond_vm_state"))

    desk.vms = many[:1]
    written.play(lambda: vms_in_file() == 1, close=False)
    desk.vms = many
    turns = iter(range(2))
    written.play(lambda: written.events != [] and next(turns, None) is None, close=False)
    kept = vms_in_file()
    desk.vms = many[:2]
    written.play(lambda: vms_in_file() == 2)

    assert kept == 1
    (event,) = written.events
    assert isinstance(event, MetricsNotWritten)
    assert event.text_bytes > event.most_bytes


@fault("the file of --metrics cannot be written any more")
@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda written, file: os.kill(written.writer, signal.SIGKILL), ""),
        (lambda written, file: shutil.rmtree(file.parent), "No such file or directory"),
    ],
    ids=["killed", "no-directory"],
)
def test_writer_that_ends_is_told_once_and_asked_for_no_more(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Written, Path], None],
    why: str,
) -> None:
    monkeypatch.setattr(textfile, "EVERY_S", 0.0)
    written = Written(file, ManyVms(1))
    end(written, file)
    turns = iter(range(1000))
    written.play(lambda: written.events != [] and next(turns, None) is None)
    assert written.events == [MetricsFileEnded(why)]
