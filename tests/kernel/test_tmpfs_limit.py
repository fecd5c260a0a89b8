"""A VM's memory on a tmpfs with a size limit: what it gives up there, another file may take."""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import GIB, MIB
from tests.fakes import memory_files
from tests.fakes.memory_files import region
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.small_tmpfs import SmallTmpfs
from tests.harness.whole_vm import (
    balloon_bytes,
    decisions,
    keep_ram_in,
    run_until,
    said,
    share_beside,
    wait_for_device,
)

LIMIT_MIB = VM_MEM_MIB + 88
MakeTmpfs = Callable[[int], SmallTmpfs]


@pytest.fixture
def make_tmpfs(tmp_path: Path) -> Iterator[MakeTmpfs]:
    """Mounts a tmpfs with this limit in MiB."""
    mounted: list[SmallTmpfs] = []

    def make(size_mib: int) -> SmallTmpfs:
        try:
            mounted.append(SmallTmpfs(tmp_path / "tmpfs", size_mib))
        except PermissionError as err:
            pytest.skip(f"needs root, or user namespaces: {err}")
        return mounted[-1]

    yield make
    for tmpfs in mounted:
        tmpfs.close()


@pytest.fixture
def guest_on(make_guest: MakeGuest) -> Callable[[SmallTmpfs], FakeGuest]:
    """Makes a guest of 512 MiB there that has used all of its memory."""

    def make(tmpfs: SmallTmpfs) -> FakeGuest:
        with pytest.MonkeyPatch.context() as patch:
            keep_ram_in(lambda size: tmpfs.open("ram", size), VM_MEM_MIB * MIB, patch)
            guest = make_guest(GuestSettings(VM_MEM_MIB * MIB))
        os.posix_fallocate(guest.ram.fd, 0, VM_MEM_MIB * MIB)
        return guest

    return make


def start_vm(guest: FakeGuest, daemon: Daemon) -> FakeGuest:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    return guest


def warnings(daemon: Daemon) -> list[str]:
    return said(daemon, "tmpfs-limited", "gives-huge-pages")


def reasons(daemon: Daemon) -> list[str]:
    return [reason for reason, _ in decisions(daemon)]


