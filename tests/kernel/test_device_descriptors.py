"""What a VMM may hand over as kick, call, channel and memory, and what a device makes of it."""

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR
from balloon_daemon.errors import NO_HEAD, Rule
from balloon_daemon.seccomp.filter import compile_policy
from balloon_daemon.tube.messages import Fault, FaultKind, Target
from balloon_daemon.virtio.balloon import BalloonQueue
from tests.harness.device_rig import CONFIG_CHANGE, SHIPPED_POLICY, DeviceRig
from tests.harness.faults import fault
from tests.harness.short_host import is_asleep
from tests.harness.waiting import HANG_S, wait_until

INFLATEQ, DEFLATEQ, STATSQ, _, REPORTING_VQ = BalloonQueue

# linux/fcntl.h
F_ADD_SEALS = 1033
F_SEAL_FUTURE_WRITE = 0x10


def assert_alive(rig: DeviceRig) -> None:
    """The device serves an honest buffer and ends in order."""
    rig.inflate([900])
    rig.stop()


# --- kicks and calls that are no eventfds -----------------------------------------------------


def readable_for_ever(rig: DeviceRig) -> int:
    """A socket whose peer is gone: readable, and nothing ever comes out of it."""
    ours, theirs = socket.socketpair()
    theirs.close()
    return rig.own(ours.detach())


def pipe_without_writer(rig: DeviceRig) -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return rig.own(reading)


def regular_file(rig: DeviceRig) -> int:
    return rig.own(os.memfd_create("kick"))


def write_only_pipe(rig: DeviceRig) -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return rig.own(writing)


MakeFd = Callable[[DeviceRig], int]
NO_EVENTFDS = pytest.mark.parametrize(
    "make", [readable_for_ever, pipe_without_writer, regular_file, write_only_pipe]
)


@fault("kick is no eventfd")
@NO_EVENTFDS
def test_kick_that_is_no_eventfd_stops_its_queue_and_spins_nothing(
    rig: DeviceRig, make: MakeFd
) -> None:
    rig.change_vring(DEFLATEQ, kick_fd=make(rig))
    device = rig.start_ready()
    assert rig.wait_report(Fault) == Fault(FaultKind.RING, 1, Rule.KICK, NO_HEAD, 0, 0)
    rig.inflate([2])
    rig.wait_progress(lambda progress: progress.buffers == 1)
    wait_until(lambda: is_asleep(device.pid), what="the device rests")
    assert rig.damaged() == {2}


@fault("kick is no eventfd")
def test_kick_that_hangs_up_later_stops_its_queue_and_the_others_go_on(rig: DeviceRig) -> None:
    ours, theirs = socket.socketpair()
    rig.change_vring(DEFLATEQ, kick_fd=rig.own(ours.detach()))
    rig.start_ready()
    theirs.send(b"kick")
    rig.inflate([1])
    rig.wait_progress(lambda progress: progress.buffers == 1)
    assert rig.of(Fault) == []
    theirs.close()
    assert rig.wait_report(Fault).code == Rule.KICK
    rig.inflate([2])
    rig.stop()


@fault("call is full or blocking")
@NO_EVENTFDS
def test_call_that_is_no_eventfd_costs_its_queue_the_interrupts_only(
    rig: DeviceRig, make: MakeFd
) -> None:
    rig.change_vring(DEFLATEQ, call_fd=make(rig))
    rig.start_ready()
    rig.offer_pfns(DEFLATEQ, [1])
    rig.wait_progress(lambda progress: progress.deflated_pages == 1)
    assert rig.rings[DEFLATEQ].used_idx == 1
    assert_alive(rig)


@fault("call is full or blocking")
def test_call_that_is_full_does_not_block_the_device(rig: DeviceRig) -> None:
    os.eventfd_write(rig.calls[INFLATEQ], 2**64 - 2)
    rig.start_ready()
    rig.inflate([1])
    assert rig.damaged() == {1}


