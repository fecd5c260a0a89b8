"""What the host's kernel says of a QEMU process that its monitor does not say."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.guests.driven import qmp_process
from balloon_daemon.linux import mountinfo
from tests.harness.faults import fault


@pytest.fixture
def in_namespace() -> Iterator[int]:
    """A process that its own PID namespace numbers 1; yields its number here."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *as_root, "--pid", "--fork", "--kill-child", "sh", "-c"]
    command.append("echo; exec cat")
    outer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert outer.stdin is not None
    assert outer.stdout is not None
    if outer.stdout.readline() != b"\n":
        pytest.skip("no PID namespaces here")
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
    yield int(children)
    outer.stdin.close()
    outer.wait()
    outer.stdout.close()


def test_thread_is_known_by_its_number() -> None:
    thread = threading.get_native_id()
    assert qmp_process.has_thread(os.getpid(), thread)
    assert not qmp_process.has_thread(os.getppid(), thread)


@fault("a QEMU monitor's socket was made")
def test_thread_is_known_by_its_number_in_a_container(in_namespace: int) -> None:
    assert qmp_process.has_thread(in_namespace, 1)
    assert not qmp_process.has_thread(in_namespace, 2)


def test_process_that_is_gone_has_no_threads_and_no_descriptors() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not qmp_process.has_thread(gone.pid, gone.pid)
    assert qmp_process.descriptor_of(gone.pid, "/") == ""


def test_memory_file_is_known_by_the_name_of_its_descriptor() -> None:
    fd = os.memfd_create("memory-of-this-test")
    try:
        found = qmp_process.descriptor_of(os.getpid(), "/memfd:memory-of-this-test")
    finally:
        os.close(fd)
    assert found == f"/proc/{os.getpid()}/fd/{fd}"


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
    monkeypatch.setattr(qmp_process, "read_mounts", lambda: mountinfo.read_mounts(table))
    assert qmp_process.on_hugetlbfs([path, "/"]) == ({path} if lies else set())
