"""Debian's own Prometheus scrapes a whole balloond, and answers the dashboard's queries; its
promtool judges what is shipped."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from balloon_daemon.api.metrics import families
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, SPEED, VM_MEM_MIB
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach, balloon_bytes, facts
from tests.vm.prometheus import ready_prometheus

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "dashboards/alerts.yml"
DASHBOARD = ROOT / "dashboards/balloond.json"
NAME = r'a"b\c d'
"""Of a VM that does not run: all that has to be escaped in a label."""


@pytest.fixture(scope="module")
def programs() -> Path:
    """The directory with Prometheus and promtool."""
    return ready_prometheus()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def fetched(port: int, target: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return text
    finally:
        connection.close()


class Host:
    """A balloond with a guest on its own device, and metrics over TCP."""

    def __init__(self, directory: Path) -> None:
        self.low_mem = LowMemDir(directory / "low_mem", margin_mib=100)
        self.port = free_port()
        file = directory / "balloond.toml"
        file.write_text(
            f'[host]\nmetrics = "127.0.0.1:{self.port}"\n'
            f"[vm.'{NAME}']\nqmp = \"{directory}/gone.qmp\"\n"
        )
        options = ("--config", str(file))
        config = DaemonConfig(directory / "sock", VM_MEM_MIB, self.low_mem, SPEED, options)
        self.daemon = Daemon(config, directory)
        self.guest = attach(FakeGuest(SETTINGS), self.daemon)

    def squeeze(self) -> None:
        """The host runs low until the balloon has its greatest size."""
        self.low_mem.set_low()
        run([self.guest], lambda: balloon_bytes(self.guest) == MAXIMUM)

    def close(self) -> None:
        self.daemon.kill()
        self.guest.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


class Prometheus:
    """A Prometheus that scrapes one port each second."""

    def __init__(self, program: Path, directory: Path, target: int) -> None:
        directory.mkdir()
        config = directory / "prometheus.yml"
        scraped = {
            "job_name": "balloond",
            "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
        }
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(ALERTS)],
                    "scrape_configs": [scraped],
                }
            )
        )
        self._port = free_port()
        with (directory / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", str(program)),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def asked(self, path: str, **query: str) -> Any:
        """The data of an answer of its API."""
        target = f"/api/v1/{path}?{urllib.parse.urlencode(query)}"
        return json.loads(fetched(self._port, target))["data"]

    def value(self, expression: str) -> float | None:
        """An expression's one value now; None: it has none, or Prometheus does not answer yet."""
        try:
            result = self.asked("query", query=expression)["result"]
        except (ConnectionError, AssertionError):  # It starts, and refuses or answers 503.
            return None
        return float(result[0]["value"][1]) if len(result) == 1 else None

    def series(self, expression: str) -> list[dict[str, str]]:
        """The labels of each series that an expression has had in the last minute."""
        end_s = time.time()
        times = {"start": f"{end_s - 60}", "end": f"{end_s}", "step": "1"}
        found = self.asked("query_range", query=expression, **times)["result"]
        return [one["metric"] for one in found]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def prometheus(programs: Path, host: Host, tmp_path: Path) -> Iterator[Prometheus]:
    made = Prometheus(programs / "prometheus", tmp_path / "prometheus", host.port)
    yield made
    made.close()


def judged(programs: Path, *arguments: str, text: str = "") -> tuple[int, str]:
    """promtool's exit status, and what it said."""
    done = subprocess.run(
        [programs / "promtool", *arguments],
        input=text,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=HANG_S,
    )
    return done.returncode, done.stdout


def test_promtool_finds_nothing_in_the_metrics_of_a_daemon(programs: Path, host: Host) -> None:
    host.squeeze()
    text = fetched(host.port, "/metrics")
    assert f'balloond_vm_balloon_bytes{{vm="vm1"}} {MAXIMUM}' in text
    assert judged(programs, "check", "metrics", text=text) == (0, "")
    # The judge does find something where there is something.
    status, said = judged(programs, "check", "metrics", text=text.replace("_total", "_sum"))
    assert status != 0, said


def test_promtool_accepts_the_alerts_and_their_tests(programs: Path, tmp_path: Path) -> None:
    status, said = judged(programs, "check", "rules", str(ALERTS))
    assert (status, "SUCCESS" in said) == (0, True), said
    tests = ROOT / "tests/data/alerts_test.yml"
    status, said = judged(programs, "test", "rules", str(tests))
    assert (status, "SUCCESS" in said) == (0, True), said


