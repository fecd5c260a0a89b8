"""One driven VM: which calls its VMM gets, and what is reported of it."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from balloon_daemon.events import (
    BaseFound,
    Event,
    Fault,
    GivenBackLater,
    GivingBack,
    NoDriverYet,
    VmmRefuses,
)
from balloon_daemon.guests.driven.bases import BaseKey, Bases
from balloon_daemon.guests.driven.control import ControlError, Notice, Sample
from balloon_daemon.guests.driven.reporting import Reporter, Shared
from balloon_daemon.guests.driven.vm import HANGS_AFTER_S, DrivenVm
from balloon_daemon.guests.driven.waking import Notices
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    Gone,
    GuestState,
    Held,
    Report,
    Resized,
    StateChanged,
    Stats,
    Stuck,
)
from balloon_daemon.units import GIB, MIB, VmId
from tests.fakes.quick_loop import run_quickly
from tests.fakes.scripted_control import FOUND, ScriptedControl
from tests.harness.faults import fault
from tests.harness.vmm_files import host_side

R = TypeVar("R")
VM = VmId(7, "web")
USER = 1000


class World:
    """A VM that is served, its VMM, and all that is reported and published of it."""

    def __init__(self, control: ScriptedControl, path: Path) -> None:
        self.control = control
        self.reports: list[Report] = []
        self.events: list[Event] = []
        clock = asyncio.get_running_loop().time
        self.bases = Bases(path / "bases", self.events.append, clock)
        self.shared = Shared(self.events.append, self._report, self.bases)
        self.notices = Notices(USER)
        self.control.noticed = self.notices.put
        host = host_side(control.found.pid)
        self.guest = DrivenVm(VM, control, control.found, host, self.notices, self.shared)
        self.task = asyncio.create_task(self.guest.serve())

    def _report(self, vm: VmId, report: Report) -> None:
        assert vm == VM
        self.reports.append(report)

    def of(self, kind: type[R]) -> list[R]:
        """The reports of one kind."""
        return [report for report in self.reports if isinstance(report, kind)]

    async def sampled(self, notice: Notice = Notice.CHANGED) -> None:
        """Waits for the next sample and all that follows from it."""
        before = self.control.samples
        self.control.noticed(notice)
        while self.control.samples == before:
            assert not self.task.done()
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)


Scene = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., World]:
    """Plays a scene with a VM, and ends the VM's task."""

    def play(scene: Scene, control: ScriptedControl | None = None) -> World:
        async def run() -> World:
            world = World(control or ScriptedControl(), tmp_path)
            await asyncio.sleep(0.01)
            await scene(world)
            world.task.cancel()
            await asyncio.wait([world.task])
            assert world.control.closed
            return world

        return run_quickly(run())

    return play


Play = Callable[..., World]


def found(**fields: object) -> ScriptedControl:
    """The VMM of a VM that is ``FOUND`` but for these fields."""
    return ScriptedControl(replace(FOUND, **fields))  # type: ignore[arg-type] # Found's own


async def nothing(world: World) -> None:
    """A scene in which nobody does anything."""


# --- what is reported ---------------------------------------------------------------------------


def test_vm_is_reported_with_its_size_and_its_abilities(play: Play) -> None:
    world = play(nothing)
    abilities = frozenset([Ability.STATS, Ability.KEPT_BY_VMM])
    attached = Attached(GIB, abilities, 0)
    assert world.reports == [Actual(0, 1000.0), attached, Gone("gone")]
    assert world.control.calls == []


def test_vm_without_a_driver_is_reported_once_one_listens(play: Play) -> None:
    async def scene(world: World) -> None:
        assert world.reports == [StateChanged(GuestState.NO_DRIVER)]
        await world.sampled()
        assert world.reports == [StateChanged(GuestState.NO_DRIVER)]
        world.control.found = replace(FOUND, balloon_bytes=MIB)
        await world.sampled()
        assert [type(report) for report in world.reports[1:]] == [StateChanged, Actual, Attached]

    world = play(scene, found(state=GuestState.NO_DRIVER, balloon_bytes=512 * MIB))
    assert world.events == [NoDriverYet(VM), BaseFound(VM, MIB)]


