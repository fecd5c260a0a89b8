"""Cloud Hypervisor's balloon by its API, on a server made from the published description."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from balloon_daemon.guests.driven.cloud_hypervisor import CloudHypervisorControl
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import GIB, MIB
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.harness.faults import fault
from tests.harness.vmm_talks import opened, talk_with

Talk = Callable[[FakeCloudHypervisor, CloudHypervisorControl], Awaitable[None]]
BALLOON: dict[str, object] = {"balloon": {"size": 0}}


def with_vmm(vmm: FakeCloudHypervisor, talk: Talk) -> None:
    talk_with(vmm, CloudHypervisorControl, talk)


def balloon_stats(updated_ms: int, **stats: object) -> object:
    return {"balloon_actual": 0, "last_update": updated_ms, "stats": stats}


def test_running_vm_is_described_squeezed_and_released(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        found = await opened(control)
        assert (found.vm_mem_bytes, found.balloon_bytes) == (GIB, 0)
        assert found.state is GuestState.RUNNING
        assert found.can == {Ability.DEFLATE_ON_OOM}

        await control.set_balloon(100 * MIB + 4096)
        assert vmm.asked[-1] == (
            "PUT",
            "/api/v1/vm.resize",
            {"desired_balloon": 100 * MIB + 4096},
        )
        sample = await control.sample()
        assert (sample.balloon_bytes, sample.stats) == (100 * MIB + 4096, None)

    with_vmm(FakeCloudHypervisor(path), talk)


def test_memory_is_what_its_zones_have_with_what_is_plugged(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        assert (await opened(control)).vm_mem_bytes == 3 * GIB

    zones = [{"id": "a", "size": GIB, "hotplugged_size": GIB}, {"id": "b", "size": GIB}]
    vmm = FakeCloudHypervisor(path, memory={"size": 0, "hotplugged_size": None, "zones": zones})
    vmm.actual_bytes = -3 * GIB
    with_vmm(vmm, talk)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("Created", GuestState.NO_DRIVER),
        ("Shutdown", GuestState.NO_DRIVER),
        ("Running", GuestState.RUNNING),
        ("Paused", GuestState.PAUSED),
        ("BreakPoint", GuestState.PAUSED),
    ],
)
def test_each_state_has_its_meaning(path: Path, state: str, expected: GuestState) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        found = await opened(control)
        assert found.state is expected
        assert (found.balloon_bytes is None) == (expected is GuestState.NO_DRIVER)

    with_vmm(FakeCloudHypervisor(path, state=state), talk)


def test_statistics_are_taken_once_for_each_time_that_the_guest_sends_them(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        found = await opened(control)
        assert found.state is GuestState.NO_DRIVER
        assert found.can == {Ability.STATS}

        vmm.balloon_stats = balloon_stats(0)
        assert (await control.sample()).state is GuestState.NO_DRIVER
        vmm.balloon_stats = balloon_stats(1_000, free_memory=5, alloc_stalls=7, swap_in="x")
        sample = await control.sample()
        assert sample.state is GuestState.RUNNING
        assert sample.stats is not None
        assert (sample.stats.free_bytes, sample.stats.alloc_stalls) == (5, 7)
        assert sample.stats.swap_in_bytes is None
        assert (await control.sample()).stats is None
        vmm.balloon_stats = balloon_stats(2_000, free_memory=5)
        assert (await control.sample()).stats is not None

    with_vmm(FakeCloudHypervisor(path, config=BALLOON, balloon_stats=500), talk)


@fault("an API repeats")
def test_first_statistics_may_be_old_and_are_not_taken(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        await opened(control)
        assert (await control.sample()).stats is None

    stats = balloon_stats(1_000, free_memory=5)
    with_vmm(FakeCloudHypervisor(path, config=BALLOON, balloon_stats=stats), talk)


def test_balloon_shows_a_driver_whose_statistics_are_not_to_be_had(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        assert (await opened(control)).state is GuestState.RUNNING

    vmm = FakeCloudHypervisor(path, balloon_stats=500, actual_bytes=4096)
    with_vmm(vmm, talk)


@fault("the VMM of a driven VM says a size")
@pytest.mark.parametrize(
    ("vmm", "fault"),
    [
        ({"state": ""}, Fault.NO_VM),
        ({"config": {}}, Fault.NO_BALLOON),
        ({"config": {"balloon": None}}, Fault.NO_BALLOON),
        ({"memory": {"size": GIB, "hugepages": True}}, Fault.HUGETLB),
        ({"memory": {"size": 0, "zones": [{"size": GIB, "hugepages": True}]}}, Fault.HUGETLB),
        ({"memory": {"size": 0}}, Fault.NONSENSE),
        ({"memory": {"size": 2**63}}, Fault.NONSENSE),
        ({"memory": {"size": GIB, "zones": {}}}, Fault.NONSENSE),
        ({"actual_bytes": 2 * GIB}, Fault.NONSENSE),
        ({"actual_bytes": -4096}, Fault.NONSENSE),
        ({"state": "Melting"}, Fault.NONSENSE),
        ({"balloon_stats": [1]}, Fault.NONSENSE),
        ({"balloon_stats": {"last_update": float("nan")}}, Fault.NONSENSE),
    ],
)
def test_vm_that_cannot_be_driven_is_named_by_its_fault(
    path: Path, vmm: dict[str, object], fault: Fault
) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        with pytest.raises(ControlError) as caught:
            await opened(control)
        assert caught.value.fault is fault

    with_vmm(FakeCloudHypervisor(path, **vmm), talk)  # type: ignore[arg-type]  # by name


@pytest.mark.parametrize(
    "devices", [{"devices": [{"path": "/sys/x"}]}, {"vdpa": [{"path": "/dev/vhost-vdpa-0"}]}]
)
def test_vm_with_an_assigned_device_is_found_as_one_that_must_not_be_driven(
    path: Path, devices: dict[str, object]
) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        found = await opened(control)
        assert found.against is not None
        assert found.against.fault is Fault.PINNED
        # The VM's balloon can be set all the same, to give back what an earlier balloond took.
        await control.set_balloon(MIB)
        assert vmm.asked[-1] == ("PUT", "/api/v1/vm.resize", {"desired_balloon": MIB})

    with_vmm(FakeCloudHypervisor(path, config=BALLOON | devices), talk)


@fault("a VM that is named cannot be driven")
def test_device_that_is_assigned_later_is_noticed(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        await opened(control)
        vmm.config = vmm.config | {"devices": [{"path": "/sys/x"}]}
        with pytest.raises(ControlError) as caught:
            await control.sample()
        assert caught.value.fault is Fault.PINNED

    with_vmm(FakeCloudHypervisor(path), talk)


@fault("the VMM of a driven VM refuses")
def test_refused_size_has_the_vmms_words(path: Path) -> None:
    async def talk(vmm: FakeCloudHypervisor, control: CloudHypervisorControl) -> None:
        await opened(control)
        vmm.config = {}
        with pytest.raises(ControlError) as caught:
            await control.set_balloon(MIB)
        assert caught.value.fault is Fault.REFUSED
        assert "Virtio-balloon does not exist" in caught.value.detail

    with_vmm(FakeCloudHypervisor(path), talk)
