"""Firecracker's balloon by its API, on a server made from the published description."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.firecracker import FirecrackerControl
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import GIB, MIB
from tests.fakes.firecracker import BALLOON, FakeFirecracker
from tests.harness.faults import fault
from tests.harness.vmm_talks import opened, talk_with

LINUX = {"free_memory": 500 * MIB, "available_memory": 700 * MIB, "minor_faults": 1}
Talk = Callable[[FakeFirecracker, FirecrackerControl], Awaitable[None]]


def with_firecracker(vmm: FakeFirecracker, talk: Talk) -> None:
    talk_with(vmm, FirecrackerControl, talk)


def changes(vmm: FakeFirecracker) -> list[object]:
    return [body for method, _, body in vmm.asked if method == "PATCH"]


def test_running_vm_is_described_squeezed_and_released(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        found = await opened(control)
        assert found.vm_mem_bytes == GIB
        assert found.balloon_bytes == 0
        assert found.state is GuestState.RUNNING
        assert found.can == {Ability.STATS, Ability.DEFLATE_ON_OOM}

        await control.set_balloon(100 * MIB + 4096)  # rounded down to whole MiB
        assert changes(vmm) == [{"amount_mib": 100}]
        assert (await control.sample()).balloon_bytes == 100 * MIB
        await control.set_balloon(0)
        assert (await control.sample()).balloon_bytes == 0

    with_firecracker(FakeFirecracker(path, stats=dict(LINUX)), talk)


def test_memory_that_is_plugged_in_is_no_part_of_the_size_and_known(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        found = await opened(control)
        vmm.plugged_size_mib = 512
        sample = await control.sample()
        assert found.vm_mem_bytes == sample.vm_mem_bytes == GIB
        assert sample.apart_bytes == 512 * MIB

    with_firecracker(FakeFirecracker(path, stats=dict(LINUX), plugged_size_mib=0), talk)


@fault("an API repeats")
def test_statistics_are_new_only_where_they_differ_from_those_before(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        await opened(control)
        assert (await control.sample()).stats is None
        vmm.stats["free_memory"] = 400 * MIB
        stats = (await control.sample()).stats
        assert stats is not None
        assert (stats.free_bytes, stats.available_bytes) == (400 * MIB, 700 * MIB)
        vmm.actual_pages = 256  # The balloon's size is no statistic.
        assert (await control.sample()).stats is None

    with_firecracker(FakeFirecracker(path, stats=dict(LINUX)), talk)


@fault("no driver listens yet in a VM that is driven by an API")
def test_vm_before_its_boot_has_no_driver_and_takes_its_size_with_it(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        found = await opened(control)
        assert (found.state, found.balloon_bytes) == (GuestState.NO_DRIVER, None)

        await control.set_balloon(64 * MIB)  # Its refusal is no fault.
        vmm.mem_size_mib = 2048
        sample = await control.sample()
        assert (sample.vm_mem_bytes, sample.state) == (2 * GIB, GuestState.NO_DRIVER)

        vmm.state, vmm.driver = "Running", False
        sample = await control.sample()
        assert (sample.state, sample.balloon_bytes) == (GuestState.NO_DRIVER, None)

        vmm.driver = True
        sample = await control.sample()
        assert (sample.state, sample.balloon_bytes) == (GuestState.RUNNING, 64 * MIB)

    with_firecracker(FakeFirecracker(path, state="Not started", mem_size_mib=128), talk)


def test_driver_is_known_by_its_statistics_or_its_balloon(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        assert (await opened(control)).state is GuestState.NO_DRIVER
        vmm.actual_pages = 1
        sample = await control.sample()
        assert (sample.state, sample.balloon_bytes) == (GuestState.RUNNING, 4096)

    with_firecracker(FakeFirecracker(path), talk)


def test_paused_vm_is_told_apart(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        assert (await opened(control)).state is GuestState.PAUSED

    with_firecracker(FakeFirecracker(path, state="Paused", stats=dict(LINUX)), talk)


def test_without_statistics_the_target_stands_for_the_balloon(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        found = await opened(control)
        assert (found.state, found.balloon_bytes) == (GuestState.RUNNING, 32 * MIB)
        assert found.can == {Ability.DEFLATE_ON_OOM}
        await control.watch(1.0)
        await control.set_balloon(64 * MIB)
        sample = await control.sample()
        assert (sample.balloon_bytes, sample.stats) == (64 * MIB, None)
        assert changes(vmm) == [{"amount_mib": 64}]

        vmm.driver = False
        await control.set_balloon(65 * MIB)
        sample = await control.sample()
        assert (sample.state, sample.balloon_bytes) == (GuestState.NO_DRIVER, None)

    balloon = BALLOON | {"stats_polling_interval_s": 0, "amount_mib": 32}
    with_firecracker(FakeFirecracker(path, balloon=balloon), talk)


def test_period_of_statistics_waits_for_a_driver_and_is_given_back(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        await opened(control)
        await control.watch(1.5)
        assert changes(vmm) == []
        vmm.stats = dict(LINUX)
        await control.sample()
        await control.watch(1.5)
        assert changes(vmm) == [{"stats_polling_interval_s": 1}]
        await control.watch(60.0)  # Never rarer than who configured it wanted them.
        await control.watch(None)
        assert changes(vmm) == [{"stats_polling_interval_s": n} for n in (1, 5)]

    balloon = BALLOON | {"stats_polling_interval_s": 5}
    with_firecracker(FakeFirecracker(path, balloon=balloon), talk)


@fault("the VMM of a driven VM says a size")
@pytest.mark.parametrize(
    ("vmm", "fault"),
    [
        ({"balloon": None}, Fault.NO_BALLOON),
        ({"huge_pages": "2M"}, Fault.HUGETLB),
        ({"state": "Gone fishing"}, Fault.NONSENSE),
        ({"mem_size_mib": 0}, Fault.NONSENSE),
        ({"mem_size_mib": 2**63}, Fault.NONSENSE),
        ({"mem_size_mib": "1024"}, Fault.NONSENSE),
        ({"balloon": BALLOON | {"amount_mib": 1025}}, Fault.NONSENSE),
        ({"actual_pages": 2**63}, Fault.NONSENSE),
        ({"actual_pages": -1}, Fault.NONSENSE),
        ({"actual_pages": GIB // 4096 + 1}, Fault.NONSENSE),
        ({"actual_pages": "0"}, Fault.NONSENSE),
        ({"actual_pages": float("nan")}, Fault.NONSENSE),
    ],
)
def test_vm_that_cannot_be_driven_is_named_by_its_fault(
    path: Path, vmm: dict[str, object], fault: Fault
) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        with pytest.raises(ControlError) as caught:
            await opened(control)
        assert caught.value.fault is fault

    with_firecracker(FakeFirecracker(path, **vmm), talk)  # type: ignore[arg-type]  # by name


@fault("the VMM of a driven VM refuses")
def test_amount_that_is_refused_for_another_reason_is_a_fault(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        await opened(control)
        vmm.balloon = None
        with pytest.raises(ControlError) as caught:
            await control.set_balloon(64 * MIB)
        assert caught.value.fault is Fault.REFUSED
        assert caught.value.detail == "400: Balloon config error: No balloon device found."

    with_firecracker(FakeFirecracker(path, stats=dict(LINUX)), talk)


def test_hinting_is_never_started(path: Path) -> None:
    async def talk(vmm: FakeFirecracker, control: FirecrackerControl) -> None:
        await opened(control)
        await control.set_balloon(64 * MIB)
        await control.sample()
        assert not any("hinting" in target for _, target, _ in vmm.asked)

    balloon = BALLOON | {"free_page_hinting": True, "free_page_reporting": True}
    with_firecracker(FakeFirecracker(path, balloon=balloon, stats=dict(LINUX)), talk)
