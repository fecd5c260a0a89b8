"""The kernel's log, which alone knows what a device was killed for."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.linux.kernel_log import KernelLog, find_seccomp_kill
from balloon_daemon.seccomp.filter import compile_policy, syscall_name
from balloon_daemon.virtio.balloon import BalloonQueue
from tests.harness.device_rig import SHIPPED_POLICY, DeviceRig
from tests.harness.faults import fault
from tests.harness.makers import MakeRig
from tests.harness.waiting import wait_until

NOBODY = (1 << 22) + 4 * os.getpid()
"""Above any process id (pid_max is at most 2**22), and no other run of the tests has it."""


def openable(mode: int) -> bool:
    try:
        os.close(os.open("/dev/kmsg", mode | os.O_NONBLOCK))
    except OSError:
        return False
    return True


readable = pytest.mark.skipif(not openable(os.O_RDONLY), reason="needs leave to read /dev/kmsg")
writable = pytest.mark.skipif(
    not (openable(os.O_RDONLY) and openable(os.O_WRONLY)),
    reason="needs root, to write records to /dev/kmsg",
)


@pytest.fixture
def rig(make_rig: MakeRig, tmp_path: Path) -> DeviceRig:
    return make_rig(load_filter=policy_without_madvise(tmp_path))


def policy_without_madvise(tmp_path: Path) -> Callable[[], None]:
    lines = SHIPPED_POLICY.read_text().splitlines(keepends=True)
    path = tmp_path / "short.policy"
    path.write_text("".join(line for line in lines if not line.startswith("madvise:")))
    return compile_policy(path).load


@fault("device makes a forbidden system call (SIGSYS)")
def test_kernel_log_names_the_call_that_killed_a_device(
    rig: DeviceRig, kernel_log_is_complete: bool
) -> None:
    if not kernel_log_is_complete:
        pytest.skip("needs root, to lift the rate limit of the kernel's log")
    pid = rig.start_ready().pid
    rig.offer_pfns(BalloonQueue.INFLATEQ, [1])
    assert rig.wait_end() == -signal.SIGSYS

    def named() -> str | None:
        number = find_seccomp_kill(pid)
        return None if number is None else syscall_name(number)

    # The record may be written a moment after the death.
    assert wait_until(named, what="a record of the kill") == "madvise"


def record(pid: int, call: int, comm: str = '"balloon-vm1"') -> None:
    """Writes what the kernel writes of a kill."""
    text = (
        f"audit: type=1326 audit(1700000000.123:45): auid=4294967295 uid=65534 gid=65534 "
        f'ses=4294967295 pid={pid} comm={comm} exe="/usr/bin/python3.11" sig=31 '
        f"arch=c000003e syscall={call} compat=0 ip=0x7f0000000000 code=0x80000000\n"
    )
    fd = os.open("/dev/kmsg", os.O_WRONLY)
    os.write(fd, text.encode())
    os.close(fd)


@writable
def test_kernel_log_record_of_the_same_process_id_counts_by_its_age() -> None:
    record(NOBODY, 59)
    record(NOBODY, 28)
    record(NOBODY + 1, 41)
    assert find_seccomp_kill(NOBODY) == 28


@writable
def test_kernel_log_record_with_a_call_in_the_processs_name_is_not_taken_in() -> None:
    # A device may name itself. The kernel writes names with spaces in hexadecimal.
    record(NOBODY + 2, 28, comm='"syscall=59"')
    assert find_seccomp_kill(NOBODY + 2) == 28


@writable
@fault("device makes a forbidden system call (SIGSYS)")
def test_kernel_log_is_read_in_parts_and_nothing_of_it_twice() -> None:
    log = KernelLog()
    record(NOBODY + 3, 28)
    record(NOBODY + 3, 41)
    assert not log.read_on(within_s=0.0)  # The log's oldest record alone.
    while not log.read_on():
        pass
    assert (log.seccomp_kill(NOBODY + 3), log.seccomp_kill(NOBODY + 3)) == (41, None)

    record(NOBODY + 3, 59)
    parts = 1
    while not log.read_on(within_s=0.0):
        parts += 1
    assert log.seccomp_kill(NOBODY + 3) == 59
    # What others have written meanwhile is a few records.
    assert parts < 100
    log.close()


@readable
def test_kernel_log_has_nothing_of_a_process_that_lives() -> None:
    assert find_seccomp_kill(os.getpid()) is None
