"""What a VMM's process has open and which threads it has, asked of the real kernel."""

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from balloon_daemon.guests.driven import process_orders
from tests.harness.faults import fault
from tests.harness.many_groups import in_many_groups


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
    assert process_orders.has_thread(os.getpid(), thread)
    assert not process_orders.has_thread(os.getppid(), thread)


@fault("a QEMU monitor's socket was made")
def test_thread_is_known_by_its_number_in_a_container(in_namespace: int) -> None:
    assert process_orders.has_thread(in_namespace, 1)
    assert not process_orders.has_thread(in_namespace, 2)


def note_readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on, in this order."""
    read: list[str] = []
    really = process_orders._read

    def noted(path: str) -> bytes:
        read.append(path)
        return really(path)

    monkeypatch.setattr(process_orders, "_read", noted)
    return read


def test_few_of_many_threads_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_orders, "MAX_THREADS", 4)
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
        assert process_orders.has_thread(pid, pid)
        assert (len(listed), listed[0]) == (4, str(pid))


@fault("VMM's process is in very many groups")
def test_of_many_threads_in_many_groups_few_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = note_readings(monkeypatch)
    with in_many_groups(threads=16) as pid:
        assert not process_orders.has_thread(pid, 1)
    assert read == [f"/proc/{pid}/task/{pid}/status"]


def test_threads_of_a_process_in_our_namespace_are_not_read_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = note_readings(monkeypatch)
    with ThreadPoolExecutor() as pool:
        both = threading.Barrier(2)
        pool.submit(both.wait)
        assert not process_orders.has_thread(os.getpid(), 1)
        both.wait()
    assert read == [f"/proc/{os.getpid()}/task/{os.getpid()}/status"]


@pytest.mark.parametrize(("limit", "value"), [("MOST_READ", 0), ("WITHIN_S", 0.0)])
def test_thread_in_a_container_is_looked_for_among_few_and_for_a_moment(
    in_namespace: int, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(process_orders, limit, value)
    assert not process_orders.has_thread(in_namespace, 1)


def test_process_that_is_gone_has_no_threads_and_no_descriptors() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert not process_orders.has_thread(gone.pid, gone.pid)
    assert process_orders.open_files(gone.pid, ["/"]) == (False, [])


def test_file_is_found_by_the_beginning_of_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.memfd_create("memory-of-this-test")
    copies = [os.dup(fd) for _ in range(3)]
    os.truncate(fd, 5)
    monkeypatch.setattr(process_orders, "MOST_FOUND", 2)
    try:
        starts = ["/nowhere", "/memfd:memory-of-this-test"]
        found = process_orders.open_files(os.getpid(), starts)
        inode = os.stat(fd).st_ino
        paths = [f"/proc/{os.getpid()}/fd/{number}" for number in sorted([fd, *copies])]
        assert found == (True, [(path, inode, 5) for path in paths[:2]])
        assert process_orders.open_files(os.getpid(), ["/nowhere"]) == (True, [])
    finally:
        for number in (fd, *copies):
            os.close(number)
