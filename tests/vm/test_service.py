"""The shipped unit under a real systemd: started, restarted, killed, stopped, with a VM attached.

The service's machine is a container; the VM is a fake guest out here. What a VM would lose its
balloon by is lost for good: QEMU and crosvm never connect a second time.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest

from balloon_daemon.device.forker import NAME
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run, step
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.linux.jail import MAX_GROWTH_BYTES
from balloon_daemon.units import MIB, PAGE_SIZE
from tests.harness.api_client import ask
from tests.harness.faults import fault
from tests.harness.open_files import open_files
from tests.harness.waiting import HANG_S, wait_until
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.vm

VM_MEM = 512 * MIB
MAXIMUM = VM_MEM // 2
SPEED = 20
"""All 16 levels in about a second: time enough for a restart in the middle."""

SETTINGS = GuestSettings(
    VM_MEM, population=Population(touched_bytes=128 * MIB, pinned_bytes=32 * MIB)
)
STOP_LIMIT_S = 3
USER = "balloond"

MakeGuest = Callable[[], "Guest"]


class Guest(FakeGuest):
    """A guest that remembers when the balloon took something from it."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)
        self._taken_at_s: list[float] = []

    @property
    def actual_bytes(self) -> int:
        return self.driver.actual * PAGE_SIZE

    def handle(self, readable: Sequence[int]) -> None:
        before = self.driver.counters.inflate_buffers
        super().handle(readable)
        if self.driver.counters.inflate_buffers > before:
            self._taken_at_s.append(time.monotonic())

    def longest_pause_s(self) -> float:
        """The longest time between two buffers that the balloon took."""
        return max(later - earlier for earlier, later in pairwise(self._taken_at_s))


AS_MEMBER = """
import os, socket, sys
os.setgroups([int(sys.argv[1])])
os.setgid(65534)
os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.connect("/run/balloond/api.sock")
client.sendall(sys.argv[2].encode() + b"\\r\\nHost: x\\r\\n\\r\\n")
print(client.makefile().readline())
"""
"""Asks the API as a member of a group, and prints the first line of the answer."""


@pytest.fixture(scope="module")
def machine() -> Iterator[ServiceHost]:
    """The machine, booted."""
    machine = ServiceHost(ready_root(), SESSION_LOGS / "service")
    yield machine
    machine.stop()


@pytest.fixture
def host(machine: ServiceHost) -> Iterator[ServiceHost]:
    """The machine, on which balloond is started, has nothing in store and nothing said yet."""
    print(f"the service's machine keeps its logs in {machine.log_dir}")
    machine.begin()
    machine.configure("--speed", str(SPEED), "--user", USER)
    machine.run("systemctl", "start", "balloond")
    yield machine
    machine.run("systemctl", "stop", "balloond")


@pytest.fixture
def make_guest(host: ServiceHost) -> Iterator[MakeGuest]:
    """Makes guests that are attached to the service."""
    guests: list[Guest] = []

    def make() -> Guest:
        guest = Guest()
        guests.append(guest)
        guest.connect(str(host.socket))
        guest.bind()
        return guest

    yield make
    for guest in guests:
        guest.close()


def run_beside(guest: Guest, host: ServiceHost, *command: str) -> None:
    """Runs a command on the machine while the guest lives on."""
    with host.running(*command) as process:
        run([guest], lambda: process.poll() is not None)
        _, errors = process.communicate()
    assert process.returncode == 0, errors


