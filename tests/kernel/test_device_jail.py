"""The jail from outside and from inside: what a device has, and what it dies of trying."""

import ctypes
import errno
import mmap
import os
import re
import resource
import select
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR, RegionSpec
from balloon_daemon.device.template import Template
from balloon_daemon.linux.jail import MAX_GROWTH_BYTES
from balloon_daemon.seccomp.filter import compile_policy
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue
from tests.harness.daemon import Daemon
from tests.harness.device_rig import SHIPPED_POLICY, DeviceRig, fate_of, shipped_filter
from tests.harness.faults import fault
from tests.harness.host_setting import changed
from tests.harness.makers import MakeGuest, MakeRig
from tests.harness.open_files import open_files
from tests.harness.processes import NAMESPACES, process_status
from tests.harness.whole_vm import attach, wait_for_device

INFLATEQ, DEFLATEQ, *_ = BalloonQueue
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: nothing to give up otherwise")
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
PR_GET_DUMPABLE = 3  # linux/prctl.h
PTRACE_SEIZE = 0x4206  # linux/ptrace.h
CONTROLLER = os.getpid()
"""Whoever forks the devices: known beforehand, as getppid(2) is forbidden too."""


# --- from outside -----------------------------------------------------------------------------


def test_jail_has_a_filter_no_new_privs_and_no_capability(rig: DeviceRig) -> None:
    seen = process_status(rig.start_ready().pid)
    assert (seen["Seccomp"], seen["NoNewPrivs"]) == ("2", "1")
    for held in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(seen[held], 16) == 0, held


@as_root
def test_jail_of_root_has_another_user_no_groups_and_an_empty_bounding_set(
    rig: DeviceRig,
) -> None:
    seen = process_status(rig.start_ready().pid)
    assert seen["Uid"].split() == seen["Gid"].split() == ["65534"] * 4
    assert seen["Groups"] == ""
    assert int(seen["CapBnd"], 16) == 0


@as_root
def test_jail_of_root_without_another_user_has_no_capability_all_the_same(rig: DeviceRig) -> None:
    rig.spec = rig.spec._replace(identity=None)
    seen = process_status(rig.start_ready().pid)
    assert [int(seen[held], 16) for held in ("CapPrm", "CapEff", "CapBnd")] == [0, 0, 0]


def test_jail_is_named_and_single_threaded(rig: DeviceRig) -> None:
    seen = process_status(rig.start_ready().pid)
    assert (seen["Name"], seen["Threads"]) == ("balloon-rig", "1")


@pytest.mark.parametrize(
    ("limit", "most"),
    [
        ("Max core file size", "0"),
        ("Max open files", "0"),
        ("Max file size", "0"),
        ("Max processes", "0"),
    ],
)
def test_jail_has_hard_limits(rig: DeviceRig, limit: str, most: str) -> None:
    limits = Path(f"/proc/{rig.start_ready().pid}/limits").read_text().splitlines()
    (line,) = (line for line in limits if line.startswith(limit))
    assert line.removeprefix(limit).split()[:2] == [most, most]


def test_jail_bounds_its_stack_wherever_it_is_started(rig: DeviceRig) -> None:
    # No mmap makes a stack grow, so no filter sees it. Most systems have no hard limit of it, and
    # a soft one of 8 MiB, which is not to be raised.
    limits = Path(f"/proc/{rig.start_ready().pid}/limits").read_text()
    found = re.search(r"^Max stack size +(\d+) +(\d+) ", limits, re.M)
    assert found is not None
    soft, hard = map(int, found.groups())
    outside = resource.getrlimit(resource.RLIMIT_STACK)[0] % (1 << 64)  # -1: none
    assert soft == hard == min(outside, MAX_GROWTH_BYTES)


def test_jail_is_not_dumpable(rig: DeviceRig) -> None:
    # Asked from inside, before the filter forbids it: from outside root sees no difference.
    rig.here.load_filter = lambda: os._exit(7 + LIBC.prctl(PR_GET_DUMPABLE))
    rig.start()
    assert rig.wait_end() == 7


@as_root
def test_jail_has_open_what_it_needs_and_nothing_else(rig: DeviceRig) -> None:
    ours, theirs = socket.socketpair()
    rig.spec = rig.spec._replace(channel_fd=rig.own(ours.detach()))
    device = rig.start_ready()
    theirs.close()
    kinds = Counter(re.sub(r"\d+", "", link) for link in open_files(device.pid).values())
    assert kinds == {
        "anon_inode:[eventfd]": 8,  # Kick and call of four queues.
        "anon_inode:[eventpoll]": 1,
        "pipe:[]": 1,  # Standard error.
        "socket:[]": 2,  # The tube and the channel.
    }


