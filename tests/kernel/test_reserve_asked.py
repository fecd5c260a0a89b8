"""``balloonctl reserve`` and a whole balloond with a guest: when it is there, when it is over."""

import json
import subprocess
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest
from tests.harness.api_schemas import check
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MARGIN_MIB, MAXIMUM, SETTINGS, STEP, MakeGuest, StartDaemon
from tests.harness.open_files import open_files
from tests.harness.whole_vm import attach, balloon_bytes, facts, run_until, run_until_event

BALLOONCTL = str(ROOT / ".venv/bin/balloonctl")


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def daemon(start_daemon: StartDaemon, api: Path) -> Daemon:
    # Slow enough that a reserve is seen before all is taken.
    return start_daemon("--api", str(api), "--speed", "5")


@pytest.fixture
def guest(daemon: Daemon, make_guest: MakeGuest) -> FakeGuest:
    guest = attach(make_guest(SETTINGS), daemon)
    run_until([guest], lambda: facts(daemon, "vm-attached") != [])
    return guest


def balloonctl(api: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [BALLOONCTL, *arguments, "--api", str(api)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(asking: "subprocess.Popen[str]", guest: FakeGuest) -> tuple[int, str, str]:
    run_until([guest], lambda: asking.poll() is not None)
    out, err = asking.communicate()
    return asking.returncode, out, err


def test_reserve_is_taken_and_answered_once_the_host_has_it(
    guest: FakeGuest, api: Path, low_mem: LowMemDir
) -> None:
    low_mem.set_available(MARGIN_MIB + 10)
    asking = balloonctl(api, "reserve", "64M", "--json")
    run_until([guest], lambda: balloon_bytes(guest) >= 3 * STEP)
    assert asking.poll() is None
    low_mem.set_available(MARGIN_MIB + 64)
    status, out, err = answered(asking, guest)
    assert (status, err) == (0, "")
    told = json.loads(out)
    check("Reserved")(told)
    assert (told["available_mib"], told["needed_mib"]) == (MARGIN_MIB + 64, MARGIN_MIB + 64)
    assert guest.ram.check().balloon_resident == 0

    shown = answered(balloonctl(api, "status"), guest)[1]
    assert "\nReserved above the margin: 64 MiB, for " in shown
    assert answered(balloonctl(api, "unreserve"), guest)[:2] == (
        0,
        "64 MiB are not reserved any more\n",
    )
    low_mem.set_available(4 * MARGIN_MIB)
    run_until([guest], lambda: balloon_bytes(guest) == 0)


def test_reserve_that_cannot_come_says_how_far_it_came_and_why(
    guest: FakeGuest, api: Path, low_mem: LowMemDir
) -> None:
    low_mem.set_available(MARGIN_MIB + 10)
    status, out, err = answered(balloonctl(api, "reserve", "1G"), guest)
    assert (status, err) == (1, "")
    first, second = out.splitlines()
    assert first.startswith("1 GiB not there yet (110 MiB available, ")
    assert ": no VM can give more; reserved for " in first
    assert second == "  vm1: its balloon is as large as it may be"
    assert balloon_bytes(guest) == MAXIMUM


@fault("a reserve of all that the host can have")
def test_reserve_of_more_than_the_host_has_is_refused_by_figures_that_were_open_before(
    daemon: Daemon, guest: FakeGuest, api: Path
) -> None:
    # Looking a name up in /proc may wait for whoever lists it. This daemon's source is a
    # directory, so that it reads /proc/meminfo for nothing else.
    assert "/proc/meminfo" in open_files(daemon.pid).values()
    status, out, err = answered(balloonctl(api, "reserve", "8T"), guest)
    assert (status, out) == (2, "")
    assert "this is as much as the host can have, or more (" in err
    assert facts(daemon, "reserve-began") == []
    assert balloon_bytes(guest) == 0


@fault("a client that waits for memory")
def test_client_that_goes_away_ends_its_reserve(
    daemon: Daemon, guest: FakeGuest, api: Path, low_mem: LowMemDir
) -> None:
    low_mem.set_available(MARGIN_MIB + 10)
    asking = balloonctl(api, "reserve", "64M")
    run_until([guest], lambda: balloon_bytes(guest) >= STEP)
    asking.kill()
    asking.communicate()
    run_until_event([guest], daemon, "reserve-ended")
    assert facts(daemon, "reserve-ended")[0]["why"] == "withdrawn"
    low_mem.set_available(4 * MARGIN_MIB)
    run_until([guest], lambda: balloon_bytes(guest) == 0)
