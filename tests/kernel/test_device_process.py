"""A real device, forked and jailed under the shipped policy: what it does to guest memory."""

import contextlib
import errno
import os
import select
import signal
import stat
import struct
import time

import pytest

from balloon_daemon.device import balloon
from balloon_daemon.device.balloon import RunningQueue
from balloon_daemon.device.process import spawn
from balloon_daemon.tube.messages import Command, Ready, Stats, encode_up
from balloon_daemon.virtio.balloon import STAT_ENTRY, BalloonQueue
from balloon_daemon.virtio.split_queue import VIRTQ_DESC_F_INDIRECT
from tests.harness.device_rig import (
    DRIVER_PAGES,
    RING_SIZE,
    DeviceRig,
    pattern,
    ready_to_fork,
    shipped_filter,
)
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds, room_for_fds
from tests.harness.makers import MakeRig
from tests.harness.waiting import HANG_S, wait_until

INFLATEQ, DEFLATEQ, STATSQ, _, REPORTING_VQ = BalloonQueue
PFNS = [7, 5, 6, 900, 3, 300, 301]
"""Unsorted, with runs and single pages."""


# --- the balloon's work -----------------------------------------------------------------------


def test_inflate_removes_exactly_the_pages_that_were_handed_over(rig: DeviceRig) -> None:
    rig.start_ready()
    before = rig.blocks_bytes()
    rig.inflate(PFNS)
    assert rig.damaged() == rig.holes() == set(PFNS)
    assert before - rig.blocks_bytes() == len(PFNS) * 4096


def test_inflate_reports_its_work(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.inflate(PFNS)
    progress = rig.wait_progress(lambda progress: progress.buffers == 1)
    assert progress.inflated_pages == 7
    assert progress.removed_bytes == 7 * 4096
    # 3, 5–7, 300–301, 900
    assert (progress.removals, progress.faults) == (4, 0)


def test_inflate_over_a_chain_of_many_parts_is_the_same(rig: DeviceRig) -> None:
    rig.start_ready()
    content = b"".join(pfn.to_bytes(4, "little") for pfn in PFNS)
    # Cut inside a PFN: the parts are one stream of bytes (virtio 1.3, 2.7.4).
    parts = [rig.write_buffer(INFLATEQ, content[n : n + 3], n) for n in range(0, 28, 3)]
    rig.offer(INFLATEQ, parts)
    assert rig.wait_used(INFLATEQ) == [0]
    assert rig.damaged() == set(PFNS)


def test_deflate_is_answered_and_changes_nothing(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.inflate(PFNS)
    rig.offer_pfns(DEFLATEQ, PFNS)
    assert rig.wait_used(DEFLATEQ) == [0]
    assert rig.damaged() == rig.holes() == set(PFNS)
    progress = rig.wait_progress(lambda progress: progress.buffers == 2)
    assert progress.deflated_pages == 7


def test_reported_ranges_are_removed_whole_pages_only(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.offer(REPORTING_VQ, [], [(16 * 4096, 8 * 4096), (100 * 4096 + 1, 3 * 4096)])
    assert rig.wait_used(REPORTING_VQ) == [0]
    # The second range covers pages 101 and 102 wholly, 100 and 103 only in part.
    assert rig.damaged() == rig.holes() == {*range(16, 24), 101, 102}
    progress = rig.wait_progress(lambda progress: progress.buffers == 1)
    assert (progress.reported_bytes, progress.removed_bytes) == (11 * 4096, 10 * 4096)


def test_reported_ranges_keep_their_content_where_the_guest_looks_for_it(rig: DeviceRig) -> None:
    rig.spec = rig.spec._replace(frees_reported=False)
    rig.start_ready()
    rig.offer(REPORTING_VQ, [], [(16 * 4096, 8 * 4096)])
    assert rig.wait_used(REPORTING_VQ) == [0]
    assert rig.damaged() == rig.holes() == set()
    # The balloon's pages are another matter: the driver fills those that it takes back.
    rig.inflate(PFNS)
    assert rig.damaged() == rig.holes() == set(PFNS)


def test_several_regions_are_each_removed_from_in_their_own_place(make_rig: MakeRig) -> None:
    # Adjacent, then a hole up to 4 GiB, as q35 has it; not in order of the memfd.
    rig = make_rig([(0x10_0000, 256), (0, 256), (0x1_0000_0000, 256)])
    rig.start_ready()
    # 255–256 crosses from the region at 0 to that at 1 MiB, whose pages come first in the file.
    rig.inflate([255, 256, 0x10_0000, 3])
    assert rig.damaged() == {256 + 255, 0, 512, 256 + 3}


def test_statistics_come_up_and_are_asked_for_anew(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, 111))])
    assert rig.wait_report(Stats).entries == ((4, 111),)
    assert rig.rings[STATSQ].used_idx == 0  # Held: giving it back is the next question.
    rig.running.tube.send(Command.REQUEST_STATS)
    assert rig.wait_used(STATSQ) == [0]
    rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, 222))])
    assert rig.wait_report(Stats, 2).entries == ((4, 222),)


