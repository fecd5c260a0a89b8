"""The API of a whole balloond: every path, every refusal, and who may ask."""

import array
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.units import GIB, MIB
from tests.harness.api_client import ask, connected, events
from tests.harness.api_schemas import answered, check, description
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.frozen import Frozen
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, STEP, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.needs import needs_refusal, needs_root
from tests.harness.other_user import NOBODY, as_member
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm, monitors_in_a_thread
from tests.harness.whole_vm import attach, balloon_bytes, errors, facts

CALLER_GID = 64501
"""A group that an ordinary host does not use."""


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def served(start_daemon: StartDaemon, api: Path) -> Daemon:
    daemon = start_daemon("--api", str(api))
    daemon.wait(lambda: facts(daemon, "api-listening"), what="the API listens")
    return daemon


def test_status_tells_of_the_host_of_each_vm_and_of_those_that_are_not_driven(
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    tmp_path: Path,
    api: Path,
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text(
        f'[vm.web]\nqmp = "{tmp_path}/web.qmp"\npriority = 3\nfloor = "768M"\n'
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
            lambda: ask(api, "/v1/status").content["host"]["available_mib"] == 1000,
            what="the last reading is shown",
        )
        status = ask(api, "/v1/status").content

    check("Status")(status)
    host = status["host"]
    assert (host["margin_mib"], host["low"], host["source"]) == (100, False, "chromeos")
    assert host["last_decision"]["vm"] in ("web", "vm2")
    vms = {vm["name"]: vm for vm in status["vms"]}
    assert vms.keys() == {"web", "vm2"}
    assert (vms["web"]["kind"], vms["web"]["profile"], vms["web"]["priority"]) == (
        "qmp",
        "careful",
        3,
    )
    assert (vms["web"]["memory_bytes"], vms["web"]["floor_bytes"]) == (GIB, 768 * MIB)
    assert vms["web"]["guest_available_bytes"] == 600 * MIB
    assert vms["web"]["guest_free_bytes"] == GIB // 2
    # This process is the VMM of both.
    assert [vm["vmm_pid"] for vm in vms.values()] == [os.getpid()] * 2
    assert vms["web"]["max_balloon_bytes"] == 256 * MIB
    assert (vms["vm2"]["kind"], vms["vm2"]["profile"]) == ("vhost_user", "careful")
    assert vms["vm2"]["memory_bytes"] == VM_MEM_MIB * MIB
    assert vms["vm2"]["balloon_bytes"] == vms["vm2"]["target_bytes"] == MAXIMUM
    assert (vms["vm2"]["level"], vms["vm2"]["steps"]) == (16, 16)
    assert vms["vm2"]["returned_bytes"] > 0
    # The margin of 100 MiB, and two steps of 16 MiB.
    assert vms["vm2"]["next"]["needed_mib"] == 132
    (gone,) = status["not_driven"]
    assert (gone["name"], gone["fault"]) == ("gone", "not-there")
    assert "nobody listens there" in gone["why"]
    assert errors(daemon) == []


def test_vm_that_nobody_watches_has_returned_what_its_balloon_holds(
    served: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, api: Path
) -> None:
    guest = attach(make_guest(SETTINGS), served)
    run([guest], lambda: facts(served, "vm-attached") != [])
    (vm,) = ask(api, "/v1/status").content["vms"]
    assert (vm["profile"], vm["returned_bytes"]) == ("seed", 0)
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    def returned() -> int:
        (vm,) = ask(api, "/v1/status").content["vms"]
        return int(vm["returned_bytes"] or 0)

    run([guest], lambda: returned() > 15 * STEP)


def test_vm_is_explained_by_the_events_that_led_to_its_size(
    served: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, api: Path
) -> None:
    guest = attach(make_guest(SETTINGS), served)
    run([guest], lambda: facts(served, "vm-attached") != [])
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) >= 2 * STEP)

    told = ask(api, "/v1/vms/vm1").content

    check("Explanation")(told)
    assert told["vm"]["name"] == "vm1"
    assert told["vm"]["last_decision"]["reason"] == "low-memory"
    words = [event["event"] for event in told["events"]]
    assert words.index("vm-attached") < words.index("decided")
    logged = [record for record in served.records() if record["event"] == "decided"]
    (first,) = [event for event in told["events"] if event.get("balloon_level") == 1]
    assert first in logged


