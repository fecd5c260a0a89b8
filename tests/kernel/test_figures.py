"""Files of the kernel that come whole with one read(2)."""

import errno
import os
import threading
from pathlib import Path

import pytest

from balloon_daemon.linux.figures import FigureFile, content_of, one_read_of
from balloon_daemon.linux.mountinfo import read_mounts
from balloon_daemon.units import GIB
from tests.harness.memory_cgroup import memory_cgroup

WHOLE = [
    "/proc/self/cgroup",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
]


def cgroup_files() -> list[Path]:
    """Files of the outermost cgroups of any kind that this host shows."""
    mounts = [Path(mount.point) for mount in read_mounts(Path("/proc/self/mountinfo"))]
    names = ("memory.limit_in_bytes", "memory.max", "memory.high", "memory.stat")
    places = [place for mount in mounts for place in (mount, *mount.glob("*/"))]
    return [place / name for place in places if "cgroup" in str(place) for name in names]


def lines(content: bytes) -> list[bytes]:
    """The names in a file whose numbers change from read to read."""
    return [line.split()[0] for line in content.splitlines()]


@pytest.mark.parametrize("path", WHOLE)
def test_one_read_gives_a_file_of_the_kernel_whole(path: str) -> None:
    assert FigureFile(path).read(content=one_read_of) == FigureFile(path).read()


def test_one_read_gives_all_lines_of_meminfo_and_of_cgroups_files() -> None:
    files = ["/proc/meminfo", *map(str, filter(Path.exists, cgroup_files()))]
    for path in files:
        file = FigureFile(path)
        assert lines(file.read(content=one_read_of)) == lines(file.read()), path


def test_file_of_a_cgroup_that_is_gone_fails_and_that_of_another_by_its_name_is_read() -> None:
    try:
        with memory_cgroup(2 * GIB) as cgroup:
            file = FigureFile(str(cgroup.limit_file))
            before = [file.read(), file.read()]
            cgroup.path.rmdir()
            with pytest.raises(OSError, match=cgroup.limit_file.name) as gone:
                file.read()
            cgroup.path.mkdir()
            cgroup.limit(GIB)
            after = file.read()
            file.close()
    except PermissionError as err:
        pytest.skip(f"needs a cgroup with a memory limit: {err}")
    assert before == [b"%d\n" % (2 * GIB)] * 2
    assert gone.value.errno in (errno.ENODEV, errno.ENOENT)
    assert after == b"%d\n" % GIB


def test_one_read_of_a_fifo_in_the_files_place_gives_what_is_in_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=[b"400\n"])
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer.start()
    writer.join()
    assert one_read_of(reader, 256) == b"400\n"
    os.close(reader)


def test_one_read_takes_no_more_than_it_may(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert FigureFile(str(tmp_path / "file")).read(3, one_read_of) == b"123"
    assert FigureFile(str(tmp_path / "file")).read(3, content_of) == b"123"
