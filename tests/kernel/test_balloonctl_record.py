"""``balloonctl record``: a trace that begins while balloond runs, by which the same is decided."""

import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from balloon_daemon.ctl.simulate.replay import replay
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.records.trace import Entry, Header, encode_entry, encode_header
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.host_events import Found, Halted, Looked, Sampled
from tests.harness.daemon import ROOT, Daemon
from tests.harness.decisions import decided, traced
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MARGIN_MIB, MAXIMUM, SETTINGS, STEP, MakeGuest, StartDaemon
from tests.harness.scripted_monitor import ScriptedMonitor, monitors_in_a_thread, well
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach, balloon_bytes, facts, run_until

BALLOONCTL = str(ROOT / ".venv/bin/balloonctl")


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def recording(api: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A recording that has begun."""
    command = [BALLOONCTL, "record", "--api", str(api), *arguments]
    recorder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert recorder.stderr is not None
    assert recorder.stderr.readline().startswith("recording to ")
    return recorder


def ended(recorder: "subprocess.Popen[str]", number: signal.Signals | None) -> tuple[int, str]:
    """Ends a recording by a signal; its exit status and what it has complained of."""
    if number is not None:
        recorder.send_signal(number)
    _, complaint = recorder.communicate(timeout=HANG_S)
    return recorder.returncode, complaint


@pytest.fixture
def squeezed(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, api: Path
) -> tuple[Daemon, FakeGuest]:
    """A balloond that has taken two steps or more from its VM; the host is neither low now, nor
    has it room for a step back."""
    daemon = start_daemon("--api", str(api), "--speed", "5")
    guest = attach(make_guest(SETTINGS), daemon)
    run([guest], lambda: facts(daemon, "vm-attached") != [])
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) >= 2 * STEP)
    low_mem.set_available(MARGIN_MIB + 1)
    return daemon, guest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_recording_that_begins_in_a_squeeze_is_decided_the_same_again(
    number: signal.Signals,
    squeezed: tuple[Daemon, FakeGuest],
    low_mem: LowMemDir,
    tmp_path: Path,
    api: Path,
) -> None:
    daemon, guest = squeezed
    path = tmp_path / "a.trace"
    recorder = recording(api, "-o", str(path))
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    assert ended(recorder, number) == (0, "")

    trace = read_trace(str(path))
    (found,) = [entry.event for entry in trace.entries if isinstance(entry.event, Found)]
    assert 2 <= found.state.level < 16
    assert found.balloon_bytes >= 2 * STEP
    replayed = replay(trace)
    assert (replayed.first_other, replayed.lost, trace.is_cut) == (None, 0, False)
    assert replayed.sums.steps_up == 16 - found.state.level
    made, log = traced(trace), decided(daemon)
    assert made in [log[at : at + len(made)] for at in range(len(log))]
    assert path.stat().st_mode & 0o777 == 0o600


def test_recording_of_a_careful_vm_begins_with_its_target_and_what_its_guest_said(
    start_daemon: StartDaemon, low_mem: LowMemDir, tmp_path: Path, api: Path
) -> None:
    monitor = ScriptedMonitor(tmp_path / "web.qmp", well())
    (tmp_path / "balloond.toml").write_text(f'[vm.web]\nqmp = "{monitor.path}"\nfloor = "600M"\n')
    options = ("--config", str(tmp_path / "balloond.toml"), "--socket", str(tmp_path / "d.sock"))
    path = tmp_path / "a.trace"
    with monitors_in_a_thread([monitor]):
        daemon = start_daemon(*options, "--api", str(api), vm_mem_mib=None)
        low_mem.set_low()
        daemon.wait(lambda: monitor.vm.actual == 600 << 20, what="it is squeezed to its floor")
        recorder = recording(api, "-o", str(path))
        low_mem.set_plenty()
        daemon.wait(lambda: monitor.vm.actual > 700 << 20, what="some of it is back")
        daemon.stop()
        assert ended(recorder, None) == (0, "")

    trace = read_trace(str(path))
    (found,) = [entry.event for entry in trace.entries if isinstance(entry.event, Found)]
    assert (found.vm.name, found.target_bytes, found.state.level) == ("web", 424 << 20, 16)
    assert found.lasting is not None
    after = trace.entries[[entry.event for entry in trace.entries].index(found) + 1]
    assert isinstance(after.event, Sampled)
    # balloond has ended, and the trace with it.
    assert any(isinstance(entry.event, Halted) for entry in trace.entries)
    assert traced(trace)
    assert replay(trace).first_other is None


def test_recording_ends_by_itself_after_its_time(
    start_daemon: StartDaemon, tmp_path: Path, api: Path
) -> None:
    start_daemon("--api", str(api))
    recorder = recording(api, "--for", "100ms", "-o", str(tmp_path / "a.trace"))
    assert ended(recorder, None) == (0, "")
    assert read_trace(str(tmp_path / "a.trace")).entries


def test_recording_goes_to_a_pipe_where_it_is_to(
    start_daemon: StartDaemon, tmp_path: Path, api: Path
) -> None:
    start_daemon("--api", str(api))
    command = [BALLOONCTL, "record", "--api", str(api), "--for", "100ms", "-o", "-"]
    recorded = subprocess.run(command, capture_output=True, timeout=HANG_S, check=True)
    assert recorded.stderr == b""
    (tmp_path / "a.trace").write_bytes(recorded.stdout)
    assert read_trace(str(tmp_path / "a.trace")).entries


def test_file_that_is_there_is_left_alone(
    start_daemon: StartDaemon, tmp_path: Path, api: Path
) -> None:
    start_daemon("--api", str(api))
    path = tmp_path / "a.trace"
    path.write_text("a letter\n")
    command = [BALLOONCTL, "record", "--api", str(api), "-o", str(path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"balloonctl record: {path} is there already; name another file (-o)\n"
    )
    assert path.read_text() == "a letter\n"


def test_no_balloond_leaves_no_file(tmp_path: Path, api: Path) -> None:
    command = [BALLOONCTL, "record", "--api", str(api), "-o", str(tmp_path / "a.trace")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert refused.returncode == 3
    assert refused.stderr.startswith(f"balloonctl: no balloond listens at {api}; start it")
    assert list(tmp_path.iterdir()) == []


@fault("the trace of balloonctl record cannot be written")
def test_full_disk_ends_the_recording_with_a_line_and_what_was_written_is_read(
    squeezed: tuple[Daemon, FakeGuest], low_mem: LowMemDir, tmp_path: Path, api: Path
) -> None:
    _, guest = squeezed
    path = tmp_path / "a.trace"
    recorder = recording(api, "-o", str(path))
    low_mem.set_low()
    # To it the disk is full at 4 KiB.
    resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    run_until([guest], lambda: recorder.poll() is not None)
    assert ended(recorder, None) == (1, f"balloonctl record: {path}: File too large\n")
    trace = read_trace(str(path))
    assert (replay(trace).first_other, trace.is_cut) == (None, False)
    assert 2000 < path.stat().st_size <= 4096


@fault("balloond ends while it is recorded")
def test_killed_balloond_leaves_a_whole_trace(
    squeezed: tuple[Daemon, FakeGuest], tmp_path: Path, api: Path
) -> None:
    daemon, _ = squeezed
    path = tmp_path / "a.trace"
    recorder = recording(api, "-o", str(path))
    wait_until(lambda: path.stat().st_size > 500, what="its first lines are written")
    os.kill(daemon.pid, signal.SIGKILL)
    status, complaint = ended(recorder, None)
    assert (status, complaint.count("\n")) == (3, 1)
    assert complaint.startswith(f"balloonctl record: {path}: balloond at {api} has ended the conn")
    trace = read_trace(str(path))
    assert (replay(trace).first_other, trace.is_cut) == (None, False)


def test_sentence_of_balloonds_ends_the_trace_and_is_not_in_it(tmp_path: Path, api: Path) -> None:
    body = encode_header(Header(1.0, PolicySettings())) + encode_entry(Entry(1.0, Looked(None)))
    body += b'{"error":"this trace ends here: too slow"}\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(api))
        listener.listen()
        command = [BALLOONCTL, "record", "--api", str(api), "-o", str(tmp_path / "a.trace")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as recorder:
            theirs, _ = listener.accept()
            with theirs:
                theirs.recv(1 << 16)
                theirs.sendall(head + body)
            _, told = recorder.communicate(timeout=HANG_S)
    assert recorder.returncode == 1
    assert told.splitlines()[1] == (
        f"balloonctl record: {tmp_path}/a.trace: this trace ends here: too slow"
    )
    assert len(read_trace(str(tmp_path / "a.trace")).entries) == 1
