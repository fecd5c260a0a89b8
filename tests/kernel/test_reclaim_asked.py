"""``balloonctl reclaim`` and a whole balloond with guests: what comes, from whom, and why not."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest
from balloon_daemon.units import MIB
from balloon_daemon.virtio.balloon import StatTag
from tests.harness.api_schemas import check
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, STEP, MakeGuest, StartDaemon
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, balloon_bytes, facts, run_until, run_until_event

BALLOONCTL = str(ROOT / ".venv/bin/balloonctl")


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def daemon(start_daemon: StartDaemon, api: Path) -> Daemon:
    return start_daemon("--api", str(api))


@pytest.fixture
def slow(start_daemon: StartDaemon, api: Path) -> Daemon:
    """A balloond whose policy takes its usual time: a step a second."""
    return start_daemon("--api", str(api), "--speed", "1")


def attached(daemon: Daemon, make_guest: MakeGuest) -> list[FakeGuest]:
    """vm1 and vm2, of 512 MiB each."""
    guests = [attach(make_guest(SETTINGS), daemon)]
    run_until(guests, lambda: facts(daemon, "vm-attached") != [])
    guests.append(attach(make_guest(SETTINGS), daemon))
    run_until(guests, lambda: len(facts(daemon, "vm-attached")) == 2)
    return guests


@pytest.fixture
def guests(daemon: Daemon, make_guest: MakeGuest) -> list[FakeGuest]:
    return attached(daemon, make_guest)


def begun(api: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A ``balloonctl reclaim`` that runs."""
    return subprocess.Popen(
        [BALLOONCTL, "reclaim", *arguments, "--api", str(api)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(asking: "subprocess.Popen[str]", guests: Sequence[FakeGuest]) -> tuple[int, str, str]:
    """What it prints, once it has ended; the guests run meanwhile."""
    run_until(guests, lambda: asking.poll() is not None)
    out, err = asking.communicate()
    return asking.returncode, out, err


def test_reclaim_brings_the_pages_of_all_guests_and_says_whose(
    daemon: Daemon, guests: list[FakeGuest], api: Path
) -> None:
    status, out, err = answered(begun(api, "96M", "--json"), guests)
    assert (status, err) == (0, "")
    told = json.loads(out)
    check("Reclaimed")(told)
    assert (told["why"], told["came_bytes"]) == ("complete", 96 * MIB)
    assert [(vm["vm"], vm["came_bytes"]) for vm in told["vms"]] == [
        ("vm1", 48 * MIB),
        ("vm2", 48 * MIB),
    ]
    assert [balloon_bytes(guest) for guest in guests] == [48 * MIB, 48 * MIB]
    for guest in guests:
        pages = guest.ram.check()
        assert (pages.balloon_resident, pages.pages_corrupt) == (0, 0)
    targets = {fact["target_bytes"] for fact in facts(daemon, "decided")}
    assert targets == {STEP, 2 * STEP, 3 * STEP}


def test_two_reclaims_at_once_get_what_each_has_asked_for(
    guests: list[FakeGuest], api: Path
) -> None:
    asking = [begun(api, "64M"), begun(api, "32M", "--from", "vm2")]
    run_until(guests, lambda: all(each.poll() is not None for each in asking))
    for each, came in zip(asking, ("64 MiB", "32 MiB"), strict=True):
        out, err = each.communicate()
        assert (each.returncode, err) == (0, "")
        assert out.startswith(f"{came} came in ")
    assert sum(map(balloon_bytes, guests)) == 96 * MIB


def test_reclaim_of_more_than_there_is_says_how_much_came_and_why_no_more(
    guests: list[FakeGuest], api: Path
) -> None:
    status, out, err = answered(begun(api, "400M", "--from", "vm1"), guests)
    assert (status, err) == (1, "")
    first, second = out.splitlines()
    assert first.startswith("256 MiB of 400 MiB came in ")
    assert first.endswith(": no VM can give more")
    assert second == "  vm1: 256 MiB: its balloon is as large as it may be"
    assert [balloon_bytes(guest) for guest in guests] == [MAXIMUM, 0]


@fault("a client that waits for memory")
def test_client_that_goes_away_ends_it_and_memory_goes_back(
    daemon: Daemon, guests: list[FakeGuest], api: Path
) -> None:
    asking = begun(api, "200M", "--from", "vm1", "--hold", "24h")
    run_until(guests, lambda: balloon_bytes(guests[0]) >= STEP)
    asking.kill()
    asking.communicate()
    run_until_event(guests, daemon, "reclaim-ended")
    (ended,) = facts(daemon, "reclaim-ended")
    assert ended["why"] == "withdrawn"
    assert 0 < ended["came_bytes"] < 200 * MIB
    run_until(guests, lambda: balloon_bytes(guests[0]) == 0)


@fault("a VM ends while an operator waits")
def test_vm_that_dies_meanwhile_is_named_and_another_gives_its_share(
    slow: Daemon, make_guest: MakeGuest, api: Path
) -> None:
    first, second = attached(slow, make_guest)
    asking = begun(api, "64M")
    # Neither guest runs yet, so that vm2 dies before it has given anything.
    wait_until(lambda: facts(slow, "reclaim-began") != [], what="it is asked for")
    second.hang_up()
    status, out, err = answered(asking, [first])
    assert (status, err) == (0, "")
    assert out.startswith("64 MiB came in ")
    assert out.splitlines()[1:] == ["  vm1: 64 MiB", "  vm2: 0 B of 16 MiB: it has gone"]
    assert balloon_bytes(first) == 64 * MIB


def test_guest_in_need_is_not_asked_and_the_answer_says_so(
    start_daemon: StartDaemon,
    make_guest: MakeGuest,
    low_mem: LowMemDir,
    api: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text(f'[vm.web]\nvhost_user = "{tmp_path}/web.sock"\n')
    daemon = start_daemon("--config", str(file), "--api", str(api))
    web = make_guest()
    web.connect(str(tmp_path / "web.sock"))
    web.bind()
    low_mem.set_low()
    run_until([web], lambda: balloon_bytes(web) >= 2 * STEP)
    values = web.driver.statistics.values
    monkeypatch.setattr(web.driver.statistics, "values", lambda: values() | {StatTag.AVAIL: MIB})
    run_until_event([web], daemon, "guest-in-need")

    status, out, err = answered(begun(api, "64M"), [web])
    assert (status, err) == (1, "")
    first, second = out.splitlines()
    assert first.startswith("0 B of 64 MiB came in ")
    assert second == "  web: the guest needs its memory"


def test_reclaim_that_goes_on_is_seen_in_the_status(
    slow: Daemon, make_guest: MakeGuest, api: Path
) -> None:
    guests = attached(slow, make_guest)
    asking = begun(api, "200M", "--from", "vm1")
    run_until(guests, lambda: balloon_bytes(guests[0]) == STEP)
    shown = subprocess.run(
        [BALLOONCTL, "status", "--api", str(api)], capture_output=True, text=True, check=True
    )
    asking.kill()
    asking.communicate()
    assert "\nAn operator wants 200 MiB from guests: " in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("0",), "0 is nothing; write it like 512M or 1.5G"),
        (("64M", "--within", "11m"), "11m is not from 1s to 10m"),
        (("64M", "--hold", "25h"), "25h is not from 1s to 24h"),
        (("64M", "--from", "none"), "there is no VM none; balloonctl status names all"),
    ],
)
def test_reclaim_that_makes_no_sense_is_refused(
    arguments: tuple[str, ...], complaint: str, daemon: Daemon, api: Path
) -> None:
    asking = begun(api, *arguments)
    out, err = asking.communicate()
    assert (asking.returncode, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
