"""A process's figures, asked of the real kernel."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from balloon_daemon.linux import process_lookups
from balloon_daemon.units import MIB
from tests.harness.faults import fault
from tests.harness.processes import counts_its_reads
from tests.harness.vmm_files import figures_of


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that reads and touches what it is told to, and answers each line."""
    program = (
        "import mmap, os, sys\n"
        "held = []\n"
        "for line in sys.stdin:\n"
        "    what, size = line.split()\n"
        "    if what == 'read':\n"
        "        with open('/dev/zero', 'rb', buffering=0) as file: file.read(int(size))\n"
        "    else:\n"
        "        held.append(mmap.mmap(-1, int(size), flags=mmap.MAP_SHARED))\n"
        "        held[-1].write(bytes(int(size)))\n"
        "    print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def tell(process: "subprocess.Popen[bytes]", what: str, size: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{what} {size}\n".encode())
    process.stdin.flush()
    assert process.stdout.readline() == b"done\n"


def test_what_a_process_reads_is_counted(other: "subprocess.Popen[bytes]") -> None:
    tell(other, "read", 1)
    while not counts_its_reads(other.pid):
        tell(other, "read", MIB)
    figures = figures_of(other.pid)
    before = figures.read_bytes()
    tell(other, "read", 8 * MIB)
    after = figures.read_bytes()
    assert before is not None
    assert after is not None
    assert 8 * MIB <= after - before < 9 * MIB


def test_shared_memory_that_a_process_touches_is_resident(
    other: "subprocess.Popen[bytes]",
) -> None:
    tell(other, "read", 1)
    while not counts_its_reads(other.pid):
        tell(other, "read", MIB)
    figures = figures_of(other.pid)
    before = figures.resident_bytes()
    tell(other, "touch", 32 * MIB)
    after = figures.resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before >= 31 * MIB


def test_process_that_is_gone_or_cannot_be_named_has_no_figures() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        gone = process.pid
    for pid in (gone, 0, -1):
        figures = figures_of(pid)
        assert (figures.read_bytes(), figures.resident_bytes()) == (None, None)


@fault("VMM's process holds a lease on its files in /proc")
def test_file_that_its_process_holds_a_lease_on_is_not_waited_for() -> None:
    # A plain open(2) would wait until the kernel takes the lease away, and succeed then.
    program = (
        "import fcntl, os, signal, sys\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "file = os.open('/proc/self/io', os.O_RDONLY)\n"
        "try: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "except OSError as err: print(err, flush=True)\n"
        "else: print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline().decode().strip()
        found = figures_of(process.pid).read_bytes()
        process.kill()
    if said != "held":
        pytest.skip(f"this kernel allows no lease on a file of /proc: {said}")
    assert found is None


def test_process_that_has_ended_and_was_not_waited_for_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert figures_of(process.pid).resident_bytes() is None


def test_few_of_many_descriptors_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_lookups, "MOST_FILES", 8)
    with contextlib.ExitStack() as files:
        for _ in range(16):
            files.enter_context(open(os.devnull, "rb"))
        found = dict(process_lookups.files_of(os.getpid()))
    assert len(found) == 8
    assert found[f"/proc/{os.getpid()}/fd/0"] == os.readlink("/proc/self/fd/0")
