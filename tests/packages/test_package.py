"""The Debian package under the systemds and Pythons that it is for: installed, upgraded, purged.

Each machine is a container that boots a clean root; the VM is a fake guest out here.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.units import MIB, PAGE_SIZE
from tests.harness.waiting import HANG_S
from tests.packages.roots import SUITES, ready_roots
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
SPEED = 20
MAXIMUM = 256 * MIB
SETTINGS = GuestSettings(512 * MIB, population=Population(touched_bytes=128 * MIB, pinned_bytes=0))
LATER = "0.1.0+later"
LEFT = (
    *("/etc/default/balloond", "/var/cache", "/var/log"),
    *(f"/var/lib/dpkg/{name}" for name in ("available", "lock", "status", "triggers")),
    *(f"/var/lib/systemd/{name}" for name in ("catalog", "random-seed", "timers")),
)
"""What others than the package's own scripts keep: the tests' flags, man-db, dpkg, systemd. Not
/var/lib/systemd/deb-systemd-helper-enabled, in which its scripts note links that they made."""


@pytest.fixture(scope="session")
def package() -> Path:
    """The package that ``make package`` has built."""
    built = list((ROOT / "build/package").glob("balloond_*.deb"))
    assert len(built) == 1, "run make package"
    return built[0]


@pytest.fixture(scope="session")
def later_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same content as a later version."""
    work = tmp_path_factory.mktemp("later")
    tree, later = work / "tree", work / "balloond_later_amd64.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text(
        "".join(f"Version: {LATER}\n" if line.startswith("Version:") else line for line in lines)
    )
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, later], check=True)
    return later


@pytest.fixture(scope="module", params=SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[ServiceHost]:
    """A machine of each suite, on which balloond is not installed."""
    suite = str(request.param)
    machine = ServiceHost(
        ready_roots()[suite], SESSION_LOGS / f"package-{suite}", nspawn=ready_root()
    )
    yield machine
    machine.stop()


@pytest.fixture
def guest() -> Iterator[FakeGuest]:
    guest = FakeGuest(SETTINGS)
    yield guest
    guest.close()


def install(machine: ServiceHost, package: Path) -> None:
    shutil.copyfile(package, machine.path("root/balloond.deb"))
    machine.run("dpkg", "--install", "/root/balloond.deb")


def files(machine: ServiceHost) -> set[str]:
    """All that is installed or left, as far as a package could have left it."""
    found = machine.run("find", "/etc", "/usr", "/var", "/run/balloond", "-xdev", check=False)
    return {line for line in found.splitlines() if not line.startswith(LEFT)}


def balloon_bytes(guest: FakeGuest) -> int:
    return guest.driver.actual * PAGE_SIZE


def test_package_installs_upgrades_with_a_vm_attached_and_purges(
    machine: ServiceHost, guest: FakeGuest, package: Path, later_package: Path
) -> None:
    before = files(machine)
    machine.configure("--speed", str(SPEED))
    install(machine, package)
    assert machine.run("systemctl", "is-active", "balloond") == "active"
    assert machine.run("systemctl", "is-enabled", "balloond") == "enabled"
    assert machine.run("balloonctl", "status").startswith("no VM is driven")
    for page in ("man8/balloond.8.gz", "man1/balloonctl.1.gz", "man5/balloond.toml.5.gz"):
        assert machine.path(f"usr/share/man/{page}").exists()
    check = machine.run("balloond", "--check", "--socket", "/run/balloond/other.sock")
    assert "judge        libseccomp" in check, check
    assert "device       runs as user balloond" in check

    guest.connect(str(machine.socket))
    guest.bind()
    machine.low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    first = machine.main_pid()

    shutil.copyfile(later_package, machine.path("root/balloond.deb"))
    with machine.running("dpkg", "--install", "/root/balloond.deb") as upgrade:
        run([guest], lambda: upgrade.poll() is not None)
        assert upgrade.returncode == 0, upgrade.communicate()
    assert machine.run("dpkg-query", "-W", "-f", "${Version}", "balloond") == LATER
    assert machine.main_pid() not in (0, first)
    assert balloon_bytes(guest) == MAXIMUM
    machine.low_mem.set_plenty()
    run([guest], lambda: balloon_bytes(guest) == 0)
    assert guest.disconnected == ""
    assert machine.errors() == []

    machine.run("dpkg", "--purge", "balloond")
    assert machine.run("systemctl", "is-active", "balloond", check=False) == "inactive"
    assert sorted(files(machine) - before) == []
    assert sorted(before - files(machine)) == []
    assert "balloond" not in machine.run("systemctl", "list-unit-files", "--all", "--no-legend")
    assert machine.run("dpkg-query", "-W", "balloond", check=False) == ""
    assert "balloond" in machine.run("getent", "passwd", "balloond")


NOT_SHIPPED = ("CONTRIBUTING.md", "LICENSE", "balloon_daemon", "findings", "tests")
"""What is in a checkout only, and what pages may lead to all the same."""


def test_pages_of_the_package_lead_to_each_other(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    root = tmp_path / "usr/share/doc/balloond"
    pages = [*root.glob("*.md"), *root.glob("docs/*.md")]

    missing = set()
    for page in pages:
        for path in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            target = (page.parent / path).resolve()
            if not target.exists():
                missing.add(target.relative_to(root).parts[0])
    assert len(pages) > 20
    assert missing <= {*NOT_SHIPPED}


MISTAKE = "[host]\nmargn = '1G'\n"


def reload(machine: ServiceHost, text: str) -> tuple[int, list[str]]:
    """Reloads the service with another file; what systemctl returns, and what balloond said."""
    machine.begin()
    machine.path("etc/balloond/balloond.toml").write_text(text)
    with machine.running("systemctl", "reload", "balloond") as done:
        done.wait(HANG_S)
    # Without waiting: systemctl returns once balloond has applied or refused the file.
    said = machine.said_by(machine.main_pid())
    return done.returncode, [line for line in said if line.startswith("the configuration ")]


NOTIFY_RELOAD = "[Service]\nType=notify-reload\nExecReload=\n"
"""Without the API, since systemd 253: SIGHUP, and waiting for READY=1."""

REFUSED = ["the configuration has a mistake: the one before stays in force, whole"]


def test_reload_waits_for_its_outcome_and_sockets_are_systemds_under_each_systemd(
    machine: ServiceHost, package: Path
) -> None:
    machine.configure("--speed", str(SPEED))
    install(machine, package)
    machine.run("systemctl", "stop", "balloond")
    machine.run("systemctl", "enable", "--now", "balloond.socket", "balloond-api.socket")
    machine.run("systemctl", "start", "balloond")
    machine.run("balloonctl", "status")
    assert machine.unit("StatusText") != ""
    assert machine.unit("WatchdogUSec") == "1min"

    code, said = reload(machine, "[host]\nmargin = '1G'\n")
    assert (code, said) == (0, ["the configuration is read anew: [host] margin: default -> 1 GiB"])
    code, said = reload(machine, MISTAKE)
    assert (code, said) == (1, REFUSED)
    assert machine.unit("ActiveState") == "active"

    if machine.run("systemctl", "--version").split()[1] != "252":
        directory = machine.path("run/systemd/system/balloond.service.d")
        directory.mkdir(parents=True)
        (directory / "reload.conf").write_text(NOTIFY_RELOAD)
        machine.run("systemctl", "daemon-reload")
        assert reload(machine, MISTAKE) == (0, REFUSED)

    machine.run("dpkg", "--purge", "balloond")
    assert not machine.path("run/balloond").exists()