@fault("sends statistics that nobody asked for")
def test_statistics_that_nobody_asked_for_are_not_passed_on_one_by_one(rig: DeviceRig) -> None:
    # A guest that never stops sending must not keep the controller busy.
    began = time.monotonic()
    rig.start_ready()
    rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, 0))], head=0)
    for number in range(1, 200):
        # Each is answered because the next has come.
        rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, number))], head=number % 2)
        assert rig.wait_used(STATSQ) == [1 - number % 2]
    wait_until(
        lambda: latest_stats(rig) == [Stats(((4, 199),))],
        what="199",
        woken_by=rig.running.tube.fileno(),
    )
    # Ten in a second, and the first of them at once.
    assert len(rig.of(Stats)) <= 10 * (time.monotonic() - began) + 3


def latest_stats(rig: DeviceRig) -> list[Stats]:
    rig.read_reports()
    return rig.of(Stats)[-1:]


def test_driver_that_suppresses_calls_gets_none(rig: DeviceRig) -> None:
    rig.rings[INFLATEQ].set_flags(1)
    rig.start_ready()
    rig.offer_pfns(INFLATEQ, [3])
    rig.wait_progress(lambda progress: progress.buffers == 1)
    assert rig.rings[INFLATEQ].used_idx == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(rig.calls[INFLATEQ])


def test_vring_without_a_call_fd_is_served(rig: DeviceRig) -> None:
    rig.change_vring(INFLATEQ, call_fd=None)
    rig.start_ready()
    rig.offer_pfns(INFLATEQ, [3])
    rig.wait_progress(lambda progress: progress.buffers == 1)
    assert rig.damaged() == {3}


# --- stop, death, resume ----------------------------------------------------------------------


def test_stop_answers_with_used_indices_and_ends_with_zero(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.inflate([1])
    rig.inflate([2])
    rig.offer_pfns(DEFLATEQ, [1])
    rig.wait_used(DEFLATEQ)
    rig.stop()
    assert rig.stopped_indices() == {0: 2, 1: 1, 2: 0, 3: 0}


def test_stop_while_a_statistics_buffer_is_held_does_not_count_it(rig: DeviceRig) -> None:
    rig.rings[STATSQ].start_at(65535)
    rig.start_ready()
    rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, 1))])
    rig.wait_report(Stats)
    rig.stop()
    assert rig.stopped_indices()[2] == 65535


@fault("device killed (SIGKILL, OOM killer) in mid-inflate, mid-deflate, idle")
def test_killed_device_is_replaced_and_resumes_at_used_idx(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.inflate([1, 2])
    rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, 5))])
    rig.wait_report(Stats)
    rig.kill()
    # Offered while nobody is there, and its kick is taken by nobody.
    rig.offer_pfns(INFLATEQ, [8, 9], slot=1)
    os.eventfd_read(rig.kicks[INFLATEQ])
    rig.start_ready()
    assert rig.wait_used(INFLATEQ) == [1]
    assert rig.damaged() == {1, 2, 8, 9}
    # The buffer that the dead device held is taken again, and given back when asked for.
    assert rig.wait_report(Stats).entries == ((4, 5),)
    rig.running.tube.send(Command.REQUEST_STATS)
    assert rig.wait_used(STATSQ) == [0]


# The statsq answers a chain with the next one.
@fault("device killed between an answer and its call")
@pytest.mark.parametrize(("queue", "chains"), [(INFLATEQ, 1), (DEFLATEQ, 1), (STATSQ, 2)])
def test_device_killed_between_answer_and_call_the_next_one_calls(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch, queue: BalloonQueue, chains: int
) -> None:
    # The driver waits for that call without end: its chain is answered, so nothing is pending,
    # and nobody but the next device can know that it was never called.
    def dies(running: RunningQueue) -> None:
        if running.ring.used_index:
            os.getuid()  # Killed by the filter.

    with monkeypatch.context() as patched:
        patched.setattr(balloon, "_call", dies)
        rig.start_ready()
        for number in range(chains):
            content = bytes(STAT_ENTRY.size if queue is STATSQ else 4)
            rig.offer(queue, [rig.write_buffer(queue, content)], head=number)
        assert rig.wait_end() == -signal.SIGSYS
    assert rig.rings[queue].used_idx == 1
    call = rig.calls[queue]
    assert not is_readable(call)

    rig.start_ready()
    wait_until(lambda: is_readable(call), woken_by=call, what="the call that the dead device owed")