@fault("call is full or blocking")
def test_vrings_that_share_one_kick_are_all_looked_at(rig: DeviceRig) -> None:
    shared = os.dup(rig.kicks[INFLATEQ])
    rig.change_vring(DEFLATEQ, kick_fd=rig.own(shared))
    rig.start_ready()
    for _ in range(50):
        rig.offer_pfns(DEFLATEQ, [1])  # Kicks an eventfd that nobody listens to any more.
        rig.kick(INFLATEQ)
        rig.wait_used(DEFLATEQ)


@fault("call is full or blocking")
def test_blocking_kick_and_call_do_not_block_the_device(rig: DeviceRig) -> None:
    # A call blocks its writer once it is full; a kick its second reader, which has another vring.
    for fds in (rig.kicks, rig.calls):
        os.set_blocking(fds[INFLATEQ], True)
    os.eventfd_write(rig.calls[INFLATEQ], 2**64 - 2)
    rig.change_vring(DEFLATEQ, kick_fd=rig.own(os.dup(rig.kicks[INFLATEQ])))
    rig.start_ready()
    rig.offer_pfns(INFLATEQ, [1])
    # Not by its call: to read that would make room in it.
    rig.wait_progress(lambda progress: progress.buffers == 1)
    for _ in range(50):
        rig.offer_pfns(DEFLATEQ, [1])
        rig.kick(INFLATEQ)
        rig.wait_used(DEFLATEQ)
    assert rig.damaged() == {1}


@fault("same page over and over")
def test_kicks_without_work_and_work_without_kicks_are_harmless(rig: DeviceRig) -> None:
    rig.start_ready()
    for _ in range(200):
        rig.kick(INFLATEQ)
    ring = rig.rings[INFLATEQ]
    content = (7).to_bytes(4, "little")
    ring.offer(ring.chain([0], [rig.write_buffer(INFLATEQ, content)]))  # No kick for this one.
    rig.offer_pfns(INFLATEQ, [8], slot=1)
    assert rig.wait_used(INFLATEQ, 2) == [0, 1]
    assert rig.damaged() == {7, 8}


# --- the host and the VMM ---------------------------------------------------------------------


