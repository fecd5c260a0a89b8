"""The metrics of a whole balloond, as Prometheus' own library reads them."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from balloon_daemon.api import server
from balloon_daemon.api.answering import Answering
from balloon_daemon.api.client import Phase
from balloon_daemon.api.seats import MOST_SCRAPERS
from balloon_daemon.api.server import MOST_MISUSES, Records, Server
from balloon_daemon.api.tcp_socket import TcpSocket
from balloon_daemon.api.traces import Traces
from balloon_daemon.commands import Desk, Tracing
from balloon_daemon.events import Event, MetricsListening
from balloon_daemon.fake_guest.machine import run
from balloon_daemon.records.counters import Counters
from balloon_daemon.records.recent import Recent
from balloon_daemon.units import GIB, MIB
from tests.harness.api_client import ask, fetched
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.metric_texts import Found, read_metrics
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import attach, balloon_bytes, errors, facts, wait_for_device


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def served(start_daemon: StartDaemon, api: Path) -> Daemon:
    daemon = start_daemon("--api", str(api))
    daemon.wait(lambda: facts(daemon, "api-listening"), what="the API listens")
    return daemon


def scraped(api: Path) -> Found:
    status, kind, text = fetched(api, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return read_metrics(text)


def test_metrics_say_what_the_status_says(
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    tmp_path: Path,
    api: Path,
) -> None:
    file = tmp_path / "balloond.toml"
    odd = r"a\"b"
    file.write_text(
        f"[vm.'{odd}']\nqmp = \"{tmp_path}/web.qmp\"\npriority = 3\n"
        f'[vm.gone]\nqmp = "{tmp_path}/gone.qmp"\n'
    )
    web = ScriptedVm()
    web.boot()
    web.send_stats(total_memory=GIB, free_memory=GIB // 2, available_memory=600 * MIB)
    with monitors_in_a_thread([ScriptedMonitor(tmp_path / "web.qmp", web)]):
        daemon = start_daemon("--config", str(file), "--api", str(api))
        own = attach(make_guest(SETTINGS), daemon)
        run([own], lambda: len(facts(daemon, "vm-attached")) == 2)
        low_mem.set_low()
        run([own], lambda: balloon_bytes(own) == MAXIMUM)
        low_mem.set_available(1000)
        daemon.wait(
            lambda: scraped(api).value("balloond_host_available_bytes") == 1000 * MIB,
            what="the last reading is shown",
        )
        metrics, status = scraped(api), ask(api, "/v1/status").content

    assert metrics.value("balloond_host_margin_bytes") == 100 * MIB
    assert metrics.value("balloond_host_low") == 0
    assert metrics.value("balloond_vms") == 2
    assert metrics.value("balloond_vm_not_driven", vm="gone", fault="not-there") == 1
    names = {
        "memory_bytes": "size_bytes",
        "balloon_bytes": "balloon_bytes",
        "target_bytes": "target_bytes",
        "max_balloon_bytes": "balloon_max_bytes",
        "returned_bytes": "host_freed_bytes",
        "guest_available_bytes": "guest_available_bytes",
        "level": "level",
    }
    assert {vm["name"] for vm in status["vms"]} == {odd, "vm2"}
    for vm in status["vms"]:
        for key, name in names.items():
            assert metrics.value(f"balloond_vm_{name}", vm=vm["name"]) == vm[key], key
    assert metrics.value("balloond_vm_size_bytes", vm="vm2") == VM_MEM_MIB * MIB
    assert metrics.value("balloond_vm_balloon_bytes", vm="vm2") == MAXIMUM
    assert metrics.value("balloond_vm_steps_total", vm="vm2", direction="up") == 16
    decided = metrics.value("balloond_decisions_total", reason="low-memory")
    assert decided is not None
    assert decided >= 16
    assert errors(daemon) == []


def test_openmetrics_is_given_to_those_who_ask_for_it(served: Daemon, api: Path) -> None:
    asked = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    status, kind, text = fetched(api, "/metrics", accept=asked)
    assert status == 200
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert read_metrics(text, openmetrics=True).value("balloond_vms") == 0


def test_fault_of_a_device_is_counted_for_its_vm_and_goes_with_it(
    served: Daemon, make_guest: MakeGuest, api: Path
) -> None:
    guest = attach(make_guest(SETTINGS), served)
    device = wait_for_device([guest], served, "vm1")
    assert scraped(api).value("balloond_faults_total", event="device-died") == 0
    os.kill(device, signal.SIGKILL)
    run([guest], lambda: len(facts(served, "device-started")) == 2)

    metrics = scraped(api)
    assert metrics.value("balloond_vm_faults_total", vm="vm1", event="device-died") == 1
    assert metrics.value("balloond_faults_total", event="device-died") == 1

    guest.hang_up()
    served.wait(lambda: scraped(api).value("balloond_vms") == 0, what="the VM is gone")
    metrics = scraped(api)
    assert [one for one in metrics.samples if dict(one[1]).get("vm") == "vm1"] == []
    assert metrics.value("balloond_faults_total", event="device-died") == 1


def test_own_figures_are_the_controller_s(served: Daemon, api: Path) -> None:
    metrics = scraped(api)
    fds = len(list(Path(f"/proc/{served.pid}/fd").iterdir()))
    shown = metrics.value("process_open_fds")
    assert shown is None or abs(shown - fds) <= 2
    statm = Path(f"/proc/{served.pid}/statm").read_text().split()
    resident = metrics.value("process_resident_memory_bytes")
    assert resident == pytest.approx(int(statm[1]) * 4096, rel=0.05)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def over_tcp(port: int, target: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    """An answer's status and its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def serving(start_daemon: StartDaemon, *flags: str) -> tuple[Daemon, int]:
    """A balloond with metrics on a port."""
    port = free_port()
    daemon = start_daemon("--metrics", f"127.0.0.1:{port}", *flags)
    daemon.wait(lambda: facts(daemon, "metrics-listening"), what="the port is open")
    return daemon, port


