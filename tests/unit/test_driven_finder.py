"""Looking for one VM: who is tried when, what is published once, and when the VM comes anew."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.events import (
    Event,
    Fault,
    FinderFailed,
    NotGivenBack,
    VmDriven,
    VmLetGo,
    VmLost,
    VmNotDriven,
    VmNotSought,
    VmNotWanted,
)
from balloon_daemon.guests.driven.bases import BaseKey, Bases
from balloon_daemon.guests.driven.claims import Claim, Claims
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.finder import Finder
from balloon_daemon.guests.driven.lookups import ask_here
from balloon_daemon.guests.driven.reporting import Shared
from balloon_daemon.guests.seam import Guest, Report
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.fakes.quick_loop import run_quickly
from tests.fakes.scripted_control import FOUND, ScriptedControl
from tests.harness.faults import fault
from tests.harness.vmm_files import host_side

WEB = VmConfig("web", Kind.QMP, "/run/web.qmp", VmSettings(priority=3))


class World:
    """A finder, the VMMs that it meets one after another, and the registry: a ``VmRegistry``."""

    def __init__(self, path: Path) -> None:
        self.events: list[Event] = []
        self.vms: list[VmId] = []
        self.guests: list[Guest] = []
        self.settings: list[VmSettings] = []
        self.attempts: list[float] = []
        self.next = ScriptedControl()
        self.controls: list[ScriptedControl] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.changes: list[tuple[str, VmSettings]] = []
        self.dismissed: list[str] = []
        self.bases = Bases(path / "bases", self.events.append)
        self.own: set[int] = set()
        self.claims = Claims()
        is_own = self.own.__contains__
        shared = Shared(self.events.append, self.report, self.bases, is_own, self.claims, ask_here)
        self.finder = Finder(WEB, self._connect, self, shared)

    def _connect(self) -> ScriptedControl:
        self.attempts.append(asyncio.get_running_loop().time())
        control = ScriptedControl(self.next.found)
        control.fails, control.hangs = dict(self.next.fails), set(self.next.hangs)
        self.controls.append(control)
        return control

    def next_vm(self, name: str = "") -> VmId:
        return VmId(len(self.vms) + 1, name)

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        self.vms.append(guest.vm)
        self.guests.append(guest)
        self.settings.append(settings)

    def report(self, vm: VmId, report: Report) -> None:
        pass

    def serve(self, guest: Guest) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(guest.serve()))

    def change(self, vm: VmId, settings: VmSettings) -> None:
        self.changes.append((vm.name, settings))

    def dismiss(self, vm: VmId) -> None:
        self.dismissed.append(vm.name)

    def loud(self) -> list[Event]:
        """What is published for people."""
        return [event for event in self.events if not getattr(event, "quiet", False)]


Play = Callable[[Callable[[World], Awaitable[None]]], World]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Plays a scene, and ends everything."""

    def play(scene: Callable[[World], Awaitable[None]]) -> World:
        async def run() -> World:
            world = World(tmp_path)
            world.finder.start()
            await asyncio.sleep(0.1)
            await scene(world)
            world.finder.stop()
            for task in world.tasks:
                task.cancel()
            await asyncio.sleep(0.1)
            assert all(control.closed for control in world.controls)
            return world

        return run_quickly(run())

    return play


def test_vm_is_driven_with_its_settings(play: Play) -> None:
    async def scene(world: World) -> None:
        await asyncio.sleep(600)
        assert len(world.attempts) == 1

    world = play(scene)
    assert (world.vms, world.settings) == ([VmId(1, "web")], [WEB.settings])
    assert world.events == [VmDriven(VmId(1, "web"), "/run/web.qmp", GIB, None)]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda world: world.tasks[0].cancel(), VmLetGo(VmId(1, "web"))),
        (
            lambda world: world.controls[0].end(ControlError(Fault.HANGS)),
            VmLost(VmId(1, "web"), Fault.HANGS),
        ),
    ],
    ids=["has given all back", "hangs meanwhile"],
)
def test_end_of_a_vm_that_is_not_wanted_is_told_for_those_who_keep_something_of_it(
    play: Play, end: Callable[[World], object], told: Event
) -> None:
    async def scene(world: World) -> None:
        world.finder.dismiss()
        await asyncio.sleep(5)
        assert world.events[-1] == VmNotWanted("web")
        end(world)
        await asyncio.sleep(5)
        assert world.events[-1] == told

    play(scene)


