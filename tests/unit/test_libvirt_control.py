"""Of a domain's figures: which statistics are new, since when; and whose process it is."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.guests.libvirt.control import Updates
from balloon_daemon.guests.libvirt.qemu_process import find_memory_file, find_pid
from balloon_daemon.guests.libvirt.wire import Figures
from balloon_daemon.guests.seam import GuestState, Stats
from balloon_daemon.units import GIB, MIB
from tests.harness.needs import needs_root
from tests.harness.other_user import NOBODY
from tests.harness.waiting import wait_until

UUID = "a1d764e9-c362-47d7-984d-ba62f1ebac71"


def figures(updated_s: int, age_s: float) -> Figures:
    stats = Stats(0.0, free_bytes=updated_s) if updated_s else None
    return Figures(
        vm_mem_bytes=GIB,
        actual_bytes=GIB,
        state=GuestState.RUNNING,
        updated_s=updated_s,
        age_s=age_s,
        stats=stats,
        counts_disk_reads=False,
        period_s=1,
        deflate_on_oom=False,
        against=None,
    )


def test_statistics_have_the_time_at_which_the_guest_sent_them() -> None:
    updates = Updates()
    assert updates.take(figures(7, age_s=2.5), now_s=100.0) == Stats(97.5, free_bytes=7)
    assert updates.take(figures(8, age_s=0.5), now_s=101.0) == Stats(100.5, free_bytes=8)


def test_same_statistics_are_no_news() -> None:
    updates = Updates()
    updates.take(figures(7, age_s=0.5), now_s=100.0)
    assert updates.take(figures(7, age_s=1.5), now_s=101.0) is None


def test_statistics_after_none_are_news() -> None:
    updates = Updates()
    assert updates.take(figures(0, age_s=1e9), now_s=100.0) is None
    assert updates.take(figures(7, age_s=0.5), now_s=101.0) == Stats(100.5, free_bytes=7)


@pytest.mark.parametrize(("age_s", "at_s"), [(3600.0, 100.0), (-3600.0, 101.0)])
def test_wall_clock_that_was_set_moves_statistics_no_further_than_between_two_readings(
    age_s: float, at_s: float
) -> None:
    updates = Updates()
    updates.take(figures(7, age_s=0.5), now_s=100.0)
    assert updates.take(figures(8, age_s), now_s=101.0) == Stats(at_s, free_bytes=8)


def test_first_statistics_from_the_future_have_no_known_time() -> None:
    assert Updates().take(figures(7, age_s=-5.0), now_s=100.0) is None


@pytest.fixture
def qemu() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a domain's id among its arguments, as libvirt starts QEMU."""
    command = [sys.executable, "-c", "input()", "-name", "guest=web", "-uuid", UUID]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        # Popen returns when execve(2) has closed its pipe, a little before the kernel shows the
        # new arguments.
        arguments = Path(f"/proc/{process.pid}/cmdline")
        wait_until(lambda: UUID.encode() in arguments.read_bytes(), what="its arguments")
        yield process
        process.kill()


def uri(directory: Path) -> str:
    return f"qemu:///system?socket={directory}/libvirt-sock"


def write_pid(directory: Path, text: str) -> None:
    (directory / "qemu").mkdir()
    (directory / "qemu/web.pid").write_text(text)


def pid_of(uri: str, name: str, uuid: str) -> int | None:
    return asyncio.run(find_pid(uri, name, uuid))


def test_process_of_a_domain_is_found(tmp_path: Path, qemu: "subprocess.Popen[bytes]") -> None:
    write_pid(tmp_path, f"{qemu.pid}\n")
    assert pid_of(uri(tmp_path), "web", UUID) == qemu.pid


def test_process_of_another_domain_is_not_taken_for_it(
    tmp_path: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    # The file may be an old one, and the number another process's by now.
    write_pid(tmp_path, str(qemu.pid))
    assert pid_of(uri(tmp_path), "web", UUID.replace("a", "b")) is None


@pytest.mark.parametrize("text", ["", "no number", "-1", "0", "9" * 400])
def test_file_without_a_process_names_none(tmp_path: Path, text: str) -> None:
    write_pid(tmp_path, text)
    assert pid_of(uri(tmp_path), "web", UUID) is None


def test_process_id_in_a_pipe_is_none(tmp_path: Path, qemu: "subprocess.Popen[bytes]") -> None:
    # Nothing but a regular file is opened: to open some devices has effects.
    (tmp_path / "qemu").mkdir()
    os.mkfifo(tmp_path / "qemu/web.pid")
    with open(os.open(tmp_path / "qemu/web.pid", os.O_RDWR), "w") as pipe:
        pipe.write(f"{qemu.pid}\n")
        pipe.flush()
        assert pid_of(uri(tmp_path), "web", UUID) is None


@needs_root
def test_process_id_is_not_read_by_another_users_link(
    tmp_path: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    write_pid(tmp_path, f"{qemu.pid}\n")
    (tmp_path / "qemu/db.pid").symlink_to(tmp_path / "qemu/web.pid")
    assert pid_of(uri(tmp_path), "db", UUID) == qemu.pid
    os.lchown(tmp_path / "qemu/db.pid", NOBODY, NOBODY)
    assert pid_of(uri(tmp_path), "db", UUID) is None


@needs_root
def test_process_of_another_user_than_the_files_is_none_of_its_domain(
    tmp_path: Path, qemu: "subprocess.Popen[bytes]"
) -> None:
    write_pid(tmp_path, f"{qemu.pid}\n")
    os.chown(tmp_path / "qemu/web.pid", NOBODY, NOBODY)
    assert pid_of(uri(tmp_path), "web", UUID) is None


@pytest.mark.parametrize("name", ["web", "../web", "a/b"])
def test_domain_without_a_file_has_no_known_process(tmp_path: Path, name: str) -> None:
    assert pid_of(uri(tmp_path), name, UUID) is None


@pytest.mark.parametrize(
    "uri", ["qemu+ssh://host/system", "qemu+tls://host/system", "test:///default", "xen:///system"]
)
def test_process_of_another_host_is_none_of_ours(uri: str) -> None:
    assert pid_of(uri, "web", UUID) is None


def memory_file_of(pid: int) -> str:
    return asyncio.run(find_memory_file(pid))


def test_memory_that_is_one_memfd_is_found() -> None:
    assert memory_file_of(os.getpid()) == ""
    first = os.memfd_create("memory-backend-memfd")
    copy = os.dup(first)
    other = os.memfd_create("something else")
    os.truncate(first, MIB)
    try:
        found = memory_file_of(os.getpid())
        assert os.stat(found).st_ino == os.stat(first).st_ino
        second = os.memfd_create("memory-backend-memfd")
        # A machine with several NUMA nodes: no one file has all of its memory.
        assert memory_file_of(os.getpid()) == ""
        os.close(second)
    finally:
        for fd in (first, copy, other):
            os.close(fd)


def test_process_that_is_gone_has_no_memory_file() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert memory_file_of(process.pid) == ""
