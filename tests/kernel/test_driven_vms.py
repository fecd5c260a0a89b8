"""A whole balloond that drives VMs by their QEMUs' monitors, which a script plays."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.config.vms import Kind, bases_path
from balloon_daemon.guests.driven.bases import BaseKey, Bases
from balloon_daemon.units import GIB, MIB
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import StartDaemon
from tests.harness.scripted_monitor import (
    Misdeed,
    ScriptedMonitor,
    ScriptedVm,
    monitors_in_a_thread,
)
from tests.harness.vmm_files import host_side

MOST = 512 * MIB
"""The greatest balloon of a VM of 1 GiB."""

BASE = 100 * MIB
"""A balloon that was there before balloond."""


class Host:
    """VMs with monitors, and balloonds that drive them, one after the other."""

    def __init__(self, path: Path, start_daemon: StartDaemon, low_mem: LowMemDir) -> None:
        self.path = path
        self.low_mem = low_mem
        self.config = path / "balloond.toml"
        self._start_daemon = start_daemon
        self._started = 0

    def monitor(self, name: str, **vm: Any) -> ScriptedMonitor:
        """A monitor of a VM whose driver listens."""
        made = ScriptedVm(**vm)
        made.boot()
        return ScriptedMonitor(self.path / f"{name}.qmp", made)

    def name(self, *names: str) -> None:
        """Has VMs named in the configuration file, without guest protection: no statistics come of
        these guests."""
        tables = [
            f'[vm.{name}]\nqmp = "{self.path}/{name}.qmp"\nprofile = "seed"' for name in names
        ]
        self.config.write_text("\n".join(tables))

    def start(self, *options: str) -> Daemon:
        """Starts a balloond at the same socket as the one before."""
        self._started += 1
        own = ("--config", str(self.config), "--socket", str(self.path / "balloond.sock"))
        name = f"balloond-{self._started}"
        return self._start_daemon(*own, *options, name=name, vm_mem_mib=None)


@pytest.fixture
def host(tmp_path: Path, start_daemon: StartDaemon, low_mem: LowMemDir) -> Host:
    return Host(tmp_path, start_daemon, low_mem)


def events(daemon: Daemon, word: str, **fields: object) -> list[dict[str, Any]]:
    """The log's lines with this event word and these fields."""
    return [
        record
        for record in daemon.records()
        if record["event"] == word and fields.items() <= record.items()
    ]


def wait_for(daemon: Daemon, word: str, **fields: object) -> dict[str, Any]:
    """Waits for a line of the log."""
    what = f"{word} with {fields}"
    return daemon.wait(lambda: events(daemon, word, **fields), what=what)[-1]


def wait_for_balloon(daemon: Daemon, monitor: ScriptedMonitor, balloon_bytes: int) -> None:
    """Waits until a VM's balloon has a size."""
    actual = GIB - balloon_bytes
    what = f"{monitor.path.name} has a balloon of {balloon_bytes}"
    daemon.wait(lambda: monitor.vm.actual == actual, what=what)


def test_vms_are_squeezed_and_get_their_memory_back(host: Host) -> None:
    monitors = [host.monitor(name) for name in ("web", "db", "mail")]
    host.name("web", "db", "mail")
    with monitors_in_a_thread(monitors):
        daemon = host.start("--speed", "100")
        host.low_mem.set_low()
        for monitor in monitors:
            wait_for_balloon(daemon, monitor, MOST)
        host.low_mem.set_plenty()
        for monitor in monitors:
            wait_for_balloon(daemon, monitor, 0)
            values = [value for value, _ in monitor.vm.targets]
            turn = values.index(min(values))
            assert values[:turn] == sorted(values[:turn], reverse=True)
            assert values[turn:] == sorted(values[turn:])
        daemon.stop()


def test_stop_gives_back_what_was_taken_and_only_that(host: Host) -> None:
    monitor = host.monitor("web", actual=GIB - BASE)
    host.name("web")
    with monitors_in_a_thread([monitor]):
        daemon = host.start()
        assert wait_for(daemon, "base-found")["base_bytes"] == BASE
        host.low_mem.set_low()
        daemon.wait(lambda: monitor.vm.actual < GIB - 2 * BASE, what="some memory is taken")
        daemon.stop()
        assert monitor.vm.actual == GIB - BASE
        assert not events(daemon, "not-given-back")


