"""A whole balloond that drives VMs of Firecracker, Cloud Hypervisor and crosvm by their APIs, on
servers made from published descriptions."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.config.vms import Kind
from balloon_daemon.units import GIB, MIB
from tests.fakes.vmm_process import SILENT, SILENT_GIB
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import StartDaemon
from tests.harness.waiting import wait_until

KINDS = (Kind.FIRECRACKER, Kind.CLOUD_HYPERVISOR, Kind.CROSVM)
BASE = 64 * MIB
"""A balloon that was there before balloond."""

MOST = BASE + (GIB - BASE) // 2
"""The greatest balloon of a VM of 1 GiB with that base."""


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
            command.append(str(BASE // MIB))
            with self._said[kind].open("wb") as said:
                self._processes.append(subprocess.Popen(command, stdout=said, cwd=ROOT))
        self.config.write_text("\n".join(tables))
        wait_until(lambda: None not in self.balloons().values(), what="the VMMs listen")

    def sizes(self) -> dict[Kind, list[int]]:
        """All sizes that the balloons have had, in bytes; none where a VMM does not listen yet."""
        return {kind: [*map(int, path.read_text().split())] for kind, path in self._said.items()}

    def balloons(self) -> dict[Kind, int | None]:
        """The balloons' sizes now, in bytes; None where a VMM does not listen yet."""
        return {kind: sizes[-1] if sizes else None for kind, sizes in self.sizes().items()}

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

    def start(name: str) -> Daemon:
        return start_daemon("--config", str(vmms.config), *own, name=name, vm_mem_mib=None)

    first = start("first")
    low_mem.set_low()
    wait_all(first, vmms, MOST)
    first.check_log()
    first.kill()
    left = vmms.sizes()

    second = start("second")
    second.wait(lambda: adopted(second) == len(KINDS), what="all are taken over as they are")
    os.kill(second.pid, signal.SIGUSR1)  # As "systemctl restart" does.
    second.wait_end()
    assert vmms.sizes() == left

    low_mem.set_plenty()
    third = start("third")

    def some_shrink() -> bool:
        return all((size or 0) < MOST for size in vmms.balloons().values())

    third.wait(some_shrink, what="all balloons shrink")
    third.stop()
    wait_until(lambda: set(vmms.balloons().values()) == {BASE}, what="what was taken is back")
    for kind, sizes in vmms.sizes().items():
        given_back = sizes[len(left[kind]) - 1 :]
        assert given_back == sorted(given_back, reverse=True)


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """The socket of a VM of 8 GiB whose VMM has no statistics."""
    socket = tmp_path / "silent.sock"
    command = [sys.executable, "-m", "tests.fakes.vmm_process", SILENT, str(socket), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield socket
        process.kill()


@pytest.mark.parametrize(("profile", "left_bytes"), [("careful", 2 * GIB), ("seed", GIB)])
def test_vm_without_statistics_is_squeezed_at_the_policys_pace_to_its_floor(
    silent: Path,
    low_mem: LowMemDir,
    start_daemon: StartDaemon,
    tmp_path: Path,
    profile: str,
    left_bytes: int,
) -> None:
    config = tmp_path / "balloond.toml"
    config.write_text(f'[vm.ch]\ncloud_hypervisor = "{silent}"\nprofile = "{profile}"\n')
    own = ("--socket", str(tmp_path / "balloond.sock"), "--speed", "20")
    daemon = start_daemon("--config", str(config), *own, vm_mem_mib=None)

    def targets() -> list[int]:
        return [r["target_bytes"] for r in daemon.records() if r["event"] == "decided"]

    low_mem.set_low()
    most_bytes = SILENT_GIB * GIB - left_bytes
    daemon.wait(lambda: most_bytes in targets(), what="all is taken that may be")
    steps = sorted({target // (most_bytes // 16) for target in targets()})
    assert steps == list(range(steps[0], 17))
    assert max(targets()) == most_bytes
    daemon.stop()


def adopted(daemon: Daemon) -> int:
    """How many VMs a balloond has taken over with the balloons that they had."""
    reasons = [record["reason"] for record in daemon.records() if record["event"] == "decided"]
    return reasons.count("adopted")
