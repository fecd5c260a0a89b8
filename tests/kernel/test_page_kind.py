"""What pages a file is made of, asked of the real kernel and of files that play one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.linux import page_kind
from tests.harness.faults import fault


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("guest")
    yield fd
    os.close(fd)


@pytest.fixture
def enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the kernel's shmem_enabled."""
    path = tmp_path / "shmem_enabled"
    monkeypatch.setattr(page_kind, "SHMEM_ENABLED", path)
    return path


@pytest.mark.parametrize(
    ("chosen", "huge"),
    [
        ("always within_size advise [never] deny force", "never"),
        ("always within_size [advise] never deny force", "advise"),
        ("always within_size advise never deny [force]", "always"),
    ],
)
def test_memfd_goes_by_the_kernels_setting(
    memfd: int, enabled: Path, chosen: str, huge: str
) -> None:
    enabled.write_text(chosen + "\n")
    assert page_kind.pages_of([memfd]) == {(4096, huge)}


def test_kernel_without_transparent_huge_pages_has_small_ones(memfd: int, enabled: Path) -> None:
    assert page_kind.pages_of([memfd]) == {(4096, "never")}


@pytest.mark.parametrize(
    ("options", "huge"),
    [
        ("rw,size=4096k", "never"),
        ("rw,huge=advise", "advise"),
        ("rw,huge=always", "always"),
    ],
)
def test_file_of_a_mounted_tmpfs_goes_by_its_option(
    memfd: int,
    enabled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    huge: str,
) -> None:
    device = os.fstat(memfd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "20 1 8:1 / / rw,relatime - ext4 /dev/vda rw\n"
        f"31 20 {number} / /guests rw,nosuid shared:7 - tmpfs none {options}\n"
    )
    enabled.write_text("always within_size advise [never] deny force\n")
    monkeypatch.setattr(page_kind, "MOUNTS", mounts)
    assert page_kind.pages_of([memfd]) == {(4096, huge)}


def test_reserved_huge_pages_are_named_with_their_size() -> None:
    # None needs to be reserved for a file that is never touched.
    try:
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    except OSError as err:
        pytest.skip(f"this kernel has no huge pages of 2 MiB: {err}")
    try:
        assert page_kind.pages_of([fd]) == {(2 << 20, "never")}
    finally:
        os.close(fd)


@fault("one user has much to say, over however many connections")
def test_mounts_are_read_once_however_many_files_there_are(
    enabled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled.write_text("always within_size [advise] never deny force\n")
    read = list[dict[str, str]]()
    mount_options = page_kind._mount_options

    def counted() -> dict[str, str]:
        read.append(mount_options())
        return read[-1]

    monkeypatch.setattr(page_kind, "_mount_options", counted)
    files = [os.memfd_create("guest") for _ in range(256)]
    try:
        assert page_kind.pages_of(files) == {(4096, "advise")}
    finally:
        for fd in files:
            os.close(fd)
    assert len(read) == 1
