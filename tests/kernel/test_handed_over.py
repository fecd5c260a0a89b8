"""Listening sockets that socket units hand over, without systemd: what is served, what refused."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.linux.systemd import has_stored_fds
from tests.harness.api_client import ask
from tests.harness.daemon import BALLOOND
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, MakeGuest, StartDaemon
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import balloon_bytes, errors, facts

PROGRAM = """\
import os, socket, sys
count = int(sys.argv[1])
names, kinds, paths = [], {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}, []
for number, word in enumerate(sys.argv[2 : 2 + count], 3):
    name, kind, path = word.split("=", 2)
    sock = socket.socket(socket.AF_UNIX, kinds[kind])
    sock.bind(path)
    os.chmod(path, 0o640)
    if kind == "stream":
        sock.listen(1)
    assert sock.fileno() == number
    sock.set_inheritable(True)
    sock.detach()
    names.append(name)
os.environ |= {
    "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": ":".join(names)
}
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""
"""Makes sockets, and becomes a program to which they are handed over: NAME=KIND=PATH for each."""


def handing_over(*sockets: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", PROGRAM, str(len(sockets)), *sockets)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not the test's own directory: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_sockets_that_are_handed_over_are_served_and_stay_with_their_owner_and_mode(
    start_daemon: StartDaemon, make_guest: MakeGuest, low_mem: LowMemDir, folder: Path
) -> None:
    api, web, other = (folder / f"{name}.sock" for name in ("api", "web", "other"))
    file = folder / "balloond.toml"
    file.write_text(f'[vm.web]\nvhost_user = "{web}"\n[host]\napi = "{api}"\n')
    handed = (
        f"balloond-api.socket=stream={api}",
        f"balloond.socket=stream={web}",
        f"balloond.socket=stream={other}",
    )
    daemon = start_daemon("--config", str(file), launcher=handing_over(*handed))

    guest = make_guest(SETTINGS)
    guest.connect(str(web))
    guest.bind()
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    (vm,) = ask(api, "/v1/status").content["vms"]
    assert vm["name"] == "web"
    (unserved,) = facts(daemon, "socket-unit-not-served")
    assert (unserved["unit"], unserved["socket"]) == ("balloond.socket", str(other))
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(other))
    assert errors(daemon) == []
    daemon.stop()

    assert [stat.S_IMODE(path.stat().st_mode) for path in (api, web)] == [0o640] * 2


def test_socket_of_another_kind_is_a_mistake_that_names_the_unit(
    low_mem: LowMemDir, folder: Path
) -> None:
    launcher = handing_over(f"balloond.socket=datagram={folder}/a.sock")
    command = [*launcher, str(BALLOOND), "--socket", f"{folder}/a.sock"]

    done = subprocess.run(
        [*command, "--low-mem-dir", str(low_mem.path)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    assert (done.returncode, done.stderr) == (
        2,
        "balloond: balloond.socket: it hands over no UNIX stream socket that listens: give "
        "ListenStream= a path\n",
    )


@pytest.mark.parametrize(
    ("names", "stored"),
    [
        ("balloond.socket:balloond-api.socket", False),
        ("balloond.socket:vm1.3", True),
        ("listener", True),
    ],
)
def test_sockets_of_socket_units_are_no_vms_that_were_stored(
    names: str, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDNAMES", names)

    assert has_stored_fds() is stored
