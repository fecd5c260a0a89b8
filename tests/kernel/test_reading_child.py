"""Files of processes whose reading may wait for ever."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.linux import figures
from balloon_daemon.linux.process_figures import ProcessFigures, user_of
from balloon_daemon.linux.reading_child import ReadsApart
from tests.harness.faults import fault
from tests.harness.slow_close import MuteFile
from tests.harness.waiting import wait_until


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[int]:
    """A process that hangs in execve(2), which closes a file of FUSE for it (O_CLOEXEC)."""
    try:
        mute = MuteFile(tmp_path / "mount")
    except OSError as err:
        pytest.skip(f"needs root, to mount a file system of FUSE: {err}")
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/bin/true", ["true"])
        finally:
            os._exit(1)
    wait_until(lambda: mute.is_being_closed, what="the process hangs in execve(2)")
    yield pid
    mute.close()
    os.waitpid(pid, 0)


@fault("VMM's process hangs in execve(2)")
def test_process_that_hangs_in_exec_is_waited_for_a_moment_and_costs_no_other_user_a_figure(
    stuck: int,
) -> None:
    apart = ReadsApart()
    theirs, own = (os.open(f"/proc/{pid}/io", os.O_RDONLY) for pid in (stuck, os.getpid()))
    try:
        assert b"rchar: " in apart.read(own, 4096, 2)
        with pytest.raises(TimeoutError):
            apart.read(theirs, 4096, 1)
        assert b"rchar: " in apart.read(own, 4096, 2)
        with pytest.raises(TimeoutError):
            apart.read(own, 4096, 1)
    finally:
        apart.close()
        os.close(theirs)
        os.close(own)


@fault("VMM's process hangs in execve(2)")
def test_process_that_hangs_in_exec_has_no_figures(
    stuck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = ReadsApart()
    monkeypatch.setattr(figures, "APART", apart)
    assert ProcessFigures(stuck).read_bytes() is None
    apart.close()


def test_file_that_cannot_be_read_has_the_kernels_reason() -> None:
    apart = ReadsApart()
    try:
        with pytest.raises(IsADirectoryError):
            apart.read(os.open("/", os.O_RDONLY | os.O_CLOEXEC), 1, 1)
    finally:
        apart.close()


def test_process_has_the_user_who_runs_it() -> None:
    assert user_of(os.getpid()) == os.getuid()
    assert user_of(-1) == -1
