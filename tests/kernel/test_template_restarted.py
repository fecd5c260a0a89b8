"""The template is gone: another is started by exec, and what devices are forked by meanwhile."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from balloon_daemon.device import template as template_module
from balloon_daemon.device.process import NotYetError
from balloon_daemon.device.request import HELLO
from balloon_daemon.device.template import Template
from balloon_daemon.linux.apart import LOW
from balloon_daemon.units import MIB
from tests.harness.device_rig import DeviceRig, shipped_filter
from tests.harness.faults import fault
from tests.harness.jail_watch import is_alive
from tests.harness.makers import MakeRig
from tests.harness.open_files import open_files
from tests.harness.slow_close import MuteFile
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.ways_to_fork import PatientFork, Way, end_template, fork_by


class Heard:
    """A template, and what it says for the log."""

    def __init__(self, template: Template) -> None:
        self.warnings: list[str] = []
        self.news: list[str] = []
        template.prepare(shipped_filter().bpf, self.warnings.append, self.news.append)


@pytest.fixture
def heard(template: Template) -> Heard:
    return Heard(template)


@pytest.fixture
def rig(template: Template, make_rig: MakeRig) -> DeviceRig:
    rig = make_rig()
    rig.fork = PatientFork(template)
    return rig


@pytest.fixture
def starts_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The program that is started for a template; it does nothing until it is written."""
    program = tmp_path / "program.py"
    program.write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(template_module, "PROGRAM", (str(program),))
    return program


@fault("template (forks the devices) killed")
def test_template_killed_devices_live_and_another_one_forks_the_next(
    rig: DeviceRig, template: Template, heard: Heard
) -> None:
    first = template.pid
    rig.start_ready()
    end_template(template)
    rig.inflate([7])
    rig.kill()

    device = psutil.Process(rig.start_ready().pid)

    assert heard.warnings == [f"process {first}, which forks devices, is gone: starting another"]
    assert heard.news == [f"process {template.pid} forks devices now"]
    assert template.pid not in (None, first)
    assert device.ppid() == psutil.Process(template.pid).ppid() == os.getpid()
    rig.inflate([9])


@fault("template (forks the devices) killed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a device")
def test_device_of_another_template_is_as_small_as_one_of_the_first(
    rig: DeviceRig, template: Template
) -> None:
    sizes = []
    for _ in range(2):
        sizes.append(psutil.Process(rig.start_ready().pid).memory_full_info().uss)
        rig.kill()
        end_template(template)
    # 1.9 MiB either way.
    assert sizes[1] < sizes[0] + MIB // 2


