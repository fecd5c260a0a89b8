"""A real Firecracker's balloon, driven through its API: 1.12.1 and a guest with no kernel.

What 1.12.1 lacks (page reporting, the statistics of Linux 6.12) is tested on a server made from
the published description, in ``tests/kernel/test_firecracker_control.py``.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

import pytest

from balloon_daemon.guests.driven.control import ControlError, Fault, Sample
from balloon_daemon.guests.driven.firecracker import FirecrackerControl
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import MIB
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S, wait_until
from tests.vm.firecracker import BALLOON, MEM_MIB, Firecracker
from tests.vm.firecracker_images import FirecrackerImages, needs_kvm, ready_firecracker

pytestmark = [pytest.mark.vm, needs_kvm]

Talk = Callable[[FirecrackerControl], Awaitable[None]]


class MakeFirecracker(Protocol):
    def __call__(self, balloon: dict[str, object] | None = ...) -> Firecracker: ...


@pytest.fixture(scope="module")
def images() -> FirecrackerImages:
    return ready_firecracker()


@pytest.fixture
def make(images: FirecrackerImages) -> Iterator[MakeFirecracker]:
    made: list[Firecracker] = []

    def make(balloon: dict[str, object] | None = BALLOON) -> Firecracker:
        made.append(Firecracker(images, balloon=balloon))
        return made[-1]

    yield make
    for vmm in made:
        vmm.stop()


def driven(vmm: Firecracker, talk: Talk) -> None:
    async def run() -> None:
        control = FirecrackerControl(str(vmm.socket))
        try:
            await talk(control)
        finally:
            control.close()

    asyncio.run(run())


async def sampled(control: FirecrackerControl, wanted: Callable[[Sample], bool]) -> Sample:
    """Samples until the VM is as wanted."""
    async with asyncio.timeout(HANG_S):
        while not wanted(sample := await control.sample()):
            await asyncio.sleep(0.05)
        return sample


def balloon_of(mib: int) -> Callable[[Sample], bool]:
    return lambda sample: sample.balloon_bytes == mib * MIB


def test_guest_gives_memory_that_the_host_gets_and_has_it_back(make: MakeFirecracker) -> None:
    vmm = make()

    async def talk(control: FirecrackerControl) -> None:
        found = await control.open(lambda notice: None)
        assert found.vm_mem_bytes == MEM_MIB * MIB
        assert (found.state, found.balloon_bytes) == (GuestState.NO_DRIVER, None)
        assert found.can == {Ability.STATS, Ability.DEFLATE_ON_OOM}
        assert found.pid == vmm.pid

        vmm.start()
        await sampled(control, lambda sample: sample.state is GuestState.RUNNING)
        vmm.tell("use 50")
        vmm.wait_said("used 50")
        before = vmm.held_bytes()
        await control.set_balloon(150 * MIB + 4096)
        await sampled(control, balloon_of(150))
        assert abs(before - vmm.held_bytes() - 150 * MIB) < 2 * MIB

        await control.set_balloon(0)
        await sampled(control, balloon_of(0))
        vmm.tell("use 200")
        vmm.wait_said("used 200")
        vmm.tell("check")
        assert vmm.wait_said("whole") == "whole"
        assert abs(before - vmm.held_bytes()) < 50 * MIB

    driven(vmm, talk)


@fault("no driver listens yet in a VM that is driven by an API")
def test_order_given_before_the_driver_listens_is_carried_out(make: MakeFirecracker) -> None:
    vmm = make()

    async def talk(control: FirecrackerControl) -> None:
        await control.open(lambda notice: None)
        await control.set_balloon(20 * MIB)
        vmm.start()
        await control.set_balloon(30 * MIB)  # long before its driver listens
        assert (await control.sample()).state is GuestState.NO_DRIVER
        await sampled(control, balloon_of(30))

    driven(vmm, talk)


def test_statistics_come_once_each_and_none_while_paused(make: MakeFirecracker) -> None:
    vmm = make(BALLOON | {"stats_polling_interval_s": 3600})
    vmm.start()
    vmm.wait_ready()

    async def talk(control: FirecrackerControl) -> None:
        await control.open(lambda notice: None)
        await control.watch(1.0)
        vmm.tell("use 100")
        stats = (await sampled(control, lambda sample: sample.stats is not None)).stats
        assert stats is not None
        used_bytes = stats.total_bytes or 0
        stats = (await sampled(control, lambda sample: sample.stats is not None)).stats
        assert stats is not None
        assert stats.available_bytes == stats.free_bytes == used_bytes - 100 * MIB

        vmm.ask("PATCH", "/vm", {"state": "Paused"})
        await control.sample()  # may hold what came just before
        for _ in range(3):
            sample = await control.sample()
            assert (sample.state, sample.stats) == (GuestState.PAUSED, None)
        await control.set_balloon(10 * MIB)
        vmm.ask("PATCH", "/vm", {"state": "Resumed"})
        await sampled(control, balloon_of(10))

    driven(vmm, talk)


def test_guest_in_need_takes_back_what_nobody_gave_it(make: MakeFirecracker) -> None:
    vmm = make()
    vmm.start()
    vmm.wait_ready()

    async def talk(control: FirecrackerControl) -> None:
        await control.open(lambda notice: None)
        await control.set_balloon(150 * MIB)
        await sampled(control, balloon_of(150))
        vmm.tell("use 200")
        sample = await sampled(control, lambda sample: (sample.balloon_bytes or 0) < 150 * MIB)
        assert sample.state is GuestState.RUNNING
        vmm.wait_said("used 200")
        vmm.tell("check")
        vmm.wait_said("whole")

    driven(vmm, talk)


@fault("an API repeats")
def test_guest_of_linux_6_12_never_has_new_statistics(make: MakeFirecracker) -> None:
    """1.12.1 stops at the first statistic that it does not know, and asks for no more."""
    vmm = make()
    vmm.start()
    vmm.wait_ready()

    async def talk(control: FirecrackerControl) -> None:
        await control.open(lambda notice: None)
        vmm.tell("newer")
        await sampled(control, lambda sample: sample.stats is not None)
        missing = "Failed to update balloon stats, missing descriptor."
        wait_until(lambda: vmm.log().count(missing) > 1, what=missing, seen=vmm.log)
        await control.sample()
        assert (await control.sample()).stats is None

    driven(vmm, talk)


def test_vm_without_statistics_is_squeezed_by_its_target(make: MakeFirecracker) -> None:
    vmm = make(BALLOON | {"stats_polling_interval_s": 0})

    async def talk(control: FirecrackerControl) -> None:
        found = await control.open(lambda notice: None)
        assert found.can == {Ability.DEFLATE_ON_OOM}
        vmm.start()
        await control.set_balloon(100 * MIB)
        assert (await control.sample()).state is GuestState.NO_DRIVER
        await sampled(control, balloon_of(100))
        wait_until(lambda: vmm.held_bytes() < (MEM_MIB - 90) * MIB, what="the host has its memory")

    driven(vmm, talk)


def test_end_of_the_vm_is_noticed_at_once(make: MakeFirecracker) -> None:
    vmm = make()
    vmm.start()
    vmm.wait_ready()

    async def talk(control: FirecrackerControl) -> None:
        await control.open(lambda notice: None)
        vmm.tell("off")
        await control.gone()
        with pytest.raises(ControlError) as caught:
            await control.sample()
        assert caught.value.fault is Fault.GONE

    driven(vmm, talk)


@fault("a VM that is named cannot be driven")
def test_vm_without_a_balloon_is_refused(make: MakeFirecracker) -> None:
    async def talk(control: FirecrackerControl) -> None:
        with pytest.raises(ControlError) as caught:
            await control.open(lambda notice: None)
        assert caught.value.fault is Fault.NO_BALLOON

    driven(make(None), talk)
