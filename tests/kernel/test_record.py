"""``balloond --record``: a trace of real steps, by which the same class decides the same again."""

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.ctl.simulate.replay import replay
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.fake_guest.machine import FakeGuest
from balloon_daemon.records.recorder import KEPT, earlier_traces
from balloon_daemon.sizing.host_events import Added, Moved, Sampled, Woke
from tests.harness.daemon import Daemon
from tests.harness.decisions import decided, traced
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.open_files import open_files
from tests.harness.scripted_monitor import ScriptedMonitor, monitors_in_a_thread, well
from tests.harness.small_tmpfs import SmallTmpfs
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import balloon_bytes, run_until


def writer_of(daemon: Daemon, program: str = "file_writer.py") -> int:
    """The process that writes the trace, or another such program."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    (pid,) = [
        int(child)
        for child in children
        if program.encode() in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return pid


def squeezed(daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest) -> FakeGuest:
    """A guest that has given all that may be taken."""
    guest = make_guest()
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    return guest


def test_trace_of_a_squeezed_guest_is_decided_the_same_again(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    daemon = start_daemon("--record", str(tmp_path / "a.trace"), "--speed", "200")
    guest = squeezed(daemon, low_mem, make_guest)
    low_mem.set_plenty()
    run_until([guest], lambda: balloon_bytes(guest) == 0)
    daemon.stop()

    trace = read_trace(str(tmp_path / "a.trace"))
    replayed = replay(trace)
    assert traced(trace) == decided(daemon)
    assert (replayed.first_other, replayed.lost) == (None, 0)
    assert replayed.recorded == len(decided(daemon)) >= 48  # up, rechecks, down
    assert (replayed.sums.steps_up, replayed.sums.steps_down) == (16, 16)
    assert replayed.sums.peak_bytes == MAXIMUM
    assert 0 < replayed.sums.low_s < replayed.sums.seconds
    assert os.stat(tmp_path / "a.trace").st_mode & 0o777 == 0o600


def test_trace_of_a_careful_vm_has_what_its_guest_said(
    start_daemon: StartDaemon, low_mem: LowMemDir, tmp_path: Path
) -> None:
    monitor = ScriptedMonitor(tmp_path / "web.qmp", well())
    (tmp_path / "balloond.toml").write_text(f'[vm.web]\nqmp = "{monitor.path}"\nfloor = "600M"\n')
    options = ("--config", str(tmp_path / "balloond.toml"), "--socket", str(tmp_path / "d.sock"))
    with monitors_in_a_thread([monitor]):
        daemon = start_daemon(*options, "--record", str(tmp_path / "a.trace"), vm_mem_mib=None)
        low_mem.set_low()
        daemon.wait(lambda: monitor.vm.actual == 600 << 20, what="it is squeezed to its floor")
        daemon.stop()

    trace = read_trace(str(tmp_path / "a.trace"))
    events = [entry.event for entry in trace.entries]
    (added,) = [event for event in events if isinstance(event, Added)]
    assert (added.vm.name, added.terms.settings.floor_bytes) == ("web", 600 << 20)
    assert all(any(isinstance(e, kind) for e in events) for kind in (Woke, Moved, Sampled))
    assert traced(trace) == decided(daemon)
    assert replay(trace).first_other is None


def test_trace_outlives_a_daemon_that_is_killed(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    daemon = start_daemon("--record", str(tmp_path / "a.trace"))
    writer = writer_of(daemon)
    squeezed(daemon, low_mem, make_guest)
    daemon.kill()
    wait_until(lambda: not Path(f"/proc/{writer}").exists(), what="its writer ends")

    trace = read_trace(str(tmp_path / "a.trace"))
    assert not trace.is_cut
    assert replay(trace).first_other is None
    assert len(traced(trace)) >= 16


def test_traces_of_before_are_kept_the_oldest_five_starts_back(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "a.trace"
    nodes = []
    for _ in range(KEPT + 2):
        start_daemon("--record", str(path)).stop()
        nodes.append(path.stat().st_ino)
    # The first start's alone is gone, and its inode number may be in use again.
    names = [path, *earlier_traces(path)]
    assert [name.stat().st_ino for name in names] == nodes[:0:-1]
    assert all(read_trace(str(name)).entries for name in names)
    assert sorted(tmp_path.glob("a.trace*")) == sorted(names)


@pytest.mark.parametrize("name", ["a.trace", "a.trace.3"])
@fault("--history or --record names a file of something else")
def test_file_that_is_no_trace_is_left_alone(
    name: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("a letter\n")
    with pytest.raises(AssertionError, match="is there and no trace; name another file"):
        start_daemon("--record", str(tmp_path / "a.trace"))
    assert (tmp_path / name).read_text() == "a letter\n"


@fault("--history or --record names a file of something else")
def test_trace_in_a_directory_that_others_may_write_is_refused(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    said = f"others may write to {shared} .mode 1777.; use a directory of your own"
    with pytest.raises(AssertionError, match=said):
        start_daemon("--record", str(shared / "a.trace"))
    assert list(shared.iterdir()) == []


def ended(daemon: Daemon) -> list[dict[str, Any]]:
    return [record for record in daemon.records() if record["event"] == "recording-ended"]


@fault("the trace of --record cannot be written")
def test_full_disk_ends_the_trace_and_nothing_else(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    daemon = start_daemon("--record", str(tmp_path / "a.trace"))
    # To its writer the disk is full at 4 KiB.
    resource.prlimit(writer_of(daemon), resource.RLIMIT_FSIZE, (4096, 4096))
    guest = squeezed(daemon, low_mem, make_guest)
    ends = daemon.wait(lambda: ended(daemon), what="the log names the end of the trace")
    low_mem.set_plenty()
    run_until([guest], lambda: balloon_bytes(guest) < MAXIMUM)
    daemon.stop()

    assert [record["message"] for record in ends] == [
        "the trace of --record ends here: File too large"
    ]
    assert ended(daemon) == ends
    trace = read_trace(str(tmp_path / "a.trace"))
    assert (replay(trace).first_other, trace.is_cut) == (None, False)
    assert 3000 < (tmp_path / "a.trace").stat().st_size <= 4096


@fault("the trace of --record cannot be written")
def test_writer_that_hangs_keeps_nobody_waiting(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    daemon = start_daemon("--record", str(tmp_path / "a.trace"))
    writer = writer_of(daemon)
    os.kill(writer, signal.SIGSTOP)
    try:
        squeezed(daemon, low_mem, make_guest)
        daemon.stop()
    finally:
        os.kill(writer, signal.SIGCONT)
    wait_until(lambda: not Path(f"/proc/{writer}").exists(), what="its writer ends")
    assert traced(read_trace(str(tmp_path / "a.trace"))) == decided(daemon)


@pytest.mark.parametrize(
    ("flag", "program"), [("--record", "file_writer.py"), ("--history", "history_writer.py")]
)
def test_writer_holds_nothing_that_balloond_was_started_with(
    flag: str, program: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """systemd passes what it has stored, guests' memory too, as inherited descriptors."""
    stored = tmp_path / "stored"
    stored.write_text("")
    launcher = ("sh", "-c", f'exec 9<"{stored}"; exec "$@"', "sh")
    daemon = start_daemon(flag, str(tmp_path / "file"), launcher=launcher)
    writer = writer_of(daemon, program)
    assert str(stored) in open_files(daemon.pid).values()
    assert str(stored) not in open_files(writer).values()


@fault("the disk of the file of --record")
@pytest.mark.parametrize(
    ("flag", "event", "said"),
    [
        ("--record", "recording-ended", "the trace of --record ends here"),
        ("--history", "history-ended", "no more is written to the file of --history"),
        ("--metrics", "metrics-file-ended", "no more is written to the file of --metrics"),
    ],
)
def test_disk_that_is_full_at_the_start_costs_no_vm_its_service(
    flag: str,
    event: str,
    said: str,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    tmp_path: Path,
) -> None:
    # The file system may have one inode, which its root directory takes.
    disk = SmallTmpfs(tmp_path / "full", 1, files=1)
    disk.root.chmod(0o700)
    try:
        daemon = start_daemon(flag, str(disk.root / "a.prom"))
        squeezed(daemon, low_mem, make_guest)
        assert list(disk.root.iterdir()) == []
        daemon.stop()
    finally:
        disk.close()
    ends = [record["message"] for record in daemon.records() if record["event"] == event]
    assert ends == [f"{said}: No space left on device"]