def test_metrics_alone_are_served_over_tcp(start_daemon: StartDaemon, api: Path) -> None:
    daemon, port = serving(start_daemon, "--api", str(api))
    status, text = over_tcp(port)
    assert status == 200
    assert read_metrics(text).kinds == scraped(api).kinds
    for target in ("/", "/v1/status", "/v1/events", "/v1/vms/vm1", "/v1/trace"):
        assert over_tcp(port, target)[0] == 404
    assert over_tcp(port, "/v1/release", "POST")[0] == 404
    daemon.stop()
    with pytest.raises(ConnectionRefusedError):
        over_tcp(port)


def test_metrics_over_tcp_need_no_api(start_daemon: StartDaemon, make_guest: MakeGuest) -> None:
    daemon, port = serving(start_daemon, "--api", "none")
    guest = attach(make_guest(SETTINGS), daemon)
    run([guest], lambda: facts(daemon, "vm-attached") != [])
    assert read_metrics(over_tcp(port)[1]).value("balloond_vms") == 1
    assert facts(daemon, "api-listening") == []


@fault("more clients over TCP than are served")
def test_scrapers_that_ask_nothing_keep_no_other_one_out(
    start_daemon: StartDaemon, api: Path
) -> None:
    _, port = serving(start_daemon, "--api", str(api))
    with contextlib.ExitStack() as silent:
        idle = [
            silent.enter_context(socket.create_connection(("127.0.0.1", port), HANG_S))
            for _ in range(MOST_SCRAPERS)
        ]
        assert over_tcp(port)[0] == 200
        assert idle[0].recv(1) == b""  # The first one has made room.
        assert ask(api, "/v1/status").status == 200
        idle[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = http.client.HTTPResponse(idle[-1])
        answer.begin()
        assert answer.status == 200


@fault("more clients over TCP than are served")
def test_client_over_tcp_is_refused_where_all_others_are_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listening = TcpSocket("127.0.0.1", 0)
    port = listening.sock.getsockname()[1]
    records = Records(Recent(), Traces(lambda: b""), Counters())
    served = Server([listening], records, lambda event: None)
    # Their answers never come: the work on them never begins.
    monkeypatch.setattr(Answering, "has_work", False)

    async def scene(clients: contextlib.ExitStack) -> bytes:
        served.start(cast(Desk, None), cast(Tracing, None))
        for _ in range(MOST_SCRAPERS):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while [one.phase for one in served.clients()] != [Phase.WAITING] * MOST_SCRAPERS:
            await asyncio.sleep(0)
        late = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
        late.setblocking(False)
        try:
            return await asyncio.get_running_loop().sock_recv(late, 12)
        finally:
            served.close()

    with contextlib.ExitStack() as clients:
        answer = asyncio.run(asyncio.wait_for(scene(clients), HANG_S))
    assert answer == b"HTTP/1.1 503"


@fault("a client over TCP that goes on sending")
def test_client_over_tcp_that_sends_on_is_dropped_and_is_no_misuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a Unix socket's client whose queue is never read empty it is not known whether it sends
    descriptors, so its connection stays open, and after some the group may ask no more."""
    monkeypatch.setattr(server, "hang_up", lambda sock: False)
    events: list[Event] = []
    listening = TcpSocket("127.0.0.1", 0)
    port = listening.sock.getsockname()[1]
    records = Records(Recent(), Traces(lambda: b""), Counters())
    served = Server([listening], records, events.append)

    async def scene() -> None:
        served.start(cast(Desk, None), cast(Tracing, None))
        for _ in range(MOST_MISUSES + 1):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
            writer.close()
        served.close()

    asyncio.run(asyncio.wait_for(scene(), HANG_S))
    assert events == [MetricsListening(f"127.0.0.1:{port}")]


@fault("the port of --metrics cannot be opened")
def test_port_in_use_is_one_line_and_status_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        said = (
            f"balloond: --metrics {place}: Address already in use; name another address or port, "
            "or let the service use the network (docs/metrics.md has the drop-in)"
        )
        for check in ([], ["--check"]):
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "balloon_daemon", "--metrics", place, "--vm-mem"),
                    *("1G", "--socket", str(tmp_path / "s.sock"), "--margin", "1M", *check),
                ],
                capture_output=True,
                text=True,
                timeout=HANG_S,
            )
            assert done.returncode == 1
            assert said in done.stderr.splitlines()
            assert "Traceback" not in done.stderr
