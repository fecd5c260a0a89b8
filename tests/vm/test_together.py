"""One balloond on one host drives VMs of every kind that can run here, all of them real.

A guest on balloond's own device, one with QEMU's balloon, a domain of libvirt's and a Firecracker
microVM, named by one configuration file. The host is a budget: each VM counts with all of its
memory that is not in its balloon, and what the host itself wants is up to the test. The run is
recorded, and drawn (``together_chart.py``).
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.low_mem_dir import LowMemDir
from tests.vm.firecracker import Firecracker
from tests.vm.firecracker_images import needs_kvm, ready_firecracker
from tests.vm.guest import Guest
from tests.vm.images import Images
from tests.vm.libvirt_host import MEMORY_MIB, LibvirtHost
from tests.vm.libvirt_root import ready_root
from tests.vm.qemu import MIB, QemuConfig
from tests.vm.running import BUILD, SESSION_LOGS
from tests.vm.together_chart import Sample, draw, read, write

pytestmark = pytest.mark.vm

VM_MIB = MEMORY_MIB
MARGIN_MIB = 400
FREE_MIB = 200
"""What the host has beyond its margin while it wants nothing for itself."""

WANTS_MIB = 48
"""By how much more or less the host wants for itself from one look to the next."""

SPEED = 30
"""Times crosvm's: 33 ms from level to level, which the guests can follow under TCG."""

DEADLINE_S = 180.0
RECORDING = BUILD / "together.csv"
CHART = BUILD / "together.png"


class Host:
    """A host of one balloond whose memory is a budget.

    Args:
        daemon: the balloond.
        low_mem: what it reads.
        sees: asks a VM's guest or VMM how large its balloon is, in MiB; by the VMs' names, the
            lowest priority first.
    """

    def __init__(
        self, daemon: Daemon, low_mem: LowMemDir, sees: Mapping[str, Callable[[], int]]
    ) -> None:
        self.daemon = daemon
        self.names = list(sees)
        self._sees = sees
        self.wants_mib = 0
        self.samples: list[Sample] = []
        self._low_mem = low_mem
        self._start_s = time.monotonic()
        self._targets_mib = dict.fromkeys(sees, 0)
        self._read = 0

    def all_driven(self) -> bool:
        """Whether balloond drives all of them."""
        attached = {r["vm"] for r in self.daemon.records() if r["event"] == "vm-attached"}
        return attached == set(self.names)

    def first_and_last_step(self, name: str) -> tuple[int, int]:
        """At which of balloond's records it first asked a VM for memory, and for the most."""
        targets = [
            record["target_bytes"] // MIB
            if record["event"] == "decided" and record["vm"] == name
            else 0
            for record in self.daemon.records()
        ]
        first = next(number for number, target in enumerate(targets) if target)
        return first, targets.index(MOST_MIB[name])

    def account(self) -> Sample:
        """Tells balloond what is left now."""
        records = self.daemon.records()
        for record in records[self._read :]:
            if record["event"] == "decided":
                self._targets_mib[record["vm"]] = record["target_bytes"] // MIB
            elif record["event"] == "giving-back":
                self._targets_mib[record["vm"]] = 0
        self._read = len(records)
        balloons = {name: see() for name, see in self._sees.items()}
        left_mib = MARGIN_MIB + FREE_MIB + sum(balloons.values()) - self.wants_mib
        seconds = time.monotonic() - self._start_s
        targets = self._targets_mib.copy()
        sample = Sample(seconds, max(0, left_mib), MARGIN_MIB, targets, balloons)
        self._low_mem.set_available(sample.available_mib)
        self.samples.append(sample)
        return sample

    def wait(self, condition: Callable[[Sample], bool], what: str) -> None:
        """Waits for a condition while it keeps the account, some times a second."""
        self.daemon.wait(lambda: condition(self.account()), what=what, deadline_s=DEADLINE_S)


FILE = """\
[vm.device]
vhost_user = "{device}"
floor = "320M"
[vm.qmp]
qmp = "{qmp}"
priority = 10
[vm.fire]
firecracker = "{fire}"
ceiling = "200M"
priority = 20
[vm.libvirt]
libvirt = "{libvirt}"
floor = "384M"
priority = 30
"""
MOST_MIB = {"device": 192, "qmp": 256, "fire": 200, "libvirt": 128}
"""What these settings and the balloon policy let balloond take, the lowest priority first."""


