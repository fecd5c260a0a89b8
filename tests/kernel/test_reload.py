"""A configuration that a running balloond reads anew: what becomes of VMs, and what is refused."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from balloon_daemon.cli import reloading
from balloon_daemon.cli.flags import build_parser
from balloon_daemon.cli.reloading import ConfigFiles
from balloon_daemon.config.model import Config
from balloon_daemon.controller.reload import Reread
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.guests.open_guest import Drivers
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.units import MIB
from tests.harness.daemon import BALLOOND, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.service_manager import ServiceManager
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import balloon_bytes, errors, facts, run_until, wait_for_device

ENDED = ("config-reloaded", "config-refused")


class Vms:
    """VMs with a monitor each, in one directory, and the file that names some of them."""

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.file = path / "balloond.toml"
        # A thread id of 0: their processes stay unknown, as in a container.
        self.vms = {name: ScriptedVm(thread_id=0) for name in names}
        self.monitors = {
            name: ScriptedMonitor(path / f"{name}.qmp", vm) for name, vm in self.vms.items()
        }
        for vm in self.vms.values():
            vm.boot()

    def write(self, text: str) -> None:
        self.file.write_text(text.format(folder=self.path))

    def size_mib(self, name: str) -> int:
        """What a VM was last told to have."""
        vm = self.vms[name]
        return vm.targets[-1][0] // MIB if vm.targets else 1024

    def heard(self, name: str) -> tuple[int, int, int]:
        """How many connections a VM has had, and how often its balloon and its monitor's
        capabilities were set. How often statistics come may still be set after a squeeze."""
        vm = self.vms[name]
        asked = vm.commands.count("qmp_capabilities")
        return self.monitors[name].clients, len(vm.targets), asked


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[Vms]:
    vms = Vms(tmp_path, "web", "db")
    with monitors_in_a_thread(list(vms.monitors.values())):
        yield vms


def reload(daemon: Daemon, guests: Sequence[FakeGuest] = ()) -> dict[str, object]:
    """Has the configuration read anew, and waits until it is in force or refused."""
    before = len(facts(daemon, *ENDED))
    os.kill(daemon.pid, signal.SIGHUP)
    if guests:
        run(guests, lambda: len(facts(daemon, *ENDED)) > before)
    else:
        daemon.wait(lambda: len(facts(daemon, *ENDED)) > before, what="it was read")
    return facts(daemon, *ENDED)[-1]


def wait_for_sample(daemon: Daemon, vm: ScriptedVm) -> None:
    """Waits until a VM's figures are read once more."""
    before = len(vm.commands)
    daemon.wait(lambda: len(vm.commands) > before, what="its figures are read")


def rings(guest: FakeGuest) -> dict[str, object]:
    """What a guest's driver and its VMM have heard and sent, without its statistics: those are
    asked for with each decision, also with one that changes nothing."""
    status = guest.status()
    kicks, statistics = status.pop("kicks"), status.pop("stats_buffers")
    assert isinstance(kicks, int)
    assert isinstance(statistics, int)
    return {**status, "kicks": kicks - statistics}


def changed(record: dict[str, object]) -> object:
    """What is other than before, by the log."""
    assert record["event"] == "config-reloaded"
    return record["changed"]


WEB = '[vm.web]\nqmp = "{folder}/web.qmp"\n'
DB = '[vm.db]\nqmp = "{folder}/db.qmp"\n'
FOUND = '[discover]\nqmp = ["{folder}/*.qmp"]\n'


def squeezed(start_daemon: StartDaemon, low_mem: LowMemDir, vms: Vms) -> Daemon:
    """A balloond that has squeezed all VMs to 512 MiB, and a host that stays just at its margin:
    no more is taken, and nothing given back."""
    daemon = start_daemon("--config", str(vms.file), vm_mem_mib=None)
    low_mem.set_low()
    names = [name for name in vms.vms if name in vms.file.read_text() or "discover" in
             vms.file.read_text()]  # fmt: skip
    daemon.wait(lambda: all(vms.size_mib(name) == 512 for name in names), what="all are squeezed")
    low_mem.set_available(100)
    return daemon


