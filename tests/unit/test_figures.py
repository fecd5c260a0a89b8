"""Files that others may lock: they stay open, and are closed where nobody waits for it."""

import errno
import os
from pathlib import Path

import pytest

from balloon_daemon.host.low_memory import ChromeosLowMemory
from balloon_daemon.host.zoneinfo import per_cpu_free_bytes
from balloon_daemon.linux import figures
from balloon_daemon.linux.cgroup import MemoryCgroups
from balloon_daemon.linux.figures import (
    CLOSED_HERE_S,
    LOOK_EVERY,
    MOST_KEPT,
    MOST_LEFT,
    REGAINED,
    TOGETHER,
    Closes,
    FigureFile,
    read_figures,
    read_once,
)
from balloon_daemon.linux.meminfo import host_memory
from balloon_daemon.linux.mountinfo import read_mounts
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds
from tests.harness.vmm_files import figures_of
from tests.harness.waiting import wait_until


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, FigureFile]:
    """The files that `read_figures` keeps, at first none."""
    files = dict[str, FigureFile]()
    monkeypatch.setattr(figures, "_kept", files)
    return files


@fault("any user puts many locks on a file that balloond reads")
@pytest.mark.usefixtures("kept")
def test_no_source_of_figures_closes_a_file_between_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("available", "margin"):
        (tmp_path / name).write_text("100")
    source = ChromeosLowMemory(tmp_path)
    cgroups, before = MemoryCgroups(has_unit=False), open_fds()
    of_vmm = figures_of(os.getpid())

    def look() -> set[str]:
        source.read()
        total_bytes = host_memory().total_bytes
        per_cpu_free_bytes(total_bytes)
        cgroups.limits(total_bytes)
        read_mounts()
        assert of_vmm.read_bytes()
        assert of_vmm.resident_bytes()
        return open_fds() - before

    first = look()
    with monkeypatch.context() as watched:
        closed = list[int]()
        watched.setattr(figures._CLOSES, "close", closed.append)
        assert [look() for _ in range(20)] == [first] * 20
    assert closed == []
    paths = [name.partition(" ")[2] for name in first]
    assert len(set(paths)) == len(paths)
    names = {path.rpartition("/")[2] for path in paths}
    assert names >= {"available", "margin", "meminfo", "zoneinfo", "mountinfo", "io", "statm"}
    source.close()
    of_vmm.close()
    assert len(open_fds() - before) == len(first) - 4


def test_file_that_changes_or_is_replaced_is_read_anew(tmp_path: Path) -> None:
    path, other = tmp_path / "available", tmp_path / "other"
    file = FigureFile(str(path))
    with pytest.raises(FileNotFoundError, match="available"):
        file.read()
    path.write_text("100")
    found = [file.read()]
    path.write_text("20")
    found.append(file.read())
    other.write_text("3")
    other.rename(path)
    found.append(file.read())
    assert found == [b"100", b"20", b"3"]
    path.unlink()
    before = open_fds()
    with pytest.raises(FileNotFoundError, match="available"):
        file.read()
    assert len(before - open_fds()) == 1


def test_file_that_the_kernel_makes_is_looked_up_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, stat = list[str](), os.stat

    def noted(path: str) -> os.stat_result:
        looked.append(path)
        return stat(path)

    file = FigureFile("/proc/meminfo")
    with monkeypatch.context() as watched:
        watched.setattr("balloon_daemon.linux.figures.os.stat", noted)
        read = [file.read() for _ in range(2 * LOOK_EVERY)]
    assert all(b"MemTotal" in content for content in read)
    assert looked == ["/proc/meminfo"] * 2
    file.close()


def test_written_file_that_is_empty_at_first_is_looked_up_at_each_reading(tmp_path: Path) -> None:
    path, other = tmp_path / "available", tmp_path / "other"
    path.touch()
    file = FigureFile(str(path))
    found = [file.read()]
    other.write_text("3")
    other.rename(path)
    assert [*found, file.read()] == [b"", b"3"]
    file.close()


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "available"
    path.write_bytes(bytes(200_000))
    assert [len(FigureFile(str(path)).read(most)) for most in (256, 1 << 24)] == [256, 200_000]
    assert len(read_once(str(path), 256)) == 256


def test_few_files_stay_open(tmp_path: Path, kept: dict[str, FigureFile]) -> None:
    before = open_fds()
    for number in range(MOST_KEPT + 5):
        path = tmp_path / str(number)
        path.write_text("1")
        read_figures(str(path))
    assert len(open_fds() - before) == len(kept) == MOST_KEPT


@fault("any user puts many locks on a file that balloond reads")
def test_closes_that_have_taken_long_are_left_to_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    closes, before = Closes(), open_fds()
    with monkeypatch.context() as long:
        long.setattr(figures, "CLOSED_HERE_S", 0.0)
        for _ in range(TOGETHER - 1):
            closes.close(os.memfd_create("figures"))
        assert len(open_fds() - before) == TOGETHER - 1
        closes.close(os.memfd_create("figures"))
    wait_until(
        lambda: not any("memfd:figures" in name for name in open_fds()),
        what="a child has closed them",
    )

    def is_idle() -> bool:
        closes.close_left()
        return open_fds() == before

    wait_until(is_idle, what="the child has ended")


@fault("any user puts many locks on a file that balloond reads")
def test_closes_are_made_here_again_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, closes, before = [1000.0], Closes(), open_fds()

    def close(fd: int) -> None:
        now_s[0] += 2 * CLOSED_HERE_S
        os_close(fd)

    os_close = os.close
    monkeypatch.setattr("balloon_daemon.linux.figures.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("balloon_daemon.linux.figures.os.close", close)
    closes.close(os.memfd_create("slow"))
    closes.close(os.memfd_create("waits"))
    now_s[0] += 2 * CLOSED_HERE_S / REGAINED
    closes.close(os.memfd_create("slow again"))
    left = open_fds() - before
    assert len(left) == 1
    assert "memfd:waits" in left.pop()
    for fd in closes._left:
        os_close(fd)


@fault("any user puts many locks on a file that balloond reads")
def test_no_file_is_opened_while_too_many_wait_for_their_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closes = Closes()
    monkeypatch.setattr(closes, "_left", [-1] * MOST_LEFT)
    monkeypatch.setattr(figures, "_CLOSES", closes)

    def no_process(*_arguments: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(figures, "ClosingChild", no_process)
    path = tmp_path / "stat"
    path.write_text("1")
    with pytest.raises(BlockingIOError) as caught:
        read_once(str(path))
    assert caught.value.errno == errno.EAGAIN
