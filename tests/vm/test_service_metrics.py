"""The metrics of the shipped unit, under a real systemd: over TCP and in a file, by drop-ins."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.metric_texts import read_metrics
from tests.harness.waiting import wait_until
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
PLACE = "127.0.0.1:9710"
FILE = "/srv/metrics/balloond.prom"

SCRAPE = f"""\
import os, urllib.request
os.setuid(65534)
with urllib.request.urlopen("http://{PLACE}/metrics", timeout=30) as answer:
    print(answer.read().decode())
"""
"""Prints the metrics as a user without rights gets them."""


@pytest.fixture(scope="module")
def host() -> Iterator[ServiceHost]:
    """The machine, booted; balloond is not started."""
    host = ServiceHost(ready_root(), SESSION_LOGS / "service-metrics")
    print(f"the service's machine keeps its logs in {host.log_dir}")
    host.begin()
    host.path("etc/systemd/system/balloond.service.d").mkdir()
    yield host
    host.run("systemctl", "stop", "balloond", check=False)
    host.stop()


def test_service_serves_a_port_with_the_drop_in_and_is_told_of_it_without(
    host: ServiceHost,
) -> None:
    host.configure("--user", "balloond", "--metrics", PLACE)
    host.run("systemctl", "start", "balloond", check=False)
    host.run("systemctl", "stop", "balloond", check=False)
    said = f"balloond: --metrics {PLACE}: Address family not supported by protocol"
    assert any(line.text.startswith(said) for line in host.journal())
    assert any("docs/metrics.md has the drop-in" in line.text for line in host.journal())

    host.begin()
    drop_in = host.path("etc/systemd/system/balloond.service.d/metrics.conf")
    shutil.copyfile(ROOT / "systemd/balloond-metrics.conf", drop_in)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "balloond")
    metrics = read_metrics(host.run("python3", "-c", SCRAPE) + "\n")
    assert metrics.value("balloond_vms") == 0
    assert metrics.value("balloond_host_known") == 1
    resident = metrics.value("process_resident_memory_bytes")
    assert resident is not None
    assert resident > 0
    host.run("systemctl", "restart", "balloond")
    assert read_metrics(host.run("python3", "-c", SCRAPE) + "\n").value("balloond_vms") == 0
    assert host.errors() == []
    host.run("systemctl", "stop", "balloond")
    drop_in.unlink()


def test_service_writes_a_file_where_a_drop_in_lets_it(host: ServiceHost) -> None:
    host.begin()
    file = host.path(FILE.removeprefix("/"))
    file.parent.mkdir(mode=0o755)
    drop_in = host.path("etc/systemd/system/balloond.service.d/metrics.conf")
    drop_in.write_text("[Service]\nReadWritePaths=/srv/metrics\n")
    host.configure("--user", "balloond", "--metrics", FILE)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "balloond")
    wait_until(file.exists, what="the file is written")
    assert read_metrics(file.read_text()).value("balloond_vms") == 0
    assert file.stat().st_mode & 0o777 == 0o644
    host.run("systemctl", "stop", "balloond")
    wait_until(lambda: not file.exists(), what="the file goes with balloond")
    assert host.errors() == []