@fault("template (forks the devices) killed")
def test_template_that_is_being_started_is_waited_for_by_nobody(
    rig: DeviceRig, template: Template, starts_what: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Somebody who waited for the start would wait for longer than even a busy host needs to give
    # five answers.
    monkeypatch.setattr(template_module, "STARTED_WITHIN_S", 2 * HANG_S)
    end_template(template)
    rig.fork = template.fork
    began = time.monotonic()
    for _ in range(5):
        with pytest.raises(NotYetError):
            rig.start()
    assert time.monotonic() - began < HANG_S


@fault("template killed again and again")
def test_template_that_dies_again_and_again_is_started_less_and_less_often(
    rig: DeviceRig, template: Template, heard: Heard
) -> None:
    for _ in range(2):
        end_template(template)
        rig.start_ready()
        rig.kill()
    end_template(template)
    rig.fork = template.fork
    with pytest.raises(NotYetError) as caught:
        rig.start()

    assert [line.partition(" forks devices, ")[2] for line in heard.warnings] == [
        "is gone: starting another",
        "is gone: starting another in 1 s; until then no device can be started",
        "is gone: starting another in 2 s; until then no device can be started",
    ]
    # Whoever asks is told when there is a use in asking again.
    assert 1 < caught.value.retry_s <= 2


@fault("template killed again and again")
@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"balloond 0.0.0 forks", "what is installed is another balloond than the one that runs"),
        # Of this version, and its requests have other fields.
        (b"%s name" % HELLO, "what is installed is another balloond than the one that runs"),
        (b"", "it ended at once"),
        (None, "it does not say that it is ready"),
    ],
)
def test_template_that_does_not_come_up_is_started_again_later(
    says: bytes | None,
    why: str,
    rig: DeviceRig,
    template: Template,
    heard: Heard,
    starts_what: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if says is None:
        monkeypatch.setattr(template_module, "STARTED_WITHIN_S", 0.3)
    else:
        starts_what.write_text(f"import os, sys\nos.write(int(sys.argv[1]), {says!r})\n")
    end_template(template)
    rig.fork = template.fork

    def failed() -> bool:
        with pytest.raises(NotYetError):
            rig.start()
        return len(heard.warnings) > 1

    wait_until(failed, what="the start has failed")

    assert heard.warnings[1:] == [
        f"no process to fork devices from can be started: {why}; trying again in 1 s, and until "
        "then no device can be started"
    ]
    assert template.pid is None
    # What keeps a template from coming up may pass.
    monkeypatch.undo()
    rig.fork = PatientFork(template)
    rig.start_ready()
    assert heard.news == [f"process {template.pid} forks devices now"]


@fault("template killed again and again")
def test_no_interpreter_to_start_is_told_to_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    # As when Python was upgraded underneath.
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    template = Template()
    with pytest.raises(OSError, match=r"can be started: it ended at once$"):
        template.wait_until_ready()
    template.close()


@fault("template killed again and again")
def test_device_is_forked_though_a_file_that_never_closes_is_open_here(
    rig: DeviceRig, template: Template, tmp_path: Path
) -> None:
    try:
        mute = MuteFile(tmp_path / "mute")
    except PermissionError:
        pytest.skip("FUSE cannot be mounted here")
    try:
        assert mute.fd >= LOW, "the template occupies the numbers below"
        rig.fork = fork_by(template, Way.RESTARTED)
        device = rig.start_ready()
        rig.inflate([7])
        assert not mute.is_being_closed
        links = open_files(device.pid).values()
        assert not [link for link in links if link.endswith("/file")]
        rig.stop()
    finally:
        mute.close()


@fault("template killed again and again")
@pytest.mark.parametrize("way", Way)
def test_every_way_leaves_no_descriptor_here(way: Way, rig: DeviceRig, template: Template) -> None:
    rig.fork = fork_by(template, way)
    rig.start_ready()
    rig.kill()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        rig.start_ready()
        rig.kill()
    assert set(os.listdir("/proc/self/fd")) == before


@fault("template (forks the devices) killed")
def test_template_runs_nothing_of_the_current_directory(
    rig: DeviceRig, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, mark = tmp_path / "here", tmp_path / "mark"
    for module in ("balloon_daemon/__init__.py", "socket.py", "prctl.py", "sitecustomize.py"):
        (here / module).parent.mkdir(parents=True, exist_ok=True)
        (here / module).write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(here))
    rig.fork = fork_by(template, Way.RESTARTED)
    rig.start_ready()
    assert not mark.exists()
    assert os.readlink(f"/proc/{template.pid}/cwd") == "/"


@fault("template (forks the devices) killed")
def test_template_that_was_started_again_dies_with_its_controller() -> None:
    told, tell = os.pipe()
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(tell)], pass_fds=[tell], stdin=subprocess.DEVNULL
    )
    os.close(tell)
    with open(told) as answer:
        another = int(answer.readline())

    controller.kill()
    controller.wait()

    # Whoever inherits it may leave it a zombie for a while.
    wait_until(lambda: not is_alive(another), what="the template has ended")


CONTROLLER = """
import os, signal, sys
from balloon_daemon.device.process import NotYetError
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.device.template import Template
template = Template()
template.wait_until_ready()
os.kill(template.pid, signal.SIGKILL)
os.waitid(os.P_PID, template.pid, os.WEXITED | os.WNOWAIT)
spec = DeviceSpec("device", (), (), None, b"", None, must_tell_host=False)
try:
    template.fork(spec, 0, 2, os.getpid())
except NotYetError:
    template.wait_until_ready()
os.write(int(sys.argv[1]), b"%d\\n" % template.pid)
signal.pause()
"""
