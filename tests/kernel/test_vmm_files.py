"""Files of VMMs' processes in /proc, which children open for the controller."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.guests import vmm_files
from balloon_daemon.guests.driven import memory_files, path_orders, vmm_process
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.lookups import LOOKUPS
from balloon_daemon.guests.driven.memory_files import MemoryFiles
from balloon_daemon.guests.vmm_files import FiguresToCome, Take
from balloon_daemon.linux import asked_child, measuring_child, process_lookups, reading_child
from balloon_daemon.linux.measuring_child import MeasuringChild
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.linux.process_figures import ProcessFiles
from balloon_daemon.units import MIB
from tests.fakes.quick_loop import run_quickly
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds, room_for_fds
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.slow_close import MuteDirectory
from tests.harness.vmm_files import files_in_proc
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach, balloon_bytes

SLOW, USER = 1001, 1002


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_files_are_the_processs_own_and_are_closed_by_exec(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    files = asyncio.run(vmm_files.opened(sleeper.pid, LOOKUPS.ask))
    here = files_in_proc(sleeper.pid)
    assert files is not None
    assert here is not None
    assert files.io is not None
    assert (files.pid, files.user, files.started) == (sleeper.pid, os.getuid(), here.started)
    for file, name in ((files.statm, "statm"), (files.io, "io")):
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == f"/proc/{sleeper.pid}/{name}"
        assert not os.get_inheritable(file.fileno())


def test_figures_of_a_process_that_has_ended_are_unknown_whoever_has_its_number(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    async def scene() -> list[int | None]:
        host = HostSide(await vmm_process.opened(sleeper.pid, LOOKUPS.ask))
        before = host.held_bytes()
        sleeper.kill()
        sleeper.wait()
        return [before, host.held_bytes(), host.disk_read_bytes()]

    before, *after = asyncio.run(scene())
    assert (before or 0) > 0
    assert after == [None, None]


@fault("no descriptor is free for the files of a VMM's process")
def test_files_for_which_there_is_no_room_are_refused_and_none_stays_open(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    async def scene() -> None:
        # The child and its socket are there before there is no more room.
        await vmm_files.user_of(sleeper.pid, LOOKUPS.ask)
        before = open_fds()
        with room_for_fds(1), pytest.raises(OSError, match="Too many open files"):
            await vmm_files.opened(sleeper.pid, LOOKUPS.ask)
        assert open_fds() == before
        assert await vmm_files.opened(sleeper.pid, LOOKUPS.ask) is not None

    asyncio.run(scene())


@pytest.fixture
def files() -> Iterator[MemoryFiles]:
    files = MemoryFiles()
    yield files
    wait_until(files.close, what="its children end")
    if files.low is not None:
        files.low.close()


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[MuteDirectory]:
    try:
        directory = MuteDirectory(tmp_path / "mount")
    except OSError as err:
        pytest.skip(f"needs root, to mount a file system of FUSE: {err}")
    yield directory
    directory.close()


@pytest.fixture
def memory() -> Iterator[str]:
    """The path of a memory file of this process that occupies 1 MiB."""
    fd = create_memfd("memory", size_bytes=4 * MIB)
    os.pwrite(fd, b"1" * MIB, 0)
    yield f"/proc/{os.getpid()}/fd/{fd}"
    os.close(fd)


def process_of(user: int) -> ProcessFiles:
    """This process, as one of a user's."""
    files = files_in_proc(os.getpid())
    assert files is not None
    return replace(files, user=user)


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.name() == measuring_child.NAME]