def test_events_are_those_of_the_log_first_the_last_ones_then_as_they_come(
    served: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, api: Path
) -> None:
    stream = events(api)
    assert next(stream)["event"] == "listening"
    guest = attach(make_guest(SETTINGS), served)
    run([guest], lambda: facts(served, "vm-attached") != [])
    seen = [next(stream)]
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) >= STEP)
    while seen[-1]["event"] != "decided":
        seen.append(next(stream))

    for event in seen:
        check("Event")(event)
    assert all(event in served.records() for event in seen)
    last = list(events(api, "/v1/events?follow=false&vm=vm1"))
    assert {event["vm"] for event in last} == {"vm1"}
    assert seen[-1] in last


def test_every_path_of_the_description_is_answered_as_it_says(
    served: Daemon, make_guest: MakeGuest, api: Path
) -> None:
    guest = attach(make_guest(SETTINGS), served)
    run([guest], lambda: facts(served, "vm-attached") != [])

    asked = 0
    for path, methods in description()["paths"].items():
        for method in methods:
            target = path.replace("{name}", "vm1")
            if method != "get":
                continue  # What changes something has tests of its own.
            asked += 1
            if path == "/v1/events":
                for event in events(api, f"{target}?follow=false"):
                    check(answered(path, method, 200, "application/x-ndjson"))(event)
                continue
            if path == "/v1/trace":  # It goes on for as long as balloond runs.
                line = next(events(api, target))
                check(answered(path, method, 200, "application/x-ndjson"))(line)
                continue
            if path == "/metrics":
                continue  # No JSON; test_metrics.py reads it.
            reply = ask(api, target)
            assert reply.status == 200
            assert reply.headers["content-type"] == "application/json"
            check(answered(path, method, 200, "application/json"))(reply.content)
    assert asked == 5


def test_file_of_the_socket_is_gone_when_balloond_has_ended(served: Daemon, api: Path) -> None:
    assert api.is_socket()
    served.stop()
    assert not api.exists()


def test_socket_that_a_killed_balloond_left_is_replaced(
    served: Daemon, start_daemon: StartDaemon, api: Path
) -> None:
    served.kill()
    assert api.is_socket()
    start_daemon("--api", str(api), name="next")
    assert ask(api, "/v1/status").status == 200