@contextlib.contextmanager
def ended(vm: Guest | LibvirtHost | Firecracker) -> Iterator[None]:
    try:
        yield
    finally:
        vm.stop()


@pytest.fixture
def host(images: Images, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host whose VMs are all driven; with a Firecracker microVM where its parameter is true."""
    low_mem = LowMemDir(tmp_path / "low-mem", margin_mib=MARGIN_MIB)
    file, socket = tmp_path / "balloond.toml", tmp_path / "device.sock"
    sees: dict[str, Callable[[], int]] = {}
    with contextlib.ExitStack() as stack:
        libvirt = LibvirtHost(ready_root(), images, SESSION_LOGS / "together-libvirt")
        stack.enter_context(ended(libvirt))
        libvirt.create("libvirt")  # It boots by itself.
        api = tmp_path / "nobody.sock"
        if request.param:
            fire = Firecracker(ready_firecracker(), VM_MIB)
            stack.enter_context(ended(fire))
            fire.start()
            api = fire.socket
            sees["fire"] = fire.actual_mib
        machine = QemuConfig("bookworm", VM_MIB, qemu_balloon=True)
        qmp = Guest(images, machine, SESSION_LOGS / "together-qmp")
        stack.enter_context(ended(qmp))
        monitor = qmp.qemu.monitor_path
        file.write_text(FILE.format(device=socket, qmp=monitor, fire=api, libvirt=libvirt.uri))
        options = ("--config", str(file))
        config = DaemonConfig(tmp_path / "own.sock", None, low_mem, SPEED, options)
        daemon = Daemon(config, SESSION_LOGS / "together")
        stack.callback(daemon.kill)
        machine = QemuConfig("forky", VM_MIB, balloond_socket=socket)
        device = Guest(images, machine, SESSION_LOGS / "together-device")
        stack.enter_context(ended(device))
        sees["device"] = lambda: device.balloon_bytes() // MIB
        sees["qmp"] = lambda: qmp.balloon_bytes() // MIB
        sees["libvirt"] = lambda: libvirt.balloon_mib("libvirt")
        host = Host(daemon, low_mem, {name: sees[name] for name in MOST_MIB if name in sees})
        daemon.wait(host.all_driven, what="all are driven", deadline_s=DEADLINE_S)
        yield host


FOUR = pytest.param(True, id="four", marks=needs_kvm)
LACKS_KVM = bool(needs_kvm.args[0])
# Where all four kinds can run, three of them show nothing more.
HOSTS = [FOUR, *[pytest.param(False, id="three")] * LACKS_KVM]


@pytest.mark.parametrize("host", HOSTS, indirect=True)
def test_vms_of_all_kinds_are_squeezed_by_priority_and_released_together(host: Host) -> None:
    def squeezed(sample: Sample) -> bool:
        if sample.available_mib >= MARGIN_MIB:
            host.wants_mib += WANTS_MIB
        return all(mib == MOST_MIB[name] for name, mib in sample.balloons_mib.items())

    def released(sample: Sample) -> bool:
        host.wants_mib = max(0, host.wants_mib - WANTS_MIB)
        return not any(sample.balloons_mib.values())

    try:
        host.wait(squeezed, "all balloons are as large as their limits allow")
        orders = [host.first_and_last_step(name) for name in host.names]
        host.wait(released, "all have their memory back")
        host.wants_mib = 10 * VM_MIB
        host.wait(lambda sample: all(sample.balloons_mib.values()), "all are squeezed again")
        host.daemon.stop()
        at_the_end = host.account()
    finally:
        # Also of a run that failed: there it is wanted most.
        write(host.samples, RECORDING)
        draw(read(RECORDING), CHART)

    for (_, last), (first, _) in itertools.pairwise(orders):
        assert last < first
    for name in host.names:
        assert max(sample.balloons_mib[name] for sample in host.samples) == MOST_MIB[name]
        assert max(sample.targets_mib[name] for sample in host.samples) == MOST_MIB[name]
    assert not any(at_the_end.balloons_mib.values())
