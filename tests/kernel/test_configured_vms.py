"""One balloond, by its configuration file: VMs on our own device beside VMs with their VMM's."""

import os
import signal
import subprocess
import threading
from pathlib import Path

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.linux import asked_child
from balloon_daemon.units import MIB
from tests.harness.daemon import BALLOOND
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SETTINGS, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach, balloon_bytes, errors, facts, run_until_event

FILE = """
[vm.web]
qmp = "{folder}/web.qmp"
floor = "768M"
[vm.own]
vhost_user = "{folder}/own.sock"
floor = "384M"
[discover]
qmp = ["{folder}/*.qmp"]
"""


def booted(thread_id: int = 0) -> ScriptedVm:
    """A VM with a driver.

    Args:
        thread_id: a thread of its VMM's; 0: its process stays unknown, as in a container.
            The guest on our own device has this test's process for its VMM, too.
    """
    vm = ScriptedVm(thread_id=thread_id)
    vm.boot()
    return vm


def left_mib(vm: ScriptedVm) -> int:
    """What a VM was last told to have."""
    return vm.targets[-1][0] // MIB if vm.targets else 0


def test_vms_of_every_kind_are_squeezed_to_their_floors_and_get_all_back(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text(FILE.format(folder=tmp_path))
    web, found = booted(), booted()
    monitors = [
        ScriptedMonitor(tmp_path / "web.qmp", web),
        ScriptedMonitor(tmp_path / "found.qmp", found),
    ]
    with monitors_in_a_thread(monitors):
        daemon = start_daemon("--config", str(file))
        own = make_guest(SETTINGS)
        own.connect(str(tmp_path / "own.sock"))
        own.bind()
        run([own], lambda: len(facts(daemon, "vm-attached")) == 3)
        low_mem.set_low()
        run([own], lambda: balloon_bytes(own) == (VM_MEM_MIB - 384) * MIB)
        daemon.wait(lambda: left_mib(web) == 768, what="web is at its floor")
        # Its statistics say nothing, so that a careful VM keeps a quarter of it, and 512 MiB here.
        daemon.wait(lambda: left_mib(found) == 512, what="the one that was found is at its least")

        os.kill(daemon.pid, signal.SIGTERM)
        run([own], lambda: own.driver.actual == 0 and own.disconnected != "")
        daemon.wait_end()

    assert (left_mib(web), left_mib(found)) == (1024, 1024)
    assert {record["vm"] for record in facts(daemon, "vm-attached")} == {"web", "found", "own"}
    assert errors(daemon) == []


def test_balloond_without_a_vm_on_its_own_device_has_no_process_but_one_that_looks_paths_up(
    low_mem: LowMemDir, tmp_path: Path
) -> None:
    web = booted()
    with monitors_in_a_thread([ScriptedMonitor(tmp_path / "web.qmp", web)]):
        options = ("--discover", f"qmp={tmp_path}/*.qmp", "--low-mem-dir", str(low_mem.path))
        with subprocess.Popen([str(BALLOOND), *options], stderr=subprocess.DEVNULL) as daemon:
            wait_until(lambda: "query-balloon" in web.commands, what="the VM is driven")
            task = Path(f"/proc/{daemon.pid}/task/{daemon.pid}")

            def is_named() -> bool:
                # One that has just been forked has its parent's name.
                pids = (task / "children").read_text().split()
                names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
                return names <= {asked_child.NAME}

            wait_until(is_named, what="it has no other process")
            daemon.terminate()
            assert daemon.wait(HANG_S) == 0


def test_vm_on_our_own_device_is_not_driven_by_its_monitor_too(
    start_daemon: StartDaemon, make_guest: MakeGuest, tmp_path: Path
) -> None:
    daemon = start_daemon("--discover", f"qmp={tmp_path}/*.qmp")
    own = attach(make_guest(SETTINGS), daemon)
    run([own], lambda: facts(daemon, "vm-attached") != [])

    monitor = ScriptedMonitor(tmp_path / "web.qmp", booted(threading.get_native_id()))
    with monitors_in_a_thread([monitor]):
        run_until_event([own], daemon, "vm-not-driven")

    assert [record["fault"] for record in facts(daemon, "vm-not-driven")] == ["own-device"]
    assert facts(daemon, "vm-driven") == []
    assert monitor.vm.targets == []
