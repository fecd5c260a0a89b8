"""A whole balloond with fake guests: the main job, and its guests' and VMMs' faults."""

import os
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from balloon_daemon.fake_guest.machine import GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.styles import QEMU, QEMU_WITHOUT_SLOTS, STYLES, Style
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.units import MIB, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    FrontendRequest,
    RegionDescription,
    encode_request,
)
from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.jail_watch import devices_of, is_alive, template_of
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SPEED, STEP, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.processes import process_status
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import (
    assert_all_back,
    attach,
    events,
    facts,
    run_until_event,
    run_until_logged,
    wait_for_device,
)


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_low_memory_takes_touched_pages_and_returns_them_all(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", "200")
    population = Population(touched_bytes=64 * MIB, pinned_bytes=16 * MIB)
    guest = attach(
        make_guest(GuestSettings(VM_MEM_MIB * MIB, style=style, population=population)), daemon
    )
    before = guest.ram.blocks_bytes()

    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    freed = before - guest.ram.blocks_bytes()
    low_mem.set_plenty()
    run([guest], lambda: guest.driver.actual == 0)

    check = guest.ram.check()
    assert freed == 64 * MIB
    assert check.pages_checked >= 16 * MIB // 4096
    assert check.pages_corrupt == 0


def test_two_guests_one_daemon_each_has_its_own_balloon(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guests = [attach(make_guest(), daemon) for _ in range(2)]

    low_mem.set_low()
    run(guests, lambda: all(guest.driver.actual * 4096 == MAXIMUM for guest in guests))

    assert len(events(daemon, "vm-attached")) == 2


@fault("`systemctl stop`, SIGTERM, SIGINT")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_end_with_a_full_balloon_gives_all_back_first(
    number: signal.Signals,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    daemon = start_daemon()
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 >= 4 * STEP)

    os.kill(daemon.pid, number)
    run([guest], lambda: bool(guest.disconnected))

    daemon.wait_end()
    (stopping,) = facts(daemon, "stopping")
    assert (stopping["signal"], stopping["vms_stay"]) == (number.name, False)
    assert_all_back(guest, daemon)
    assert not daemon.config.socket.exists()


@fault("device killed (SIGKILL, OOM killer) in mid-inflate, mid-deflate, idle")
def test_device_killed_in_mid_inflate_another_goes_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    population = Population(touched_bytes=128 * MIB, pinned_bytes=16 * MIB)
    guest = attach(make_guest(GuestSettings(VM_MEM_MIB * MIB, population=population)), daemon)
    device = wait_for_device([guest], daemon, "vm1")
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    os.kill(device, signal.SIGKILL)
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert f"device {device} was killed by SIGKILL; forking another" in events(
        daemon, "device-died"
    )
    assert guest.ram.check().pages_corrupt == 0
    assert guest.ram.check().balloon_resident == 0


@fault("template hangs (SIGSTOP)")
def test_template_that_hangs_another_forks_the_next_device(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    device, template = wait_for_device([guest], daemon, "vm1"), template_of(daemon.pid)
    os.kill(template, signal.SIGSTOP)
    os.kill(device, signal.SIGKILL)

    # The controller waits 2 s for the template's answer, and a second until the next attempt.
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    given_up = f"process {template}, which forks devices, does not answer: starting another"
    assert [m for m in events(daemon, "template-lost") if given_up in m] != []
    (unforked,) = facts(daemon, "device-not-forked")
    assert unforked["error"] == "the process that forks devices does not answer"
    assert not is_alive(template)
    assert template_of(daemon.pid) != template
    assert devices_of(daemon.pid) == [wait_for_device([guest], daemon, "vm1")]
    assert guest.ram.check().pages_corrupt == 0


@fault("more than 5 deaths within a minute")
def test_device_dying_too_often_stops_that_balloon_only(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    victim, neighbour = (attach(make_guest(), daemon) for _ in range(2))

    for number in range(6):
        os.kill(wait_for_device([victim, neighbour], daemon, "vm1"), signal.SIGKILL)
        run(
            [victim, neighbour],
            lambda number=number: (  # type: ignore[misc]  # bound per turn
                len(facts(daemon, "device-died")) > number
            ),
        )
    run([victim, neighbour], lambda: any(r["deaths"] for r in facts(daemon, "device-died")))

    low_mem.set_low()
    run([victim, neighbour], lambda: neighbour.driver.actual * 4096 == MAXIMUM)
    assert victim.driver.actual == 0

    victim.hang_up()
    attach(victim, daemon)
    run([victim, neighbour], lambda: victim.driver.actual * 4096 == MAXIMUM)


@fault("device makes a forbidden system call (SIGSYS)")
def test_forbidden_call_kills_the_device_and_is_named(
    tmp_path: Path,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    kernel_log_is_complete: bool,
) -> None:
    # The shipped policy without madvise: the first page taken is the first forbidden call.
    shipped = Path(__file__).parents[2] / "policies" / "balloon_device.policy"
    lines = [line for line in shipped.read_text().splitlines() if not line.startswith("madvise")]
    policy = tmp_path / "without_madvise.policy"
    policy.write_text("\n".join(lines) + "\n")
    daemon = start_daemon("--policy", str(policy))
    low_mem.set_low()

    def reports() -> list[str]:
        return events(daemon, "device-died")

    def named() -> bool:
        guest, before = attach(make_guest(), daemon), len(reports())
        run([guest], lambda: len(reports()) == before + 6)
        return not kernel_log_is_complete or any("for madvise();" in m for m in reports())

    # balloond waits a moment for the kernel's record, and a busy kernel may write it later. Where
    # the records' rate is limited, any of them may be missing.
    wait_until(named, what="the call is named")
    assert all("for madvise();" in m or "for a forbidden system call;" in m for m in reports())


@fault("PFN outside memory, among good ones")
def test_pfn_outside_memory_drops_that_chain_and_goes_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    population = Population(touched_bytes=128 * MIB, pinned_bytes=16 * MIB)
    guest = attach(make_guest(GuestSettings(VM_MEM_MIB * MIB, population=population)), daemon)
    end = VM_MEM_MIB * MIB // 4096
    with monkeypatch.context() as lying:
        # One PFN just behind the memory, among good ones: nothing of that buffer may go.
        lying.setattr(
            guest.ram.numbers, "pfns", lambda pages: np.array([*range(100), end], np.uint32)
        )
        low_mem.set_low()
        run_until_logged([guest], daemon, f"names PFN {end:#x}, outside guest memory; dropped")
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert guest.ram.check().pages_corrupt == 0


@fault("closes in mid-message")
def test_vmm_half_a_message_and_hangs_up_others_go_on(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.connect(str(daemon.config.socket))
        vmm.send(encode_request(FrontendRequest.SET_FEATURES, bytes(8))[:15])
    run_until_logged([guest], daemon, "SET_FEATURES: hung up after 15 of 20 bytes")

    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)


@fault("dies, closes")
def test_vmm_gone_with_full_balloon_is_forgotten(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 >= 2 * STEP)

    guest.hang_up()
    run_until_event([], daemon, "vmm-hung-up")
    low_mem.set_plenty()
    again = attach(make_guest(), daemon)
    low_mem.set_low()
    run([again], lambda: again.driver.actual * 4096 == MAXIMUM)


@fault("driver unbound and bound")
def test_driver_unbound_and_bound_again_reaches_the_same_target(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    guest.unbind()
    assert guest.driver.actual == 0
    guest.bind()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert guest.frontend is not None
    assert guest.frontend.requests.counters.early_config_changes == 0


@fault("driver unbound and bound")
def test_paused_in_mid_inflate_resumes_where_it_stood(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    guest.pause()
    guest.resume()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)


@fault("memory table changed while rings run")
@pytest.mark.parametrize("style", [QEMU, QEMU_WITHOUT_SLOTS], ids=lambda style: style.name)
def test_memory_table_changed_while_rings_run_the_device_ends_before_the_answer(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 5 all levels take 3 s: the table changes twice while a target is being reached.
    daemon = start_daemon("--speed", "5")
    population = Population(touched_bytes=128 * MIB, pinned_bytes=16 * MIB)
    guest = attach(
        make_guest(GuestSettings(VM_MEM_MIB * MIB, style=style, population=population)), daemon
    )
    frontend = guest.frontend
    assert frontend is not None
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)
    without = guest.ram.shared()
    more = OwnedFd(create_memfd("dimm", size_bytes=2 * MIB))
    dimm = RegionDescription(GuestAddr(1 << 40), 2 * MIB, FrontendAddr(1 << 46), 0)

    devices = [wait_for_device([guest], daemon, "vm1")]
    frontend.share_memory([*without, (dimm, more.fileno())])
    ended_for_more = not is_alive(devices[0])
    devices.append(wait_for_device([guest], daemon, "vm1"))
    frontend.share_memory(without)
    ended_for_less = not is_alive(devices[1])
    more.close()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert ended_for_more
    assert ended_for_less
    assert events(daemon, "device-died") == []
    assert guest.ram.check().pages_corrupt == 0


@fault("`--vm-mem` is larger or smaller than the VM")
@pytest.mark.parametrize(
    ("flag", "flag_mib", "counts_mib"),
    [("1G", 1024, 512), ("500M", 500, 500)],
)
def test_vm_mem_other_than_the_memory_table_is_said_and_the_smaller_counts(
    flag: str,
    flag_mib: int,
    counts_mib: int,
    start_daemon: StartDaemon,
    make_guest: MakeGuest,
) -> None:
    daemon = start_daemon("--vm-mem", flag)
    guest = attach(make_guest(), daemon)

    run_until_event([guest], daemon, "vm-attached")

    (attached,) = facts(daemon, "vm-attached")
    assert attached["vm_mem_bytes"] == counts_mib * MIB
    assert attached["max_balloon_bytes"] == counts_mib * MIB // 2
    (differ,) = facts(daemon, "sizes-differ")
    assert (differ["flag_bytes"], differ["table_bytes"]) == (flag_mib * MIB, 512 * MIB)
    assert differ["size_bytes"] == counts_mib * MIB


def test_memory_table_short_of_the_vga_hole_is_no_difference(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--vm-mem", f"{VM_MEM_MIB + 1}M")
    guest = attach(make_guest(GuestSettings((VM_MEM_MIB + 1) * MIB - 128 * 1024)), daemon)

    run_until_event([guest], daemon, "vm-attached")

    (attached,) = facts(daemon, "vm-attached")
    assert attached["vm_mem_bytes"] == (VM_MEM_MIB + 1) * MIB
    assert facts(daemon, "sizes-differ") == []


@fault("low-memory file or its directory vanishes")
@pytest.mark.parametrize(
    ("content", "complaint"),
    [("", "is empty"), ("much\n", "not a whole number"), (None, "No such file")],
    ids=["empty", "garbage", "vanished"],
)
def test_low_mem_file_broken_is_said_once_and_recovers(
    content: str | None,
    complaint: str,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    guest = attach(make_guest(), daemon)
    if content is None:
        (low_mem.path / "available").unlink()
    else:
        low_mem.set_content(content)
    run_until_logged([guest], daemon, complaint)

    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert len([r for r in facts(daemon, "source-unknown") if complaint in r["why"]]) == 1
    assert len(facts(daemon, "source-known")) == 1


@fault("low-memory file or its directory vanishes")
def test_low_mem_file_broken_under_a_balloon_takes_and_returns_nothing(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 100 a step down comes after 600 to 720 ms, then every 300 ms.
    daemon = start_daemon("--speed", "100")
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual >= 4 * STEP // 4096)
    low_mem.set_content("much\n")
    run_until_logged([guest], daemon, "available memory is unknown")
    since = len(daemon.records())
    level = daemon.decision()["balloon_level"]

    def decisions() -> list[tuple[str, int]]:
        said = [r for r in daemon.records()[since:] if r["event"] == "decided"]
        return [(r["reason"], r["balloon_level"]) for r in said if r["reason"] != "recheck"]

    run([guest], lambda: len(decisions()) >= 3)
    assert set(decisions()) == {("unknown", level)}
    run([guest], lambda: guest.driver.actual * 4096 == level * STEP)

    low_mem.set_plenty()
    run([guest], lambda: guest.driver.actual == 0)


def test_guest_statistics_come_with_a_decision(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("-v")
    guest = attach(make_guest(), daemon)
    low_mem.set_low()

    run([guest], lambda: len([r for r in daemon.records() if r["event"] == "guest-stats"]) >= 2)

    stats = [r for r in daemon.records() if r["event"] == "guest-stats"][-1]
    assert 0.9 * VM_MEM_MIB * MIB < stats["stat_memtot"] <= VM_MEM_MIB * MIB
    # Whom devices run as is the host's affair.
    levels = {
        record["level"] for record in daemon.records() if record["event"] != "devices-share-user"
    }
    assert levels == {"debug", "info"}


@fault("stopped while VMMs hang up")
def test_stopped_while_a_vmm_hangs_up_no_device_is_mourned(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    guests = [attach(make_guest(), daemon) for _ in range(8)]
    run(guests, lambda: len(events(daemon, "device-started")) >= 8)

    for guest in guests:
        guest.hang_up()
    daemon.stop()

    assert [r for r in daemon.records() if r["level"] == "error"] == []


@fault("namespaces refused, or half of them; root without CAP_SYS_ADMIN")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose capabilities are taken away")
def test_root_without_sys_admin_has_devices_all_the_same(
    tmp_path: Path, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    config = DaemonConfig(tmp_path / "s", VM_MEM_MIB, low_mem, SPEED)
    daemon = Daemon(
        config, tmp_path / "log", ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    )
    try:
        guest = attach(make_guest(), daemon)
        device = wait_for_device([guest], daemon, "vm1")
        # No namespaces: it is where balloond is. All else is as in any other device.
        world = [os.readlink(f"/proc/{pid}/ns/mnt") for pid in (device, daemon.pid)]
        status = process_status(device)
        low_mem.set_low()
        run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    finally:
        daemon.kill()

    assert world[0] == world[1]
    assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
    assert status["Groups"] == ""
    sets = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    assert {name: int(status[name], 16) for name in sets} == dict.fromkeys(sets, 0)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
