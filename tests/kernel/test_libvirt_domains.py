"""Domains of libvirt's test driver, by the real client: plumbing from a driver to a balloon.

The test driver lives in the process that connects to it, and has neither guests nor events of
balloons; tests/vm/test_libvirt.py has those.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import pytest

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.events import DomainsNotFound, Event, Fault, VmDriven, VmNotDriven
from balloon_daemon.guests.driven.bases import Bases, Place
from balloon_daemon.guests.driven.control import ControlError, Found
from balloon_daemon.guests.libvirt import interpreter, process, wire
from balloon_daemon.guests.libvirt.connection import Connection
from balloon_daemon.guests.libvirt.control import DomainControl
from balloon_daemon.guests.libvirt.driver import LibvirtVms, Wanted
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    Guest,
    GuestState,
    Report,
)
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.units import GIB, KIB, MIB, VmId
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

ABILITIES = frozenset({Ability.STATS, Ability.KEPT_BY_VMM})


def has_library() -> bool:
    pythons = filter(os.path.exists, (sys.executable, interpreter.SYSTEM_PYTHON))
    asked = [[python, "-I", "-c", "import libvirt"] for python in pythons]
    return any(subprocess.run(each, capture_output=True).returncode == 0 for each in asked)


needs_libvirt = pytest.mark.skipif(not has_library(), reason="python3-libvirt is not installed")
DEFAULT = "test:///default"
"""One domain, "test", of 8 GiB with a balloon of 6 GiB."""


def node(path: Path, *domains: str) -> str:
    """A libvirt of the test driver's with these domains; its URI.

    Each of the client's connections has such domains of its own.
    """
    file = path / "node.xml"
    file.write_text(f"<node>{''.join(domains)}</node>")
    return f"test://{file}"


def domain(name: str, devices: str = "<memballoon model='virtio'/>", more: str = "") -> str:
    return (
        f"<domain type='test'><name>{name}</name><uuid>{uuid5(NAMESPACE_OID, name)}</uuid>"
        "<memory unit='GiB'>2</memory>"
        f"<os><type>hvm</type></os>{more}<devices>{devices}</devices></domain>"
    )


@contextlib.asynccontextmanager
async def connected(uri: str) -> AsyncIterator[Connection]:
    connection = Connection(uri, LowNumbers(), lambda happened: None)
    try:
        yield connection
    finally:
        await connection.close()


async def find(connection: Connection, name: str) -> Found:
    control = DomainControl(connection, name)
    try:
        return await control.open(lambda notice: None)
    finally:
        control.close()


async def driven(connection: Connection, name: str) -> None:
    """Finds a domain. Raises ControlError: the domain must not be driven, or is not there."""
    if (against := (await find(connection, name)).against) is not None:
        raise against


async def fault_of(connection: Connection, name: str) -> Fault:
    with pytest.raises(ControlError) as caught:
        await driven(connection, name)
    return caught.value.fault


@needs_libvirt
def test_balloon_is_found_and_set() -> None:
    async def scene() -> None:
        async with connected(DEFAULT) as connection:
            control = DomainControl(connection, "test")
            found = await control.open(lambda notice: None)
            assert (found.vm_mem_bytes, found.balloon_bytes) == (8 * GIB, 6 * GIB)
            assert (found.state, found.can) == (GuestState.RUNNING, frozenset({Ability.STATS}))
            assert (found.pid, found.memory_file) == (None, "")
            await control.watch(1.0)
            await control.set_balloon(100 * MIB)
            assert (await control.sample()).balloon_bytes == 100 * MIB
            await control.watch(None)
            control.close()

    asyncio.run(scene())


@needs_libvirt
def test_balloon_that_leaves_the_guest_nothing_is_refused() -> None:
    async def scene() -> None:
        async with connected(DEFAULT) as connection:
            control = DomainControl(connection, "test")
            await control.open(lambda notice: None)
            for balloon_bytes in (8 * GIB, 9 * GIB):
                with pytest.raises(ControlError, match="refused"):
                    await control.set_balloon(balloon_bytes)
            assert (await control.sample()).balloon_bytes == 6 * GIB

    asyncio.run(scene())


@fault("a domain's memory was unplugged")
@needs_libvirt
def test_vm_that_has_shrunk_keeps_the_memory_that_was_decided() -> None:
    async def scene() -> None:
        async with connected(DEFAULT) as connection:
            control = DomainControl(connection, "test")
            await control.open(lambda notice: None)
            client = await connection.client()
            uuid = (await connection.domains())[0].uuid

            async def set_told(told: int, balloon: int) -> int | None:
                arguments: dict[str, str | int] = {
                    "uuid": uuid,
                    "told_kib": told // KIB,
                    "balloon_kib": balloon // KIB,
                }
                await client.call("set", arguments, "test")
                return (await control.sample()).balloon_bytes

            # It has 8 GiB. It had 9 when 2 were to be taken: 7 are left to it.
            assert await set_told(9 * GIB, 2 * GIB) == 1 * GIB
            assert await set_told(20 * GIB, 2 * GIB) == 0
            # It had 7: one that has grown keeps its balloon.
            assert await set_told(7 * GIB, 2 * GIB) == 2 * GIB

    asyncio.run(scene())


@needs_libvirt
def test_period_of_statistics_is_set_and_put_back() -> None:
    async def scene() -> None:
        async with connected(DEFAULT) as connection:
            control = DomainControl(connection, "test")
            await control.open(lambda notice: None)
            client = await connection.client()

            async def period_s() -> int:
                content = await client.call("open", {"name": "test"}, "test")
                return wire.decode_figures(content).period_s

            before_s = await period_s()
            await control.watch(1.0)
            assert (before_s, await period_s()) == (0, 1)
            await control.watch(None)
            assert await period_s() == before_s

    asyncio.run(scene())


@needs_libvirt
def test_domain_that_cannot_be_driven_is_told(tmp_path: Path) -> None:
    async def scene() -> None:
        huge = "<memoryBacking><hugepages/></memoryBacking>"
        pci = (
            "<hostdev mode='subsystem' type='pci'><source>"
            "<address domain='0x0000' bus='0x06' slot='0x02' function='0x0'/></source></hostdev>"
        )
        uri = node(
            tmp_path,
            domain("bare", "<memballoon model='none'/>"),
            domain("huge", more=huge),
            domain("pinned", f"{pci}<memballoon model='virtio'/>"),
        )
        async with connected(uri) as connection:
            assert await fault_of(connection, "bare") is Fault.NO_BALLOON
            assert await fault_of(connection, "huge") is Fault.HUGETLB
            assert await fault_of(connection, "pinned") is Fault.PINNED
            assert await fault_of(connection, "nobody") is Fault.NO_VM

    asyncio.run(scene())


@needs_libvirt
def test_libvirt_that_is_not_there_is_told() -> None:
    async def scene() -> None:
        async with connected("qemu:///system?socket=/nowhere/libvirt-sock") as connection:
            assert await fault_of(connection, "web") is Fault.NOT_THERE

    asyncio.run(scene())


@needs_libvirt
def test_signals_that_end_a_service_leave_the_client_alone() -> None:
    # balloond gives memory back through it before it ends itself.
    async def scene() -> None:
        async with connected(DEFAULT) as connection:
            client = await connection.client()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(client.pid, number)
            assert len(await connection.domains()) == 1
            assert client.why_ended is None

    asyncio.run(scene())


@needs_libvirt
def test_client_keeps_nothing_of_balloonds_output_open() -> None:
    async def scene() -> None:
        async with connected(DEFAULT) as connection:
            client = await connection.client()
            streams = {os.readlink(f"/proc/{client.pid}/fd/{number}") for number in range(3)}
            assert streams == {"/dev/null"}
            assert os.readlink(f"/proc/{client.pid}/cwd") == "/"

    asyncio.run(scene())


def test_client_ends_with_balloond() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-I", process.__file__, str(theirs.fileno())]
        client = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    assert client.wait(HANG_S) == 0


class World:
    """A driver of libvirt's, and the registry of its VMs: a ``VmRegistry``."""

    def __init__(self, path: Path, vms: list[VmConfig], discover: list[str]) -> None:
        self.events: list[Event] = []
        self.reports: list[tuple[str, Report]] = []
        self.guests: dict[str, Guest] = {}
        self.settings: dict[str, VmSettings] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.changes: list[tuple[str, VmSettings]] = []
        self.dismissed: list[str] = []
        wanted = Wanted(vms, discover, path / "bases")
        self.driver = LibvirtVms(wanted, self.events.append, lambda pid: False, LowNumbers)

    def next_vm(self, name: str = "") -> VmId:
        return VmId(len(self.guests) + 1, name)

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        self.guests[guest.vm.name] = guest
        self.settings[guest.vm.name] = settings

    def report(self, vm: VmId, report: Report) -> None:
        self.reports.append((vm.name, report))

    def serve(self, guest: Guest) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(guest.serve()))

    def change(self, vm: VmId, settings: VmSettings) -> None:
        self.changes.append((vm.name, settings))

    def dismiss(self, vm: VmId) -> None:
        self.dismissed.append(vm.name)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not condition():
                await asyncio.sleep(0.01)

    def sizes(self, name: str) -> list[int]:
        return [
            report.balloon_bytes
            for vm, report in self.reports
            if vm == name and isinstance(report, Actual)
        ]