def test_each_alert_is_missed_by_its_test_where_it_waits_longer_or_shorter(
    programs: Path, tmp_path: Path
) -> None:
    tests = yaml.safe_load((ROOT / "tests/data/alerts_test.yml").read_text())
    tests["rule_files"] = ["alerts.yml"]
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    alerts = yaml.safe_load(ALERTS.read_text())
    rules = alerts["groups"][0]["rules"]
    assert len(rules) >= 8
    for rule in rules:
        right = rule["for"]
        for minutes in (-1, 1):
            rule["for"] = f"{int(right.removesuffix('m')) + minutes}m"
            (tmp_path / "alerts.yml").write_text(yaml.safe_dump(alerts))
            status, said = judged(programs, "test", "rules", str(tmp_path / "test.yml"))
            assert (status, rule["alert"] in said) == (1, True), said
        rule["for"] = right


def test_prometheus_has_what_a_daemon_knows(prometheus: Prometheus, host: Host) -> None:
    host.squeeze()
    where = f'{{instance="127.0.0.1:{host.port}", vm="vm1"}}'

    def shows(name: str, value: float) -> None:
        wait_until(
            lambda: prometheus.value(name) == value,
            what=f"{name} is {value}",
            seen=lambda: (prometheus.value(name), prometheus.asked("targets")["activeTargets"]),
        )

    shows(f"balloond_vm_balloon_bytes{where}", MAXIMUM)
    shows(f"balloond_vm_target_bytes{where}", MAXIMUM)
    shows(f"balloond_vm_size_bytes{where}", VM_MEM_MIB * MIB)
    shows("balloond_host_low", 1)
    shows('ALERTS{alertname="BalloondHostLow", alertstate="pending"}', 1)
    escaped = NAME.replace("\\", "\\\\").replace('"', '\\"')
    shows(f'balloond_vm_not_driven{{vm="{escaped}", fault="not-there"}}', 1)

    (target,) = prometheus.asked("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    names = set(prometheus.asked("label/__name__/values"))
    # Of what there is none, and of what this kernel does not tell, there is no sample.
    unseen = {"balloond_vm_faults_total", "balloond_vm_objection", "process_open_fds"}
    assert {family.name for family in families()} - unseen <= names
    kinds = {name: kinds[0]["type"] for name, kinds in prometheus.asked("metadata").items()}
    assert kinds["balloond_vm_balloon_bytes"] == "gauge"

    host.daemon.kill()
    shows('up{job="balloond"}', 0)
    shows('ALERTS{alertname="BalloondDown", alertstate="pending"}', 1)


EMPTY = {
    "balloond_host_reserved_bytes": "nobody has reserved memory",
    "balloond_vm_state": "the guest runs",
    "balloond_vm_objection": "nothing is against asking the guest",
    "process_open_fds": "kernels before Linux 6.2 do not tell it",
}
"""What a query of the dashboard may have no series of, though its panel works."""

RATE_INTERVAL = "15s"
"""What Grafana makes of $__rate_interval: it depends on the panel's width and the time shown."""


def chosen(prometheus: Prometheus) -> dict[str, str]:
    """A value for each variable of the dashboard, as Grafana asks for the values, and as it puts
    them into queries."""
    values = {"__rate_interval": RATE_INTERVAL}
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert wanted is not None
            metric, label = wanted.groups()
            query = {"match[]": filled(metric, values)}
            found = prometheus.asked(f"label/{label}/values", **query)
            assert found != [], variable["name"]
            values[variable["name"]] = found[0]
    return values


def filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = re.sub(rf"\$\{{?{name}\b\}}?", value, text)
    assert "$" not in text, text
    return text


def test_each_panel_of_the_dashboard_shows_what_a_daemon_knows(
    prometheus: Prometheus, host: Host
) -> None:
    # A counter grows for Prometheus only once it was seen before.
    wait_until(lambda: prometheus.value("balloond_vms") == 1, what="balloond is scraped")
    host.squeeze()
    (device,) = facts(host.daemon, "device-started")
    os.kill(int(device["pid"]), signal.SIGKILL)
    run([host.guest], lambda: len(facts(host.daemon, "device-started")) == 2)
    wait_until(
        lambda: prometheus.value('balloond_vm_faults_total{vm="vm1"}') == 1,
        what="Prometheus knows of the fault",
    )
    values = chosen(prometheus)
    assert (values["job"], values["vm"]) == ("balloond", "vm1")

    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = filled(target["expr"], values)
            found = prometheus.series(expression)  # An answer: the expression has no mistake.
            if not any(name in expression for name in EMPTY):
                found = wait_until(
                    partial(prometheus.series, expression),
                    what=f"{panel['title']} shows something of {expression}",
                )
            for labels in found:
                named = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
                assert all(labels.get(name) for name in named), (panel["title"], labels)