@fault("kernel refuses MADV_REMOVE (EPERM, EBUSY, ENOMEM, EINVAL)")
def test_memory_that_the_kernel_refuses_to_free_is_the_hosts_fault(rig: DeviceRig) -> None:
    rig.start_ready()
    # Holes are no longer allowed from here on (fcntl(2), F_SEAL_FUTURE_WRITE): EPERM.
    fcntl.fcntl(rig.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
    rig.inflate([3, 4])
    fault = Fault(FaultKind.HOST, 0, errno.EPERM, NO_HEAD, 3 * 4096, 0)
    assert rig.wait_report(Fault) == fault
    progress = rig.wait_progress(lambda progress: progress.buffers == 1)
    assert (progress.inflated_pages, progress.removed_bytes) == (2, 0)
    assert rig.damaged() == set()


@fault("kernel refuses MADV_REMOVE (EPERM, EBUSY, ENOMEM, EINVAL)")
@pytest.mark.parametrize(
    "number", [errno.EBUSY, errno.ENOMEM, errno.EINVAL], ids=errno.errorcode.get
)
def test_memory_that_is_not_freed_for_another_reason_is_the_hosts_fault_too(
    rig: DeviceRig, tmp_path: Path, number: int
) -> None:
    # By a filter that answers in the kernel's place: no file here refuses for these reasons.
    lines = SHIPPED_POLICY.read_text().splitlines(keepends=True)
    policy = tmp_path / "refusing.policy"
    policy.write_text(
        "".join(line for line in lines if not line.startswith("madvise:"))
        + f"madvise: return {errno.errorcode[number]}\n"
    )
    rig.here.load_filter = compile_policy(policy).load
    rig.start_ready()
    rig.inflate([3, 4])
    rig.offer(REPORTING_VQ, [], [(8 * 4096, 4096)])
    assert rig.wait_used(REPORTING_VQ) == [0]
    rig.wait_report(Fault, 2)
    assert rig.of(Fault) == [
        Fault(FaultKind.HOST, 0, number, NO_HEAD, 3 * 4096, 0),
        Fault(FaultKind.HOST, 0, number, NO_HEAD, 8 * 4096, 0),
    ]
    progress = rig.wait_progress(lambda progress: progress.buffers == 2)
    assert (progress.inflated_pages, progress.removals, progress.removed_bytes) == (2, 0, 0)
    assert rig.damaged() == set()
    assert_alive(rig)


@fault("truncates the guest's memory")
def test_memory_that_the_vmm_cut_off_ends_the_device_and_nobody_else(rig: DeviceRig) -> None:
    rig.start_ready()
    os.ftruncate(rig.fd, 4096)
    rig.kick(INFLATEQ)
    assert rig.wait_end() == -signal.SIGBUS
    # Another cannot even map it, and says so.
    rig.start()
    assert rig.wait_end() == EXIT_INTERNAL_ERROR
    assert rig.death_record == (
        f"balloon-rig: guest memory up to byte {rig.num_pages * 4096} is to be mapped, "
        "but its file has 4096 bytes: the VMM cut it short"
    )


def test_target_becomes_a_config_change_on_the_channel(rig: DeviceRig) -> None:
    ours, theirs = socket.socketpair()
    rig.spec = rig.spec._replace(channel_fd=rig.own(ours.detach()))
    theirs.settimeout(HANG_S)
    rig.start_ready()
    rig.running.tube.send(Target(1 << 20))
    assert theirs.recv(100) == CONFIG_CHANGE
    rig.running.tube.send(Target(2 << 20))
    assert theirs.recv(100) == CONFIG_CHANGE
    theirs.close()


@fault("never reads its back-end channel")
def test_channel_that_nobody_reads_gets_whole_messages_only(rig: DeviceRig) -> None:
    # Far longer than the socket's buffer, so that it goes in parts.
    long = bytes(range(256)) * 4096
    ours, theirs = socket.socketpair()
    rig.spec = rig.spec._replace(channel_fd=rig.own(ours.detach()), config_change=long)
    theirs.settimeout(HANG_S)
    rig.start_ready()
    for target in range(5):
        rig.running.tube.send(Target(target))
    rig.inflate([1])  # All five were taken before this, and the device is not blocked.
    received = bytearray()
    while len(received) < len(long):
        received += theirs.recv(1 << 20)
    rig.inflate([2])
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert received == long
    theirs.close()


@fault("back-end channel hangs up")
def test_channel_that_hung_up_before_costs_the_device_nothing(rig: DeviceRig) -> None:
    rig.spec = rig.spec._replace(channel_fd=readable_for_ever(rig))
    device = rig.start_ready()
    rig.running.tube.send(Target(1))
    rig.inflate([900])
    rig.wait_progress(lambda progress: progress.buffers == 1)
    wait_until(lambda: is_asleep(device.pid), what="the device rests")
    rig.stop()


@fault("back-end channel hangs up")
def test_channel_that_hangs_up_later_costs_the_device_nothing(rig: DeviceRig) -> None:
    ours, theirs = socket.socketpair()
    rig.spec = rig.spec._replace(channel_fd=rig.own(ours.detach()))
    device = rig.start_ready()
    theirs.close()
    rig.running.tube.send(Target(1))
    rig.inflate([900])
    rig.wait_progress(lambda progress: progress.buffers == 1)
    wait_until(lambda: is_asleep(device.pid), what="the device rests")
    rig.stop()


@fault("back-end channel hangs up")
def test_channel_that_is_a_file_costs_the_device_nothing(rig: DeviceRig) -> None:
    rig.spec = rig.spec._replace(channel_fd=rig.own(os.memfd_create("channel")))
    rig.start_ready()
    rig.running.tube.send(Target(1))
    assert_alive(rig)