CHAINS = RING_SIZE // 2
"""Of two descriptors each, so that they fill a ring."""
ANSWERS = (1, 2, 3, 5, 8, 13, 21)
"""After how many of them a device is killed."""


def offer_long_work(rig: DeviceRig, queue: BalloonQueue, pages: range) -> None:
    """Makes a chain available for each page, of a millisecond's work, and kicks once for all."""
    ring = rig.rings[queue]
    # Page 0, named 15,360 times: it has to be sorted, and costs no system calls.
    long = rig.write_buffer(queue, bytes(60 * 1024), at=4096)
    for number, page in enumerate(pages):
        own = rig.write_buffer(queue, page.to_bytes(4, "little"), at=4 * number)
        ring.offer(ring.chain([2 * number, 2 * number + 1], [own, long]))
    rig.kick(queue)


def kill_after(rig: DeviceRig, queue: BalloonQueue, answers: int) -> int:
    """Kills the device once it has answered so many chains; returns how many it has answered."""
    ring = rig.rings[queue]
    first = ring.avail_idx - CHAINS
    deadline = time.monotonic() + HANG_S
    # Not woken by its call, which comes after the last of them.
    while ring.used_idx - first < answers:
        assert time.monotonic() < deadline, f"answered: {ring.used_idx - first} of {answers}"
        os.sched_yield()
    rig.kill()
    return ring.used_idx - first


@fault("device killed (SIGKILL, OOM killer) in mid-inflate, mid-deflate, idle")
def test_device_killed_again_and_again_in_mid_inflate_loses_nothing(rig: DeviceRig) -> None:
    heads: list[int] = []
    unanswered = 0
    rig.start_ready()
    for round_, answers in enumerate(ANSWERS):
        pages = range(1 + round_ * CHAINS, 1 + (round_ + 1) * CHAINS)
        offer_long_work(rig, INFLATEQ, pages)
        answered = kill_after(rig, INFLATEQ, answers)
        unanswered += CHAINS - answered
        # What is answered is removed, and of the rest at most the chain that it died in.
        removed = set(range(pages[answered - 1] + 1))
        assert rig.damaged() in (removed, removed | {max(removed) + 1})

        rig.start_ready()
        heads += rig.wait_used(INFLATEQ, CHAINS)
        assert rig.damaged() == rig.holes() == set(range(pages.stop))
    assert heads == [*range(0, RING_SIZE, 2)] * len(ANSWERS)
    assert unanswered > 0, "every device had done all its work when it was killed"


@fault("device killed (SIGKILL, OOM killer) in mid-inflate, mid-deflate, idle")
def test_device_killed_again_and_again_in_mid_deflate_all_is_answered_in_order(
    rig: DeviceRig,
) -> None:
    heads: list[int] = []
    unanswered = 0
    pages = range(1, 1 + CHAINS)
    rig.start_ready()
    rig.inflate([0, *pages])
    for answers in ANSWERS:
        offer_long_work(rig, DEFLATEQ, pages)
        answered = kill_after(rig, DEFLATEQ, answers)
        unanswered += CHAINS - answered
        # The guest uses what it was given back, though nobody is there.
        for page in pages[:answered]:
            os.pwrite(rig.fd, pattern(page), page * 4096)

        rig.start_ready()
        heads += rig.wait_used(DEFLATEQ, CHAINS)
        assert rig.damaged() == {0, *pages[answered:]}
        rig.inflate(pages)
    assert heads == [*range(0, RING_SIZE, 2)] * len(ANSWERS)
    assert unanswered > 0, "every device had done all its work when it was killed"


@fault("controller killed, without a store")
def test_device_whose_controller_closes_the_tube_ends_at_once(rig: DeviceRig) -> None:
    device = rig.start_ready()
    device.tube.close()
    pidfd = device.pidfd.fileno()
    wait_until(lambda: is_readable(pidfd), woken_by=pidfd, what="the device's end")
    assert device.reap() == 0
    device.close()
    rig.device = None


@fault("controller killed, without a store")
def test_device_whose_controller_is_killed_ends_at_once(rig: DeviceRig) -> None:
    # The controller is a child that forks a device and is then killed. Another child of its holds
    # the tube open, so that only the parent-death signal can end the device.
    reading, writing = os.pipe()
    controller = os.fork()
    if controller == 0:
        try:
            device = rig.start_ready()
            holder = os.fork()
            if holder != 0:
                os.write(writing, struct.pack("<2i", device.pid, holder))
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)  # So that a controller that fails is the end of this pipe.
    try:
        device_pid, holder = struct.unpack("<2i", os.read(reading, 8))
        device_fd = os.pidfd_open(device_pid)
    finally:
        os.kill(controller, signal.SIGKILL)
        os.waitpid(controller, 0)
        os.close(reading)
    try:
        wait_until(lambda: is_readable(device_fd), woken_by=device_fd, what="the device's end")
    finally:
        os.kill(holder, signal.SIGKILL)
        os.close(device_fd)