def test_unknown_size_is_not_reported(play: Play) -> None:
    async def scene(world: World) -> None:
        world.control.found = replace(FOUND, balloon_bytes=None)
        await world.sampled()
        assert len(world.of(Actual)) == 1

    play(scene)


@fault("the guest of a driven VM is reset")
def test_reset_makes_the_size_unknown_until_a_driver_listens(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await world.sampled()
        world.control.found = replace(world.control.found, state=GuestState.NO_DRIVER)
        await world.sampled(Notice.RESET)
        await world.sampled(Notice.RESET)
        assert world.of(StateChanged) == [StateChanged(GuestState.NO_DRIVER)]
        world.control.found = replace(FOUND, balloon_bytes=MIB)
        await world.sampled()
        assert world.of(StateChanged)[1:] == [StateChanged(GuestState.RUNNING)]
        assert [actual.balloon_bytes for actual in world.of(Actual)] == [0, 256 * MIB, MIB]

    play(scene)


@fault("the guest of a driven VM is reset, or has no driver")
def test_reset_is_reported_before_the_vmm_says_anything_more(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await world.sampled()
        before = len(world.reports)
        world.control.hangs.add("sample")
        await world.sampled(Notice.RESET)
        # What the guest had in its balloon is no size any more, and no target is short of it.
        assert world.reports[before:] == [StateChanged(GuestState.NO_DRIVER)]

    play(scene)


def test_plugged_memory_is_reported(play: Play) -> None:
    async def scene(world: World) -> None:
        world.control.found = replace(FOUND, vm_mem_bytes=2 * GIB)
        await world.sampled()
        await world.sampled()

    assert play(scene).of(Resized) == [Resized(2 * GIB)]


def test_statistics_are_reported_with_the_guests_time(play: Play) -> None:
    stats = Stats(998.5, available_bytes=GIB)

    async def scene(world: World) -> None:
        world.control.stats = stats
        await world.sampled()

    assert play(scene).of(Stats) == [stats]


@pytest.mark.parametrize(("apart_bytes", "held"), [(0, True), (1 << 50, False)])
def test_memory_apart_from_the_balloon_is_not_what_the_vms_memory_occupies(
    tmp_path: Path, apart_bytes: int, held: bool
) -> None:
    reports: list[Report] = []
    bases = Bases(tmp_path / "bases", lambda event: None)
    shared = Shared(lambda event: None, lambda vm, report: reports.append(report), bases)
    reporter = Reporter(VM, FOUND, host_side(os.getpid()), shared)
    sample = Sample(GIB, 0, GuestState.RUNNING, None, 1000.0, apart_bytes)
    reporter.take(sample, 1000.0)
    (report,) = (report for report in reports if isinstance(report, Held))
    assert (report.held_bytes > 0) is held


@fault("the VMM of a driven VM says a size")
@pytest.mark.parametrize(
    "lie",
    [
        {"balloon_bytes": -1},
        {"balloon_bytes": 1 << 63},
        {"balloon_bytes": GIB + 1},
        {"vm_mem_bytes": 0},
        {"vm_mem_bytes": -GIB},
        {"vm_mem_bytes": 1 << 63},
    ],
)
def test_size_out_of_range_is_not_reported_and_ends_the_connection(
    play: Play, lie: dict[str, Any]
) -> None:
    async def scene(world: World) -> None:
        world.control.found = replace(FOUND, **lie)
        world.control.noticed(Notice.CHANGED)
        await world.guest.ended
        assert world.guest.ended.result().fault is Fault.NONSENSE

    world = play(scene)
    assert [type(report) for report in world.reports] == [Actual, Attached, Gone]


# --- targets ------------------------------------------------------------------------------------


def test_target_is_set_in_the_loops_next_turn(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.control.targets == [256 * MIB]

    play(scene)


def test_of_several_targets_the_vmm_gets_the_last(play: Play) -> None:
    async def scene(world: World) -> None:
        for step in range(1, 4):
            world.guest.set_target(step * MIB)
        await world.sampled()
        assert world.control.targets == [3 * MIB]

    play(scene)


def test_target_during_a_call_is_set_after_it(play: Play) -> None:
    async def scene(world: World) -> None:
        gate = asyncio.Event()
        real = world.control.set_balloon

        async def slow(balloon_bytes: int) -> None:
            await gate.wait()
            await real(balloon_bytes)

        world.control.set_balloon = slow  # type: ignore[method-assign] # A slower VMM.
        for step in range(1, 4):
            world.guest.set_target(step * MIB)
            await asyncio.sleep(0.01)
        gate.set()
        await world.sampled()
        assert world.control.targets == [MIB, 3 * MIB]

    play(scene)


def test_target_is_not_set_again(play: Play) -> None:
    async def scene(world: World) -> None:
        for _ in range(3):
            world.guest.set_target(MIB)
            await world.sampled()
        assert world.control.targets == [MIB]

    play(scene)


@fault("the VMM of a driven VM refuses a call")
def test_refused_target_is_stuck_and_set_again_after_a_sample(play: Play) -> None:
    async def scene(world: World) -> None:
        world.control.fails["set_balloon"] = ControlError(Fault.REFUSED, "not now")
        world.guest.set_target(MIB)
        await asyncio.sleep(1)
        assert world.control.targets == [MIB]
        await world.sampled()
        del world.control.fails["set_balloon"]
        await world.sampled()
        assert world.control.targets == [MIB] * 3
        await world.sampled()
        assert world.control.targets == [MIB] * 3
        assert world.of(Stuck) == [Stuck("refused")] * 2
        assert world.of(Actual)[-1].balloon_bytes == MIB

    events = play(scene).events
    assert events == [VmmRefuses(VM, "not now"), VmmRefuses(VM, "not now", quiet=True)]


@fault("the VMM of a driven VM refuses a call")
def test_refused_watch_is_wanted_again_after_a_sample(play: Play) -> None:
    """libvirt refuses it while it saves, dumps or migrates the domain. A guest that is never asked
    for statistics again would not be squeezed any more, as they stay away."""

    async def scene(world: World) -> None:
        world.control.fails["watch"] = ControlError(Fault.REFUSED, "libvirt saves the domain")
        world.guest.watch(1.0)
        await asyncio.sleep(2.5)
        assert 2 <= len(world.control.calls) <= 4
        del world.control.fails["watch"]
        await world.sampled()
        watched = len(world.control.calls)
        await world.sampled()
        assert world.control.calls == [("watch", 1.0)] * watched

    play(scene)


# --- the end ------------------------------------------------------------------------------------


def test_vmm_that_closes_ends_its_vm(play: Play) -> None:
    async def scene(world: World) -> None:
        world.control.end()
        await world.guest.ended
        assert world.guest.ended.result().fault is Fault.GONE

    assert play(scene).reports[-1] == Gone("gone")


@fault("the VMM of a driven VM hangs")
def test_vmm_that_breaks_its_protocol_between_two_calls_ends_its_vm_for_that(play: Play) -> None:
    why = ControlError(Fault.NONSENSE, "bytes without a call")

    async def scene(world: World) -> None:
        world.control.end(why)
        ended = await world.guest.ended
        assert (ended.fault, ended.detail) == (why.fault, why.detail)

    assert play(scene).reports[-1] == Gone("nonsense")


@pytest.mark.parametrize("fault", [Fault.HANGS, Fault.NONSENSE, Fault.GONE, Fault.NO_BALLOON])
@pytest.mark.parametrize("call", ["sample", "set_balloon", "watch"])
def test_fault_of_a_call_ends_the_vm(play: Play, call: str, fault: Fault) -> None:
    async def scene(world: World) -> None:
        world.control.fails[call] = ControlError(fault)
        world.guest.set_target(MIB)
        world.guest.watch(1.0)
        await world.guest.ended
        assert world.guest.ended.result().fault is fault

    assert play(scene).reports[-1] == Gone(fault.value)


@fault("the VMM of a driven VM hangs")
@pytest.mark.parametrize("call", ["sample", "set_balloon", "watch"])
def test_call_that_never_returns_ends_the_vm(play: Play, call: str) -> None:
    async def scene(world: World) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        world.control.hangs.add(call)
        world.guest.set_target(MIB)
        world.guest.watch(1.0)
        await world.guest.ended
        assert world.guest.ended.result().fault is Fault.HANGS
        assert loop.time() - began_s <= 2 * HANGS_AFTER_S

    play(scene)


def test_vmm_that_closes_during_a_call_ends_its_vm(play: Play) -> None:
    async def scene(world: World) -> None:
        world.control.hangs.add("sample")
        world.control.noticed(Notice.CHANGED)
        await asyncio.sleep(1)
        world.control.end()
        await world.guest.ended

    play(scene)


# --- samples ------------------------------------------------------------------------------------


def test_idle_vm_is_sampled_twice_a_minute(play: Play) -> None:
    async def scene(world: World) -> None:
        await asyncio.sleep(600)
        assert 18 <= world.control.samples <= 22

    play(scene)


def test_watched_vm_is_sampled_as_often_as_wanted(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.watch(1.0)
        await asyncio.sleep(60)
        assert 58 <= world.control.samples <= 62
        assert world.control.calls == [("watch", 1.0)]
        world.guest.watch(None)
        await asyncio.sleep(600)
        assert world.control.samples <= 84
        assert world.control.calls == [("watch", 1.0), ("watch", None)]

    play(scene)


def test_guest_without_statistics_is_not_told_to_send_them(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.watch(1.0)
        await asyncio.sleep(60)
        assert world.control.calls == []
        assert world.control.samples >= 58

    play(scene, found(can=frozenset()))


@fault("the VMM of a driven VM sends news")
def test_vmm_without_end_of_news_is_sampled_ten_times_a_second(play: Play) -> None:
    async def scene(world: World) -> None:
        for _ in range(1000):
            world.control.noticed(Notice.CHANGED)
            await asyncio.sleep(0.01)
        assert 95 <= world.control.samples <= 105

    play(scene)


@fault("the VMM of a driven VM sends news")
@pytest.mark.parametrize(("user", "least", "most"), [(USER, 8, 10), (USER + 1, 95, 105)])
def test_news_of_all_vms_of_one_user_cause_so_many_samples_and_others_have_theirs(
    user: int, least: int, most: int, play: Play
) -> None:
    async def scene(world: World) -> None:
        world.shared.vms_of[user] += 400
        before = world.control.samples
        for _ in range(1000):
            world.control.noticed(Notice.CHANGED)
            await asyncio.sleep(0.01)
        assert least <= world.control.samples - before <= most

    world = play(scene)
    assert dict(world.shared.vms_of) == {user: 400}


def test_statistics_that_are_requested_come_at_once_unless_they_come_anyway(play: Play) -> None:
    async def scene(world: World) -> None:
        await asyncio.sleep(1)
        before = world.control.samples
        world.guest.request_stats()
        await asyncio.sleep(0.1)
        assert world.control.samples == before + 1
        world.guest.watch(30.0)
        await asyncio.sleep(60)
        before = world.control.samples
        world.guest.request_stats()
        await asyncio.sleep(0.1)
        assert world.control.samples == before

    play(scene)


# --- giving back --------------------------------------------------------------------------------


def test_vm_gives_back_what_was_taken_and_only_that(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await world.sampled()
        began_s = asyncio.get_running_loop().time()
        await world.guest.give_back()
        assert asyncio.get_running_loop().time() - began_s < 0.5
        assert world.control.targets == [356 * MIB, 100 * MIB]
        assert world.of(Actual)[-1].balloon_bytes == 0

    world = play(scene, found(balloon_bytes=100 * MIB))
    assert world.events == [BaseFound(VM, 100 * MIB), GivingBack(VM, 256 * MIB)]


def test_vm_of_which_nothing_was_taken_is_told_nothing(play: Play) -> None:
    async def scene(world: World) -> None:
        await world.guest.give_back()
        assert world.control.calls == []

    assert play(scene).events == []


def test_guest_is_told_to_send_no_more_statistics_at_the_end(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.watch(1.0)
        await asyncio.sleep(5)
        await world.guest.give_back()
        assert world.control.calls == [("watch", 1.0), ("watch", None)]

    play(scene)


@fault("balloond ends while a driven guest stands still")
@pytest.mark.parametrize("state", [GuestState.PAUSED, GuestState.NO_DRIVER])
def test_guest_that_cannot_give_back_now_does_so_later(play: Play, state: GuestState) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await world.sampled()
        world.control.follows = False
        world.control.found = replace(world.control.found, state=state)
        await world.sampled()
        await world.guest.give_back()
        assert world.control.targets == [256 * MIB, 0]

    later = {GuestState.PAUSED: [GivenBackLater(VM, 256 * MIB)], GuestState.NO_DRIVER: []}
    events = play(scene).events
    assert [event for event in events if isinstance(event, GivenBackLater)] == later[state]


def test_vm_that_ends_is_waited_for_no_longer(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await world.sampled()
        world.control.follows = False
        giving_back = asyncio.create_task(world.guest.give_back())
        await asyncio.sleep(60)
        assert not giving_back.done()
        world.control.end()
        await giving_back
        await world.guest.give_back()

    play(scene)


def test_vm_is_driven_on_when_nobody_waits_for_it_any_more(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await world.sampled()
        world.control.follows = False
        giving_back = asyncio.create_task(world.guest.give_back())
        await asyncio.sleep(2)
        giving_back.cancel()
        world.control.found = FOUND
        await world.sampled()
        await world.sampled()
        assert world.of(Actual)[-1].balloon_bytes == 0
        assert not world.task.done()

    play(scene)


@fault("driven VMs' balloond is killed")
def test_next_connection_gives_back_to_the_first_ones_base(play: Play, tmp_path: Path) -> None:
    async def first(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(1)

    async def second(world: World) -> None:
        assert world.of(Attached)[0].balloon_bytes == 256 * MIB
        await world.guest.give_back()
        assert world.control.targets == [100 * MIB]

    play(first, found(balloon_bytes=100 * MIB))
    play(second, found(balloon_bytes=356 * MIB))


@fault("a driven VM ends, and another process listens at its path")
def test_base_that_was_another_vms_is_not_noted_on(play: Play) -> None:
    async def first(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(1)

    async def second(world: World) -> None:
        world.guest.set_target(MIB)
        await asyncio.sleep(1)
        assert world.bases.get(BaseKey("web", 0, 0)) == 50 * MIB

    async def third(world: World) -> None:
        await world.guest.give_back()
        assert world.control.targets == [50 * MIB]

    play(first, found(balloon_bytes=100 * MIB))
    play(second, found(balloon_bytes=50 * MIB))
    play(third, found(balloon_bytes=51 * MIB))


@pytest.mark.parametrize(("restored", "targets"), [(True, [100 * MIB]), (False, []), (None, [])])
def test_vm_that_was_saved_and_restored_gets_back_what_was_taken_before(
    play: Play, restored: bool | None, targets: list[object]
) -> None:
    async def first(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(1)

    async def second(world: World) -> None:
        await world.guest.give_back()
        assert world.control.targets == targets

    told = None if restored is None else False
    play(first, found(balloon_bytes=100 * MIB, vm_uuid="5a3d", restored=told, pid=os.getpid()))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as vmm:
        at_next = found(balloon_bytes=356 * MIB, vm_uuid="5a3d", restored=restored, pid=vmm.pid)
        play(second, at_next)


@fault("more than 4,096 VMs that have a balloon already")
def test_base_is_held_while_the_vm_is_driven_and_no_longer(play: Play) -> None:
    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(1)
        key = BaseKey("web", 0, 0)
        note_others(world.bases)
        assert world.bases.get(key) == 100 * MIB
        world.control.end()
        await world.guest.ended
        note_others(world.bases)
        assert world.bases.get(key) is None

    def note_others(bases: Bases) -> None:
        for number in range(5000):
            bases.forget(BaseKey(f"vm{number}", 0, 0))
            bases.note(BaseKey(f"vm{number}", 0, 0), 0)

    play(scene, found(balloon_bytes=100 * MIB))


def test_base_is_stored_before_the_first_target_is_set(play: Play, tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        world.control.hangs.add("set_balloon")
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(1)
        assert "web" in (tmp_path / "bases").read_text()

    play(scene)


@fault("driven VMs' balloond is killed")
def test_base_of_a_vm_that_has_all_back_is_not_stored_any_more(play: Play, tmp_path: Path) -> None:
    """If the base stayed stored, the next balloond would take for its own a balloon that somebody
    else has made since."""

    async def scene(world: World) -> None:
        world.guest.set_target(256 * MIB)
        await asyncio.sleep(1)
        world.guest.set_target(0)
        await asyncio.sleep(70)
        assert Bases(tmp_path / "bases", world.events.append).get(BaseKey("web", 0, 0)) is None

    play(scene)