Scene = Callable[[World], Awaitable[None]]


def play(world: World, scene: Scene) -> None:
    async def run() -> None:
        world.driver.start(world)
        await scene(world)
        world.driver.stop(leaving=False)
        for task in world.tasks:
            task.cancel()
        await asyncio.gather(*world.tasks, return_exceptions=True)
        await world.driver.close(leaving=False)

    asyncio.run(run())


@needs_libvirt
def test_all_domains_are_found_and_driven(tmp_path: Path) -> None:
    uri = node(tmp_path, domain("web"), domain("db"), domain("bare", "<memballoon model='none'/>"))
    world = World(tmp_path, [], [uri])

    async def scene(world: World) -> None:
        await world.until(lambda: len(world.guests) == 2)
        await world.until(lambda: any(isinstance(e, VmNotDriven) for e in world.events))

    play(world, scene)
    assert ("web", Attached(2 * GIB, ABILITIES, 0)) in world.reports
    refused = [event for event in world.events if isinstance(event, VmNotDriven)]
    assert refused[0] == VmNotDriven("bare", uri, Fault.NO_BALLOON)


@needs_libvirt
def test_balloon_of_a_found_domain_is_moved_beyond_what_it_had(tmp_path: Path) -> None:
    world = World(tmp_path, [], [DEFAULT])

    async def scene(world: World) -> None:
        await world.until(lambda: bool(world.guests))
        world.guests["test"].watch(0.01)
        world.guests["test"].set_target(300 * MIB)
        await world.until(lambda: 300 * MIB in world.sizes("test"))
        await world.guests["test"].give_back()

    play(world, scene)
    assert world.sizes("test")[-1] == 0
    assert ("test", Attached(2 * GIB, ABILITIES, 0)) in world.reports


