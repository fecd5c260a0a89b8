"""Success is what the host got: what a guest gives in vain is said, with its cause, and stops."""

import contextlib
import fcntl
import mmap
import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import F_ADD_SEALS, F_SEAL_FUTURE_WRITE
from balloon_daemon.units import GIB, MIB
from tests.fakes import memory_files
from tests.fakes.memory_files import region
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.host_setting import NR_HUGEPAGES, changed
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import (
    LOST,
    balloon_bytes,
    decisions,
    errors,
    facts,
    keep_ram_in,
    run_until,
    said,
    share_beside,
    wait_for_device,
)

TOUCHED = Population(touched_bytes=128 * MIB, pinned_bytes=16 * MIB)
SETTINGS = GuestSettings(VM_MEM_MIB * MIB, population=TOUCHED)
BESIDE_AT = 8 * GIB
SPEED = "4"
"""A level each quarter of a second, in which a test takes the host out of its need again."""

HELD_AT = MAXIMUM // 2
"""Far above where a balloon that frees nothing stops (a level or two), far below its maximum."""


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    return start_daemon("--speed", SPEED)


@pytest.fixture
def sealable_guest(make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    """A guest whose memory can be sealed."""
    keep_ram_in(memory_files.memfd, VM_MEM_MIB * MIB, monkeypatch)
    guest = make_guest(SETTINGS)
    monkeypatch.undo()
    return guest


def start_vm(guest: FakeGuest, daemon: Daemon) -> FakeGuest:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    return guest


def raise_level(guests: list[FakeGuest], daemon: Daemon, low_mem: LowMemDir) -> None:
    """The host is low for a moment: one level more, or two."""
    before = decisions(daemon)[-1][1] if decisions(daemon) else 0
    low_mem.set_low()
    run_until(guests, lambda: decisions(daemon) != [] and decisions(daemon)[-1][1] > before)
    low_mem.set_available(110)  # Not low any more, and too little to give back.


def give_in_vain(guests: list[FakeGuest], daemon: Daemon, low_mem: LowMemDir) -> None:
    """Has a guest give what it is asked for until that is known to be in vain; the host is low."""
    raise_level(guests, daemon, low_mem)
    run_until(guests, lambda: facts(daemon, "fruitless") != [])
    low_mem.set_low()
    run_until(guests, lambda: is_held(daemon))


def causes(daemon: Daemon) -> list[str]:
    """Why pages were lost, as said."""
    return [record["cause"] for record in facts(daemon, "pages-lost")]


def is_held(daemon: Daemon, vm: str = "vm1") -> bool:
    return "fruitless" in [reason for reason, _ in decisions(daemon, vm)]


def assert_stays(guests: list[FakeGuest], daemon: Daemon) -> None:
    """Its target stays where it is, however long memory is low, and nothing is said twice."""
    target, lost = decisions(daemon)[-1][1], said(daemon, *LOST)
    assert 0 < target < HELD_AT
    looks = len(decisions(daemon))
    run_until(guests, lambda: len(decisions(daemon)) >= looks + 8)
    assert decisions(daemon)[-1] == ("fruitless", target)
    assert said(daemon, *LOST) == lost
    assert len(set(lost)) == len(lost)
    assert errors(daemon) == [] or said(daemon, "host-fault") != []


def give_from(guest: FakeGuest, pfn_of: Callable[[int], int]) -> None:
    """Has its driver name other pages than it takes: the nth of a buffer is ``pfn_of(n)``."""
    guest.ram.numbers.pfns = lambda pages: np.array(  # type: ignore[method-assign]  # this guest's
        [pfn_of(number) for number in range(len(pages))], np.uint32
    )


@fault("seals its memory after the device has mapped it")
def test_memory_that_is_sealed_after_the_device_has_mapped_it_stops_the_target(
    sealable_guest: FakeGuest, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest, neighbour = start_vm(sealable_guest, daemon), start_vm(make_guest(SETTINGS), daemon)
    wait_for_device([guest, neighbour], daemon, "vm1")
    # From here on the kernel answers each MADV_REMOVE with EPERM (mm/shmem.c, shmem_fallocate).
    fcntl.fcntl(guest.ram.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    held = guest.ram.blocks_bytes()

    give_in_vain([guest, neighbour], daemon, low_mem)
    assert_stays([guest, neighbour], daemon)

    assert causes(daemon) == ["refused"]
    assert len(facts(daemon, "fruitless")) == 1
    assert guest.ram.blocks_bytes() == held
    run_until([guest, neighbour], lambda: balloon_bytes(neighbour) == MAXIMUM)
    assert guest.ram.check().pages_corrupt == 0


@fault("seals its memory after the device has mapped it")
def test_balloon_that_is_held_is_given_back_when_memory_is(
    start_daemon: StartDaemon, sealable_guest: FakeGuest, low_mem: LowMemDir
) -> None:
    # The first step down comes after 3 s, which is long enough for one level's giving.
    daemon = start_daemon("--speed", "20")
    guest = start_vm(sealable_guest, daemon)
    wait_for_device([guest], daemon, "vm1")
    fcntl.fcntl(guest.ram.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    give_in_vain([guest], daemon, low_mem)

    low_mem.set_plenty()
    run_until([guest], lambda: decisions(daemon)[-1][1] == 0 and balloon_bytes(guest) == 0)

    # An empty one is worth another try.
    low_mem.set_low()
    run_until([guest], lambda: decisions(daemon)[-1][1] > 0)
    assert guest.ram.check().pages_corrupt == 0


def test_balloon_that_is_held_is_given_back_at_the_end(
    sealable_guest: FakeGuest, daemon: Daemon, low_mem: LowMemDir
) -> None:
    guest = start_vm(sealable_guest, daemon)
    wait_for_device([guest], daemon, "vm1")
    fcntl.fcntl(guest.ram.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    give_in_vain([guest], daemon, low_mem)
    assert balloon_bytes(guest) > 0

    os.kill(daemon.pid, signal.SIGTERM)
    run_until([guest], lambda: bool(guest.disconnected))

    assert balloon_bytes(guest) == 0


@fault("gives pages that come to nothing")
def test_pages_that_are_never_freed_stop_the_target_and_are_said_once(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    file = OwnedFd(memory_files.on_disk(64 * MIB))
    share_beside(guest, (region(BESIDE_AT, 64 * MIB), file.fileno()))
    start_vm(guest, daemon)
    give_from(guest, lambda number: BESIDE_AT // 4096 + number)

    give_in_vain([guest], daemon, low_mem)
    assert_stays([guest], daemon)

    (lost,) = facts(daemon, "pages-lost")
    assert lost["cause"] == "never-freed"
    assert lost["reasons"][0].startswith("is a file on ")
    file.close()


@fault("gives pages that come to nothing")
def test_pages_in_no_region_stop_the_target_and_are_said_with_the_remedy(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # Memory that was plugged in and is not shared: an ordinary RAM back-end.
    guest = start_vm(make_guest(SETTINGS), daemon)
    give_from(guest, lambda number: 4 * GIB // 4096 + number)

    give_in_vain([guest], daemon, low_mem)
    assert_stays([guest], daemon)

    assert causes(daemon) == ["not-shared"]
    assert guest.ram.check().pages_corrupt == 0


def test_pages_of_which_some_are_in_no_region_are_said_and_the_balloon_grows(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = start_vm(make_guest(SETTINGS), daemon)
    pfns, buffers = guest.ram.numbers.pfns, [0]

    def every_eighth_elsewhere(pages: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> object:
        buffers[0] += 1
        found = pfns(pages)
        return found if buffers[0] % 8 else found + np.uint32(4 * GIB // 4096)

    guest.ram.numbers.pfns = every_eighth_elsewhere  # type: ignore  # this guest's
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert len(said(daemon, *LOST)) == 1
    assert not is_held(daemon)


@pytest.fixture
def huge_file() -> Iterator[int]:
    """A memfd of three huge pages."""
    with contextlib.ExitStack() as stack:
        try:
            before = stack.enter_context(changed(NR_HUGEPAGES, lambda n: str(int(n) + 3)))
        except OSError as err:
            pytest.skip(f"needs root, to lend huge pages through {NR_HUGEPAGES}: {err.strerror}")
        fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        stack.callback(os.close, fd)
        os.ftruncate(fd, 6 * MIB)
        if int(NR_HUGEPAGES.read_text()) < int(before) + 3:
            pytest.skip("the host has no three huge pages free")
        yield fd


@fault("gives pages that come to nothing")
def test_huge_pages_that_are_given_in_pieces_stop_the_target_and_are_said_once(
    huge_file: int, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    share_beside(guest, (region(BESIDE_AT, 6 * MIB), huge_file))
    start_vm(guest, daemon)
    give_from(guest, lambda number: BESIDE_AT // 4096 + 2 * number)

    give_in_vain([guest], daemon, low_mem)
    assert_stays([guest], daemon)

    assert causes(daemon) == ["in-pieces"]


def fill_again(guest: FakeGuest, daemon: Daemon, low_mem: LowMemDir) -> None:
    """Takes three levels, fills all holes, takes another one; the host stays low."""
    for _ in range(3):
        raise_level([guest], daemon, low_mem)
    run_until([guest], lambda: balloon_bytes(guest) == decisions(daemon)[-1][1])
    assert said(daemon, *LOST) == []
    guest.ram._words.sum()
    raise_level([guest], daemon, low_mem)
    run_until([guest], lambda: said(daemon, *LOST) != [])
    low_mem.set_low()
    run_until([guest], lambda: is_held(daemon))


@fault("seals its memory after the device has mapped it")
def test_balloon_that_the_vms_files_hold_all_the_same_is_no_success(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # Whatever reads all of a VM's memory (a snapshot, a migration) fills its holes again.
    guest = start_vm(make_guest(SETTINGS), daemon)
    fill_again(guest, daemon, low_mem)
    target = decisions(daemon)[-1][1]

    (lost,) = facts(daemon, *LOST)
    assert lost["event"] == "balloon-not-freed"
    assert any(record["missing_bytes"] for record in facts(daemon, "target-reached"))
    looks = len(decisions(daemon))
    run_until([guest], lambda: len(decisions(daemon)) >= looks + 4)
    assert decisions(daemon)[-1] == ("fruitless", target)


@fault("seals its memory after the device has mapped it")
def test_files_that_are_emptied_again_let_the_balloon_grow_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = start_vm(make_guest(GuestSettings(VM_MEM_MIB * MIB)), daemon)
    fill_again(guest, daemon, low_mem)

    guest.ram._map.madvise(mmap.MADV_REMOVE, 0, VM_MEM_MIB // 2 * MIB)

    run_until([guest], lambda: "at-maximum" in [reason for reason, _ in decisions(daemon)])


@fault("gives pages that come to nothing")
def test_memory_that_changes_is_worth_another_try(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", SPEED, "--vm-mem", "1G")
    guest = start_vm(make_guest(SETTINGS), daemon)
    pfns = guest.ram.numbers.pfns
    give_from(guest, lambda number: 4 * GIB // 4096 + number)
    give_in_vain([guest], daemon, low_mem)

    # The VM's owner has plugged in memory that is shared.
    guest.ram.numbers.pfns = pfns  # type: ignore[method-assign]  # as before
    dimm = OwnedFd(memory_files.memfd(128 * MIB))
    assert guest.frontend is not None
    more = (region(4 * GIB, 128 * MIB), dimm.fileno())
    guest.frontend.share_memory([*guest.ram.shared(), more])

    run_until([guest], lambda: "at-maximum" in [reason for reason, _ in decisions(daemon)])
    dimm.close()
