"""The shipped unit under a real systemd, with its drop-in for VMs that have a balloon already.

Each VMM but libvirt's is a unit of its own on the service's machine, set up as docs/attach.md
says: a process of another user, whose socket is in that user's own directory and open to its
group.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.units import MIB
from tests.harness.faults import fault
from tests.harness.open_files import open_files
from tests.harness.service_vmm import VFIO, VM_MEM
from tests.harness.waiting import wait_until
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ROOT, ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.vm

MAXIMUM = VM_MEM // 2
VMS = {
    "web": ("qmp", "qmp", "vms-web"),
    "liar": ("qmp", "gives-nothing", "vms-web"),
    "gpu": ("qmp", "assigned", "vms-web"),
    "roots": ("qmp", "no-memory", "root"),
    "fn": ("firecracker", "firecracker", "vms-web"),
}
"""By name: the key in the configuration file, what ``service_vmm`` is told, and its user."""

USERS = """\
g kvm -
u vms-web - "A VM's user"
m vms-web kvm
u libvirt-qemu - "libvirt's QEMUs"
"""

UNIT = """\
[Service]
User={user}
Group=kvm
UMask=0007
RuntimeDirectory=vms/{name}
RuntimeDirectoryMode=0750
WorkingDirectory=/srv
ExecStart=/usr/bin/python3 -m tests.harness.service_vmm {kind} /run/vms/{name}/sock
"""

LIBVIRT = {
    "libvirtd.socket": "[Socket]\nListenStream=/run/libvirt/libvirt-sock\nSocketMode=0666\n",
    "libvirtd.service": "[Service]\nType=notify\nExecStart=/usr/sbin/libvirtd\n",
}
"""libvirt's units, as distributions have them: the socket is there before anybody asks."""

NODE = """\
<node><domain type='test'>
  <name>db</name><memory unit='MiB'>1024</memory><os><type>hvm</type></os>
  <devices><memballoon model='virtio' autodeflate='on'/></devices>
</domain></node>
"""
"""A host of libvirt's test driver, which libvirt's daemon plays: a QEMU would be many times the
rest of the machine. balloond's way there is that of any driver."""

URI = "test+unix:///srv/node.xml"

PROGRAM = (
    *("__init__.py", "harness/__init__.py", "harness/scripted_monitor.py"),
    *("fakes/firecracker.py", "fakes/http_vmm.py", "fakes/listening_vmm.py"),
    "harness/service_vmm.py",
)


@pytest.fixture(scope="module")
def host() -> Iterator[ServiceHost]:
    """The machine, booted, with balloond and its VMs."""
    host = ServiceHost(ready_root(), SESSION_LOGS / "service-vms")
    print(f"the service's machine keeps its logs in {host.log_dir}")
    try:
        set_up(host)
        yield host
    finally:
        host.stop()


def set_up(host: ServiceHost) -> None:
    """Starts balloond, and the VMs behind it."""
    host.begin()
    host.configure("--speed", "20", "--user", "balloond")
    host.path("etc/sysusers.d/vms.conf").write_text(USERS)
    host.run("systemd-sysusers")
    host.path("etc/tmpfiles.d/vms.conf").write_text("d /run/vms\n")
    host.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/vms.conf")
    for name in PROGRAM:
        path = host.path(f"srv/tests/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "tests" / name, path)
    vfio = host.path(VFIO.removeprefix("/"))
    vfio.parent.mkdir()
    vfio.touch()
    units = host.path("etc/systemd/system")
    (units / "balloond.service.d").mkdir()
    shutil.copyfile(ROOT / "systemd/balloond-vms.conf", units / "balloond.service.d/vms.conf")
    tables = []
    for name, (key, kind, user) in VMS.items():
        (units / f"{name}.service").write_text(UNIT.format(name=name, kind=kind, user=user))
        tables.append(f'[vm.{name}]\n{key} = "/run/vms/{name}/sock"\n')
    for unit, text in LIBVIRT.items():
        (units / unit).write_text(text)
    host.path("srv/node.xml").write_text(NODE)
    tables.append(f'[vm.db]\nlibvirt = "{URI}"\n[discover]\nlibvirt = ["qemu:///system"]\n')
    host.path("etc/balloond").mkdir()
    host.path("etc/balloond/balloond.toml").write_text("".join(tables))
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "libvirtd.socket")
    host.run("systemctl", "start", "balloond")
    host.run("systemctl", "start", *VMS)


def said(host: ServiceHost, name: str, what: str) -> list[str]:
    """The lines that balloond as it runs now has said of a VM, with these words in them."""
    lines = host.said_by(host.main_pid())
    return [line for line in lines if line.startswith(f"{name}: ") and what in line]