@needs_libvirt
def test_domain_that_the_configuration_has_no_more_is_let_go_with_all_its_memory(
    tmp_path: Path,
) -> None:
    before = World(tmp_path, [], [DEFAULT])

    async def take(world: World) -> None:
        await world.until(lambda: bool(world.guests))
        world.guests["test"].watch(0.01)
        world.guests["test"].set_target(300 * MIB)
        await world.until(lambda: 300 * MIB in world.sizes("test"))

    play(before, take)
    left_over = Bases(tmp_path / "bases", before.events.append).places()
    assert left_over == [Place(Kind.LIBVIRT, "test", DEFAULT)]
    world = World(tmp_path, [], [])
    vm = VmConfig("test", Kind.LIBVIRT, DEFAULT, SEED)
    wanted = Wanted([], [], tmp_path / "bases", left_over=[vm])
    world.driver = LibvirtVms(wanted, world.events.append, lambda pid: False, LowNumbers)

    async def give_back(world: World) -> None:
        await world.until(lambda: world.dismissed == ["test"])
        await world.guests["test"].give_back()

    play(world, give_back)
    assert Bases(tmp_path / "bases", world.events.append).places() == []


@needs_libvirt
def test_domain_that_is_named_has_its_own_settings_and_is_found_once(tmp_path: Path) -> None:
    uri = node(tmp_path, domain("web"), domain("db"))
    settings = VmSettings(floor_bytes=GIB, priority=3)
    world = World(tmp_path, [VmConfig("db", Kind.LIBVIRT, uri, settings)], [uri])

    async def scene(world: World) -> None:
        await world.until(lambda: len(world.guests) == 2)

    play(world, scene)
    assert world.settings == {"web": VmSettings(), "db": settings}
    assert sum(isinstance(event, VmDriven) for event in world.events) == 2


