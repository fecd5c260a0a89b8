"""An empty world: what a process sees that has left this one."""

import json
import os
import socket
import subprocess
from collections.abc import Callable

import prctl
import pytest

from balloon_daemon.linux import jail, namespaces
from balloon_daemon.linux.namespaces import enter_empty_namespaces
from tests.harness.faults import fault
from tests.harness.processes import NAMESPACES

NOBODY = 65534


def in_child(work: Callable[[], object]) -> object:
    """What a forked child makes of ``work``, as JSON."""
    out, inn = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(inn, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(inn)
    with os.fdopen(out, "rb") as reader:
        words = reader.read()
    os.waitpid(pid, 0)
    return json.loads(words)


def look_around() -> object:
    before = [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES]
    inside = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY)
    left = enter_empty_namespaces()
    after = [os.readlink(name, dir_fd=inside) for name in NAMESPACES]
    try:
        os.close(os.open("/file", os.O_CREAT | os.O_WRONLY))
        wrote = True
    except OSError:
        wrote = False
    return {
        "left": left,
        "moved": [one != other for one, other in zip(before, after, strict=True)],
        "root": os.listdir("/"),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "wrote": wrote,
    }


def jailed_without_mounts() -> object:
    """The capabilities of a jail whose user namespace was allowed and whose mounts were not."""
    namespaces._MS_PRIVATE = 1 << 63  # Flags of which mount(2) makes an error.
    own = os.open("/proc/self/status", os.O_RDONLY)
    jail.enter("half-way", os.getppid(), None)
    lines = os.read(own, 8192).decode().splitlines()
    return {line[:6]: int(line[7:], 16) for line in lines if line.startswith("Cap")}


def as_ordinary_user(work: Callable[[], object]) -> Callable[[], object]:
    """The same in a process that is nobody's, where it would be root's."""

    def changed() -> object:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        prctl.set_dumpable(1)  # Changing ids took /proc/self from us, which these tests read.
        return work()

    return work if os.geteuid() else changed


def _may_unshare(what: str) -> bool:
    """Whether an ordinary user may: AppArmor decides too, not only what /proc/sys says."""
    command = ["unshare", what, "true"]
    if os.geteuid() == 0:
        command = [
            "setpriv",
            *("--reuid", "65534", "--regid", "65534"),
            "--clear-groups",
            *command,
        ]
    return subprocess.run(command, stderr=subprocess.DEVNULL, cwd="/").returncode == 0


EMPTY = {
    "left": True,
    "moved": [True, True, True],
    "root": [],
    "interfaces": ["lo"],
    "wrote": False,
}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_leaves_files_network_and_ipc_behind() -> None:
    assert in_child(look_around) == EMPTY


@pytest.mark.skipif(
    not _may_unshare("-Urm"), reason="no mounts in user namespaces for an ordinary user here"
)
def test_ordinary_user_leaves_them_behind_in_a_user_namespace() -> None:
    assert in_child(as_ordinary_user(look_around)) == EMPTY


@fault("namespaces refused, or half of them; root without CAP_SYS_ADMIN")
@pytest.mark.skipif(not _may_unshare("-U"), reason="no user namespaces for an ordinary user here")
def test_jail_that_may_not_mount_has_no_capability_in_its_user_namespace_either() -> None:
    held = in_child(as_ordinary_user(jailed_without_mounts))
    assert held == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)
