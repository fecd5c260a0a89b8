"""Which memory backends of a QEMU lie on hugetlbfs."""

from pathlib import Path

import pytest

from balloon_daemon.guests.driven import qmp_memory
from balloon_daemon.guests.driven.qmp_memory import Mounts
from balloon_daemon.linux.mountinfo import Mount
from tests.harness.faults import fault


@pytest.mark.parametrize(
    ("path", "lies"),
    [
        ("/dev/hugepages", True),
        ("/dev/hugepages/", True),
        ("/dev/hugepages/libvirt/qemu/1-web", True),
        ("/dev/hugepages-1G/vm", False),
        ("/dev/hugepages/small/vm", False),
        ("/mnt/hidden/vm", False),
        ("/dev/shm/vm", False),
    ],
)
def test_path_on_hugetlbfs_is_told_by_the_mounts(tmp_path: Path, path: str, lies: bool) -> None:
    mounts = [
        ("/", "ext4"),
        ("/dev/shm", "tmpfs"),
        ("/dev/hugepages", "hugetlbfs"),
        ("/dev/hugepages/small", "tmpfs"),
        ("/mnt/hidden", "hugetlbfs"),
        ("/mnt/hidden", "tmpfs"),
    ]
    table = tmp_path / "mountinfo"
    table.write_text(
        "".join(f"1 0 0:1 / {point} rw - {fstype} none rw\n" for point, fstype in mounts)
    )
    assert Mounts(table).on_hugetlbfs([path, "/"]) == ({path} if lies else set())


@fault("a QEMU monitor lies")
def test_many_mounts_are_read_once_and_compared_only_with_paths_in_pools(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, compared, with_mounts = [], [], []

    def read_mounts(path: Path, most_bytes: int) -> list[Mount]:
        read.append(path)
        mounts = [Mount("/", f"/mnt/{n}", "overlay", frozenset()) for n in range(5000)]
        pool = Mount("/", "/dev/hugepages", "hugetlbfs", frozenset())
        return [*mounts, pool, Mount("/", "/dev/hugepages/small", "tmpfs", frozenset())]

    def file_system(path: str, mounts: list[Mount]) -> str:
        compared.append(path)
        with_mounts.append([mount.point for mount in mounts])
        return "hugetlbfs"

    monkeypatch.setattr(qmp_memory, "read_mounts", read_mounts)
    monkeypatch.setattr(qmp_memory, "_file_system", file_system)
    mounts = Mounts()
    for _ in range(3):
        assert mounts.on_hugetlbfs(["/mnt/1/vm", "/dev/hugepages/vm"]) == {"/dev/hugepages/vm"}
    assert len(read) == 1
    assert set(compared) == {"/dev/hugepages/vm"}
    # With no other mount than the pool and what lies on it: a monitor may name 64 paths in a pool.
    assert with_mounts == [["/dev/hugepages", "/dev/hugepages/small"]] * 3


def test_mounts_are_read_anew_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("1 0 0:1 / / rw - ext4 none rw\n")
    monkeypatch.setattr(qmp_memory, "REST_S", 0.0)
    mounts = Mounts(table)
    assert not mounts.on_hugetlbfs(["/pool/vm"])
    table.write_text("1 0 0:1 / /pool rw - hugetlbfs none rw\n")
    assert mounts.on_hugetlbfs(["/pool/vm"]) == {"/pool/vm"}
