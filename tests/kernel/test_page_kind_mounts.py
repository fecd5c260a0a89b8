"""Mount points with odd names: the kernel leaves most characters in mountinfo as they are."""

import os
from pathlib import Path

import pytest

from balloon_daemon.linux import page_kind
from tests.harness.faults import fault

OTHER_SPACES = "\x0b\x0c\r\x1c\x85\xa0\u2028"
"""What str.splitlines() and str.split() take for line ends and spaces, and the kernel does not."""


@fault("mount points with odd characters")
def test_mount_point_with_other_spaces_does_not_hide_the_file_systems_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = os.memfd_create("guest")
    try:
        device = os.fstat(fd).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        mounts = tmp_path / "mountinfo"
        mounts.write_bytes(
            f"20 1 8:1 / /a{OTHER_SPACES}b rw,relatime - ext4 /dev/vda rw\n"
            f"31 20 {number} / /c{OTHER_SPACES}d rw - tmpfs none rw,huge=always\n".encode()
        )
        enabled = tmp_path / "shmem_enabled"
        enabled.write_text("always within_size advise [never] deny force\n")
        monkeypatch.setattr(page_kind, "MOUNTS", mounts)
        monkeypatch.setattr(page_kind, "SHMEM_ENABLED", enabled)

        kinds = page_kind.pages_of([fd])
    finally:
        os.close(fd)

    assert kinds == {(4096, "always")}


@fault("mount points with odd characters")
def test_short_line_among_the_mounts_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_bytes(b"\n1 2\n1 2 0:99\n\xff\n")
    monkeypatch.setattr(page_kind, "MOUNTS", mounts)

    assert "0:99" not in page_kind._mount_options()
