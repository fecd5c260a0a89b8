"""What kind a descriptor is of, however hard it is to look names up in /proc."""

import os
import socket
import subprocess
import sys

from balloon_daemon.linux.fd_kind import FdKind, fd_kind
from balloon_daemon.linux.page_kind import SHMEM_ENABLED
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.needs import needs_root
from tests.harness.open_files import open_files


def test_each_kind_is_told() -> None:
    with socket.socket(socket.AF_UNIX) as unix, socket.socket(socket.AF_INET) as inet:
        pipe, call, memory = os.pipe(), os.eventfd(0), os.memfd_create("memory")
        directory = os.open("/", os.O_RDONLY)
        found = [fd_kind(fd) for fd in (unix.fileno(), inet.fileno(), pipe[0], call, memory)]
        assert [*found, fd_kind(directory)] == [
            FdKind.UNIX_SOCKET,
            FdKind.INET_SOCKET,
            FdKind.PIPE,
            FdKind.EVENTFD,
            FdKind.MEMORY,
            FdKind.OTHER,
        ]
        for fd in (*pipe, call, memory, directory):
            os.close(fd)
        assert fd_kind(memory) is FdKind.OTHER


def test_child_looks_at_its_own_descriptors() -> None:
    call = os.eventfd(0)
    assert fd_kind(call) is FdKind.EVENTFD
    child = os.fork()
    if child == 0:
        os.dup2(os.pipe()[0], call)
        os._exit(0 if fd_kind(call) is FdKind.PIPE else 1)
    assert os.waitpid(child, 0)[1] == 0
    os.close(call)


WITHOUT_PROC = """
import os, subprocess
from balloon_daemon.api.own_figures import own_figures
from balloon_daemon.api.server import Records, Server
from balloon_daemon.api.traces import Traces
from balloon_daemon.linux.fd_kind import FdKind, fd_kind, keep_own_directory
from balloon_daemon.linux.terminal import has_terminal
from balloon_daemon.records.counters import Counters
from balloon_daemon.records.recent import Recent
keep_own_directory()
assert not has_terminal()
Server([], Records(Recent(), Traces(bytes), Counters()), print)
call = os.eventfd(0)
subprocess.run(["mount", "-t", "tmpfs", "none", "/proc"], check=True)
assert not os.path.exists("/proc/self")
figures = own_figures()
assert figures.resident_bytes and figures.open_fds and figures.started_s, figures
print(fd_kind(call).name)
"""


@needs_root
@fault("a lookup in the directory of a VMM's process waits")
def test_kind_and_own_figures_are_told_without_looking_up_a_name_in_proc() -> None:
    run = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", WITHOUT_PROC],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (run.returncode, run.stdout) == (0, "EVENTFD\n"), run.stderr


@fault("a lookup in the directory of a VMM's process waits")
def test_files_that_are_read_for_vms_are_open_before_there_is_one(daemon: Daemon) -> None:
    needed = {f"/proc/{daemon.pid}/mountinfo", str(SHMEM_ENABLED)}
    assert needed <= set(open_files(daemon.pid).values())