@as_root
def test_jail_maps_its_own_guests_memory_and_no_others(
    template: Template, make_rig: MakeRig
) -> None:
    # By the template, as in balloond: this process has both mapped, and so would have its forks.
    other, rig = make_rig(), make_rig()
    other.fork = rig.fork = template.fork
    other.start_ready()
    device = rig.start_ready()
    maps = Path(f"/proc/{device.pid}/maps").read_text().splitlines()
    inodes = {int(line.split()[4]) for line in maps if "memfd:" in line}
    assert inodes == {os.fstat(rig.fd).st_ino}


@as_root
def test_jail_of_a_running_daemons_device_is_an_empty_world(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    device = wait_for_device([attach(make_guest(), daemon)], daemon, "vm1")
    for name in NAMESPACES:
        ours, daemons, devices = (
            os.readlink(f"/proc/{pid}/ns/{name}") for pid in ("self", daemon.pid, device)
        )
        assert daemons == ours
        assert devices != ours
    # "/." follows the link into the device's own mounts.
    root = f"/proc/{device}/root/."
    assert os.listdir(root) == os.listdir(f"/proc/{device}/cwd/.") == []
    assert os.statvfs(root).f_flag & os.ST_RDONLY
    interfaces = Path(f"/proc/{device}/net/dev").read_text().splitlines()[2:]
    assert [line.partition(":")[0].strip() for line in interfaces] == ["lo"]


# --- from inside: code that a guest that took the device over might run ------------------------


def map_executable() -> None:
    mmap.mmap(-1, 4096, PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)


def protect_executable() -> None:
    page = mmap.mmap(-1, 4096, PRIVATE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    LIBC.mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_EXEC)


def read_the_controllers_memory() -> None:
    LIBC.process_vm_readv(CONTROLLER, None, 0, None, 0, 0)


FORBIDDEN: list[tuple[str, Callable[[], object]]] = [
    ("openat", lambda: os.open("/etc/passwd", os.O_RDONLY)),
    ("execve", lambda: os.execv("/none", ["none"])),
    ("vfork", lambda: LIBC.vfork()),
    ("socket", lambda: socket.socket(socket.AF_UNIX)),
    ("socket", lambda: socket.socket(socket.AF_INET)),
    ("ptrace", lambda: LIBC.ptrace(PTRACE_SEIZE, CONTROLLER, None, None)),
    ("kill", lambda: os.kill(1, 0)),
    ("kill", lambda: os.kill(CONTROLLER, 0)),  # Signal 0, lest a broken policy ends the tests.
    ("pidfd_open", lambda: os.pidfd_open(1)),
    ("mmap", map_executable),
    ("mprotect", protect_executable),
    ("madvise", lambda: mmap.mmap(-1, 4096, PRIVATE).madvise(mmap.MADV_HUGEPAGE)),
    ("prctl", lambda: LIBC.prctl(4, 1)),  # PR_SET_DUMPABLE
    ("seccomp", lambda: LIBC.syscall(317, 1, 0, None)),
    ("setuid", lambda: os.setuid(0)),
    ("unlink", lambda: os.unlink("/none")),
    ("mount", lambda: LIBC.mount(b"none", b"/", None, 0, None)),
    ("unshare", lambda: LIBC.unshare(0x10000000)),
    ("memfd_create", lambda: os.memfd_create("x")),
    # The C library's: a Python socket asks for its family first, and would die of that.
    ("sendto", lambda: LIBC.send(3, b"x", 1, 0)),
    ("recvmsg", lambda: LIBC.recvmsg(3, None, 0)),
    ("process_vm_readv", read_the_controllers_memory),
    ("bpf", lambda: LIBC.syscall(321, 0, None, 0)),
    ("brk", lambda: LIBC.brk(None)),
]


@fault("takes its device over")
@pytest.mark.parametrize(("name", "action"), FORBIDDEN, ids=[name for name, _ in FORBIDDEN])
def test_forbidden_call_in_the_jail_is_killed(
    rig: DeviceRig, name: str, action: Callable[[], object]
) -> None:
    assert fate_of(rig, action) == -signal.SIGSYS, name


# What another device could be reached by; numbers from asm/unistd_64.h.
REACHING: list[tuple[str, Callable[[int], object]]] = [
    ("process_vm_readv", lambda pid: LIBC.process_vm_readv(pid, None, 0, None, 0, 0)),
    ("process_vm_writev", lambda pid: LIBC.process_vm_writev(pid, None, 0, None, 0, 0)),
    ("ptrace", lambda pid: LIBC.ptrace(PTRACE_SEIZE, pid, None, None)),
    ("openat", lambda pid: os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    ("pidfd_open", os.pidfd_open),
    # No descriptor of it can be had; these die all the same.
    ("pidfd_getfd", lambda pid: LIBC.syscall(438, 3, 3, 0)),
    ("pidfd_send_signal", lambda pid: LIBC.syscall(424, 3, 0, None, 0)),
    ("process_madvise", lambda pid: LIBC.syscall(440, 3, None, 0, 0, 0)),
    ("kill", lambda pid: os.kill(pid, 0)),
    ("tgkill", lambda pid: LIBC.syscall(234, pid, pid, 0)),
]


@pytest.mark.parametrize(("name", "reach"), REACHING, ids=[name for name, _ in REACHING])
def test_device_that_was_taken_over_cannot_reach_another(
    rig: DeviceRig, make_rig: MakeRig, name: str, reach: Callable[[int], object]
) -> None:
    other = make_rig()
    pid = other.start_ready().pid
    assert fate_of(rig, lambda: reach(pid)) == -signal.SIGSYS, name
    other.inflate([1])
    other.stop()
    assert other.damaged() == {1}


ALL_FORBIDDEN = [*FORBIDDEN, *((name, partial(reach, CONTROLLER)) for name, reach in REACHING)]


@pytest.mark.parametrize(
    ("name", "action"), ALL_FORBIDDEN, ids=[name for name, _ in ALL_FORBIDDEN]
)
def test_forbidden_call_is_all_that_an_action_dies_of(
    rig: DeviceRig, tmp_path: Path, name: str, action: Callable[[], object]
) -> None:
    # Otherwise the two tests above would pass under a policy that allows the call.
    fate = fate_of(rig, action, policy_with(tmp_path, name))
    assert fate in (7, EXIT_INTERNAL_ERROR), rig.death_record


@fault("takes its device over")
def test_fork_in_the_jail_is_killed(rig: DeviceRig) -> None:
    # glibc's fork is clone without CLONE_THREAD, which is all that the policy allows.
    assert fate_of(rig, LIBC.fork) == -signal.SIGSYS


ALLOWED: list[tuple[str, Callable[[], object]]] = [
    ("private mmap", lambda: mmap.mmap(-1, 1 << 20, PRIVATE)),
    ("MADV_DONTNEED", lambda: mmap.mmap(-1, 4096, PRIVATE).madvise(mmap.MADV_DONTNEED)),
    ("its name", lambda: LIBC.prctl(15, b"renamed")),
    ("getpid", os.getpid),
    ("growing its heap", lambda: [bytearray(200_000) for _ in range(100)]),
]


def start_thread() -> None:
    """What pthread_create does without clone3, which the policy kills."""
    flags = 0x10000 | 0x800 | 0x100  # CLONE_THREAD, CLONE_SIGHAND, CLONE_VM
    if LIBC.syscall(56, flags, 0, 0, 0, 0) != -1:
        os._exit(9)
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


USING_UP = [
    pytest.param(lambda: os.eventfd(0), "Too many open files", id="files"),
    pytest.param(select.epoll, "Too many open files", id="epolls"),
    pytest.param(lambda: mmap.mmap(-1, 4096), "Cannot allocate memory", id="shared memory"),
    pytest.param(
        lambda: mmap.mmap(-1, 1 << 30, PRIVATE), "Cannot allocate memory", id="private memory"
    ),
    pytest.param(lambda: bytearray(1 << 30), "MemoryError", id="memory"),
    # RLIMIT_NPROC does not bind the user 0; as root, the device is somebody else.
    pytest.param(start_thread, "Resource temporarily unavailable", id="threads", marks=as_root),
]


@fault("takes its device over")
@pytest.mark.parametrize(("action", "error"), USING_UP)
def test_device_that_was_taken_over_cannot_use_up(
    rig: DeviceRig, action: Callable[[], object], error: str
) -> None:
    assert fate_of(rig, action) == EXIT_INTERNAL_ERROR
    assert rig.death_record.endswith(error)


MAP_DROPPABLE, MAP_GROWSDOWN = 0x8, 0x100  # linux/mman.h


def guest_mapping() -> tuple[int, int]:
    """The address and size of the last region that the device, which calls this, has mapped."""
    frame = sys._getframe()
    while "loop" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    view = frame.f_locals["loop"]._device._memory.regions[-1].view
    return ctypes.addressof(ctypes.c_char.from_buffer(view)), len(view)


@fault("takes its device over")
@pytest.mark.parametrize(
    ("flags", "prot"),
    [
        pytest.param(PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, id="private"),
        pytest.param(PRIVATE, mmap.PROT_READ, id="writable later"),
        pytest.param(
            mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE, id="shared"
        ),
        pytest.param(PRIVATE | MAP_GROWSDOWN, mmap.PROT_READ | mmap.PROT_WRITE, id="a stack"),
        pytest.param(
            MAP_DROPPABLE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE, id="droppable"
        ),
    ],
)
def test_device_that_was_taken_over_has_no_memory_in_place_of_its_guests(
    rig: DeviceRig, flags: int, prot: int
) -> None:
    # Its guest's memory counts in RLIMIT_AS: a device that unmaps it may map as much again.
    size = 1 << 40
    fd = rig.own(os.memfd_create("much"))
    os.ftruncate(fd, size)
    much = RegionSpec(GuestAddr(1 << 41), FrontendAddr(1 << 46), size, 0, 4096, fd)
    rig.spec = rig.spec._replace(regions=(*rig.spec.regions, much))

    def map_memory_in_place_of_the_guests() -> None:
        place, length = guest_mapping()
        assert length == size
        assert LIBC.munmap(place, length) == 0
        own = LIBC.mmap(None, 1 << 30, prot, flags, -1, 0)
        if own is None or own == ctypes.c_void_p(-1).value:
            os._exit(ctypes.get_errno())
        if LIBC.mprotect(ctypes.c_void_p(own), 1 << 30, mmap.PROT_READ | mmap.PROT_WRITE):
            os._exit(ctypes.get_errno())

    assert fate_of(rig, map_memory_in_place_of_the_guests) == errno.ENOMEM


@as_root
def test_device_that_was_taken_over_has_no_page_of_a_pool_of_huge_ones(rig: DeviceRig) -> None:
    # A neighbour whose guest takes its memory back from an empty pool dies of SIGBUS.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
    with changed(Path("/proc/sys/vm/nr_hugepages"), lambda before: str(int(before) + 2)):
        mmap.mmap(-1, 2 << 20, flags).close()
        assert fate_of(rig, lambda: mmap.mmap(-1, 2 << 20, flags)) == EXIT_INTERNAL_ERROR
    assert rig.death_record.endswith("Cannot allocate memory")


@pytest.mark.parametrize(("name", "action"), ALLOWED, ids=[name for name, _ in ALLOWED])
def test_allowed_call_in_the_jail_lives(
    rig: DeviceRig, name: str, action: Callable[[], object]
) -> None:
    assert fate_of(rig, action) == 7, name


@fault("device has a bug (an exception)")
def test_exception_in_the_jail_ends_it_with_last_words(rig: DeviceRig) -> None:
    def fail() -> None:
        raise RuntimeError("what went wrong")

    assert fate_of(rig, fail) == EXIT_INTERNAL_ERROR
    assert rig.death_record.startswith("balloon-rig: Traceback")
    assert rig.death_record.rstrip(" |").endswith("RuntimeError: what went wrong")


@fault("device has a bug (an exception)")
def test_last_words_of_a_device_that_was_taken_over_are_bounded_and_printable(
    rig: DeviceRig,
) -> None:
    def shout() -> None:
        os.write(2, b"\x1b[31m\0\r\xff forged\nlines\n" * 10_000)

    assert fate_of(rig, shout) == 7
    assert 0 < len(rig.death_record) <= 4096
    assert rig.death_record.isprintable()


# --- a policy that lacks something ------------------------------------------------------------


def policy_with(tmp_path: Path, call: str) -> Callable[[], None]:
    """The shipped policy, and this call with any arguments."""
    path = tmp_path / "wide.policy"
    path.write_text(f"{shipped_without(call)}{call}: 1\n")
    return compile_policy(path).load


def policy_without(tmp_path: Path, call: str) -> Callable[[], None]:
    path = tmp_path / "short.policy"
    path.write_text(shipped_without(call))
    return compile_policy(path).load


def shipped_without(call: str) -> str:
    lines = SHIPPED_POLICY.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(f"{call}:"))


@fault("policy file of one's own that lacks a call, or refuses one")
def test_device_whose_policy_lacks_madvise_dies_at_its_first_page(
    rig: DeviceRig, tmp_path: Path
) -> None:
    rig.here.load_filter = policy_without(tmp_path, "madvise")
    rig.start_ready()
    rig.offer_pfns(INFLATEQ, [1])
    assert rig.wait_end() == -signal.SIGSYS
    assert rig.damaged() == set()
    assert rig.rings[INFLATEQ].used_idx == 0
    # Under the whole policy another goes on with the same chain.
    rig.here.load_filter = shipped_filter().load
    rig.start_ready()
    assert rig.wait_used(INFLATEQ) == [0]
    assert rig.damaged() == {1}
