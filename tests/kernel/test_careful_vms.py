"""Careful VMs on our own device: a guest that says that it is in need is let go."""

from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest
from balloon_daemon.units import GIB, MIB
from balloon_daemon.virtio.balloon import StatTag
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.scripted_monitor import ScriptedMonitor, monitors_in_a_thread, well
from tests.harness.whole_vm import balloon_bytes, errors, facts, run_until, run_until_event, said


@pytest.fixture
def careful(start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    """A balloond with two careful VMs on our own device; the second keeps 300 MiB."""
    file = tmp_path / "balloond.toml"
    file.write_text(
        f'[vm.web]\nvhost_user = "{tmp_path}/web.sock"\n'
        f'[vm.db]\nvhost_user = "{tmp_path}/db.sock"\nfloor = "300M"\n'
    )
    return start_daemon("--config", str(file))


def attach(guest: FakeGuest, daemon: Daemon, name: str) -> FakeGuest:
    guest.connect(str(daemon.config.socket.parent / f"{name}.sock"))
    guest.bind()
    return guest


def lacks_memory(guest: FakeGuest, patch: pytest.MonkeyPatch) -> None:
    """Lets a guest report that next to nothing is available, from its next statistics on."""
    values = guest.driver.statistics.values
    patch.setattr(guest.driver.statistics, "values", lambda: values() | {StatTag.AVAIL: MIB})


@fault("a guest is in need")
def test_guest_in_need_gets_all_back_while_its_neighbour_is_squeezed_to_its_floor(
    careful: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web, db = (attach(make_guest(), careful, name) for name in ("web", "db"))
    low_mem.set_low()
    run_until([web, db], lambda: balloon_bytes(web) == MAXIMUM)

    lacks_memory(web, monkeypatch)
    run_until_event([web, db], careful, "guest-in-need")
    run_until([web, db], lambda: balloon_bytes(web) == 0 and balloon_bytes(db) == 212 * MIB)

    assert said(careful, "guest-in-need", vm="web") == [
        "in need (little-available): giving 256 MiB back, and leaving it alone for 60 s"
    ]
    assert said(careful, "guest-in-need", vm="db") == []
    assert errors(careful) == []


def test_guest_that_is_started_again_or_paused_is_not_in_need(
    careful: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    web = attach(make_guest(), careful, "web")
    low_mem.set_low()
    run_until([web], lambda: balloon_bytes(web) == MAXIMUM)

    web.reboot()
    run_until([web], lambda: balloon_bytes(web) == MAXIMUM)
    web.pause()
    web.resume()
    run_until([web], lambda: balloon_bytes(web) == MAXIMUM)

    assert facts(careful, "guest-in-need", "squeeze-stalled", "balloon-contested") == []
    assert errors(careful) == []


@fault("a guest's balloon shrinks although nobody asked for it")
def test_guest_that_takes_pages_back_gets_the_rest_too(
    careful: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    web = attach(make_guest(), careful, "web")
    low_mem.set_low()
    run_until([web], lambda: balloon_bytes(web) == MAXIMUM)

    assert web.frontend is not None
    web.frontend.write_config(4, (200 * MIB // 4096).to_bytes(4, "little"))
    run_until_event([web], careful, "guest-in-need")

    (need,) = said(careful, "guest-in-need", vm="web")
    assert need.startswith("in need (took-back): giving 200 MiB back")
    run_until([web], lambda: balloon_bytes(web) == 0)


@fault("a guest is in need")
def test_driven_guest_in_need_gets_all_back_and_one_that_somebody_else_drives_is_left_to_them(
    start_daemon: StartDaemon, tmp_path: Path, low_mem: LowMemDir
) -> None:
    monitors = {name: ScriptedMonitor(tmp_path / f"{name}.qmp", well()) for name in ("web", "db")}
    tables = [f'[vm.{name}]\nqmp = "{monitor.path}"\n' for name, monitor in monitors.items()]
    (tmp_path / "balloond.toml").write_text("".join(tables))
    options = ("--config", str(tmp_path / "balloond.toml"), "--socket", str(tmp_path / "d.sock"))
    web, db = (monitor.vm for monitor in monitors.values())
    with monitors_in_a_thread(list(monitors.values())) as run:
        daemon = start_daemon(*options, vm_mem_mib=None)
        low_mem.set_low()
        daemon.wait(lambda: web.actual == db.actual == GIB // 2, what="both are squeezed")

        run(lambda: web.stats.update({"available-memory": MIB}))
        daemon.wait(lambda: web.actual == GIB, what="the guest in need has all back")
        told = len(db.targets)
        # Somebody else gives another VM a larger balloon, which shows in a later sample.
        run(lambda: setattr(db, "actual", GIB // 4))
        daemon.wait(lambda: facts(daemon, "balloon-contested") != [], what="that is said")

    assert said(daemon, "guest-in-need", vm="db") == []
    assert [line[:7] for line in said(daemon, "guest-in-need", vm="web")] == ["in need"]
    assert said(daemon, "balloon-contested", vm="web") == []
    assert (db.actual, len(db.targets) - told) == (GIB // 4, 0)
