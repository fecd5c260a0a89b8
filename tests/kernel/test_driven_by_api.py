"""A whole balloond that drives VMs of Firecracker, Cloud Hypervisor and crosvm by their APIs, on
servers made from published descriptions."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.config.vms import Kind
from balloon_daemon.units import MIB
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import StartDaemon
from tests.harness.waiting import wait_until

KINDS = (Kind.FIRECRACKER, Kind.CLOUD_HYPERVISOR, Kind.CROSVM)
MOST = 512 * MIB
"""The greatest balloon of a VM of 1 GiB."""


class Vmms:
    """One VMM of each kind, each in its own process."""

    def __init__(self, path: Path) -> None:
        self.config = path / "balloond.toml"
        self._said = {kind: path / f"{kind.value}.said" for kind in KINDS}
        self._processes: list[subprocess.Popen[bytes]] = []
        tables = []
        for kind in KINDS:
            socket = path / f"{kind.value}.sock"
            tables.append(f'[vm.{kind.value}]\n{kind.value} = "{socket}"\n')
            command = [sys.executable, "-m", "tests.fakes.vmm_process", kind.value, str(socket)]
            with self._said[kind].open("wb") as said:
                self._processes.append(subprocess.Popen(command, stdout=said, cwd=ROOT))
        self.config.write_text("\n".join(tables))
        wait_until(lambda: None not in self.balloons().values(), what="the VMMs listen")

    def balloons(self) -> dict[Kind, int | None]:
        """The balloons' sizes, in bytes; None where a VMM does not listen yet."""
        lines = {kind: path.read_text().split() for kind, path in self._said.items()}
        return {kind: int(sizes[-1]) if sizes else None for kind, sizes in lines.items()}

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def vmms(tmp_path: Path) -> Iterator[Vmms]:
    vmms = Vmms(tmp_path)
    yield vmms
    vmms.stop()


def wait_all(daemon: Daemon, vmms: Vmms, size_bytes: int) -> None:
    def all_are() -> bool:
        return set(vmms.balloons().values()) == {size_bytes}

    daemon.wait(all_are, what=f"all balloons are {size_bytes >> 20} MiB")


@fault("driven VMs' balloond is killed")
def test_vms_of_each_kind_are_squeezed_together_left_as_they_are_and_given_back(
    vmms: Vmms, low_mem: LowMemDir, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    # The balloons that were there before balloond are stored beside its socket.
    own = ("--socket", str(tmp_path / "balloond.sock"), "--speed", "100")
    options = ("--config", str(vmms.config), *own)
    first = start_daemon(*options, name="first", vm_mem_mib=None)
    low_mem.set_low()
    wait_all(first, vmms, MOST)
    first.check_log()
    first.kill()
    low_mem.set_plenty()
    assert set(vmms.balloons().values()) == {MOST}

    second = start_daemon(*options, name="second", vm_mem_mib=None)

    def some_shrink() -> bool:
        return all((size or 0) < MOST for size in vmms.balloons().values())

    second.wait(some_shrink, what="all balloons shrink")
    second.stop()
    wait_until(lambda: set(vmms.balloons().values()) == {0}, what="all is given back")
