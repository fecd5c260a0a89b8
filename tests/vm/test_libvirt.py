"""Real domains of a real libvirt: squeezed and released, whatever hangs or is killed.

Two domains are booted once; each test has a balloond of its own, which finds them.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.guests.driven.control import Notice, Sample
from balloon_daemon.guests.libvirt import process
from balloon_daemon.guests.libvirt.connection import Connection
from balloon_daemon.guests.libvirt.control import DomainControl
from balloon_daemon.guests.seam import GuestState
from balloon_daemon.linux.apart import LowNumbers
from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import wait_until
from tests.vm.images import Images
from tests.vm.libvirt_clients import MAJOR_VERSIONS, ready_interpreter
from tests.vm.libvirt_host import MEMORY_MIB, MIB, LibvirtHost
from tests.vm.libvirt_root import ready_root
from tests.vm.running import SESSION_LOGS

pytestmark = pytest.mark.vm

SPEED = 300
MAX_MIB = MEMORY_MIB // 2
"""The balloon's maximum by the balloon policy's rule."""

BASE_MIB = 8
"""A balloon that a domain has before balloond; the rest is over 500 MiB, or nothing is taken."""

SLACK_MIB = 16
"""What the host may hold beyond a guest's memory less its balloon, such as ROMs' pages."""

BALLOON_S = 60
"""Deadline for the balloon to reach a target, most of which takes a guest a second or two."""

DOMAINS = ("web", "db")

ATTACH = Path(__file__).parents[2] / "docs/attach.md"


@pytest.fixture(scope="module")
def libvirt(images: Images) -> Iterator[LibvirtHost]:
    host = LibvirtHost(ready_root(), images, SESSION_LOGS / "libvirt")
    try:
        for name in DOMAINS:
            host.create(name)
        yield host
    finally:
        host.stop()


class Balloond:
    """A balloond that drives the domains of a libvirt."""

    def __init__(self, libvirt: LibvirtHost, log_dir: Path) -> None:
        self._libvirt = libvirt
        self._log_dir = log_dir
        self._run_dir = tempfile.TemporaryDirectory(prefix="balloond-vm-")
        path = Path(self._run_dir.name)
        self.low_mem = LowMemDir(path / "low_mem", margin_mib=400)
        options = ("--discover", f"libvirt={libvirt.uri}")
        self._config = DaemonConfig(path / "socket", None, self.low_mem, SPEED, options)
        self._started = 0
        self.daemon = self._start()

    def _start(self) -> Daemon:
        self._started += 1
        return Daemon(self._config, self._log_dir / str(self._started))

    def restart(self) -> None:
        """Ends it without asking, and starts another."""
        self.daemon.kill()
        self.daemon = self._start()

    def wait_event(self, event: str, *names: str, times: int = 1) -> None:
        """Waits until there was such an event about each of these domains."""

        def seen(name: str) -> int:
            records = self.daemon.records()
            return sum(each["event"] == event and each["vm"] == name for each in records)

        self.daemon.wait(
            lambda: all(seen(name) >= times for name in names),
            what=f"{event} of {names}",
            deadline_s=BALLOON_S,
        )

    def wait_driven(self, *names: str, times: int = 1) -> None:
        """Waits until a driver listens in each of these domains, and balloond knows it."""
        self.wait_event("vm-attached", *names, times=times)

    def squeeze(self) -> None:
        """Waits until all domains are driven, and takes as much as may be from all of them."""
        self.wait_driven(*DOMAINS)
        self.low_mem.set_low()
        self.wait_balloons(MAX_MIB, *DOMAINS)

    def release(self) -> None:
        """Gives all back."""
        self.low_mem.set_plenty()
        self.wait_balloons(0, *DOMAINS)

    def wait_balloons(self, size_mib: int, *names: str) -> None:
        """Waits until the balloons of these domains have this size."""
        self.daemon.wait(
            lambda: all(self._libvirt.balloon_mib(name) == size_mib for name in names),
            what=f"the balloons of {names} have {size_mib} MiB",
            deadline_s=BALLOON_S,
        )

    def make_way(self) -> None:
        """Has it leave the domains to another, as "systemctl restart" does, and starts that."""
        os.kill(self.daemon.pid, signal.SIGUSR1)
        self.daemon.wait_end()
        self.restart()

    def client(self) -> int:
        """The process id of libvirt's client."""
        children = Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children")
        (client,) = (
            int(pid)
            for pid in children.read_text().split()
            if process.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        return client

    def stop(self) -> None:
        """Ends it as systemd does, and waits until it has given back what it took."""
        try:
            with contextlib.suppress(ProcessLookupError):  # The test may have ended it.
                os.kill(self.daemon.pid, signal.SIGTERM)
            wait_until(
                lambda: not any(self._libvirt.balloon_mib(name) for name in DOMAINS),
                what="all domains have their memory",
                deadline_s=BALLOON_S,
            )
        finally:
            self.daemon.kill()
            self._run_dir.cleanup()


@pytest.fixture
def balloond(libvirt: LibvirtHost, request: pytest.FixtureRequest) -> Iterator[Balloond]:
    started = Balloond(libvirt, SESSION_LOGS / request.node.name)
    try:
        yield started
    finally:
        started.stop()


def test_domains_are_squeezed_and_released(libvirt: LibvirtHost, balloond: Balloond) -> None:
    before_bytes = libvirt.host_bytes("web")
    balloond.squeeze()
    assert libvirt.host_bytes("web") <= max(before_bytes, (MEMORY_MIB - MAX_MIB) * MIB)
    balloond.release()
    balloond.daemon.check_log()


@fault("a domain's QEMU does not answer")
def test_domain_that_hangs_delays_no_other(libvirt: LibvirtHost, balloond: Balloond) -> None:
    balloond.wait_driven(*DOMAINS)
    os.kill(libvirt.pid("db"), signal.SIGSTOP)
    try:
        balloond.low_mem.set_low()
        balloond.wait_balloons(MAX_MIB, "web")
        balloond.low_mem.set_plenty()
        balloond.wait_balloons(0, "web")
        balloond.wait_event("vm-lost", "db")
    finally:
        os.kill(libvirt.pid("db"), signal.SIGCONT)
    balloond.wait_driven("db", times=2)


@fault("libvirt's client is killed, talks")
@fault("libvirt's daemon is not there")
def test_balloons_stay_as_they_are_whoever_is_killed(
    libvirt: LibvirtHost, balloond: Balloond
) -> None:
    balloond.squeeze()
    os.kill(balloond.client(), signal.SIGKILL)
    balloond.wait_driven(*DOMAINS, times=2)
    assert {libvirt.balloon_mib(name) for name in DOMAINS} == {MAX_MIB}
    libvirt.kill_daemon()
    libvirt.start_daemon()
    balloond.wait_driven(*DOMAINS, times=3)
    assert {libvirt.balloon_mib(name) for name in DOMAINS} == {MAX_MIB}
    balloond.restart()
    balloond.wait_driven(*DOMAINS)
    assert {libvirt.balloon_mib(name) for name in DOMAINS} == {MAX_MIB}
    balloond.release()


@fault("driven VMs' balloond is killed")
def test_stop_gives_back_what_was_taken_and_only_that_whatever_was_before(
    libvirt: LibvirtHost, balloond: Balloond
) -> None:
    libvirt.create("third", balloon_mib=BASE_MIB)
    try:
        balloond.wait_driven("third", *DOMAINS)
        balloond.low_mem.set_low()
        most_mib = BASE_MIB + (MEMORY_MIB - BASE_MIB) // 2
        balloond.wait_balloons(most_mib, "third")
        # All of them: who is not driven yet when balloond is stopped keeps its balloon.
        balloond.restart()
        balloond.wait_driven("third", *DOMAINS)
        assert libvirt.balloon_mib("third") == most_mib
        balloond.make_way()
        balloond.wait_driven("third", *DOMAINS)
        assert libvirt.balloon_mib("third") == most_mib
        balloond.daemon.stop()
        assert libvirt.balloon_mib("third") == BASE_MIB
    finally:
        libvirt.virsh("destroy", "third")


@fault("libvirt tells of one reset")
def test_guest_that_is_reset_is_driven_on(libvirt: LibvirtHost, balloond: Balloond) -> None:
    balloond.squeeze()
    libvirt.virsh("reset", "web")
    balloond.wait_event("no-driver-yet", "web")
    # QEMU keeps the target, and the next kernel's driver obeys it; balloond takes that for what
    # it took.
    balloond.daemon.wait(
        lambda: libvirt.has_driver("web"), what="the next driver listens", deadline_s=BALLOON_S
    )
    balloond.release()
    balloond.daemon.check_log()


@fault("a snapshot or a migration to a file fills")
def test_memory_that_a_dump_has_filled_is_freed_again(
    libvirt: LibvirtHost, balloond: Balloond
) -> None:
    balloond.squeeze()
    libvirt.virsh("dump", "web", "/tmp/web.core", "--memory-only")
    libvirt.path("tmp", "web.core").unlink()
    filled_bytes = libvirt.host_bytes("web")
    balloond.wait_event("refilled", "web")
    left_bytes = (MEMORY_MIB - MAX_MIB + SLACK_MIB) * MIB
    balloond.daemon.wait(
        lambda: libvirt.balloon_mib("web") == MAX_MIB and libvirt.host_bytes("web") < left_bytes,
        what="the balloon is there again, and its memory is free",
        deadline_s=BALLOON_S,
    )
    assert filled_bytes == MEMORY_MIB * MIB
    balloond.release()


@fault("a domain is saved and restored")
def test_restored_domain_gets_back_what_was_taken_before_it_was_saved(
    libvirt: LibvirtHost, balloond: Balloond
) -> None:
    balloond.squeeze()
    libvirt.virsh("save", "web", "/tmp/web.save")
    balloond.wait_event("vm-lost", "web")
    libvirt.virsh("restore", "/tmp/web.save")
    balloond.wait_driven("web", times=2)
    assert libvirt.balloon_mib("web") == MAX_MIB
    balloond.release()


def test_domains_come_and_go(libvirt: LibvirtHost, balloond: Balloond) -> None:
    balloond.wait_driven(*DOMAINS)
    libvirt.create("third")
    balloond.wait_event("vm-driven", "third")
    libvirt.virsh("destroy", "third")
    balloond.wait_event("vm-lost", "third")
    balloond.daemon.check_log()


@pytest.mark.parametrize("suite", MAJOR_VERSIONS)
def test_domain_is_driven_through_the_library_of_each_debian(
    libvirt: LibvirtHost, suite: str
) -> None:
    interpreter = ready_interpreter(suite)
    asked = [*interpreter, "-I", "-c", "import libvirt; print(libvirt.getVersion())"]
    version = int(subprocess.run(asked, capture_output=True, check=True).stdout)
    notices: list[Notice] = []

    async def scene() -> None:
        command = [*interpreter, "-I", process.__file__]
        connection = Connection(libvirt.uri, LowNumbers(), lambda happened: None, lambda: command)
        control = DomainControl(connection, "web")

        async def until(condition: Callable[[Sample], object]) -> None:
            async with asyncio.timeout(BALLOON_S):
                while not condition(await control.sample()):
                    await asyncio.sleep(0.1)

        try:
            libvirt.virsh("dommemstat", "web", "--period", "7", "--live")
            found = await control.open(notices.append)
            assert (found.vm_mem_bytes, found.pid) == (MEMORY_MIB * MIB, libvirt.pid("web"))
            assert {domain.name for domain in await connection.domains()} == set(DOMAINS)
            await control.watch(1.0)
            await until(lambda sample: sample.stats and sample.stats.available_bytes)
            assert "<stats period='1'/>" in libvirt.virsh("dumpxml", "web")
            libvirt.virsh("dommemstat", "web", "--period", "0", "--live")
            await until(lambda sample: "<stats period='1'/>" in libvirt.virsh("dumpxml", "web"))
            notices.clear()
            await control.set_balloon(64 * MIB)
            await until(lambda sample: sample.balloon_bytes == 64 * MIB and notices)
            assert libvirt.balloon_mib("web") == 64
            libvirt.virsh("suspend", "web")
            await until(lambda sample: sample.state is GuestState.PAUSED)
            libvirt.virsh("resume", "web")
            await until(lambda sample: Notice.REFILLED in notices)
            await control.set_balloon(0)
            await until(lambda sample: sample.balloon_bytes == 0)
            await control.watch(None)
            assert "<stats period='7'/>" in libvirt.virsh("dumpxml", "web")
        finally:
            control.close()
            await connection.close()

    asyncio.run(scene())
    assert version // 1_000_000 == MAJOR_VERSIONS[suite]


def test_our_own_device_attaches_by_the_recipe_of_the_documentation(
    libvirt: LibvirtHost, tmp_path: Path
) -> None:
    (recipe,) = re.findall(r"^```xml\n(<domain .*?)^```$", ATTACH.read_text(), re.DOTALL | re.M)
    (socket,) = re.findall(r"path=(/run/[\w./]+\.sock)", recipe)
    low_mem = LowMemDir(tmp_path / "low_mem", margin_mib=400)
    path = libvirt.path(socket.removeprefix("/"))
    path.parent.mkdir()
    config = DaemonConfig(path, MEMORY_MIB, low_mem, SPEED)
    daemon = Daemon(config, SESSION_LOGS / "own-device")
    try:
        libvirt.create("build", recipe)
        daemon.wait(
            lambda: any(record["event"] == "vm-attached" for record in daemon.records()),
            what="the guest's driver runs",
            deadline_s=BALLOON_S,
        )
        libvirt.virsh("destroy", "build")
        daemon.check_log()
    finally:
        daemon.kill()
