"""One VM that the configuration names by two paths of one socket, for each kind of VMM: a whole
balloond, on servers that a test plays."""

import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.config.vms import Kind
from balloon_daemon.units import MIB
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.fakes.crosvm import FakeCrosvm
from tests.fakes.firecracker import FakeFirecracker
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import StartDaemon
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import facts

Serve = Callable[[Path], AbstractAsyncContextManager[object]]


def monitor(path: Path) -> ScriptedMonitor:
    vm = ScriptedVm()
    vm.boot()
    return ScriptedMonitor(path, vm)


def firecracker(path: Path) -> FakeFirecracker:
    return FakeFirecracker(path, stats={"free_memory": 500 * MIB})


KINDS: dict[Kind, Serve] = {
    Kind.QMP: monitor,
    Kind.FIRECRACKER: firecracker,
    Kind.CLOUD_HYPERVISOR: FakeCloudHypervisor,
    Kind.CROSVM: FakeCrosvm,
}
each_kind = pytest.mark.parametrize(
    ("kind", "serve"), KINDS.items(), ids=[kind.value for kind in KINDS]
)


def named_twice(kind: Kind, tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """A configuration file, and the VM's socket by the two names that it has there; one path leads
    through a link, as /var/run/web.sock does to /run/web.sock."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to("run")
    paths = {"web": tmp_path / "run" / "vm.sock", "too": tmp_path / "var-run" / "vm.sock"}
    file = tmp_path / "balloond.toml"
    file.write_text(
        "".join(f'[vm.{name}]\n{kind.value} = "{path}"\n' for name, path in paths.items())
    )
    return file, paths


@fault("one VM is named twice")
@each_kind
def test_vm_that_two_paths_of_one_socket_reach_is_driven_once_and_both_are_named(
    kind: Kind, serve: Serve, tmp_path: Path, start_daemon: StartDaemon, low_mem: LowMemDir
) -> None:
    file, paths = named_twice(kind, tmp_path)
    with monitors_in_a_thread([serve(paths["web"])]):
        daemon = start_daemon("--config", str(file), vm_mem_mib=None)

        def refusals() -> list[dict[str, Any]]:
            return facts(daemon, "vm-not-driven")

        (refused, *others) = daemon.wait(refusals, what="one of the two is refused")
        low_mem.set_low()
        daemon.wait(lambda: facts(daemon, "decided"), what="the VM is squeezed")

        (driven,) = facts(daemon, "vm-driven")
        assert (refused["fault"], others) == ("own-device", [])
        assert {refused["name"], driven["vm"]} == {"web", "too"}
        assert refused["detail"] == f"{driven['vm']}: {paths[driven['vm']]}"


@fault("one VM is named twice")
@each_kind
def test_check_lists_a_vm_that_two_paths_of_one_socket_reach_once(
    kind: Kind, serve: Serve, tmp_path: Path
) -> None:
    file, paths = named_twice(kind, tmp_path)
    with monitors_in_a_thread([serve(paths["web"])]):
        run = subprocess.run(
            [str(BALLOOND), "--check", "--config", str(file)],
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )

    lines = run.stdout.splitlines()
    vms = [line for line in lines if line.startswith("vm ")]
    refused = [line for line in lines if line.startswith("not driven ")]
    assert (run.returncode, run.stderr, len(vms), len(refused)) == (0, "", 1, 1)
    assert "the VM's balloon is driven in another way already" in refused[0]
