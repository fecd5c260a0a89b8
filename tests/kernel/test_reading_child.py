"""Files whose reading may wait for ever."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from balloon_daemon.guests import vmm_files
from balloon_daemon.guests.driven.lookups import ask_here
from balloon_daemon.linux import process_figures, process_lookups, reading_child
from balloon_daemon.linux.figures import FigureFile
from balloon_daemon.linux.process_lookups import owner_of
from balloon_daemon.linux.reading_child import ReadsApart
from tests.harness.faults import fault
from tests.harness.many_groups import in_many_groups
from tests.harness.other_user import NOBODY
from tests.harness.slow_close import MuteFile
from tests.harness.vmm_files import figures_of
from tests.harness.waiting import wait_until

VMM, OTHER_VMM, USER, OTHER_USER = 1, 2, 1001, 1002


@pytest.fixture
def apart() -> Iterator[ReadsApart]:
    apart = ReadsApart()
    yield apart
    wait_until(apart.close, what="its children end")


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[int]:
    """A file whose reading waits for ever."""
    try:
        file = MuteFile(tmp_path / "mount")
    except OSError as err:
        pytest.skip(f"needs root, to mount a file system of FUSE: {err}")
    yield file.fd
    file.close()


@pytest.fixture
def quick() -> Iterator[int]:
    fd = os.open("/proc/self/io", os.O_RDONLY)
    yield fd
    os.close(fd)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name() == reading_child.NAME]


@fault("VMM's process keeps whoever reads its files in /proc waiting")
def test_late_reading_is_waited_for_a_moment_and_costs_no_other_process_a_figure(
    apart: ReadsApart, mute: int, quick: int
) -> None:
    assert b"rchar: " in apart.read(quick, 4096, OTHER_VMM, USER)
    with pytest.raises(TimeoutError):
        apart.read(mute, 4096, VMM, USER)
    assert b"rchar: " in apart.read(quick, 4096, OTHER_VMM, USER)
    with pytest.raises(TimeoutError):
        apart.read(quick, 4096, VMM, USER)


@fault("VMM's process keeps whoever reads its files in /proc waiting")
def test_user_of_many_late_processes_has_no_figures_and_others_have(
    apart: ReadsApart, mute: int, quick: int
) -> None:
    late = 0
    # One more, as a part of the limit is regained meanwhile.
    while late * reading_child.WITHIN_S <= reading_child.LATE_S:
        late += 1
        with pytest.raises(TimeoutError):
            apart.read(mute, 4096, late, USER)
    with pytest.raises(TimeoutError):
        apart.read(quick, 4096, late + 1, USER)
    assert b"rchar: " in apart.read(quick, 4096, late + 1, OTHER_USER)


def test_late_process_is_read_again_after_a_pause_that_doubles(
    apart: ReadsApart, mute: int, quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    for pause_s in (reading_child.AGAIN_S, 2 * reading_child.AGAIN_S):
        with pytest.raises(TimeoutError):
            apart.read(mute, 4096, VMM, USER)
        now_s += pause_s - 0.01
        with pytest.raises(TimeoutError):
            apart.read(quick, 4096, VMM, USER)
        now_s += 0.02
    assert b"rchar: " in apart.read(quick, 4096, VMM, USER)


def test_idle_child_ends_and_is_reaped(apart: ReadsApart, quick: int) -> None:
    calls: list[Callable[[], None]] = []
    apart.later = lambda _seconds, call: calls.append(call)
    before = set(os.listdir("/proc/self/fd"))
    apart.read(quick, 4096, VMM, USER)
    (child,) = children()

    calls.pop()()  # It has just been read: the child stays.
    assert child.is_running()
    with later(reading_child.IDLE_S):
        calls.pop()()
    wait_until(lambda: not child.is_running() or child.status() == "zombie", what="it ends")
    while calls:
        calls.pop()()
    assert not psutil.pid_exists(child.pid)
    assert set(os.listdir("/proc/self/fd")) == before


@contextmanager
def later(seconds: float) -> Iterator[None]:
    real = time.monotonic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: real() + seconds)
        yield


def test_child_that_has_not_begun_for_want_of_a_processor_is_waited_for(
    apart: ReadsApart, quick: int
) -> None:
    """A stopped child stands for one that is not scheduled; it goes on after the time in which a
    reading is late."""
    apart.read(quick, 4096, VMM, USER)
    (child,) = children()
    child.suspend()
    wait_until(lambda: child.status() == "stopped", what="it is stopped")
    goes_on = threading.Timer(3 * reading_child.WITHIN_S, child.resume)
    goes_on.start()
    assert b"rchar: " in apart.read(quick, 4096, VMM, USER)
    goes_on.join()


def test_child_that_never_gets_a_processor_is_late(
    apart: ReadsApart, quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_child, "WITHIN_S", 0.01)
    apart.read(quick, 4096, VMM, USER)
    (child,) = children()
    child.suspend()
    wait_until(lambda: child.status() == "stopped", what="it is stopped")
    with pytest.raises(TimeoutError):
        apart.read(quick, 4096, VMM, USER)


def test_killed_child_is_replaced(apart: ReadsApart, quick: int) -> None:
    apart.read(quick, 4096, VMM, USER)
    (child,) = children()
    child.kill()
    assert b"rchar: " in apart.read(quick, 4096, VMM, USER)


def test_file_that_cannot_be_read_has_the_kernels_reason(apart: ReadsApart) -> None:
    directory = os.open("/", os.O_RDONLY | os.O_CLOEXEC)
    with pytest.raises(IsADirectoryError):
        apart.read(directory, 1, VMM, USER)
    os.close(directory)


@fault("VMM's process keeps whoever reads its files in /proc waiting")
def test_process_whose_files_are_read_too_slowly_has_them_read_again_later(
    apart: ReadsApart, mute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = os.getppid()
    figures = figures_of(pid)
    with pytest.raises(TimeoutError):
        apart.read(mute, 4096, pid, user_of(pid))
    monkeypatch.setattr(process_figures, "APART", apart)
    assert (figures.read_bytes(), figures.may_tell_reads) == (None, True)
    assert not figures.has_failed


def read_often(apart: ReadsApart, fd: int, pid: int, times: int) -> None:
    for _ in range(times):
        apart.read(fd, 4096, pid, USER)


@fault("VMM's process is in very many groups")
def test_user_whose_processes_files_take_long_to_make_has_no_figures_and_others_have(
    apart: ReadsApart, quick: int
) -> None:
    with in_many_groups() as pid:
        status = os.open(f"/proc/{pid}/status", os.O_RDONLY)
        most = int(reading_child.LATE_S / reading_child.QUICK_S) + 1
        with pytest.raises(TimeoutError):
            read_often(apart, status, pid, most)
        os.close(status)
    with pytest.raises(TimeoutError):
        apart.read(quick, 4096, VMM, USER)
    for _ in range(most):  # These are quick.
        assert b"rchar: " in apart.read(quick, 4096, VMM, OTHER_USER)


def test_figures_are_those_that_this_process_would_read(apart: ReadsApart) -> None:
    file = FigureFile("/proc/cmdline")
    try:
        assert file.read(4096, lambda fd, most: apart.read(fd, most, VMM, USER)) == file.read()
    finally:
        file.close()


def user_of(pid: int) -> int:
    return asyncio.run(vmm_files.user_of(pid, ask_here))


def test_process_has_the_user_who_runs_it() -> None:
    assert user_of(os.getpid()) == os.getuid()
    assert user_of(-1) == -1


@fault("VMM's process is in very many groups")
def test_user_is_told_without_a_reading_of_what_takes_long_to_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[object] = []
    monkeypatch.setattr(process_lookups, "_read", lambda *file: read.append(file))
    with in_many_groups() as pid:
        assert user_of(pid) == NOBODY
    assert read == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have another real user")
def test_user_who_runs_a_program_as_root_is_charged_for_it() -> None:
    program = f"import os; os.setresuid({NOBODY}, 0, 0); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert (owner_of(process.pid), user_of(process.pid)) == (0, NOBODY)
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_user_of_a_process_that_is_not_dumpable_is_charged_for_it() -> None:
    # A process that changes its user is not dumpable until it executes a program.
    program = f"import os; os.setresuid(*3 * [{NOBODY}]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert os.stat(f"/proc/{process.pid}/status").st_uid == 0
        assert user_of(process.pid) == NOBODY
        process.kill()
