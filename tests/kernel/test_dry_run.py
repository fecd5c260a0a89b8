"""``balloond --dry-run``: decides as ever, and changes no VM's balloon at any time."""

import signal
import subprocess
from pathlib import Path

from balloon_daemon.fake_guest.machine import FakeGuest
from balloon_daemon.units import GIB, MIB
from tests.harness.daemon import ROOT, Daemon
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, STEP, MakeGuest, StartDaemon
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.whole_vm import balloon_bytes, errors, facts, run_until, said


def withheld(daemon: Daemon, vm: str = "vm1") -> list[int]:
    """The targets that were not sent to a VM."""
    return [
        record["target_bytes"] for record in facts(daemon, "target-withheld") if record["vm"] == vm
    ]


def attached(daemon: Daemon, guest: FakeGuest) -> FakeGuest:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    return guest


def asked(api: Path, *command: str) -> str:
    """What ``balloonctl`` prints."""
    line = [f"{ROOT}/.venv/bin/balloonctl", *command, "--api", str(api)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout


def test_guest_on_our_own_device_is_decided_about_and_keeps_its_memory(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    api = tmp_path / "api.sock"
    daemon = start_daemon("--dry-run", "--speed", "100", "--api", str(api))
    guest = attached(daemon, make_guest())
    low_mem.set_low()
    run_until([guest], lambda: MAXIMUM in withheld(daemon))
    assert "\nDry run: no VM's balloon is changed\n" in asked(api, "status")
    most = f"{MAXIMUM // MIB}M"
    assert asked(api, "set", "vm1", most).endswith("; a dry run: its VM is not told\n")
    low_mem.set_plenty()
    run_until([guest], lambda: withheld(daemon)[-1] == 0)
    daemon.stop()

    assert withheld(daemon) == [STEP * n for n in (*range(1, 17), *range(15, -1, -1))]
    assert (balloon_bytes(guest), guest.driver.num_pages) == (0, 0)
    assert said(daemon, "target-withheld")[0] == "dry run: a target of 16 MiB is not sent"
    assert [record["level"] for record in facts(daemon, "dry-run-begins")] == ["warning"]
    assert facts(daemon, "giving-back", "not-given-back") == []
    assert errors(daemon) == []


def squeezable(actual: int = GIB) -> ScriptedVm:
    """A VM of 1 GiB whose guest sends statistics, by which it lacks nothing."""
    vm = ScriptedVm(reports=True)
    vm.boot()
    vm.actual = actual
    vm.send_stats(free_memory=300 * MIB, available_memory=700 * MIB)
    return vm


def driven(
    start_daemon: StartDaemon, monitors: list[ScriptedMonitor], *options: str, name: str
) -> Daemon:
    tables = [f'[vm.{each.path.stem}]\nqmp = "{each.path}"\n' for each in monitors]
    file = monitors[0].path.parent / "balloond.toml"
    file.write_text("".join(tables))
    socket = str(file.parent / "d.sock")
    return start_daemon(
        "--config", str(file), "--socket", socket, *options, vm_mem_mib=None, name=name
    )


def test_driven_vms_are_decided_about_and_told_nothing(
    start_daemon: StartDaemon, low_mem: LowMemDir, tmp_path: Path
) -> None:
    # The balloon of db is somebody else's: it stays, and what is decided is beyond it.
    vms = {"web": squeezable(), "db": squeezable(GIB * 3 // 4)}
    monitors = [ScriptedMonitor(tmp_path / f"{name}.qmp", vm) for name, vm in vms.items()]
    with monitors_in_a_thread(monitors):
        daemon = driven(start_daemon, monitors, "--dry-run", name="dry")
        low_mem.set_low()
        daemon.wait(
            lambda: 512 * MIB in withheld(daemon, "web") and len(withheld(daemon, "db")) >= 16,
            what="all that may be taken is decided on",
        )
        daemon.stop()

    assert [vm.targets for vm in vms.values()] == [[], []]
    assert [vm.actual for vm in vms.values()] == [GIB, GIB * 3 // 4]
    assert [vm.interval_s for vm in vms.values()] == [0, 0]
    assert facts(daemon, "squeeze-stalled", "balloon-contested", "guest-in-need") == []
    assert errors(daemon) == []


def test_guest_in_need_is_named_although_nothing_was_taken(
    start_daemon: StartDaemon, low_mem: LowMemDir, tmp_path: Path
) -> None:
    monitor = ScriptedMonitor(tmp_path / "web.qmp", squeezable())
    with monitors_in_a_thread([monitor]) as run:
        daemon = driven(start_daemon, [monitor], "--dry-run", name="dry")
        low_mem.set_low()
        daemon.wait(lambda: withheld(daemon, "web"), what="it would be squeezed")
        run(lambda: monitor.vm.stats.update({"available-memory": MIB}))
        daemon.wait(lambda: facts(daemon, "guest-in-need"), what="its need is seen")
        daemon.wait(lambda: withheld(daemon, "web")[-1] == 0, what="it would get all back")
    assert monitor.vm.targets == []


def test_balloon_that_a_killed_balloond_left_stays_as_it_is(
    start_daemon: StartDaemon, low_mem: LowMemDir, tmp_path: Path
) -> None:
    vm = squeezable()
    monitor = ScriptedMonitor(tmp_path / "web.qmp", vm)
    with monitors_in_a_thread([monitor]):
        first = driven(start_daemon, [monitor], name="first")
        low_mem.set_low()
        first.wait(lambda: vm.actual == GIB // 2, what="the VM is squeezed")
        first.kill()
        told = len(vm.targets)

        low_mem.set_plenty()
        dry = driven(start_daemon, [monitor], "--dry-run", name="dry")
        dry.wait(lambda: facts(dry, "base-found"), what="it is found")
        dry.stop()
        assert (vm.actual, len(vm.targets)) == (GIB // 2, told)

        # The file of bases is still there for the next one that is no dry run.
        last = driven(start_daemon, [monitor], name="last")
        last.wait(lambda: vm.actual == GIB, what="the VM has all of its memory back")


def test_vm_that_another_balloond_has_left_in_the_store_keeps_its_balloon(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = attached(first, make_guest())
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    low_mem.set_plenty()
    first.kill()

    dry = start_daemon("--dry-run", "--keep-fds")
    run_until([guest], lambda: withheld(dry) != [] and withheld(dry)[-1] < MAXIMUM)
    assert balloon_bytes(guest) == MAXIMUM
    assert guest.driver.num_pages * 4096 == MAXIMUM
    dry._process.send_signal(signal.SIGUSR1)
    dry.wait_end()

    last = start_daemon("--keep-fds")
    run_until([guest], lambda: balloon_bytes(guest) == 0)
    assert errors(last) == []
