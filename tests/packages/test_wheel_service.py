"""A balloond that pip has installed, as a service under a real systemd: `install-service`.

Debian 12's alone: the pip that runs there is the one of this checkout's environment.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pip
import pytest

from tests.packages.roots import ready_roots
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
BALLOONCTL = "/opt/balloond/bin/balloonctl"
UNIT = "etc/systemd/system/balloond.service"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    building = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps"]
    subprocess.run([*building, "--no-build-isolation", "-w", made, "."], cwd=ROOT, check=True)
    (built,) = made.glob("*.whl")
    return built


@pytest.fixture
def machine(wheel: Path) -> Iterator[ServiceHost]:
    """A machine with that wheel in /opt/balloond; what it imports is the distribution's."""
    logs = SESSION_LOGS / "wheel-service"
    machine = ServiceHost(ready_roots()["bookworm"], logs, nspawn=ready_root())
    try:
        shutil.copy(wheel, machine.path("root"))
        shutil.copytree(Path(pip.__file__).parent, machine.path("root/pip/pip"))
        making = ["python3", "-m", "venv", "--without-pip", "--system-site-packages"]
        machine.run(*making, "/opt/balloond")
        pip_there = ["env", "PYTHONPATH=/root/pip", "/opt/balloond/bin/python", "-m", "pip"]
        machine.run(*pip_there, "install", "--no-index", "--no-deps", f"/root/{wheel.name}")
        yield machine
    finally:
        machine.stop()


def test_wheel_becomes_a_service_that_answers_and_reloads_and_is_removed_but_for_settings(
    machine: ServiceHost,
) -> None:
    before = machine.run("find", "/etc", "/run/balloond", "-type", "f", check=False)
    machine.run(BALLOONCTL, "install-service")
    machine.configure()
    machine.run("systemctl", "enable", "--now", "balloond")

    assert machine.run(BALLOONCTL, "status").startswith("no VM is driven")
    assert "/opt/balloond/bin/balloond" in machine.unit("ExecStart")
    machine.run("systemctl", "reload", "balloond")
    assert "balloond" in machine.run("getent", "passwd", "balloond")
    assert machine.errors() == []

    machine.run(BALLOONCTL, "install-service")
    assert machine.unit("ActiveState") == "active"
    machine.run(BALLOONCTL, "uninstall-service")
    assert machine.unit("LoadState") == "not-found"
    assert machine.main_pid() == 0
    after = machine.run("find", "/etc", "-type", "f").splitlines()
    new = {path for path in set(after) - set(before.splitlines()) if "balloond" in path}
    assert new == {"/etc/balloond/balloond.toml", "/etc/default/balloond"}
    assert not machine.path("etc/systemd/system/multi-user.target.wants/balloond.service").exists()


def test_units_of_others_stay_as_they_are(machine: ServiceHost) -> None:
    unit = machine.path(UNIT)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    with machine.running(BALLOONCTL, "install-service") as refused:
        _, said = refused.communicate()
    assert refused.returncode == 2
    assert "is not install-service's" in said
    assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"
