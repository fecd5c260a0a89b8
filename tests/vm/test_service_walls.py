"""What a controller that was taken over reaches on its host, under a real systemd.

The service's program is the shipped one up to the moment when it would read its flags; from there
on it does what a VMM that had taken it over would try.
"""

import json
from collections.abc import Iterator

import pytest

from tests.harness.needs import needs_landlock, needs_scoped_signals
from tests.harness.waiting import wait_until
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ROOT, ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.vm

NOBODY = 65534
SEEN = "run/balloond/seen"
DROP_IN = "run/systemd/system/balloond.service.d"

PROGRAM = """\
import json, os, resource, signal, socket, sys
from balloon_daemon.__main__ import main
from balloon_daemon.cli import run

def attempt(call):
    try:
        return call() and "done"
    except OSError as err:
        return err.strerror

def look_at_the_host():
    os.setresgid(-1, {nobody}, -1)
    os.setresuid(-1, {nobody}, -1)
    try:
        return os.open("/proc/{pid}/root", os.O_PATH)
    finally:
        os.setresuid(-1, 0, -1)

def ask_systemd():
    host = look_at_the_host()
    with socket.socket(socket.AF_UNIX) as systemd:
        systemd.connect(f"/proc/self/fd/{{host}}/run/systemd/private")
    return True

def limit_another():
    os.setresgid({nobody}, {nobody}, 0)
    os.setresuid({nobody}, {nobody}, 0)
    try:
        return resource.prlimit({pid}, resource.RLIMIT_CPU, (3600, 3600))
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)

def taken_over(template):
    template.wait_until_ready()
    seen = {{
        "systemd": attempt(ask_systemd),
        "kill": attempt(lambda: os.kill({pid}, 0) or True),
        "limit": attempt(limit_another),
        "terminals": attempt(lambda: os.listdir("/dev/pts")),
        "shared memory": attempt(lambda: os.scandir("/dev/shm")),
        "passwords": attempt(lambda: open("/etc/shadow")),
        "earlier passwords": attempt(lambda: open("/etc/shadow-")),
        "file in /dev": attempt(lambda: open("/dev/file", "x")),
        "file in /dev/shm": attempt(lambda: open("/dev/shm/file", "x")),
        "device": attempt(lambda: open("/dev/null", "w").write("x")),
        "own child": attempt(lambda: os.kill(template.pid, 0) or True),
    }}
    with open("/{seen}.new", "w") as file:
        json.dump(seen, file)
    os.rename("/{seen}.new", "/{seen}")
    signal.pause()

run.main = taken_over
main()
"""

OTHERS = f"""
import os
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
print(os.getpid(), flush=True)
os.execvp("sleep", ["sleep", "infinity"])
"""
"""Another user's program, which sees the whole host."""


@pytest.fixture(scope="module")
def host() -> Iterator[ServiceHost]:
    """The machine, booted, with balloond, which is not started."""
    host = ServiceHost(ready_root(), SESSION_LOGS / "service-walls")
    yield host
    host.stop()


def reached(host: ServiceHost, drop_in: str = "") -> dict[str, str]:
    """What the service reaches, with these further settings."""
    settings = (
        "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /srv/taken_over.py\nType=exec\n"
        f"Restart=no\n{drop_in}"
    )
    host.path(DROP_IN).mkdir(parents=True, exist_ok=True)
    (host.path(DROP_IN) / "walls.conf").write_text(settings)
    host.path(SEEN).unlink(missing_ok=True)
    with host.running("python3", "-c", OTHERS) as others:
        assert others.stdout is not None
        pid = int(others.stdout.readline())
        program = PROGRAM.format(pid=pid, nobody=NOBODY, seen=SEEN)
        host.path("srv/taken_over.py").write_text(program)
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", "balloond")
        try:
            wait_until(host.path(SEEN).exists, what="it has tried", seen=host.journal)
            found: dict[str, str] = json.loads(host.path(SEEN).read_text())
        finally:
            host.run("systemctl", "kill", "--signal=KILL", "balloond")
            host.run("systemctl", "reset-failed", "balloond")
    return found


@needs_landlock
def test_controller_that_was_taken_over_does_not_reach_the_host_by_another_users_process(
    host: ServiceHost,
) -> None:
    found = reached(host)

    # Where other users' processes are hidden (ProtectProc=), there is no such file.
    assert found["systemd"] == "No such file or directory"
    assert found["own child"] == "done"


def test_controller_that_was_taken_over_puts_no_file_among_the_hosts_devices(
    host: ServiceHost,
) -> None:
    found = reached(host)

    assert found["file in /dev"] == "Read-only file system"
    assert found["file in /dev/shm"] == "Permission denied"
    assert found["device"] == "done"


def test_controller_that_was_taken_over_reads_no_terminal_and_no_memory_in_dev(
    host: ServiceHost,
) -> None:
    found = reached(host)

    assert (found["terminals"], found["shared memory"]) == ("Permission denied",) * 2


def test_controller_that_was_taken_over_reads_no_passwords(host: ServiceHost) -> None:
    for name in ("shadow", "shadow-"):
        # Root's, as on any host, with or without passwords in it.
        path = host.path(f"etc/{name}")
        path.touch()
        path.chmod(0o600)
    found = reached(host)

    assert (found["passwords"], found["earlier passwords"]) == ("Permission denied",) * 2


@needs_scoped_signals
def test_controller_that_was_taken_over_ends_nobody_elses_process(host: ServiceHost) -> None:
    assert reached(host)["kill"] == "Operation not permitted"


@needs_landlock
def test_controller_that_was_taken_over_limits_nobody_elses_process(host: ServiceHost) -> None:
    assert reached(host)["limit"] == "Operation not permitted"


def test_controller_with_the_drop_in_for_vms_may_look_at_their_processes(
    host: ServiceHost,
) -> None:
    # Which docs/security.md says; and without that the tests above would show nothing.
    drop_in = (ROOT / "systemd" / "balloond-vms.conf").read_text()
    no_groups = "SupplementaryGroups=\n"  # This machine has no group kvm.
    found = reached(host, drop_in + no_groups)

    done = ("systemd", "kill", "limit", "own child")
    assert [found[what] for what in done] == ["done"] * len(done)