@needs_libvirt
def test_only_named_domains_are_driven_where_nothing_is_discovered(tmp_path: Path) -> None:
    uri = node(tmp_path, domain("web"), domain("db"))
    world = World(tmp_path, [VmConfig("db", Kind.LIBVIRT, uri, VmSettings())], [])

    async def scene(world: World) -> None:
        await world.until(lambda: bool(world.guests))

    play(world, scene)
    assert set(world.guests) == {"db"}


@needs_libvirt
def test_domains_that_are_wanted_otherwise_go_on_and_others_are_let_go_or_found(
    tmp_path: Path,
) -> None:
    uri = node(tmp_path, domain("web"), domain("db"))
    settings, bases = VmSettings(priority=3), tmp_path / "bases"
    web = VmConfig("web", Kind.LIBVIRT, uri, VmSettings())
    world = World(tmp_path, [web], [])

    async def scene(world: World) -> None:
        await world.until(lambda: bool(world.guests))
        world.driver.change(Wanted([web._replace(settings=settings)], [], bases))
        assert world.changes == [("web", settings)]
        world.driver.change(Wanted([], [uri], bases))
        await world.until(lambda: len(world.guests) == 2)
        assert world.changes[1:] == [("web", VmSettings())]
        world.driver.change(Wanted([web._replace(name="db")], [], bases))
        assert world.dismissed == ["web"]
        world.driver.change(Wanted([], [], bases))
        assert world.dismissed == ["web", "db"]
        world.driver.change(Wanted([], [DEFAULT], bases))
        await world.until(lambda: "test" in world.guests)

    play(world, scene)
    assert set(world.guests) == {"web", "db", "test"}
    assert sum(isinstance(event, VmDriven) for event in world.events) == 3


@fault("libvirt's client is killed, talks")
@needs_libvirt
def test_domains_are_driven_again_after_their_client_was_killed(tmp_path: Path) -> None:
    world = World(tmp_path, [], [DEFAULT])

    def clients() -> list[int]:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return [
            int(pid)
            for pid in children
            if process.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    async def scene(world: World) -> None:
        await world.until(lambda: "test" in world.guests)
        first = world.guests["test"]
        (pid,) = clients()
        os.kill(pid, signal.SIGKILL)
        await world.until(lambda: world.guests["test"] is not first)

    play(world, scene)


@fault("libvirt's daemon is not there")
@needs_libvirt
def test_libvirt_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    uri = "qemu:///system?socket=/nowhere/libvirt-sock"
    world = World(tmp_path, [], [uri])

    async def scene(world: World) -> None:
        await world.until(lambda: len(world.events) == 2)

    play(world, scene)
    loud, quiet = world.events
    assert isinstance(loud, DomainsNotFound)
    assert isinstance(quiet, DomainsNotFound)
    assert (loud.uri, loud.fault, loud.quiet, quiet.quiet) == (uri, Fault.NOT_THERE, False, True)
    assert "/nowhere/libvirt-sock" in loud.detail
