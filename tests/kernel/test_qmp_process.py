"""What the host's kernel says of a QEMU process that its monitor does not say."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balloon_daemon.guests.driven import qmp_process
from balloon_daemon.linux import mountinfo
from tests.harness.faults import fault
from tests.harness.many_groups import in_many_groups
from tests.harness.readings import note_readings


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


def test_few_of_many_threads_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp_process, "MAX_THREADS", 4)
    listed: list[str] = []
    scandir = os.scandir

    def noted(entries: Iterator["os.DirEntry[str]"]) -> Iterator["os.DirEntry[str]"]:
        for entry in entries:
            listed.append(entry.name)
            yield entry

    @contextlib.contextmanager
    def counted(path: str) -> Iterator[Iterator["os.DirEntry[str]"]]:
        with scandir(path) as entries:
            yield noted(entries)

    monkeypatch.setattr(os, "scandir", counted)
    with in_many_groups(threads=16) as pid:
        assert qmp_process.has_thread(pid, pid)
        assert (len(listed), listed[0]) == (4, str(pid))


@fault("VMM's process is in very many groups")
def test_of_many_threads_in_many_groups_few_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = note_readings(qmp_process, monkeypatch)
    with in_many_groups(threads=16) as pid:
        assert not qmp_process.has_thread(pid, 1)
    assert read == [f"/proc/{pid}/task/{pid}/status"]


def test_threads_of_a_process_in_our_namespace_are_not_read_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = note_readings(qmp_process, monkeypatch)
    with ThreadPoolExecutor() as pool:
        both = threading.Barrier(2)
        pool.submit(both.wait)
        assert not qmp_process.has_thread(os.getpid(), 1)
        both.wait()
    assert read == [f"/proc/{os.getpid()}/task/{os.getpid()}/status"]


@pytest.mark.parametrize(("limit", "value"), [("MOST_READ", 0), ("WITHIN_S", 0.0)])
def test_thread_in_a_container_is_looked_for_among_few_and_for_a_moment(
    in_namespace: int, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(qmp_process, limit, value)
    assert not qmp_process.has_thread(in_namespace, 1)


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