def wait_said(host: ServiceHost, name: str, what: str) -> None:
    wait_until(
        lambda: said(host, name, what) != [],
        what=f"balloond says of {name}: {what}",
        seen=lambda: host.said_by(host.main_pid())[-20:],
    )


def vmm(host: ServiceHost, name: str) -> Path:
    """A VMM's process, as seen from here."""
    pid = host.run("systemctl", "show", "--value", "--property", "MainPID", name)
    return host.path(f"proc/{pid}")


def memory_bytes(host: ServiceHost, name: str) -> int:
    """What a VM's memory file occupies."""
    for link, file in open_files(vmm(host, name)).items():
        if file.startswith("/memfd:memory-backend-memfd"):
            return os.stat(link).st_blocks * 512
    raise AssertionError(f"{name} has no memory file")


def wait_memory(host: ServiceHost, name: str, size_bytes: int) -> None:
    wait_until(
        lambda: memory_bytes(host, name) == size_bytes,
        what=f"{name}'s memory occupies {size_bytes // MIB} MiB",
        seen=lambda: (memory_bytes(host, name), host.said_by(host.main_pid())[-20:]),
    )


@fault("driven VMs under the shipped unit")
def test_vms_of_another_user_are_driven_and_seen_restarted_and_given_back(
    host: ServiceHost,
) -> None:
    for name in ("web", "liar", "fn"):
        wait_said(host, name, f"driven by way of /run/vms/{name}/sock")
    # Only a link in /proc/PID/fd tells of the device.
    wait_said(host, "gpu", "(VFIO)")
    # It has all of root's rights, and so shows itself to nobody who has not.
    wait_said(host, "roots", "may not be looked at")
    assert not any("may not be looked at" in line for line in said(host, "web", ""))
    wait_said(host, "db", f"driven by way of {URI}")

    # Its directory goes with it and is made anew, in sight of the service.
    host.run("systemctl", "restart", "web")
    wait_until(
        lambda: len(said(host, "web", "driven by way of")) == 2, what="web is driven once more"
    )

    host.low_mem.set_low()
    wait_memory(host, "web", MAXIMUM)
    wait_said(host, "db", "level 16/16")
    wait_said(host, "fn", "level 16/16")
    # Its disk reads are those in /proc/PID/io.
    host.run("systemctl", "kill", "--signal=USR1", "fn")
    wait_said(host, "fn", "in need (reads-disk)")
    # Its process is small, as its memory is in its file alone: the blocks of this are known.
    wait_said(host, "liar", "gave 320 MiB, of which the host has not got 320 MiB")
    assert said(host, "web", "gave ") == []

    before = host.main_pid()
    host.run("systemctl", "restart", "balloond")
    wait_said(host, "web", "driven by way of")
    assert host.main_pid() != before
    assert memory_bytes(host, "web") == MAXIMUM
    host.low_mem.set_plenty()
    wait_until(lambda: memory_bytes(host, "web") > MAXIMUM, what="web has some of it back")
    host.low_mem.set_low()
    wait_memory(host, "web", MAXIMUM)
    wait_said(host, "db", "level 16/16")

    last = host.main_pid()
    host.run("systemctl", "stop", "balloond")
    assert (host.unit("ActiveState"), host.unit("Result")) == ("inactive", "success")
    wait_memory(host, "web", VM_MEM)
    assert any(line.startswith("db: giving ") for line in host.said_by(last))
    assert [line for line in host.errors() if not line.startswith("gpu: ")] == []


@fault("`systemctl restart` with a mistake")
def test_driven_vms_keep_their_balloons_until_a_mistake_in_the_file_is_mended(
    host: ServiceHost,
) -> None:
    file = host.path("etc/balloond/balloond.toml")
    right = file.read_text()
    host.low_mem.set_low()
    host.run("systemctl", "start", "balloond")
    wait_memory(host, "web", MAXIMUM)

    file.write_text("[vm.web]\nqpm = '/run/vms/web/sock'\n")
    host.run("systemctl", "restart", "balloond", check=False)
    wait_until(lambda: host.unit("ActiveState") == "failed", what="systemd has given up")
    assert memory_bytes(host, "web") == MAXIMUM

    file.write_text(right)
    host.run("systemctl", "start", "balloond")
    wait_said(host, "web", "driven by way of")
    assert memory_bytes(host, "web") == MAXIMUM
    host.run("systemctl", "stop", "balloond")
    wait_memory(host, "web", VM_MEM)
