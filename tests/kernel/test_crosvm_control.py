"""crosvm's balloon by its control socket, on a server made from the published source."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.crosvm import MAX_MESSAGE_BYTES, CrosvmControl
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import GIB, MIB
from tests.fakes.crosvm import FakeCrosvm
from tests.harness.faults import fault
from tests.harness.vmm_talks import opened, talk_with

Talk = Callable[[FakeCrosvm, CrosvmControl], Awaitable[None]]
SHORT_S = 0.05
STATS: object = {"BalloonCommand": "Stats"}


def with_crosvm(vmm: FakeCrosvm, talk: Talk, stats_within_s: float = 60.0) -> None:
    talk_with(vmm, lambda path: CrosvmControl(path, stats_within_s), talk)


def test_running_vm_is_described_squeezed_and_released(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        found = await opened(control)
        assert (found.vm_mem_bytes, found.balloon_bytes) == (GIB, 0)
        assert found.state is GuestState.RUNNING
        assert found.can == {Ability.STATS}
        assert found.pid == os.getpid()
        assert os.stat(found.memory_file).st_size == GIB

        await control.set_balloon(100 * MIB)
        assert vmm.asked[-1] == {
            "BalloonCommand": {"Adjust": {"num_bytes": 100 * MIB, "wait_for_success": False}}
        }
        sample = await control.sample()
        assert sample.balloon_bytes == 100 * MIB
        assert sample.stats is not None
        assert sample.stats.free_bytes == 512 * MIB

    with_crosvm(FakeCrosvm(path), talk)


@fault("no driver listens yet in a VM that is driven by an API")
def test_guest_without_driver_is_no_fault_and_its_order_waits(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        found = await opened(control)
        assert (found.state, found.balloon_bytes) == (GuestState.NO_DRIVER, None)
        await control.set_balloon(64 * MIB)
        assert (await control.sample()).state is GuestState.NO_DRIVER
        vmm.driver = True
        assert (await control.sample()).state is GuestState.RUNNING
        assert (await control.sample()).balloon_bytes == 64 * MIB

    with_crosvm(FakeCrosvm(path, driver=False), talk)


@fault("a guest of crosvm's stands still")
def test_silent_version_without_driver_is_asked_once_and_answers_late(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        assert (await opened(control)).state is GuestState.NO_DRIVER
        assert (await control.sample()).state is GuestState.NO_DRIVER
        assert vmm.asked == [STATS]
        vmm.driver_comes()
        assert (await control.sample()).state is GuestState.RUNNING
        vmm.driver = False
        assert (await control.sample()).state is GuestState.PAUSED
        assert vmm.asked == [STATS, STATS]

    with_crosvm(FakeCrosvm(path, driver=False, enotconn=False), talk, SHORT_S)


@fault("a guest of crosvm's stands still")
def test_answer_that_comes_after_its_call_is_old_and_another_is_asked_for(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        await opened(control)
        vmm.driver = False
        assert (await control.sample()).state is GuestState.PAUSED
        vmm.driver_comes()
        for _ in range(4):  # turns of the event loop, in which the answer arrives
            await asyncio.sleep(0)
        vmm.stats["free_memory"] = 7 * MIB
        stats = (await control.sample()).stats
        assert stats is not None
        assert stats.free_bytes == 7 * MIB
        assert vmm.asked == [STATS] * 3

    with_crosvm(FakeCrosvm(path, enotconn=False), talk, SHORT_S)


def test_size_of_unseen_memory_is_the_guests_own_total(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        found = await opened(control)
        assert (found.vm_mem_bytes, found.memory_file) == (900 * MIB, "")
        vmm.stats["total_memory"] = 800 * MIB  # as its balloon grows
        assert (await control.sample()).vm_mem_bytes == 900 * MIB

    vmm = FakeCrosvm(path, memory_name="elsewhere", stats={"total_memory": 900 * MIB})
    with_crosvm(vmm, talk)


def test_total_that_leaves_out_a_balloon_of_over_half_the_vm_makes_sense(path: Path) -> None:
    """The balloon was made by an earlier balloond, so this one has never seen the guest's total
    without a balloon."""

    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        found = await opened(control)
        assert (found.vm_mem_bytes, found.balloon_bytes) == (900 * MIB, 500 * MIB)
        vmm.stats["total_memory"], vmm.actual_bytes = 900 * MIB, 0  # It is given back.
        assert (await control.sample()).vm_mem_bytes == 900 * MIB

    left: dict[str, object] = {"total_memory": 400 * MIB}
    vmm = FakeCrosvm(path, memory_name="elsewhere", actual_bytes=500 * MIB, stats=left)
    with_crosvm(vmm, talk)


@pytest.mark.parametrize("stats", [{}, {"total_memory": 1 << 63}, {"total_memory": -1}])
@pytest.mark.parametrize("driver", [True, False])
def test_unseen_memory_of_a_guest_that_says_no_size_waits_for_one(
    path: Path, stats: dict[str, object], driver: bool
) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        with pytest.raises(ControlError, match="no /memfd:crosvm_guest in /proc/") as caught:
            await opened(control)
        assert caught.value.fault is Fault.NO_SIZE
        vmm.driver, vmm.stats = True, {"total_memory": GIB}
        assert (await control.sample()).vm_mem_bytes == GIB

    with_crosvm(FakeCrosvm(path, memory_name="elsewhere", driver=driver, stats=stats), talk)


@fault("the VMM of a driven VM hangs, sends garbage")
@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b'{"Err": 95}', Fault.NO_BALLOON),
        (b'{"Err": 22}', Fault.REFUSED),
        (b'{"ErrString": "no"}', Fault.REFUSED),
        (b'"Ok"', Fault.NONSENSE),
        (b"null", Fault.NONSENSE),
        (b"\0garbage", Fault.NONSENSE),
        (b"[" * MAX_MESSAGE_BYTES, Fault.NONSENSE),
        (b" " * (MAX_MESSAGE_BYTES + 9), Fault.NONSENSE),
        (
            b'{"BalloonStats": {"stats": {}, "balloon_actual": 9223372036854775808}}',
            Fault.NONSENSE,
        ),
        (b'{"BalloonStats": {"stats": {}, "balloon_actual": -1}}', Fault.NONSENSE),
        (b'{"BalloonStats": {"stats": {}, "balloon_actual": 1073741825}}', Fault.NONSENSE),
        (b'{"BalloonStats": {"stats": {}, "balloon_actual": "0"}}', Fault.NONSENSE),
        (b'{"BalloonStats": {"stats": [], "balloon_actual": 0}}', Fault.NONSENSE),
        (b'{"BalloonStats": null}', Fault.NONSENSE),
    ],
)
def test_answer_without_sense_is_named_by_its_fault(path: Path, raw: bytes, fault: Fault) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        with pytest.raises(ControlError) as caught:
            await opened(control)
        assert caught.value.fault is fault
        assert caught.value.detail.isprintable()

    with_crosvm(FakeCrosvm(path, raw=raw), talk)


@fault("the VMM of a driven VM says a size")
def test_statistics_without_sense_are_unknown(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        await opened(control)
        stats = (await control.sample()).stats
        assert stats is not None
        assert (stats.free_bytes, stats.total_bytes, stats.caches_bytes) == (None, None, 7)

    lies: dict[str, object] = {"free_memory": -5, "total_memory": "x", "disk_caches": 7}
    with_crosvm(FakeCrosvm(path, stats=lies), talk)


def test_end_of_the_vm_is_noticed_by_whoever_waits_or_asks(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        await opened(control)
        gone = asyncio.ensure_future(control.gone())
        vmm.driver, vmm.enotconn = False, False
        sample = asyncio.ensure_future(control.sample())
        while len(vmm.asked) < 2:
            await asyncio.sleep(0)
        await vmm.hang_up()
        await gone
        with pytest.raises(ControlError) as caught:
            await sample
        assert caught.value.fault is Fault.GONE
        with pytest.raises(ControlError) as caught:
            await control.set_balloon(0)
        assert caught.value.fault is Fault.GONE

    with_crosvm(FakeCrosvm(path), talk)


@fault("the VMM of a driven VM hangs, sends garbage")
def test_packet_that_nobody_asked_for_ends_the_connection(path: Path) -> None:
    async def talk(vmm: FakeCrosvm, control: CrosvmControl) -> None:
        await opened(control)
        for client in vmm.clients.values():
            client.send(json.dumps("Ok").encode())
        assert (await control.gone()).fault is Fault.NONSENSE

    with_crosvm(FakeCrosvm(path), talk)