@fault("memory on a tmpfs with a size limit, which others fill")
def test_limit_with_room_is_warned_of_once_and_the_balloon_comes_and_goes(
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_tmpfs: MakeTmpfs,
    guest_on: Callable[[SmallTmpfs], FakeGuest],
) -> None:
    daemon = start_daemon("--speed", "300")
    guest = start_vm(guest_on(make_tmpfs(LIMIT_MIB)), daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    guest.reboot()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    low_mem.set_plenty()
    run_until([guest], lambda: balloon_bytes(guest) == 0)

    (line,) = warnings(daemon)
    assert line.startswith(
        f"guest memory is a file on a tmpfs with a limit of {LIMIT_MIB} MiB (88 MiB free): "
    )
    assert "use memory-backend-memfd, or a tmpfs without a limit" in line
    assert "no-room" not in reasons(daemon)


@fault("memory on a tmpfs with a size limit, which others fill")
def test_limit_that_is_short_when_the_vm_attaches_nothing_is_taken(
    daemon: Daemon,
    low_mem: LowMemDir,
    make_tmpfs: MakeTmpfs,
    make_guest: MakeGuest,
    guest_on: Callable[[SmallTmpfs], FakeGuest],
) -> None:
    # Half of the guest's memory is a hole, and there is room for a quarter of it only.
    tmpfs = make_tmpfs(LIMIT_MIB)
    guest, neighbour = guest_on(tmpfs), make_guest(GuestSettings(VM_MEM_MIB * MIB))
    guest.ram._map.madvise(mmap.MADV_REMOVE, 0, VM_MEM_MIB // 2 * MIB)
    tmpfs.fill(but_bytes=VM_MEM_MIB // 4 * MIB)
    start_vm(guest, daemon)
    start_vm(neighbour, daemon)

    low_mem.set_low()
    run_until([guest, neighbour], lambda: balloon_bytes(neighbour) == MAXIMUM)
    run_until([guest, neighbour], lambda: "no-room" in reasons(daemon))

    assert {target for _, target in decisions(daemon)} == {0}
    assert balloon_bytes(guest) == 0
    assert len(warnings(daemon)) == 1
    # Said once, not each second.
    lines = [r for r in daemon.records() if r.get("reason") == "no-room" and r["level"] == "info"]
    assert len(lines) == 1


@fault("memory on a tmpfs with a size limit, which others fill")
def test_limit_that_becomes_short_no_more_is_taken_until_there_is_room_again(
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_tmpfs: MakeTmpfs,
    guest_on: Callable[[SmallTmpfs], FakeGuest],
) -> None:
    # A level each quarter of a second: others fill the tmpfs long before the top.
    daemon = start_daemon("--speed", "4")
    tmpfs = make_tmpfs(LIMIT_MIB)
    guest = start_vm(guest_on(tmpfs), daemon)
    wait_for_device([guest], daemon, "vm1")
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) >= 2 * MAXIMUM // 16)
    low_mem.set_available(110)  # Not low, and too little to give back.

    tmpfs.fill(but_bytes=8 * MIB)
    low_mem.set_low()
    run_until([guest], lambda: "no-room" in reasons(daemon))
    stood_at = decisions(daemon)[-1][1]
    looks = len(decisions(daemon))
    run_until([guest], lambda: len(decisions(daemon)) >= looks + 8)
    assert decisions(daemon)[-1] == ("no-room", stood_at)
    assert 0 < stood_at < MAXIMUM

    tmpfs.empty()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)


@pytest.mark.parametrize("kind", ["tmpfs-without-a-limit", "memfd"])
def test_memory_without_a_limit_is_taken_without_a_word(
    kind: str,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_tmpfs: MakeTmpfs,
    make_guest: MakeGuest,
    guest_on: Callable[[SmallTmpfs], FakeGuest],
) -> None:
    settings = GuestSettings(VM_MEM_MIB * MIB)
    guest = guest_on(make_tmpfs(0)) if kind.startswith("tmpfs") else make_guest(settings)
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert warnings(daemon) == []
    assert "no-room" not in reasons(daemon)


def test_two_files_on_one_tmpfs_are_warned_of_once(
    daemon: Daemon,
    low_mem: LowMemDir,
    make_tmpfs: MakeTmpfs,
    guest_on: Callable[[SmallTmpfs], FakeGuest],
) -> None:
    tmpfs = make_tmpfs(LIMIT_MIB + 64)
    guest = guest_on(tmpfs)
    dimm = OwnedFd(tmpfs.open("dimm", 64 * MIB))
    share_beside(guest, (region(8 * GIB, 64 * MIB), dimm.fileno()))
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert len(warnings(daemon)) == 1
    dimm.close()


def test_memory_beside_the_limited_one_counts_not(
    daemon: Daemon,
    low_mem: LowMemDir,
    make_tmpfs: MakeTmpfs,
    make_guest: MakeGuest,
) -> None:
    # The hole is the memfd's; the file on the tmpfs is whole and can lose nothing.
    tmpfs = make_tmpfs(64)
    guest = make_guest(GuestSettings(VM_MEM_MIB * MIB))
    file = OwnedFd(tmpfs.open("shm", 32 * MIB))
    os.posix_fallocate(file.fileno(), 0, 32 * MIB)
    tmpfs.fill(but_bytes=0)
    share_beside(guest, (region(8 * GIB, 32 * MIB), file.fileno()))
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert "no-room" not in reasons(daemon)
    file.close()


def test_file_that_is_never_freed_is_not_warned_of(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(GuestSettings(VM_MEM_MIB * MIB))
    file = OwnedFd(memory_files.on_disk(32 * MIB))
    share_beside(guest, (region(8 * GIB, 32 * MIB), file.fileno()))
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert warnings(daemon) == []
    file.close()