def status(host: ServiceHost, pid: int) -> dict[str, str]:
    lines = host.path(f"proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def ids_of(host: ServiceHost, user: str) -> tuple[list[str], list[str]]:
    """What /proc/PID/status says of a process that is this user and nobody else."""
    users = [line.split(":") for line in host.path("etc/passwd").read_text().splitlines()]
    ((uid, gid),) = [words[2:4] for words in users if words[0] == user]
    return [uid] * 4, [gid] * 4


def limit(host: ServiceHost, pid: int, name: str) -> str:
    """A hard limit of a process, as in "Max data size"."""
    lines = host.path(f"proc/{pid}/limits").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    return line.removeprefix(name).split()[1]


def devices(host: ServiceHost, pid: int) -> list[int]:
    children = host.path(f"proc/{pid}/task/{pid}/children").read_text().split()
    names = {int(child): status(host, int(child))["Name"] for child in children}
    assert sorted(names.values())[-1] == NAME, "devices are forked from the template"
    return [child for child, name in names.items() if name.startswith("balloon-vm")]


def kept_fds(host: ServiceHost) -> int:
    return int(host.unit("NFileDescriptorStore"))


def wait_kept_fds(host: ServiceHost, most: int) -> None:
    """Waits for systemd's store to shrink: it hears of what is kept a little later."""
    wait_until(
        lambda: kept_fds(host) <= most,
        what=f"no more than {most} descriptors are kept",
        seen=lambda: kept_fds(host),
    )


def levels(lines: list[str]) -> list[str]:
    """The policy's levels, as in "3/16", in the order in which it said them."""
    return [line.rpartition(" level ")[2].split(",")[0] for line in lines if " level " in line]


@fault("the service's own cgroup reaches `memory.max`")
def test_started_service_is_active_and_its_devices_are_jailed(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    main = host.main_pid()
    (device,) = devices(host, main)
    controller_status, device_status = status(host, main), status(host, device)
    assert (host.unit("ActiveState"), host.unit("SubState")) == ("active", "running")
    # One device that the OOM killer takes must not end the others' balloons.
    assert host.unit("OOMPolicy") == "continue"
    assert host.unit("ManagedOOMPreference") == "omit"
    assert (device_status["Uid"].split(), device_status["Gid"].split()) == ids_of(host, USER)
    assert int(device_status["CapEff"], 16) == int(device_status["CapBnd"], 16) == 0
    assert device_status["Seccomp"] == "2"
    filters = int(device_status["Seccomp_filters"])
    # The policy's, and the one that leaves it counted memory alone.
    assert filters == int(controller_status["Seccomp_filters"]) + 2
    assert host.errors() == []


def test_service_finds_nothing_of_the_host_that_it_does_not_need(host: ServiceHost) -> None:
    root = host.path(f"proc/{host.main_pid()}/root")

    # Root's word is enough for systemd and D-Bus, whose sockets lie beside ours.
    assert {path.name for path in (root / "run").iterdir()} == {"balloond", "systemd"}
    # "incoming" is systemd's own way into a service's mounts, and empty.
    assert {path.name for path in (root / "run/systemd").iterdir()} <= {
        "notify",
        "incoming",
        "journal",
    }
    assert [path.name for path in (root / "run/systemd/journal").iterdir()] == ["socket"]
    assert [path.name for path in (root / "var/lib").iterdir()] == ["balloond"]
    assert host.path("run/systemd/private").exists()
    assert list(host.path("var/lib").iterdir()) != []


def test_lines_in_the_journal_have_their_events_fields(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    decided = [line.fields for line in host.journal() if line.fields.get("EVENT") == "decided"]
    assert {(fields["VM"], fields["SYSLOG_IDENTIFIER"]) for fields in decided} == {
        (decided[0]["VM"], "balloond")
    }
    assert int(decided[-1]["TARGET_BYTES"]) == MAXIMUM
    assert decided[0]["MESSAGE"].startswith(f"{decided[0]['VM']}: ")


def test_service_answers_over_its_api_which_the_group_may_ask(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    api = host.socket.with_name("api.sock")
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    (vm,) = ask(api, "/v1/status").content["vms"]
    assert (vm["name"], vm["target_bytes"]) == ("vm1", MAXIMUM)
    _, (group, *_) = ids_of(host, USER)
    found = api.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, int(group), 0o660)
    # On the machine itself: nobody may not look into another's /proc/PID/root.
    for request, answer in (("GET /v1/status", "200 OK"), ("POST /v1/release", "403 Forbidden")):
        said = host.run("python3", "-c", AS_MEMBER, group, f"{request} HTTP/1.1")
        assert said.strip() == f"HTTP/1.1 {answer}"
    host.run("systemctl", "restart", "balloond")
    assert ask(api, "/v1/status").status == 200
    assert api.stat().st_gid == int(group)


def test_service_has_its_bounds_and_so_has_each_device(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    main = host.main_pid()
    (device,) = devices(host, main)
    of_main, of_device = (int(limit(host, pid, "Max data size")) for pid in (main, device))
    assert MAX_GROWTH_BYTES < of_device < of_main == 512 * MIB
    assert host.unit("TasksMax") == "2048"
    # Guest memory that a device touches is the service's: a limit on all of it would be filled by
    # one device, and cost every VM its balloon.
    assert (host.unit("MemoryMax"), host.unit("MemoryHigh")) == ("infinity", "infinity")
    assert stat.S_IMODE(os.stat(host.socket.parent).st_mode) == 0o711


def test_service_is_woken_by_memory_pressure_and_sees_the_hosts_figures(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    host.path("etc/default/balloond").write_text(f'BALLOOND_ARGS="--user {USER}"\n')

    host.run("systemctl", "restart", "balloond")

    make_guest()
    main = host.main_pid()
    files = open_files(host.path(f"proc/{main}"))
    assert "/proc/pressure/memory" in files.values()
    assert host.errors() == []


@fault("`systemctl restart`, SIGUSR1")
def test_restart_in_mid_inflate_vm_keeps_balloon_and_level(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    before, socket_before = host.main_pid(), os.stat(host.socket)
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes > 0)

    run_beside(guest, host, "systemctl", "restart", "balloond")
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    host.note(f"restart: nothing taken for {guest.longest_pause_s():.3f} s")
    said = host.said_by(host.main_pid())
    assert host.main_pid() != before
    assert any("taken over from an earlier process" in line for line in said)
    assert levels(said)[0] == levels(host.said_by(before))[-1]
    assert guest.disconnected == ""
    assert guest.driver.counters.deflate_buffers == 0
    check = guest.ram.check()
    assert (check.pages_corrupt, check.balloon_resident) == (0, 0)
    # A VMM that connects in the meantime waits in the queue of the same socket.
    assert os.path.samestat(os.stat(host.socket), socket_before)
    assert host.errors() == []


@fault("`systemctl restart`, SIGUSR1")
def test_restarted_again_and_again_store_does_not_grow(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM)
    kept = kept_fds(host)

    for _ in range(3):
        run_beside(guest, host, "systemctl", "restart", "balloond")

    wait_kept_fds(host, kept)
    assert guest.disconnected == ""
    assert guest.actual_bytes == MAXIMUM


@fault("socket's file removed by hand")
def test_socket_removed_by_hand_restart_makes_one_that_is_kept_alone(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    host.socket.unlink()

    host.run("systemctl", "restart", "balloond")

    wait_kept_fds(host, 1)
    make_guest()
    assert host.errors() == []


@fault("controller killed, with a store (systemd, or `--keep-fds`)")
def test_killed_in_mid_inflate_systemd_brings_it_back_with_the_vm(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes > 0)

    run_beside(guest, host, "systemctl", "kill", "--signal=KILL", "--kill-who=main", "balloond")
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    host.note(f"kill: nothing taken for {guest.longest_pause_s():.3f} s")
    assert host.unit("NRestarts") == "1"
    said = host.said_by(host.main_pid())
    assert any("taken over from an earlier process" in line for line in said)
    assert guest.disconnected == ""
    assert guest.driver.counters.deflate_buffers == 0
    check = guest.ram.check()
    assert (check.pages_corrupt, check.balloon_resident) == (0, 0)


@fault("`systemctl stop`, SIGTERM, SIGINT")
def test_stopped_service_gives_all_back_first_and_starts_anew(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM)

    main = host.main_pid()
    run_beside(guest, host, "systemctl", "stop", "balloond")
    run([guest], lambda: guest.disconnected != "")

    # A guest that gets no core for two seconds, such as ours here, has it back from its VMM alone.
    late = any("have not taken all of their memory" in line for line in host.said_by(main))
    assert guest.actual_bytes == 0 or late
    assert guest.ram.check().pages_corrupt == 0
    assert (host.unit("ActiveState"), host.unit("Result")) == ("inactive", "success")
    assert kept_fds(host) == 0
    assert not host.socket.exists()

    host.run("systemctl", "start", "balloond")
    another = make_guest()
    run([another], lambda: another.actual_bytes == MAXIMUM)

    said = host.said_by(host.main_pid())
    assert not any("another balloond" in line for line in said)
    assert levels(said)[0] == "1/16"
    assert host.errors() == []


@fault("giving back takes longer than the service manager's limit")
def test_stop_that_takes_longer_than_its_limit_is_given_the_time_while_memory_comes_back(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM, HANG_S)
    directory = host.path("run/systemd/system/balloond.service.d")
    directory.mkdir(parents=True)
    (directory / "stop.conf").write_text(f"[Service]\nTimeoutStopSec={STOP_LIMIT_S}\n")
    host.run("systemctl", "daemon-reload")
    try:
        began, main = time.monotonic(), host.main_pid()
        with host.running("systemctl", "stop", "balloond") as process:
            # So slowly that all of it takes well over the limit; not one buffer waits so long.
            while process.poll() is None:
                pause = time.monotonic() + 3 * STOP_LIMIT_S * MIB / MAXIMUM
                step([guest], 0.01)
                wait_until(lambda: time.monotonic() > pause, deadline_s=HANG_S, what="a pause")  # noqa: B023
        took_s = time.monotonic() - began
        assert (host.unit("ActiveState"), host.unit("Result")) == ("inactive", "success")
    finally:
        shutil.rmtree(directory)
        host.run("systemctl", "daemon-reload")

    host.note(f"stop: {took_s:.1f} s with a limit of {STOP_LIMIT_S} s")
    assert took_s > STOP_LIMIT_S
    assert guest.actual_bytes == 0
    assert not any("stay in a balloon" in line for line in host.said_by(main))


@pytest.fixture
def host_without_store(host: ServiceHost) -> Iterator[ServiceHost]:
    """The machine, whose unit stores no descriptors."""
    directory = host.path("run/systemd/system/balloond.service.d")
    directory.mkdir(parents=True)
    (directory / "store.conf").write_text("[Service]\nFileDescriptorStoreMax=0\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", "balloond")
    host.run("systemctl", "start", "balloond")
    yield host
    shutil.rmtree(directory)
    host.run("systemctl", "daemon-reload")


def test_service_whose_unit_stores_nothing_gives_all_back_on_sigusr1(
    host_without_store: ServiceHost, make_guest: MakeGuest
) -> None:
    host, guest = host_without_store, make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes > 0, HANG_S)

    main = host.main_pid()
    run_beside(guest, host, "systemctl", "kill", "--signal=USR1", "--kill-who=main", "balloond")
    run([guest], lambda: guest.disconnected != "", HANG_S)

    assert guest.actual_bytes == 0
    assert any(line.endswith("SIGUSR1: ending") for line in host.said_by(main))
    # systemd's own line on the descriptor by which its store was tried; none on any other.
    refused = [line for line in host.errors() if "add fd to store" in line]
    assert (len(refused) <= 1, host.errors()) == (True, refused)


def in_short_steps(*verbs: str) -> tuple[str, ...]:
    """Does something to the service over and over, each time a little further into its start."""
    # The machine has no shell.
    program = f"""\
import subprocess, time
for hundredths in range(2, 30, 3):
    for verb in {verbs!r}:
        block = [] if verb == "stop" else ["--no-block"]
        subprocess.run(["systemctl", verb, *block, "balloond"], check=True)
        time.sleep(hundredths / 100 if block else 0)
"""
    return ("python3", "-c", program)


@fault("SIGUSR1, or `systemctl restart`, while it starts")
def test_restarted_while_it_starts_again_and_again_vm_keeps_its_balloon(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes == MAXIMUM, HANG_S)

    run_beside(guest, host, *in_short_steps("restart"))
    run_beside(guest, host, "systemctl", "restart", "balloond")
    run([guest], lambda: "listening on" in "".join(host.said_by(host.main_pid())), HANG_S)

    assert (host.unit("ActiveState"), host.unit("NRestarts")) == ("active", "0")
    assert guest.disconnected == ""
    assert guest.actual_bytes == MAXIMUM
    assert guest.driver.counters.deflate_buffers == 0
    assert host.errors() == []


@fault("SIGTERM, SIGINT while it starts")
def test_stopped_while_it_starts_ends_in_order(host: ServiceHost) -> None:
    host.run("systemctl", "stop", "balloond")
    for _ in range(3):
        host.run(*in_short_steps("start", "stop"))
        assert (host.unit("ActiveState"), host.unit("Result")) == ("inactive", "success")
        assert not host.socket.exists()
    assert host.errors() == []


@fault("state of another version, damaged, or with descriptors missing")
def test_state_of_another_version_is_refused_and_the_vmm_let_go(
    host: ServiceHost, make_guest: MakeGuest
) -> None:
    guest = make_guest()
    host.low_mem.set_low()
    run([guest], lambda: guest.actual_bytes > 0)

    host.configure("--speed", str(SPEED), BALLOOND_STATE_VERSION="3")
    run_beside(guest, host, "systemctl", "restart", "balloond")
    run([guest], lambda: guest.disconnected != "")

    (error,) = host.errors()
    assert error == (
        "vm1: the state that another balloond left is of version 2, this balloond reads versions 1"
        " and 3; closing its VMM's connection: it has no balloon until it is started again"
    )
    wait_kept_fds(host, 1)  # The listening socket: nothing of that VM is left.
    another = make_guest()
    run([another], lambda: another.actual_bytes == MAXIMUM)
    assert guest.ram.check().pages_corrupt == 0