@fault("stops at the first page that it cannot have")
def test_driver_that_has_stopped_short_is_told_its_target_again(host: Host) -> None:
    monitor = host.monitor("web", actual=GIB - BASE, follows=False)
    host.name("web")
    with monitors_in_a_thread([monitor]):
        daemon = host.start("--speed", "20")
        host.low_mem.set_low()
        daemon.wait(lambda: is_repeated(monitor), what="it is told again")
        daemon.stop()


def test_driver_whose_guest_has_taken_pages_back_is_not_told_its_target_again(host: Host) -> None:
    monitor = host.monitor("web", actual=GIB)
    host.name("web")
    with monitors_in_a_thread([monitor]) as run:
        daemon = host.start("--speed", "20")
        host.low_mem.set_low()
        wait_for_balloon(daemon, monitor, MOST)
        run(lambda: setattr(monitor.vm, "actual", GIB - BASE))
        decided = len(events(daemon, "decided"))
        # Long after it would have been told, if its driver had stopped: a host that is low is
        # looked at each 50 ms.
        daemon.wait(lambda: len(events(daemon, "decided")) > decided + 240, what="120 s go by")
        assert not is_repeated(monitor)
        daemon.stop()


def is_repeated(monitor: ScriptedMonitor) -> bool:
    """Whether QEMU was told one target twice in a row."""
    return any(one[0] == next[0] for one, next in pairwise(monitor.vm.targets))