def is_readable(pidfd: int) -> bool:
    """A pidfd is readable once its process has ended, reaped or not."""
    return select.select([pidfd], [], [], 0)[0] == [pidfd]


@fault("device stopped and continued")
def test_device_that_was_suspended_goes_on(rig: DeviceRig) -> None:
    device = rig.start_ready()
    os.kill(device.pid, signal.SIGSTOP)
    rig.offer_pfns(INFLATEQ, [1])
    os.kill(device.pid, signal.SIGCONT)
    assert rig.wait_used(INFLATEQ) == [0]


@fault("device stopped and continued")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE])
def test_device_leaves_the_terminals_signals_to_its_controller(
    rig: DeviceRig, number: signal.Signals
) -> None:
    device = rig.start_ready()
    os.kill(device.pid, number)
    rig.inflate([1])
    assert rig.damaged() == {1}


# --- a host that has nothing left ------------------------------------------------------------


@fault("no descriptor or no process left for a device")
@pytest.mark.parametrize("room", range(4))
def test_spawn_without_room_for_descriptors_is_an_os_error_and_leaks_nothing(
    rig: DeviceRig, room: int
) -> None:
    before = open_fds()
    with ready_to_fork(), room_for_fds(room), pytest.raises(OSError, match="Too many open files"):
        spawn(rig.spec, rig.fork)
    assert open_fds() == before


@fault("device cannot be watched by its controller (no descriptor for it)")
def test_spawn_that_cannot_watch_its_child_ends_it_and_leaks_nothing(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    before = open_fds()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with ready_to_fork(), pytest.raises(OSError, match="Too many open files in system"):
        spawn(rig.spec, rig.fork)
    assert open_fds() == before
    # Nobody is left: neither running, nor to be waited for.
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# --- the tube under pressure ------------------------------------------------------------------


def fill_tube_and_load_filter() -> None:
    """In the child, before its filter: writes into its only socket until nothing more fits."""
    tube = next(fd for fd in range(3, 256) if _is_socket(fd))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(tube, encode_up(Ready()))
    shipped_filter().load()


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


@fault("device reports without end (taken over)")
def test_full_tube_does_not_block_the_device(make_rig: MakeRig) -> None:
    rig = make_rig(load_filter=fill_tube_and_load_filter)
    shipped_filter()
    rig.start()
    rig.inflate([1])
    rig.rings[DEFLATEQ].describe(0, 0, 0, VIRTQ_DESC_F_INDIRECT)
    rig.rings[DEFLATEQ].offer(0)
    rig.kick(DEFLATEQ)
    assert rig.wait_used(DEFLATEQ) == [0]
    assert rig.damaged() == {1}
    # Once there is room again, its figures come by themselves.
    progress = rig.wait_progress(lambda progress: progress.buffers == 2)
    assert (progress.removed_bytes, progress.faults) == (4096, 1)


@fault("device reports without end (taken over)")
def test_garbage_in_the_tube_is_ignored(rig: DeviceRig) -> None:
    device = rig.start_ready()
    for length in (0, 1, 3, 5, 12, 1024, 4096)[1:]:
        os.write(device.tube.fileno(), b"\xff" * length)
    rig.inflate([1])
    rig.stop()


# --- years of uptime --------------------------------------------------------------------------


@pytest.mark.parametrize("number_of_buffers", [20_000])
def test_thousands_of_buffers_neither_kill_nor_grow_the_device(
    rig: DeviceRig, number_of_buffers: int
) -> None:
    device = rig.start_ready()
    own = rig.num_pages - DRIVER_PAGES
    resident: list[int] = []
    for number in range(number_of_buffers // 16):
        for slot in range(16):
            first = (number * 16 + slot) % (own - 8)
            rig.offer_pfns(INFLATEQ, [first + 7, first, first + 3], slot)
        rig.wait_used(INFLATEQ, 16)
        if number % 250 == 249:
            resident.append(_anonymous_kib(device.pid))
    rig.wait_progress(lambda progress: progress.buffers == number_of_buffers)
    # Measured: 0 KiB after the first quarter; an interpreter's free lists may take a little.
    assert resident[-1] - resident[0] <= 256
    rig.stop()


def _anonymous_kib(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