@fault("a lookup in the directory of a VMM's process waits")
def test_user_whose_files_cannot_be_looked_up_has_no_figures_of_them_and_others_have(
    files: MemoryFiles, mute: MuteDirectory, memory: str
) -> None:
    directory = os.path.dirname(mute.path)
    # The kernel looks up one name of this directory at a time; the next lookup waits for the
    # first in a way that no signal ends.
    first = os.fork()
    if first == 0:
        with contextlib.suppress(OSError):
            os.stat(f"{directory}/first")
        os._exit(0)
    wchan = Path(f"/proc/{first}/wchan")
    wait_until(lambda: "request_wait_answer" in wchan.read_text(), what="the first waits")

    async def scene() -> None:
        slow, other = process_of(SLOW), process_of(USER)
        assert files.blocks(slow, memory) == MIB // 512
        assert files.blocks(slow, mute.path) is None
        (late,) = children()
        # The same user is refused without a child, until that one has ended.
        assert files.blocks(slow, memory) is None
        assert children() == [late]
        assert late.status() == psutil.STATUS_DISK_SLEEP
        assert files.blocks(other, memory) == MIB // 512
        side = HostSide(slow, memory, files)
        assert side.held_bytes() is None
        assert (side.disk_read_bytes() or 0) > 0
        mute.answer()
        wait_until(lambda: files.blocks(slow, memory) == MIB // 512, what="it has ended")

    asyncio.run(scene())
    os.waitpid(first, 0)


@fault("a lookup in the directory of a VMM's process waits")
def test_late_children_are_bounded_for_all_users(
    files: MemoryFiles, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(child: MeasuringChild, within_s: float) -> None:
        raise TimeoutError

    async def scene() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MeasuringChild, "is_gone", lambda child: False)
            for user in range(memory_files.MOST_LATE):
                assert files.blocks(process_of(USER), memory) == MIB // 512
                with monkeypatch.context() as slow:
                    slow.setattr(MeasuringChild, "answer", late)
                    assert files.blocks(process_of(2000 + user), memory) is None
            assert files.blocks(process_of(USER), memory) is None
        assert files.blocks(process_of(USER), memory) == MIB // 512

    asyncio.run(scene())


def test_killed_child_is_replaced(files: MemoryFiles, memory: str) -> None:
    async def scene() -> None:
        assert files.blocks(process_of(USER), memory) == MIB // 512
        (child,) = children()
        child.kill()
        wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE, what="it has ended")
        assert files.blocks(process_of(USER), memory) is None
        assert files.blocks(process_of(USER), memory) == MIB // 512
        assert child not in children()

    asyncio.run(scene())


def test_child_that_does_not_begin_is_waited_for_once_and_replaced(
    files: MemoryFiles, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_s: list[float] = []

    def late(child: MeasuringChild, within_s: float) -> None:
        waited_s.append(within_s)
        raise TimeoutError

    async def scene() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(MeasuringChild, "answer", late)
            assert files.blocks(process_of(USER), memory) is None
            assert files.blocks(process_of(USER), memory) is None
            patch.setattr(memory_files, "BEGINS_WITHIN_S", 0.0)
            assert files.blocks(process_of(USER), memory) is None
        assert waited_s == [reading_child.WITHIN_S, 0.0, 0.0]
        assert files.blocks(process_of(USER), memory) == MIB // 512

    asyncio.run(scene())


def test_idle_child_ends(files: MemoryFiles, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_files, "IDLE_S", 0.01)

    async def scene() -> None:
        assert files.blocks(process_of(USER), memory) == MIB // 512
        async with asyncio.timeout(HANG_S):
            while children():
                await asyncio.sleep(0.01)
        assert files.blocks(process_of(USER), memory) == MIB // 512

    asyncio.run(scene())


@fault("a lookup in the directory of a VMM's process waits")
def test_files_are_asked_for_again_after_a_pause_that_doubles() -> None:
    asked_s: list[float] = []
    came: list[bool] = []

    async def ask(order: Sequence[object], take: Take, fd: int = -1) -> None:
        now_s = asyncio.get_running_loop().time()
        if order[0] == "owner":
            asked_s.append(now_s)
            if len(asked_s) < 4:
                raise TimeoutError
        for part in path_orders.answers(list(order), fd, lambda owner: None):
            take(part)

    async def scene() -> None:
        figures = FiguresToCome(os.getppid(), ask, lambda: came.append(True))
        figures.want()
        figures.want()
        assert figures.now.read_bytes() is None
        await asyncio.sleep(100)
        assert figures.now.may_tell_reads
        figures.want()
        await asyncio.sleep(100)
        figures.close()
        assert not figures.now.may_tell_reads

    run_quickly(scene())
    pauses = [round(after - before) for before, after in itertools.pairwise(asked_s)]
    assert pauses == [1, 2, 4]
    assert came == [True]


def files_of_our_process(daemon_pid: int) -> int:
    """How many of this process's files io a daemon has open; the VMMs of these tests are here."""
    links = [file.link for file in process_lookups.files_of(daemon_pid)]
    return links.count(f"/proc/{os.getpid()}/io")


def looker_of(daemon_pid: int) -> int:
    children = psutil.Process(daemon_pid).children()
    return next((each.pid for each in children if each.name() == asked_child.NAME), 0)


@fault("a lookup in the directory of a VMM's process waits")
def test_vm_is_served_while_the_child_that_looks_at_its_process_does_not_answer(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon()
    first = attach(make_guest(), daemon)
    daemon.wait(lambda: files_of_our_process(daemon.pid) == 1, what="the first's files are open")
    looker = looker_of(daemon.pid)
    os.kill(looker, signal.SIGSTOP)
    second = attach(make_guest(), daemon)
    low_mem.set_low()
    run([first, second], lambda: balloon_bytes(first) == balloon_bytes(second) == MAXIMUM)
    # The child is given up after a second, and the next one answers.
    run([first, second], lambda: files_of_our_process(daemon.pid) == 2)
    assert not psutil.pid_exists(looker)