async def taken_and_lost(world: World) -> None:
    """A scene's beginning: balloond takes memory of a VM whose VMM then does not answer."""
    world.guests[0].set_target(300 * MIB)
    await asyncio.sleep(1)
    assert world.controls[0].targets == [300 * MIB]
    world.next.found = world.controls[0].found
    world.next.fails["open"] = ControlError(Fault.HANGS)
    world.controls[0].end(ControlError(Fault.HANGS))
    await asyncio.sleep(5)


@fault("balloond ends while a driven VM's VMM does not answer")
def test_end_of_balloond_names_a_vm_that_is_not_driven_just_then(play: Play) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        world.finder.stop(leaving=False)

    assert play(scene).events[-1] == NotGivenBack(VmId(1, "web"), 300 * MIB)


@pytest.mark.parametrize("leaving", [True, False])
def test_end_of_balloond_names_no_vm_that_stays_or_is_gone(play: Play, leaving: bool) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        if not leaving:
            world.next.fails["open"] = ControlError(Fault.NOT_THERE)
            await asyncio.sleep(60)
        world.finder.stop(leaving=leaving)

    assert not any(isinstance(event, NotGivenBack) for event in play(scene).events)


@fault("a VM is taken out of the configuration while its VMM does not answer")
def test_vm_that_is_not_wanted_and_does_not_answer_is_sought_until_it_can_be_given_back(
    play: Play,
) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        world.finder.dismiss()
        await asyncio.sleep(600)
        assert world.dismissed == []
        world.next.fails.clear()
        await asyncio.sleep(60)
        assert world.dismissed == ["web"]
        world.guests[1].set_target(0)
        await asyncio.sleep(60)
        world.tasks[1].cancel()
        await asyncio.sleep(600)
        assert world.controls[-1].targets == [0]
        assert world.vms == [VmId(1, "web"), VmId(2, "web")]
        assert world.finder.has_ended

    assert play(scene).events[-1] == VmLetGo(VmId(2, "web"))