@fault("SIGHUP, `balloonctl reload`, `systemctl reload`")
def test_reload_that_changes_nothing_for_a_driven_vm_does_not_touch_it(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write(WEB + FOUND)
    daemon = squeezed(start_daemon, low_mem, vms)
    heard = [vms.heard(name) for name in ("web", "db")]

    assert changed(reload(daemon)) == []
    vms.write(WEB + "priority = 3\n" + FOUND)
    assert changed(reload(daemon)) == ["[vm.web] priority: 0 -> 3"]

    wait_for_sample(daemon, vms.vms["web"])
    assert [vms.heard(name) for name in ("web", "db")] == heard
    assert errors(daemon) == []


@fault("SIGHUP, `balloonctl reload`, `systemctl reload`")
def test_reload_touches_neither_rings_nor_config_space_of_a_vm_on_our_own_device(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    file = tmp_path / "balloond.toml"
    own = f'[vm.own]\nvhost_user = "{tmp_path}/own.sock"\nprofile = "seed"\n'
    file.write_text(own)
    daemon = start_daemon("--config", str(file))
    guest = make_guest(SETTINGS)
    guest.connect(str(tmp_path / "own.sock"))
    guest.bind()
    run([guest], lambda: facts(daemon, "vm-attached") != [])
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == VM_MEM_MIB // 2 * MIB)
    low_mem.set_available(100)
    run_until([guest], lambda: guest.driver.idle)
    before, devices = rings(guest), len(facts(daemon, "device-started"))

    assert changed(reload(daemon, [guest])) == []
    file.write_text(f"{own}priority = 2\nceiling = '4G'\n[host]\nmargin = '99M'\n")
    assert changed(reload(daemon, [guest])) == [
        "[host] margin: default -> 99 MiB",
        "[vm.own] ceiling: default -> 4 GiB",
        "[vm.own] priority: 0 -> 2",
    ]
    assert rings(guest) == before

    # A ceiling below its balloon: the difference goes back at once.
    file.write_text(f"{own}ceiling = '64M'\n")
    reload(daemon, [guest])
    run_until([guest], lambda: balloon_bytes(guest) == 64 * MIB)
    assert len(facts(daemon, "device-started")) == devices
    assert errors(daemon) == []


@fault("VM whose VMM has hung up, and whose device does not end")
def test_reload_applies_to_all_vms_while_one_is_going(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    file = tmp_path / "balloond.toml"
    own = [f'[vm.{name}]\nvhost_user = "{tmp_path}/{name}.sock"\n' for name in ("one", "two")]
    file.write_text("".join(own))
    daemon = start_daemon("--config", str(file))
    guests = [make_guest(SETTINGS) for _ in own]
    for guest, name in zip(guests, ("one", "two"), strict=True):
        guest.connect(str(tmp_path / f"{name}.sock"))
        guest.bind()
    run_until(guests, lambda: len(facts(daemon, "vm-attached")) == 2)
    low_mem.set_low()
    run_until(guests, lambda: all(balloon_bytes(guest) == MAXIMUM for guest in guests))

    device = wait_for_device(guests, daemon, "one")
    os.kill(device, signal.SIGSTOP)
    guests.pop(0).hang_up()
    run_until(guests, lambda: facts(daemon, "vmm-hung-up") != [])
    file.write_text("".join(f"{each}ceiling = '64M'\n" for each in own))
    reload(daemon, guests)
    run_until(guests, lambda: balloon_bytes(guests[0]) == 64 * MIB)
    assert facts(daemon, "callback-failed") == []


def test_vm_with_a_lower_ceiling_or_a_higher_floor_gets_memory_back_at_once(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write(WEB + DB)
    daemon = squeezed(start_daemon, low_mem, vms)
    vms.write(WEB + "ceiling = '128M'\n" + DB + "floor = '768M'\n")
    assert changed(reload(daemon)) == [
        "[vm.web] ceiling: default -> 128 MiB",
        "[vm.db] floor: default -> 768 MiB",
    ]
    daemon.wait(lambda: vms.size_mib("web") == 896, what="web has its memory")
    daemon.wait(lambda: vms.size_mib("db") == 768, what="db has its memory")


def test_larger_margin_makes_memory_low_at_once(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write(WEB)
    daemon = start_daemon("--config", str(vms.file), vm_mem_mib=None)
    low_mem.set_available(500)
    daemon.wait(lambda: facts(daemon, "vm-attached") != [], what="web is driven")
    vms.write(WEB + "[host]\nmargin = '600M'\n")
    assert changed(reload(daemon)) == ["[host] margin: default -> 600 MiB"]
    daemon.wait(lambda: vms.size_mib("web") == 512, what="web is squeezed")


def test_vm_that_is_removed_gets_its_memory_back_and_is_driven_no_more_until_it_is_added_again(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write(WEB + DB)
    daemon = squeezed(start_daemon, low_mem, vms)
    heard = vms.heard("web")

    vms.write(WEB)
    assert changed(reload(daemon)) == ["-[vm.db]"]
    daemon.wait(lambda: vms.size_mib("db") == 1024, what="db has its memory")
    db = vms.monitors["db"]
    wait_until(lambda: not db.connected, what="nobody holds db's monitor")
    assert vms.heard("web") == heard
    assert [record["name"] for record in facts(daemon, "vm-not-wanted")] == ["db"]
    assert facts(daemon, "vm-lost", "not-given-back") == []

    vms.write(WEB + DB)
    assert changed(reload(daemon)) == ["+[vm.db]"]
    daemon.wait(lambda: len(facts(daemon, "vm-driven")) == 3, what="db is driven again")
    low_mem.set_low()
    daemon.wait(lambda: vms.size_mib("db") == 512, what="db is squeezed again")
    assert vms.heard("web") == heard
    assert errors(daemon) == []


def test_vm_that_was_found_and_is_named_now_or_the_other_way_round_is_not_touched(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write(FOUND)
    daemon = squeezed(start_daemon, low_mem, vms)
    heard = [vms.heard(name) for name in ("web", "db")]

    for text in (WEB + "priority = 1\n" + DB + FOUND, FOUND, WEB + DB):
        vms.write(text)
        reload(daemon)
        wait_for_sample(daemon, vms.vms["web"])
        assert [vms.heard(name) for name in ("web", "db")] == heard

    # Nothing finds them any more, and nothing names them.
    vms.write("")
    reload(daemon)
    daemon.wait(lambda: vms.size_mib("db") == vms.size_mib("web") == 1024, what="all is back")
    assert errors(daemon) == []


@fault("mistake in a configuration that is read anew")
def test_file_with_mistakes_is_refused_whole_and_each_mistake_said(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write(WEB)
    daemon = squeezed(start_daemon, low_mem, vms)
    heard = vms.heard("web")

    vms.write(WEB + "ceiling = 0\nflor = '1G'\n[vm.db]\n")
    record = reload(daemon)

    assert (record["event"], record["mistakes"]) == ("config-refused", 2)
    assert [each["mistake"] for each in facts(daemon, "config-mistake")] == [
        f'{vms.file}:4: [vm.web] flor = "1G": there is no such key; did you mean floor?',
        f"{vms.file}:5: [vm.db]: nothing says how to reach it; add one of vhost_user, qmp, "
        "libvirt, cloud_hypervisor, firecracker, crosvm",
    ]
    assert vms.heard("web") == heard
    vms.write(WEB)
    assert changed(reload(daemon)) == []


@fault("setting that takes a restart in a configuration that is read anew")
def test_what_takes_a_restart_is_refused_with_its_line_and_everything_else_with_it(
    vms: Vms, start_daemon: StartDaemon
) -> None:
    own = '[vm.own]\nvhost_user = "{folder}/own.sock"\n'
    vms.write(WEB + own)
    daemon = start_daemon("--config", str(vms.file))

    text = (
        WEB
        + "ceiling = 0\n[vm.new]\nvhost_user = '{folder}/new.sock'\nmemory = '1G'\n"
        + "[host]\napi = '{folder}/api.sock'\nhistory = '{folder}/h'\nrecord = '{folder}/r'\n"
        + "dry_run = true\n"
    )
    vms.write(text)
    assert reload(daemon)["event"] == "config-refused"

    said = [
        each["mistake"].removeprefix(str(vms.file)) for each in facts(daemon, "config-mistake")
    ]
    assert [mistake.partition(" = ")[0] for mistake in said] == [
        ":5: [vm.new] vhost_user",
        ":8: [host] api",
        ":9: [host] history",
        ":10: [host] record",
        ":11: [host] dry_run",
        ": [vm.own] vhost_user: that it is not set any more takes a restart; restart balloond, or "
        "put it back as it was",
    ]
    remedy = ": this takes a restart; restart balloond, or put it back as it was"
    assert all(mistake.endswith(remedy) for mistake in said[:5])
    assert facts(daemon, "vm-not-wanted") == []


def test_first_driven_vm_of_a_balloond_that_had_none_is_driven(
    vms: Vms, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    vms.write("")
    daemon = start_daemon("--config", str(vms.file))
    vms.write(WEB)
    assert changed(reload(daemon)) == ["+[vm.web]"]
    low_mem.set_low()
    daemon.wait(lambda: vms.size_mib("web") == 512, what="web is squeezed")
    low_mem.set_plenty()
    daemon.stop()
    assert vms.size_mib("web") == 1024


def balloonctl(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(BALLOOND.with_name("balloonctl")), *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    return done.returncode, done.stdout, done.stderr


@fault("SIGHUP, `balloonctl reload`, `systemctl reload`")
def test_balloonctl_prints_what_has_changed_or_all_mistakes(
    vms: Vms, start_daemon: StartDaemon
) -> None:
    vms.write(WEB)
    api = str(vms.path / "api.sock")
    daemon = start_daemon("--config", str(vms.file), "--api", api, vm_mem_mib=None)
    assert balloonctl("reload", "--api", api) == (0, "nothing has changed\n", "")
    vms.write(WEB + "floor = '768M'\n" + DB)
    expected = ["[vm.web] floor: default -> 768 MiB", "+[vm.db]"]
    assert balloonctl("reload", "--api", api) == (0, "\n".join(expected) + "\n", "")

    vms.write(WEB + "floor = '2G'\n")
    status, out, _ = balloonctl("reload", "--api", api, "--json")
    assert (status, json.loads(out)) == (
        0,
        {"changed": ["[vm.web] floor: 768 MiB -> 2 GiB", "-[vm.db]"]},
    )
    mistakes = [f"a{number} = 1" for number in range(1200)]
    vms.write(WEB + "\n".join(mistakes))
    status, out, said = balloonctl("reload", "--api", api)
    assert (status, out) == (2, "")
    lines = said.splitlines()
    assert lines[0] == f"balloonctl: {vms.file}:3: [vm.web] a0 = 1: there is no such key"
    assert len(lines) == 1000
    assert len(facts(daemon, "config-mistake")) == 100


def test_service_manager_hears_when_a_reload_begins_and_ends(
    vms: Vms, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    vms.write(WEB)
    # Not in the test's own directory: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory() as folder:
        manager = ServiceManager(Path(folder, "notify"), capacity=0)
        with contextlib.closing(manager):
            monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
            daemon = start_daemon("--config", str(vms.file))
            daemon.wait(lambda: any("READY=1" in said for said in manager.said), what="it is up")
            before_us, started = time.monotonic_ns() // 1000, len(manager.said)
            for text in (WEB + "flor = 1", WEB):
                vms.write(text)
                reload(daemon)
            daemon.wait(lambda: len(manager.said) == started + 4, what="both are over")
            said = manager.said[started:]
    begun = [line.partition("MONOTONIC_USEC=") for line in said[::2]]
    assert [first for first, _, _ in begun] == ["RELOADING=1\n"] * 2
    assert [before_us < int(at_us) < time.monotonic_ns() // 1000 for _, _, at_us in begun] == [
        True
    ] * 2
    assert said[1::2] == ["READY=1"] * 2


def test_no_process_that_reads_files_is_left(vms: Vms, start_daemon: StartDaemon) -> None:
    vms.write("")
    daemon = start_daemon("--config", str(vms.file))
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
    before = children.read_text().split()
    for _ in range(3):
        reload(daemon)
        wait_until(lambda: children.read_text().split() == before, what="it has ended")


OF_ALL_KINDS = """\
import argparse, asyncio, sys
import balloon_daemon.cli.own_device
from balloon_daemon.cli import run
from balloon_daemon.cli.flags import build_parser, read_settings
from balloon_daemon.cli.reloading import ConfigFiles
from balloon_daemon.guests.open_guest import Drivers, asker
from balloon_daemon.linux.apart import LowNumbers

low = LowNumbers()
asker(lambda: low)
args = build_parser().parse_args(["--config", sys.argv[1]])
present = read_settings(args).config
with open(sys.argv[1], "a") as file:
    file.write(sys.argv[2])
files = ConfigFiles(args, lambda: low, Drivers(print, low=lambda: low), None)
touched, turns = set(), set()

def note(event, about):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(about[0], str):
        touched.add(about[0])

async def reload():
    loop = asyncio.get_running_loop()

    def count():
        turns.add(len(sys.modules))
        loop.call_later(0, count)

    count()
    read = await files.read(present)
    files.apply(read.config)
    return read

sys.addaudithook(note)
read = asyncio.run(reload())
assert not read.mistakes, read.mistakes
modules = [name for name in sys.modules if name.startswith("balloon_daemon.guests.driven.")]
of_modules = {path for path in touched if path.startswith(tuple(filter(None, sys.path)))}
print(sorted(of_modules), len(modules) > 20, len(turns) > 20)
"""


@fault("reload brings the first VM of a kind")
def test_first_vms_of_all_kinds_are_driven_without_a_file_of_a_module_opened_here(
    tmp_path: Path,
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text("")
    kinds = ("qmp", "firecracker", "cloud_hypervisor", "crosvm")
    named = [f'[vm.{kind}]\n{kind} = "{tmp_path}/{kind}.sock"\n' for kind in kinds]
    named.append('[discover]\nlibvirt = ["test:///default"]\n')

    done = subprocess.run(
        [sys.executable, "-P", "-c", OF_ALL_KINDS, str(file), "".join(named)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    assert done.stdout.splitlines()[-1:] == ["[] True True"], done.stderr


def read(how: Callable[..., object], patch: pytest.MonkeyPatch) -> Reread:
    """What comes of files whose reading does something else."""
    patch.setattr(reloading, "READ_WITHIN_S", 0.2)
    patch.setattr(reloading, "read_settings", how)
    args = build_parser().parse_args([])
    low = LowNumbers()
    files = ConfigFiles(args, lambda: low, Drivers(lambda event: None), None)
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = children.read_text()

    async def until_reaped() -> Reread:
        reread = await files.read(Config())
        assert children.read_text() == before
        return reread

    try:
        return asyncio.run(until_reaped())
    finally:
        low.close()


@fault("configuration's files that do not answer, when they are read anew")
def test_files_that_do_not_answer_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reread = read(lambda *args, **kwargs: signal.pause(), monkeypatch)
    assert reread == Reread(
        None,
        mistakes=(
            "the files are not read within 0.2 s; are they on a server that does not answer?",
        ),
    )


def test_child_that_ends_without_an_answer_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    reread = read(lambda *args, **kwargs: os._exit(1), monkeypatch)
    assert reread == Reread(
        None, mistakes=("the files cannot be read: No such process; try again",)
    )


@fault("its terminal hangs up")
def test_balloond_whose_terminal_hangs_up_gives_all_back_and_ends(
    vms: Vms, low_mem: LowMemDir, tmp_path: Path
) -> None:
    vms.write(WEB)
    ours, theirs = os.openpty()
    options = ["--config", str(vms.file), "--low-mem-dir", str(low_mem.path), "--speed", "20"]
    log = tmp_path / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [str(BALLOOND), *options],
            stdin=theirs,
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as daemon,
    ):
        os.close(theirs)
        low_mem.set_low()
        wait_until(lambda: vms.size_mib("web") == 512, what="web is squeezed")
        daemon.send_signal(signal.SIGHUP)  # The terminal is still there.
        wait_until(lambda: "read anew: nothing has changed" in log.read_text(), what="it is read")

        os.close(ours)

        assert daemon.wait(HANG_S) == 0
    assert vms.size_mib("web") == 1024
    assert "SIGHUP: ending" in log.read_text()
