"""``--check`` and the start with a configuration file, beside monitors that a test scripts."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.config.vms import Kind, bases_path
from balloon_daemon.guests.driven.bases import BaseKey, Bases
from balloon_daemon.linux.process_lookups import start_time_of
from balloon_daemon.units import GIB
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.fakes.crosvm import FakeCrosvm
from tests.fakes.firecracker import BALLOON, FakeFirecracker
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.other_user import NOBODY
from tests.harness.scripted_monitor import (
    Misdeed,
    ScriptedMonitor,
    ScriptedVm,
    monitors_in_a_thread,
)
from tests.harness.waiting import HANG_S

Serve = Callable[[Path], AbstractAsyncContextManager[object]]

FILE = """
[host]
margin = "100M"
[vm.web]
qmp = "{folder}/web.qmp"
floor = "768M"
priority = 10
[vm.db]
qmp = "{folder}/db.qmp"
ceiling = 0
[vm.own]
vhost_user = "{folder}/own.sock"
memory = "2G"
[vm.file]
firecracker = "{folder}/file"
[discover]
qmp = ["{folder}/*.qmp"]
"""


def checked(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BALLOOND), "--check", *args], capture_output=True, text=True, timeout=HANG_S
    )


def checked_as_nobody(*args: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import os; os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); "
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY}); "
        "from balloon_daemon.cli.run import main; "
        f"main(['--check', *{args}])"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S
    )


def lines(run: subprocess.CompletedProcess[str], *kinds: str) -> list[str]:
    """What was found, of these kinds."""
    return [line for line in run.stdout.splitlines() if line.split("  ")[0] in kinds]


def booted(**vm_fields: Any) -> ScriptedVm:
    vm = ScriptedVm(**vm_fields)
    vm.boot()
    return vm


def test_check_lists_every_vm_with_its_way_and_limits_and_why_not_the_others(
    tmp_path: Path,
) -> None:
    names = ("web", "db", "found")
    vms = {name: booted() for name in names}
    monitors = [ScriptedMonitor(tmp_path / f"{name}.qmp", vms[name]) for name in names]
    hangs = ScriptedMonitor(tmp_path / "held.qmp")
    hangs.misdeed = Misdeed.NO_GREETING
    (tmp_path / "file").touch()
    file = tmp_path / "balloond.toml"
    file.write_text(FILE.format(folder=tmp_path))

    with monitors_in_a_thread([*monitors, hangs]):
        run = checked("--config", str(file))

    where = f"by qmp at {tmp_path}"
    assert (run.returncode, run.stderr) == (0, "")
    settings = lines(run, "setting")
    assert run.stdout.splitlines()[: len(settings)] == settings
    assert f'setting      [vm.web] floor = "768M", from {file}:6' in settings
    assert "setting      [vm.web] ceiling = what the balloon policy takes at most, by default" in (
        settings
    )
    assert lines(run, "vm") == [
        f"vm           db: {where}/db.qmp, careful, ceiling 0 B: keeps all of its 1 GiB",
        f"vm           found: {where}/found.qmp, careful: balloon of at most 512 MiB, so it keeps "
        "512 MiB",
        f"vm           web: {where}/web.qmp, careful, priority 10, floor 768 MiB: balloon of at "
        "most 256 MiB, so it keeps 768 MiB",
    ]
    assert lines(run, "not driven") == [
        f"not driven   file: {tmp_path}/file: this is no socket of a VMM; correct the address "
        "(Socket operation on non-socket)",
        f"not driven   held: {tmp_path}/held.qmp: another program holds the VMM's only "
        "connection; give balloond a monitor of its own, or drive the VM by way of that program "
        "(it does not greet; nor does a socket that is not QMP's)",
    ]
    assert lines(run, "socket") == [
        f"socket       own: by vhost_user at {tmp_path}/own.sock, careful, balloon of at most "
        "1 GiB, so it keeps 1 GiB: free"
    ]
    assert not any(vm.targets or vm.interval_s for vm in vms.values())
    assert not (tmp_path / "own.sock").exists()


def checked_vm(tmp_path: Path, kind: Kind, more: str = "") -> str:
    """What ``--check`` says of one VM behind its way, and its limits."""
    file = tmp_path / "balloond.toml"
    file.write_text(f'[vm.web]\n{kind.value} = "{tmp_path}/web"\n{more}\n')
    socket = ("--socket", str(tmp_path / "balloond.sock"))
    (line,) = lines(checked("--config", str(file), *socket), "vm")
    return line.removeprefix(f"vm           web: by {kind.value} at {tmp_path}/web, ")


HALF = "careful: balloon of at most 512 MiB, so it keeps 512 MiB"
SILENT = "its guest's statistics are not to be had"
UNHEARD = "no balloon driver listens in its guest now"


@pytest.mark.parametrize(
    ("kind", "serve", "said"),
    [
        (Kind.QMP, lambda path: ScriptedMonitor(path, booted()), HALF),
        (Kind.QMP, lambda path: ScriptedMonitor(path, ScriptedVm()), f"{HALF}; {UNHEARD}"),
        (
            Kind.QMP,
            lambda path: ScriptedMonitor(path, booted(running=False, deflate_on_oom=False)),
            f"{HALF}; stands still now, not known to deflate on OOM",
        ),
        (
            Kind.QMP,  # Its process is not known, nor are its disks QEMU's.
            lambda path: ScriptedMonitor(path, booted(thread_id=1, disk_reads=[])),
            f"{HALF}; its disk reads are not to be seen",
        ),
        (
            Kind.FIRECRACKER,
            lambda path: FakeFirecracker(path, state="Not started"),
            f"{HALF}; {UNHEARD}",
        ),
        (
            Kind.FIRECRACKER,
            lambda path: FakeFirecracker(path, balloon=BALLOON | {"stats_polling_interval_s": 0}),
            f"{HALF}; {SILENT}",
        ),
        (Kind.CLOUD_HYPERVISOR, FakeCloudHypervisor, f"{HALF}; {SILENT}"),
        (Kind.CROSVM, FakeCrosvm, f"{HALF}; not known to deflate on OOM"),
        (
            Kind.CROSVM,
            lambda path: FakeCrosvm(path, driver=False),
            f"{HALF}; {UNHEARD}, not known to deflate on OOM",
        ),
    ],
)
def test_check_says_what_stands_in_the_way_and_what_a_vmm_cannot_do(
    kind: Kind, serve: Serve, said: str, tmp_path: Path
) -> None:
    with monitors_in_a_thread([serve(tmp_path / "web")]):
        assert checked_vm(tmp_path, kind) == said


def test_check_of_a_vm_by_the_seed_speaks_of_no_protection(tmp_path: Path) -> None:
    with monitors_in_a_thread([FakeCloudHypervisor(tmp_path / "web")]):
        said = checked_vm(tmp_path, Kind.CLOUD_HYPERVISOR, 'profile = "seed"')
    assert said == "seed: balloon of at most 512 MiB, so it keeps 512 MiB"


def test_check_leaves_a_balloon_that_was_there_and_reckons_with_the_rest(tmp_path: Path) -> None:
    vm = booted(ram_bytes=4 * GIB, actual=2 * GIB)
    with monitors_in_a_thread([ScriptedMonitor(tmp_path / "web", vm)]):
        assert checked_vm(tmp_path, Kind.QMP) == (
            "careful: balloon of at most 1 GiB, so it keeps 1 GiB; "
            "a balloon of 2 GiB is there already, and stays"
        )


def test_check_takes_no_balloon_of_an_earlier_balloonds_for_one_that_was_there(
    tmp_path: Path,
) -> None:
    pid = os.getpid()
    bases = Bases(bases_path(tmp_path / "balloond.sock", Kind.QMP), lambda event: None)
    bases.note(BaseKey("web", pid, start_time_of(pid) or 0), 0)
    bases.store()
    vm = booted(ram_bytes=4 * GIB, actual=2 * GIB)
    with monitors_in_a_thread([ScriptedMonitor(tmp_path / "web", vm)]):
        said = checked_vm(tmp_path, Kind.QMP)
    assert said == "careful: balloon of at most 3 GiB, so it keeps 1 GiB"


def test_check_of_nothing_but_what_is_discovered_tries_no_device(tmp_path: Path) -> None:
    run = checked("--discover", f"qmp={tmp_path}/*.qmp")

    assert (run.returncode, run.stderr) == (0, "")
    assert lines(run, "device", "trial", "vm", "socket") == [
        "device       none, as no VM needs one",
        f"vm           none is at {tmp_path}/*.qmp now",
    ]


def test_check_names_files_that_match_a_pattern_and_are_no_sockets(tmp_path: Path) -> None:
    (tmp_path / "notes.qmp").touch()

    run = checked("--discover", f"qmp={tmp_path}/*.qmp")

    assert (run.returncode, run.stderr) == (0, "")
    assert lines(run, "vm", "not driven") == [
        f"not driven   {tmp_path}/notes.qmp is no socket; ignored"
    ]


def test_check_names_the_directory_of_a_pattern_that_is_missing(tmp_path: Path) -> None:
    run = checked("--discover", f"qmp={tmp_path}/vms/*.qmp", "--discover", f"qmp={tmp_path}/*/q")
    assert run.returncode == 0
    assert lines(run, "vm", "not driven") == [
        f"not driven   {tmp_path}/vms: No such file or directory; make it, and let balloond's "
        "user list it, for VMs to be found there"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_check_names_the_directory_of_a_pattern_that_it_may_not_list() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        run = checked_as_nobody("--discover", f"qmp={folder}/*.qmp")
    assert lines(run, "vm", "not driven") == [
        f"not driven   {folder}: Permission denied; make it, and let balloond's user list it, for "
        "VMs to be found there"
    ]


@fault("no descriptor left to reach a driven VM")
def test_check_with_too_few_descriptors_for_its_vms_says_so_of_each(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(40)]  # Two connections to each, of 64 descriptors.
    file = tmp_path / "balloond.toml"
    file.write_text("".join(f'[vm.{name}]\ncrosvm = "{tmp_path}/{name}"\n' for name in names))
    with contextlib.ExitStack() as stack:
        for name in names:
            silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            silent.bind(str(tmp_path / name))
            silent.listen()
        few = ["prlimit", "--nofile=64:64", str(BALLOOND), "--check", "--config", str(file)]
        run = subprocess.run(few, capture_output=True, text=True, timeout=HANG_S)

    refused = lines(run, "not driven")
    assert (run.returncode, run.stderr, len(refused)) == (0, "", len(names))
    assert any("may open no more files; allow more (ulimit -n" in line for line in refused)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_check_names_the_owner_of_a_socket_that_it_may_not_use() -> None:
    with (
        # Another user may not enter pytest's directories.
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor,
    ):
        os.chmod(folder, 0o711)
        path = Path(folder) / "web.qmp"
        monitor.bind(str(path))
        monitor.listen()
        path.chmod(0o700)
        run = checked_as_nobody("--discover", f"qmp={path}")
    assert lines(run, "not driven") == [
        f"not driven   web: {path}: balloond may not connect; run it as root or as the VM's user "
        "(Permission denied); the socket is root's, mode 700"
    ]


def test_check_names_the_directory_that_is_missing_on_the_way_to_a_socket(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file = tmp_path / "balloond.toml"
    places = {
        "a": tmp_path / "none/deeper/sock",
        "b": tmp_path / "there/sock",
        "c": tmp_path / "none/sock",
    }
    keys = {"a": "crosvm", "b": "crosvm", "c": "qmp"}
    file.write_text(
        "".join(f'[vm.{name}]\n{keys[name]} = "{at}"\n' for name, at in places.items())
    )

    run = checked("--config", str(file))

    waiting = "nobody listens there; waiting for the VM"
    assert lines(run, "not driven") == [
        f"not driven   a: {places['a']}: {waiting} (there is no directory {tmp_path}/none)",
        f"not driven   b: {places['b']}: {waiting} (No such file or directory)",
        f"not driven   c: {places['c']}: {waiting} (there is no directory {tmp_path}/none)",
    ]


@fault("a VMM's process may not be looked at")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_check_warns_of_a_vm_whose_process_it_may_not_look_at() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)
        monitor = ScriptedMonitor(Path(folder) / "web.qmp", booted())
        with monitors_in_a_thread([monitor]):
            monitor.path.chmod(0o777)
            run = checked_as_nobody("--discover", f"qmp={monitor.path}")
            all_seen = checked("--discover", f"qmp={monitor.path}")

    assert run.returncode == 0
    (warning,) = [line for line in lines(run, "warning") if " web: " in line]
    assert f" its VMM's process {os.getpid()} may not be looked at: " in warning
    assert [line for line in lines(all_seen, "warning") if " web: " in line] == []


def started(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BALLOOND), *args], capture_output=True, text=True, timeout=HANG_S)


@fault("mistake in the configuration file")
def test_all_mistakes_of_file_and_drop_ins_are_told_and_nothing_is_opened(tmp_path: Path) -> None:
    file, directory = tmp_path / "balloond.toml", tmp_path / "balloond.d"
    tables = [f'[vm.v{n}]\nvhost_user = "{tmp_path}/{n}.sock"\nflor = 1\n' for n in range(9)]
    file.write_text("".join(tables))
    directory.mkdir()
    (directory / "10.toml").write_text("[vm.v0]\nfloor = 1G\n")
    (directory / "20.toml").write_text("[vm.v0]\nqmp = '/run/0.qmp'\n")

    run = started("--config", str(file))

    hint = "there is no such key; did you mean floor?"
    assert (run.returncode, run.stdout) == (2, "")
    *of_file, no_toml, two_ways = run.stderr.splitlines()
    assert of_file == [
        f"balloond: {file}:{3 * n + 3}: [vm.v{n}] flor = 1: {hint}" for n in range(9)
    ]
    assert no_toml.startswith(f"balloond: {directory}/10.toml:2:10: [vm.v0] floor = 1G: is no ")
    assert two_ways == (
        f'balloond: {directory}/20.toml:2: [vm.v0] qmp = "/run/0.qmp": it has vhost_user too, in '
        f"{file}:2; name one way to reach a VM"
    )
    assert {*tmp_path.iterdir()} == {file, directory}


@fault("mistake in the configuration file")
def test_mistakes_in_a_file_that_no_person_wrote_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text("".join(f"[vm.v{n}]\nqmp = 'v'\n" for n in range(1007)))

    run = started("--config", str(file))

    assert run.returncode == 2
    lines = run.stderr.splitlines()
    assert (len(lines), lines[-1]) == (1001, "balloond: and 7 more")


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@fault("configuration file that cannot be read or trusted")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, ": No such file or directory; name a file that there is"),
        (Path.mkdir, ": Is a directory; name a file in it"),
        (os.mkfifo, ": is a pipe, not a file"),
        (
            lambda path: path.write_bytes(b"\xff"),
            ":1: this line is not UTF-8; save the file as UTF-8",
        ),
        (large, ": is larger than 1 MiB"),
    ],
    ids=["none", "directory", "fifo", "bytes", "gibibyte"],
)
def test_file_that_cannot_be_read_is_one_line_and_status_2(
    make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "balloond.toml"
    make(path)

    run = checked("--config", str(path))

    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"balloond: {path}{said}\n"