@fault("a VM is taken out of the configuration while its VMM does not answer")
def test_vm_that_is_lost_while_it_is_given_back_is_sought_too(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guests[0].set_target(300 * MIB)
        await asyncio.sleep(1)
        world.finder.dismiss()
        world.controls[0].end(ControlError(Fault.HANGS))
        await asyncio.sleep(60)

    world = play(scene)
    assert world.dismissed == ["web", "web"]
    assert world.loud().count(VmLost(VmId(1, "web"), Fault.HANGS)) == 1


@fault("a VM is taken out of the configuration while its VMM does not answer")
@pytest.mark.parametrize("absent", [Fault.NOT_THERE, Fault.NO_VM, Fault.OWN_DEVICE])
def test_vm_that_is_not_wanted_and_is_gone_or_driven_in_another_way_is_not_sought(
    play: Play, absent: Fault
) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        world.finder.dismiss()
        world.next.fails["open"] = ControlError(absent)
        await asyncio.sleep(60)
        assert world.finder.has_ended

    play(scene)


def test_vm_of_which_nothing_was_taken_is_not_sought_when_it_is_not_wanted(play: Play) -> None:
    async def scene(world: World) -> None:
        world.next.fails["open"] = ControlError(Fault.HANGS)
        world.controls[0].end(ControlError(Fault.HANGS))
        await asyncio.sleep(5)
        world.finder.dismiss()
        await asyncio.sleep(5)
        assert world.finder.has_ended

    play(scene)


def test_vm_that_another_finder_drives_from_now_on_is_not_sought(play: Play) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        world.finder.dismiss(elsewhere=True)
        await asyncio.sleep(5)
        assert world.finder.has_ended

    play(scene)


def test_vm_that_has_ended_is_found_again_as_another(play: Play) -> None:
    async def scene(world: World) -> None:
        await asyncio.sleep(600)
        world.controls[0].end()
        await asyncio.sleep(5)

    world = play(scene)
    first, second = VmId(1, "web"), VmId(2, "web")
    assert world.vms == [first, second]
    assert world.events == [
        VmDriven(first, "/run/web.qmp", GIB, None),
        VmLost(first, Fault.GONE),
        VmDriven(second, "/run/web.qmp", GIB, None),
    ]


@fault("a VM that is named cannot be driven")
@pytest.mark.parametrize("lasting", list(Fault))
def test_lasting_fault_is_published_once_and_tried_twice_a_minute(
    play: Play, lasting: Fault
) -> None:
    async def scene(world: World) -> None:
        world.finder.stop()
        world.events.clear()
        world.next.fails["open"] = ControlError(lasting, "so it says")
        world.finder.start()
        await asyncio.sleep(60)
        world.attempts.clear()
        await asyncio.sleep(600)
        assert 18 <= len(world.attempts) <= 30

    world = play(scene)
    assert world.loud() == [VmNotDriven("web", "/run/web.qmp", lasting, "so it says")]
    assert len(world.events) > 20


def test_fault_that_changes_is_published(play: Play) -> None:
    async def scene(world: World) -> None:
        for lasting in (Fault.NOT_THERE, Fault.HANGS, Fault.NOT_THERE):
            world.next.fails["open"] = ControlError(lasting)
            for control in world.controls:
                control.end()
            await asyncio.sleep(120)

    world = play(scene)
    faults = [event.fault for event in world.loud() if isinstance(event, VmNotDriven)]
    assert faults == [Fault.NOT_THERE, Fault.HANGS, Fault.NOT_THERE]


@fault("a VM that is named cannot be driven")
def test_faults_that_alternate_without_end_are_published_now_and_then_and_one_that_lasts_is(
    play: Play,
) -> None:
    hours = 2.0

    async def scene(world: World) -> None:
        loop = asyncio.get_running_loop()
        world.controls[0].end()
        ends_s = loop.time() + hours * 3600
        while loop.time() < ends_s:
            for lasting in (Fault.HELD, Fault.NONSENSE, Fault.REFUSED):
                world.next.fails["open"] = ControlError(lasting)
                tried = len(world.attempts)
                while len(world.attempts) == tried:
                    await asyncio.sleep(1)
        world.next.fails["open"] = ControlError(Fault.NO_BALLOON)
        await asyncio.sleep(700)

    world = play(scene)
    assert len(world.attempts) > 200
    said = [event.fault for event in world.loud() if isinstance(event, VmNotDriven)]
    # Eight at once, and one each ten minutes.
    assert len(said) <= 8 + hours * 6 + 3
    assert said.count(Fault.NO_BALLOON) == 1


@fault("the VMM of a driven VM hangs")
def test_vmm_that_closes_again_and_again_is_published_twice_and_tried_ever_later(
    play: Play,
) -> None:
    async def scene(world: World) -> None:
        for _ in range(6000):
            world.controls[-1].end()
            await asyncio.sleep(0.1)

    world = play(scene)
    assert len(world.loud()) < 6
    assert len(world.attempts) < 36


def test_vmm_that_never_answers_is_given_up_in_bounded_time(play: Play) -> None:
    async def scene(world: World) -> None:
        world.next.hangs.add("open")
        world.controls[0].end()
        await asyncio.sleep(600)
        assert 5 < len(world.attempts) < 20

    assert VmNotDriven("web", "/run/web.qmp", Fault.HANGS) in play(scene).loud()


@pytest.mark.parametrize(
    "lie",
    [{"vm_mem_bytes": 0}, {"balloon_bytes": -1}, {"balloon_bytes": 2 * GIB}],
)
def test_vmm_that_lies_at_first_is_not_driven(play: Play, lie: dict[str, int]) -> None:
    async def scene(world: World) -> None:
        world.next.found = replace(FOUND, **lie)  # type: ignore[arg-type] # Found's own
        world.controls[0].end()
        await asyncio.sleep(60)

    assert play(scene).vms == [VmId(1, "web")]


@fault("one VM is named twice")
def test_vm_on_our_own_device_is_not_driven_in_another_way(play: Play) -> None:
    async def scene(world: World) -> None:
        world.own.add(os.getpid())
        world.next.found = replace(FOUND, pid=os.getpid())
        world.controls[0].end()
        await asyncio.sleep(60)

    world = play(scene)
    assert VmNotDriven("web", "/run/web.qmp", Fault.OWN_DEVICE) in world.loud()


PINNED = ControlError(Fault.PINNED, "gpu0")
TAKEN = replace(FOUND, balloon_bytes=400 * MIB)
"""A VM with a balloon of which balloond has taken 300 MiB."""


def note_taken(world: World, pid: int = 0) -> BaseKey:
    """Notes that the VM of ``TAKEN`` had a balloon of 100 MiB before balloond."""
    key = BaseKey("web", pid, host_side(pid).started)
    world.bases.note(key, 100 * MIB)
    return key


@fault("a device is assigned to a VM whose memory balloond has taken")
def test_vm_to_which_a_device_was_assigned_meanwhile_gets_back_what_was_taken(play: Play) -> None:
    async def scene(world: World) -> None:
        key = note_taken(world)
        world.next.found = replace(TAKEN, against=PINNED)
        world.controls[0].end()
        await asyncio.sleep(60)
        assert [control.targets for control in world.controls[1:3]] == [[100 * MIB], []]
        assert world.bases.get(key) is None

    world = play(scene)
    assert world.vms == [VmId(1, "web")]
    assert VmNotDriven("web", "/run/web.qmp", Fault.PINNED, "gpu0") in world.loud()


@fault("a device is assigned to a VM whose memory balloond has taken")
def test_vm_that_came_to_our_own_device_meanwhile_gets_back_what_was_taken(play: Play) -> None:
    async def scene(world: World) -> None:
        note_taken(world, os.getpid())
        world.own.add(os.getpid())
        world.next.found = replace(TAKEN, pid=os.getpid())
        world.controls[0].end()
        await asyncio.sleep(60)
        assert [control.targets for control in world.controls[1:3]] == [[100 * MIB], []]

    play(scene)


@fault("a device is assigned to a VM whose memory balloond has taken")
def test_vmm_that_refuses_to_give_back_what_was_taken_is_asked_again(play: Play) -> None:
    async def scene(world: World) -> None:
        key = note_taken(world)
        world.next.found = replace(TAKEN, against=PINNED)
        world.next.fails["set_balloon"] = ControlError(Fault.REFUSED, "it is being saved")
        world.controls[0].end()
        await asyncio.sleep(10)
        assert world.bases.get(key) == 100 * MIB
        world.next.fails.clear()
        await asyncio.sleep(60)
        assert world.bases.get(key) is None

    world = play(scene)
    assert VmNotDriven("web", "/run/web.qmp", Fault.PINNED, "gpu0") in world.loud()


@fault("a device is assigned to a VM whose memory balloond has taken")
def test_vm_to_which_a_device_was_assigned_while_it_did_not_answer_is_owed_nothing(
    play: Play,
) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        world.next.fails.clear()
        world.next.found = replace(TAKEN, against=PINNED)
        await asyncio.sleep(60)
        later = [control.targets for control in world.controls[1:]]
        assert [target for targets in later for target in targets] == [0]
        world.finder.stop(leaving=False)

    assert not any(isinstance(event, NotGivenBack) for event in play(scene).events)


@fault("a device is assigned to a VM whose memory balloond has taken")
@pytest.mark.parametrize("refuses", [False, True])
def test_vm_that_is_not_wanted_and_must_not_be_driven_is_sought_until_it_has_all_back(
    play: Play, refuses: bool
) -> None:
    async def scene(world: World) -> None:
        await taken_and_lost(world)
        world.next.fails.clear()
        world.next.found = replace(TAKEN, against=PINNED)
        if refuses:
            world.next.fails["set_balloon"] = ControlError(Fault.REFUSED, "it is being saved")
        world.finder.dismiss()
        await asyncio.sleep(60)
        assert world.finder.has_ended is not refuses
        world.next.fails.clear()
        await asyncio.sleep(60)
        assert world.finder.has_ended

    assert play(scene).controls[-1].targets == [0]


@fault("a VM is taken out of the configuration while no balloond runs")
def test_vm_that_is_left_over_and_must_not_be_driven_is_found_once(play: Play) -> None:
    async def scene(world: World) -> None:
        note_taken(world)
        world.next.found = replace(TAKEN, against=PINNED)
        world.controls[0].end()
        world.finder.stop()
        world.finder.return_left_over()
        await asyncio.sleep(600)
        assert world.finder.has_ended

    assert [control.targets for control in play(scene).controls[1:]] == [[100 * MIB]]


def test_vm_of_which_nothing_was_taken_is_told_nothing_when_it_must_not_be_driven(
    play: Play,
) -> None:
    async def scene(world: World) -> None:
        world.next.found = replace(TAKEN, against=PINNED)
        world.controls[0].end()
        await asyncio.sleep(60)

    assert not any(control.targets for control in play(scene).controls)


@fault("one VM is named twice")
def test_vm_that_another_kind_drives_is_not_driven_twice(play: Play) -> None:
    domain = VmConfig("db", Kind.LIBVIRT, "qemu:///system", VmSettings())
    of_libvirt = Claim(os.getpid(), "", domain)

    async def scene(world: World) -> None:
        world.next.found = replace(FOUND, pid=os.getpid())
        world.claims.claim(of_libvirt)
        world.controls[0].end()
        await asyncio.sleep(60)
        assert world.vms == [VmId(1, "web")]
        world.claims.release(of_libvirt)
        await asyncio.sleep(60)
        assert world.vms == [VmId(1, "web"), VmId(2, "web")]
        assert world.claims.other(of_libvirt) is WEB
        world.controls[-1].end()
        world.finder.retire()
        await asyncio.sleep(1)
        assert world.claims.other(of_libvirt) is None

    world = play(scene)
    assert (
        VmNotDriven("web", "/run/web.qmp", Fault.OWN_DEVICE, "db: qemu:///system") in world.loud()
    )


@pytest.mark.parametrize("absent", [Fault.NOT_THERE, Fault.NO_VM])
def test_vm_that_comes_is_found_at_once_where_somebody_notices(play: Play, absent: Fault) -> None:
    async def scene(world: World) -> None:
        world.next.fails["open"] = ControlError(absent)
        world.controls[0].end()
        await asyncio.sleep(600)
        world.next.fails.clear()
        world.finder.wake()
        await asyncio.sleep(0.1)
        assert len(world.vms) == 2

    play(scene)


def test_vmm_that_hangs_is_not_tried_at_once_because_another_came(play: Play) -> None:
    async def scene(world: World) -> None:
        world.next.fails["open"] = ControlError(Fault.HANGS)
        world.controls[0].end()
        await asyncio.sleep(600)
        before = len(world.attempts)
        for _ in range(100):
            world.finder.wake()
            await asyncio.sleep(0.01)
        assert len(world.attempts) <= before + 1

    play(scene)


def test_vm_whose_socket_is_gone_is_driven_to_its_end_and_no_further(play: Play) -> None:
    async def scene(world: World) -> None:
        world.finder.retire()
        assert world.events[-1] == VmNotSought("web")
        await asyncio.sleep(600)
        assert len(world.attempts) == 1
        world.controls[0].end()
        await asyncio.sleep(600)
        assert len(world.attempts) == 1

    play(scene)


def test_bug_of_a_control_ends_neither_the_search_nor_anything_else(play: Play) -> None:
    async def scene(world: World) -> None:
        world.next.fails["open"] = KeyError("nothing")
        world.controls[0].end()
        await asyncio.sleep(60)
        world.next.fails.clear()
        await asyncio.sleep(60)
        assert len(world.vms) == 2

    assert FinderFailed("web", "KeyError: 'nothing'") in play(scene).events
