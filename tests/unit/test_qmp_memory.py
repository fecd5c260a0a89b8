"""Which memory backends of a QEMU lie on hugetlbfs."""

from pathlib import Path

import pytest

from balloon_daemon.guests.driven import qmp_memory
from balloon_daemon.linux import mountinfo


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
def test_path_on_hugetlbfs_is_told_by_the_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, lies: bool
) -> None:
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
    monkeypatch.setattr(qmp_memory, "read_mounts", lambda: mountinfo.read_mounts(table))
    assert qmp_memory.on_hugetlbfs([path, "/"]) == ({path} if lies else set())