@fault("the API's socket is in use")
def test_socket_that_another_balloond_serves_is_refused(served: Daemon, api: Path) -> None:
    config = served.config
    done = subprocess.run(
        [str(config.command()[0]), "--api", str(api), "--socket", f"{api}.vms"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"balloond: API socket {api}: a running process listens there; stop it or name another "
        "path\n",
    )
    assert not Path(f"{api}.vms").exists()
    assert ask(api, "/v1/status").status == 200


@fault("the API's socket is in use")
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_directory_that_others_may_write_is_refused(mode: int, served: Daemon, api: Path) -> None:
    shared = api.with_name("shared")
    shared.mkdir()
    shared.chmod(mode)
    program, socket_path = served.config.command()[0], f"{api}.vms"
    done = subprocess.run(
        [program, "--api", str(shared / "api.sock"), "--socket", socket_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"others may write to {shared} (mode {mode:o})" in done.stderr


def test_service_has_an_api_in_its_runtime_directory_unless_told_otherwise(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o711)
    as_service = ("env", f"RUNTIME_DIRECTORY={runtime}")
    daemon = start_daemon(launcher=as_service)
    assert ask(runtime / "api.sock", "/v1/status").status == 200
    daemon.stop()
    start_daemon("--api", "none", name="without", launcher=as_service)
    assert not (runtime / "api.sock").exists()


@fault("a service whose API cannot be opened")
def test_service_whose_api_cannot_be_opened_runs_without(
    start_daemon: StartDaemon, make_guest: MakeGuest, tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    (runtime / "api.sock").mkdir(parents=True)
    runtime.chmod(0o711)
    daemon = start_daemon(launcher=("env", f"RUNTIME_DIRECTORY={runtime}"))
    guest = attach(make_guest(SETTINGS), daemon)
    run([guest], lambda: facts(daemon, "vm-attached") != [])
    (record,) = facts(daemon, "api-not-opened")
    assert record["message"] == (
        f"there is no API: API socket {runtime}/api.sock: there is something else; name another "
        "path"
    )


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory of root's that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="balloond-test-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


@needs_root
@fault("a client that may not ask")
@pytest.mark.parametrize(
    ("gid", "others", "status"),
    [
        (CALLER_GID, [], 200),
        (NOBODY, [CALLER_GID], 200),
        (NOBODY, [CALLER_GID + 1], 403),
        (NOBODY, [], 403),
    ],
)
def test_members_of_the_sockets_group_may_read_and_others_are_told_that_they_may_not(
    gid: int, others: list[int], status: int, start_daemon: StartDaemon, open_directory: Path
) -> None:
    api = open_directory / "api.sock"
    start_daemon("--api", str(api))
    assert api.stat().st_mode & 0o777 == 0o660
    os.chown(api, -1, CALLER_GID)
    os.chmod(api, 0o666)  # As an administrator may, who finds permissions a nuisance.
    with as_member(gid, others):
        reply = ask(api, "/v1/status")
    assert reply.status == status
    if status == 403:
        check("Error")(reply.content)
        assert reply.content["error"].startswith("you may not ask: only root, the user that")


@needs_root
def test_users_outside_the_group_do_not_even_connect(
    start_daemon: StartDaemon, open_directory: Path
) -> None:
    api = open_directory / "api.sock"
    start_daemon("--api", str(api))
    os.chown(api, -1, CALLER_GID)
    with as_member(NOBODY, []), pytest.raises(PermissionError):
        connected(api)
    # Root's own group is nobody's whom root has named.
    os.chown(api, -1, 0)
    with as_member(0, []):
        assert ask(api, "/v1/status").status == 403


def test_vm_gets_its_target_while_many_clients_ask_and_one_never_reads(
    served: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, api: Path
) -> None:
    guest = attach(make_guest(SETTINGS), served)
    run([guest], lambda: facts(served, "vm-attached") != [])
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(api)) for _ in range(200)]
        for client in clients:
            client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        low_mem.set_low()
        run([guest], lambda: balloon_bytes(guest) == MAXIMUM)
        for client in clients:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
    assert errors(served) == []


@fault("a client that sends file descriptors")
def send_fd(sock: socket.socket, flags: int) -> None:
    """Sends a byte with a descriptor."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))]
    sock.sendmsg([b"G"], rights, flags)


@needs_refusal
@fault("a client that sends file descriptors")
def test_descriptors_are_refused_by_the_kernel_before_and_after_the_connection_is_accepted(
    served: Daemon, api: Path
) -> None:
    for flags in (0, socket.MSG_OOB):
        with connected(api) as client, Frozen(served), pytest.raises(PermissionError):
            send_fd(client, flags)
        with connected(api) as client:
            assert ask(api, "/v1/status").status == 200  # This one came later.
            with pytest.raises(PermissionError):
                send_fd(client, flags)
            # It is as if nothing had been sent.
            client.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
    assert facts(served, "api-misused") == []


def test_balloond_that_makes_way_leaves_the_place_to_the_next_one(
    served: Daemon, start_daemon: StartDaemon, api: Path
) -> None:
    os.kill(served.pid, signal.SIGUSR1)
    served.wait_end()
    assert not api.exists()
    start_daemon("--api", str(api), name="next")
    assert ask(api, "/v1/status").status == 200


def test_guest_gives_what_was_set_and_gets_it_back_when_it_is_released(
    served: Daemon, make_guest: MakeGuest, api: Path
) -> None:
    guest = attach(make_guest(SETTINGS), served)
    run([guest], lambda: facts(served, "vm-attached") != [])
    size = 5 * STEP + 4096

    told = ask(api, "/v1/vms/vm1/balloon", "PUT", {"size_bytes": size, "for_s": 3600})
    assert (told.status, told.content["target_bytes"]) == (200, size)
    check("Told")(told.content)
    run([guest], lambda: balloon_bytes(guest) == size)
    vm = ask(api, "/v1/vms/vm1").content["vm"]
    assert vm["last_decision"]["reason"] == "asked"
    # At twenty times the policy's speed a step back would be tried after 3 s.
    assert vm["next"]["release_in_s"] > 3000

    released = ask(api, "/v1/release", "POST")
    check("Released")(released.content)
    assert released.content == {"vms": [{"vm": "vm1", "balloon_bytes": size, "target_bytes": 0}]}
    run([guest], lambda: balloon_bytes(guest) == 0)
    (asked, given_back) = facts(served, "size-asked")
    assert (asked["uid"], asked["balloon_bytes"]) == (os.geteuid(), size)
    assert given_back["message"] == f"user {os.geteuid()} asks for all of its memory back"
    # Its driver has written so, too.
    run([guest], lambda: ask(api, "/v1/vms/vm1").content["vm"]["balloon_bytes"] == 0)
    assert ask(api, "/v1/release", "POST").content == {"vms": []}
    assert ask(api, "/v1/vms/vm1/balloon", "PUT", {"size_bytes": 2 * MAXIMUM}).status == 409
    assert errors(served) == []