def squeezing(host: Host, monitor: ScriptedMonitor) -> Daemon:
    """A balloond that has taken half of what a VM of ``BASE`` can give."""
    daemon = host.start()
    host.low_mem.set_low()
    wait_for_balloon(daemon, monitor, BASE + (GIB - BASE) // 2)
    return daemon


@fault("driven VMs' balloond is killed")
def test_next_balloond_takes_vms_as_they_are(host: Host) -> None:
    monitor = host.monitor("web", actual=GIB - BASE)
    host.name("web")
    with monitors_in_a_thread([monitor]):
        first = squeezing(host, monitor)
        first.kill()
        left_bytes, told = monitor.vm.actual, len(monitor.vm.targets)
        host.low_mem.set_plenty()
        second = host.start()
        wait_for(second, "vm-attached")
        second.wait(lambda: events(second, "decided", reason="adopted"), what="it is adopted")
        second.stop()
        assert left_bytes < GIB - BASE
        assert all(value >= left_bytes for value, _ in monitor.vm.targets[told:])
        assert monitor.vm.actual == GIB - BASE


@fault("a device is assigned to a VM whose memory balloond has taken")
def test_next_balloond_gives_back_to_a_vm_to_which_a_device_was_assigned(host: Host) -> None:
    monitor = host.monitor("web", actual=GIB - BASE)
    host.name("web")
    with monitors_in_a_thread([monitor]):
        first = squeezing(host, monitor)
        first.kill()
        monitor.vm.devices.append("vfio-pci")
        second = host.start()
        wait_for_balloon(second, monitor, BASE)
        assert wait_for(second, "vm-not-driven")["fault"] == "pinned"


@fault("a VM is taken out of the configuration while no balloond runs")
@pytest.mark.parametrize("names", [["db"], []])
def test_next_balloond_gives_back_to_a_vm_that_its_configuration_has_no_more(
    host: Host, names: list[str]
) -> None:
    monitor = host.monitor("web", actual=GIB - BASE)
    host.name("web", *names)
    with monitors_in_a_thread([monitor]):
        first = squeezing(host, monitor)
        os.kill(first.pid, signal.SIGUSR1)
        first.wait_end()
        host.name(*names)
        second = host.start()
        wait_for_balloon(second, monitor, BASE)
        ended = wait_for(second, "vm-let-go")
        told = len(monitor.vm.targets)
        second.stop()
        assert ended["vm"] == "web"
        assert len(monitor.vm.targets) == told


@fault("driven VMs' balloond is killed")
@pytest.mark.parametrize("named", [False, True])
def test_next_balloond_takes_a_vm_as_it_is_that_a_pattern_finds_through_a_link(
    host: Host, named: bool
) -> None:
    (host.path / "run").mkdir()
    (host.path / "link").symlink_to("run")
    monitor = host.monitor("run/web", actual=GIB - BASE)
    seed = '[host]\nprofile = "seed"\n'
    host.config.write_text(f'{seed}[discover]\nqmp = ["{host.path}/link/*.qmp"]')
    with monitors_in_a_thread([monitor]):
        first = squeezing(host, monitor)
        os.kill(first.pid, signal.SIGUSR1)
        first.wait_end()
        if named:
            host.config.write_text(f'{seed}[vm.web]\nqmp = "{host.path}/link/web.qmp"')
        left_bytes, told = monitor.vm.actual, len(monitor.vm.targets)
        second = host.start()
        wait_for(second, "vm-attached")
        second.wait(lambda: events(second, "decided", reason="adopted"), what="it is adopted")
        os.kill(second.pid, signal.SIGUSR1)
        second.wait_end()
        assert not events(second, "vm-let-go")
        assert all(value <= left_bytes for value, _ in monitor.vm.targets[told:])


@fault("a VM is taken out of the configuration while no balloond runs")
def test_vm_that_was_started_anew_meanwhile_is_left_alone(host: Host) -> None:
    first_vm = host.monitor("web", actual=GIB - BASE)
    host.name("web")
    with monitors_in_a_thread([first_vm]):
        first = squeezing(host, first_vm)
        first.kill()
    host.name("db")
    other = host.monitor("web", actual=GIB - BASE)
    with monitors_in_a_thread([other, host.monitor("db")]):
        second = host.start()
        wait_for(second, "vm-attached", vm="db")
        second.wait(lambda: other.clients and not other.connected, what="it was looked at")
        second.stop()
        assert other.vm.targets == []
        assert not events(second, "vm-driven", vm="web")


@fault("two VMs have one name")
def test_next_balloond_gives_back_to_its_base_a_vm_whose_name_another_one_has(host: Host) -> None:
    (host.path / "a").mkdir()
    (host.path / "b").mkdir()
    taken, other = host.monitor("b/db", actual=GIB - BASE), host.monitor("a/db")
    host.config.write_text('[host]\nprofile = "seed"')
    discover = "--discover", f"qmp={host.path}/*/*.qmp"
    with monitors_in_a_thread([taken]):
        first = host.start(*discover)
        wait_for(first, "vm-attached", vm="db")
        host.low_mem.set_low()
        wait_for_balloon(first, taken, BASE + (GIB - BASE) // 2)
        first.kill()
        host.low_mem.set_plenty()
        with monitors_in_a_thread([other]):
            second = host.start(*discover)
            wait_for(second, "vm-attached", vm=str(taken.path))
            assert wait_for(second, "vm-driven", vm="db")["address"] == str(other.path)
            second.stop()
        assert taken.vm.actual == GIB - BASE


def test_sigusr1_leaves_vms_as_they_are(host: Host) -> None:
    monitor = host.monitor("web")
    host.name("web")
    with monitors_in_a_thread([monitor]):
        daemon = host.start()
        host.low_mem.set_low()
        wait_for_balloon(daemon, monitor, MOST)
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_end()
        assert monitor.vm.actual == GIB - MOST


@fault("the VMM of a driven VM hangs")
def test_vmm_that_misbehaves_is_the_only_one_affected(host: Host) -> None:
    misdeeds = [misdeed for misdeed in Misdeed if misdeed is not Misdeed.NO_GREETING]
    bad = [host.monitor(misdeed.name.lower()) for misdeed in misdeeds]
    good = [host.monitor(name) for name in ("web", "db")]
    host.name(*(monitor.path.stem for monitor in [*bad, *good]))
    with monitors_in_a_thread([*bad, *good]):
        daemon = host.start()
        for monitor in [*bad, *good]:
            wait_for(daemon, "vm-attached", vm=monitor.path.stem)
        for monitor, misdeed in zip(bad, misdeeds, strict=True):
            monitor.misdeed = misdeed
        host.low_mem.set_low()
        for monitor in good:
            wait_for_balloon(daemon, monitor, MOST)
        for monitor in bad:
            wait_for(daemon, "vm-lost", vm=monitor.path.stem)
        # Each misbehaves once only: it is found again, and squeezed like the others.
        for monitor in bad:
            wait_for_balloon(daemon, monitor, MOST)
        for monitor in good:
            assert not events(daemon, "vm-lost", vm=monitor.path.stem)
            assert monitor.clients == 1


SIZES: tuple[object, ...] = (1 << 63, -1, 2 * GIB, 1 << 100, "1", None, 1.5, float("nan"), [])
"""Sizes that query-balloon cannot say of a VM of 1 GiB."""

FIGURES: tuple[object, ...] = (-1, 1 << 64, "much", float("nan"), [])

LIES: list[tuple[str, object]] = [
    *(("actual", size) for size in SIZES),
    *(("stats", {"free-memory": figure}) for figure in FIGURES),
]
"""Fields of a ``ScriptedVm``, and what they cannot be: QEMU makes the numbers of its guest's
statistics itself, so one that is none is QEMU's fault."""


@fault("the VMM of a driven VM says a size")
def test_vmm_that_lies_is_the_only_one_affected(host: Host) -> None:
    liars = [host.monitor(f"liar{number}") for number in range(len(LIES))]
    good = host.monitor("web")
    host.name(*(monitor.path.stem for monitor in [*liars, good]))
    with monitors_in_a_thread([*liars, good]):
        daemon = host.start()
        for monitor in [*liars, good]:
            wait_for(daemon, "vm-attached", vm=monitor.path.stem)
        for monitor, lie in zip(liars, LIES, strict=True):
            monitor.vm.follows = False
            setattr(monitor.vm, *lie)
        host.low_mem.set_low()
        for monitor in liars:
            assert wait_for(daemon, "vm-lost", vm=monitor.path.stem)["fault"] == "nonsense"
        wait_for_balloon(daemon, good, MOST)
        assert not events(daemon, "vm-lost", vm="web")
        assert not events(daemon, "vm-failed")
        assert not events(daemon, "finder-failed")


VMM = """
import asyncio, sys
from pathlib import Path
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm

async def serve():
    vm = ScriptedVm(actual=int(sys.argv[2]))
    vm.boot()
    async with ScriptedMonitor(Path(sys.argv[1]), vm):
        print(flush=True)
        await asyncio.Event().wait()

asyncio.run(serve())
"""
"""A VMM of its own process: arguments are its monitor's path and what query-balloon says."""


@contextlib.contextmanager
def vmm(path: Path, actual_bytes: int) -> Iterator[Callable[[], None]]:
    """A VMM's process; gives what kills it."""
    command = [sys.executable, "-c", VMM, str(path), str(actual_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.kill
        finally:
            process.kill()


@fault("a driven VM ends, and another process")
def test_vm_of_another_process_at_the_same_path_has_its_own_base(host: Host) -> None:
    host.name("web")
    with vmm(host.path / "web.qmp", GIB - BASE) as kill:
        daemon = host.start()
        assert wait_for(daemon, "base-found")["base_bytes"] == BASE
        host.low_mem.set_low()
        daemon.wait(lambda: events(daemon, "decided", reason="at-maximum"), what="a full balloon")
        kill()
        assert wait_for(daemon, "vm-lost")["fault"] == "gone"
    with vmm(host.path / "web.qmp", GIB - 3 * BASE):
        wait_for(daemon, "base-found", base_bytes=3 * BASE)
        daemon.stop()


@fault("a VM that is named cannot be driven")
@fault("a driven VM ends, and another process listens at its path")
def test_vm_that_takes_the_place_of_another_at_one_socket_is_told_none_of_its_balloon(
    host: Host,
) -> None:
    # As with a socket that systemd made: the socket stays when another VMM serves it, and does not
    # tell the VMM's process.
    no_thread = 1 << 22
    monitor = host.monitor("web", actual=GIB - 4 * BASE, thread_id=no_thread)
    host.name("web")
    with monitors_in_a_thread([monitor]) as run:
        daemon = host.start()
        assert wait_for(daemon, "base-found")["base_bytes"] == 4 * BASE
        host.low_mem.set_low()
        daemon.wait(lambda: monitor.vm.actual < GIB - 4 * BASE, what="some memory is taken")
        host.low_mem.set_plenty()

        def replace() -> None:
            monitor.vm = ScriptedVm(thread_id=no_thread)
            monitor.disconnect()

        run(replace)
        wait_for(daemon, "no-driver-yet")
        run(monitor.vm.boot)
        daemon.wait(lambda: len(events(daemon, "vm-attached")) > 1, what="it is attached")
        assert wait_for(daemon, "vm-attached")["vm_mem_bytes"] == GIB
        daemon.stop()
        assert {value for value, _ in monitor.vm.targets} <= {GIB}


def test_vms_that_cannot_be_driven_are_named_with_the_reason(host: Host) -> None:
    (host.path / "notes.qmp").touch()
    good = host.monitor("web")
    host.name("notes", "away", "web")
    with monitors_in_a_thread([good]):
        daemon = host.start()
        wait_for(daemon, "vm-attached", vm="web")
        assert wait_for(daemon, "vm-not-driven", name="notes")["fault"] == "not-a-socket"
        assert wait_for(daemon, "vm-not-driven", name="away")["fault"] == "not-there"
        with monitors_in_a_thread([host.monitor("away")]):
            wait_for(daemon, "vm-attached", vm="away")


@fault("one VM is named twice")
def test_second_monitor_of_one_vm_is_refused_and_both_are_named(host: Host) -> None:
    first = host.monitor("web")
    second = ScriptedMonitor(host.path / "too.qmp", first.vm)
    other = host.monitor("db")  # Served by the same process, and another VM.
    host.name("web", "too", "db")
    with monitors_in_a_thread([first, second, other]) as run:
        daemon = host.start()
        refused = wait_for(daemon, "vm-not-driven", fault="own-device")
        wait_for(daemon, "vm-driven", vm="db")
        (driven,) = [event["vm"] for event in events(daemon, "vm-driven") if event["vm"] != "db"]
        left = {"web": first, "too": second}[driven]
        assert {refused["name"], driven} == {"web", "too"}
        assert refused["detail"] == f"{driven}: {left.path}"
        left.misdeed = Misdeed.NO_GREETING  # Towards the next client.
        run(left.disconnect)
        wait_for(daemon, "vm-driven", vm=refused["name"])


@fault("one VM is named twice")
def test_vm_that_is_driven_by_its_second_monitor_gets_back_what_was_taken_by_its_first(
    host: Host,
) -> None:
    first = host.monitor("web", actual=GIB - BASE)
    second = ScriptedMonitor(host.path / "too.qmp", first.vm)
    with monitors_in_a_thread([first, second]) as run:
        host.name("web")
        daemon = host.start()
        host.low_mem.set_low()
        wait_for_balloon(daemon, first, BASE + (GIB - BASE) // 2)
        host.low_mem.set_plenty()
        daemon.kill()
        host.name("web", "too")
        first.misdeed = Misdeed.NO_GREETING
        run(first.disconnect)
        daemon = host.start()
        wait_for(daemon, "vm-attached", vm="too")
        daemon.stop()
        assert first.vm.actual == GIB - BASE


@fault("one VM is named twice")
def test_vm_that_libvirt_has_driven_gets_back_what_was_taken_by_its_own_monitor(
    host: Host,
) -> None:
    monitor = host.monitor("web", actual=GIB - 3 * BASE)
    host.name("web")
    libvirts = bases_path(host.path / "balloond.sock", Kind.LIBVIRT)
    before = Bases(libvirts, lambda event: None)
    pid = os.getpid()
    before.note(BaseKey(monitor.vm.uuid, pid, host_side(pid).started), BASE)
    before.store()
    with monitors_in_a_thread([monitor]):
        daemon = host.start()
        wait_for_balloon(daemon, monitor, BASE)
        daemon.stop()
    assert not libvirts.exists()


def test_vms_are_found_by_a_pattern_as_they_come(host: Host) -> None:
    host.config.write_text(f'[discover]\nqmp = ["{host.path}/*.qmp"]')
    daemon = host.start()
    with monitors_in_a_thread([host.monitor("web"), host.monitor("db")]):
        wait_for(daemon, "vm-attached", vm="web")
        wait_for(daemon, "vm-attached", vm="db")


STATISTICS_S = 0.25


@contextlib.contextmanager
def statistics(
    run: Callable[[Callable[[], None]], None], vm: ScriptedVm
) -> Iterator[dict[str, int]]:
    """A guest that sends statistics as QEMU has it do, each second; a test changes what they say
    by the dictionary that it gets."""
    said = {"available_memory": 400 * MIB, "free_memory": 300 * MIB, "swap_in": 0}
    over = threading.Event()

    def send() -> None:
        while not over.wait(STATISTICS_S):
            run(lambda: vm.send_stats(**said))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield said
    finally:
        over.set()
        thread.join()


def test_careful_guest_in_need_gets_all_back_down_to_its_base(host: Host) -> None:
    web, db = host.monitor("web", actual=GIB - BASE), host.monitor("db")
    host.config.write_text(
        f'[vm.web]\nqmp = "{host.path}/web.qmp"\n[vm.db]\nqmp = "{host.path}/db.qmp"\n'
    )
    with (
        monitors_in_a_thread([web, db]) as run,
        statistics(run, web.vm) as said,
        statistics(run, db.vm),
    ):
        daemon = host.start()
        host.low_mem.set_low()
        wait_for_balloon(daemon, db, MOST)
        daemon.wait(lambda: web.vm.actual < GIB - 2 * BASE, what="web is squeezed, too")
        said["available_memory"] = MIB
        wait_for(daemon, "guest-in-need", vm="web")
        wait_for_balloon(daemon, web, BASE)
        assert db.vm.actual == GIB - MOST
        assert not events(daemon, "guest-in-need", vm="db")
