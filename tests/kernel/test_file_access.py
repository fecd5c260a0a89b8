"""What root with few rights may see of another user's process, asked of the real kernel.

The rights are those that systemd/balloond.service leaves to balloond.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.units import MIB
from tests.harness.other_user import AS_NOBODY

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which gives rights up")

VMM = """
import mmap, os, sys
os.memfd_create("memory-backend-memfd")
os.pwrite(3, b"1" * (3 << 20), 0)
print(os.readlink("/proc/self/fd/3"), flush=True)
sys.stdin.read()
"""

RIGHTS = ("setuid", "setgid", "setpcap", "kill", "syslog")
"""Less CAP_SYS_RESOURCE, which the tests' root itself may lack."""

LOOK = """
import asyncio, json, os, subprocess, sys
from balloon_daemon.guests.driven import vmm_process
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.lookups import LOOKUPS
from balloon_daemon.guests.libvirt.qemu_process import find_memory_file
from balloon_daemon.linux.process_lookups import files_of
pid, ask = int(sys.argv[1]), LOOKUPS.ask
async def look():
    host = HostSide(await vmm_process.opened(pid, ask), await find_memory_file(pid))
    await host.look(ask)
    return host.disk_read_bytes(), host.held_bytes()
seen = [*asyncio.run(look()), len(files_of(pid)), len(files_of(os.getppid()))]
# By the child that has just read for the VMM's user.
with subprocess.Popen(["sleep", "60"]) as own:
    own_side = HostSide(asyncio.run(vmm_process.opened(own.pid, ask)))
    seen.append(own_side.disk_read_bytes())
    own.kill()
ids = open("/proc/self/status").read().split("Uid:")[1].split()[:4]
print(json.dumps([*seen, ids]))
"""


@pytest.fixture
def vmm() -> Iterator[int]:
    """A VMM's process of the user nobody, with 3 MiB in a memory file."""
    command = ["setpriv", *AS_NOBODY, "/usr/bin/python3", "-I", "-c", VMM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "memory-backend-memfd" in process.stdout.readline()
        yield process.pid
        process.kill()


def looked_at(pid: int, *rights: str) -> list[object]:
    """What a root with these rights alone sees of a process, and who it is afterwards."""
    bounds = ",".join(["-all", *(f"+{right}" for right in rights)])
    run = subprocess.run(
        ["setpriv", "--bounding-set", bounds, sys.executable, "-c", LOOK, str(pid)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    found: list[object] = json.loads(run.stdout)
    return found


def test_other_users_process_is_seen_with_the_units_rights_and_no_other_process_is(
    vmm: int,
) -> None:
    read_bytes, held_bytes, files, of_root, roots_read_bytes, ids = looked_at(vmm, *RIGHTS)

    assert isinstance(read_bytes, int)
    assert isinstance(roots_read_bytes, int)
    assert held_bytes == 3 * MIB
    assert files == 4
    assert of_root == 0
    assert ids == ["0"] * 4


def test_without_the_right_to_become_its_user_a_process_is_not_seen(vmm: int) -> None:
    read_bytes, _, files, _, _, ids = looked_at(vmm, "kill")

    assert (read_bytes, files) == (None, 0)
    assert ids == ["0"] * 4
