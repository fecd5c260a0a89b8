"""What the documents have a reader type, typed on a Debian 13 with its own systemd and libvirt."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.units import MIB
from tests.harness.doc_commands import NOT_TYPED, Typed, Written, as_shown, commands, steps
from tests.harness.waiting import HANG_S, wait_until
from tests.packages.libvirt_root import ready_root as libvirt_root
from tests.vm.images import Images, ready_images
from tests.vm.libvirt_host import DOMAIN
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
CHECKOUT = "/usr/src/balloond"
MEMORY_MIB = 512
KERNEL = "bookworm"

READS = (
    *("balloond --config", "balloonctl status", "balloonctl explain", "balloonctl doctor"),
    *("journalctl", "curl", "virsh", "stat"),
)
"""Commands that change nothing, and so may be typed until what they print is there: a reader
takes longer to type than guests to boot."""

QEMU_CONF = """\
security_driver = "none"
namespaces = []
cgroup_controllers = []
remember_owner = 0
"""
"""What libvirt needs in a container; its QEMUs are Debian's user's, as everywhere."""

QEMU = """\
#!/bin/sh
cd /srv/qemu/usr
exec lib64/ld-linux-x86-64.so.2 --library-path lib/x86_64-linux-gnu bin/qemu-system-x86_64 \\
    -L share/qemu -L share/seabios "$@"
"""
"""A QEMU with the generic vhost-user device, as backports has it."""

OWN_OPTIONS = (
    f"-kernel /images/{KERNEL}/vmlinuz -initrd /images/{KERNEL}/initrd "
    '-append "console=ttyS0 loglevel=5 mitigations=off" -cpu max,erms=off,fsrm=off '
    "-nodefaults -display none -serial null -serial null"
)
"""What stands for `…` in the reader's QEMU."""


DEB = "sudo apt-get install ./build/package/balloond_*.deb"


@pytest.fixture(scope="session")
def images() -> Images:
    return ready_images()


@pytest.fixture
def machine(images: Images, request: pytest.FixtureRequest) -> Iterator[ServiceHost]:
    """A machine on which balloond is not installed, but built."""
    machine = ServiceHost(libvirt_root(), SESSION_LOGS / request.node.name, nspawn=ready_root())
    try:
        (package,) = (ROOT / "build/package").glob("balloond_*.deb")
        checkout = machine.path(CHECKOUT.removeprefix("/"))
        for name in (".ci", "balloon_daemon", "completions", "dashboards", "docs", "man"):
            shutil.copytree(ROOT / name, checkout / name)
        for name in ("policies", "systemd"):
            shutil.copytree(ROOT / name, checkout / name)
        for name in ("Makefile", "README.md", "SECURITY.md"):
            shutil.copyfile(ROOT / name, checkout / name)
        built = checkout / "build/package"
        built.mkdir(parents=True)
        shutil.copyfile(package, built / package.name)
        # Without extended attributes, in which another libvirt may say that it uses the file.
        kernel = machine.path(f"images/{KERNEL}")
        shutil.copytree(images.root / KERNEL, kernel, copy_function=shutil.copyfile)
        machine.path("etc/libvirt/qemu.conf").write_text(QEMU_CONF)
        # sudo looks the machine's name up.
        machine.path("etc/hosts").write_text("127.0.0.1 localhost vm\n")
        # Instead of the reader, who says yes.
        machine.path("etc/apt/apt.conf.d/yes").write_text('APT::Get::Assume-Yes "true";\n')
        yield machine
    finally:
        machine.stop()


def typed(machine: ServiceHost, command: Typed, directory: str) -> None:
    """Types a command, and looks at what it prints."""
    text = command.text.replace("qemu-system-x86_64 …", f"qemu-system-x86_64 {OWN_OPTIONS}")
    printed = ""

    def once() -> bool:
        nonlocal printed
        with machine.running("sh", "-c", f"cd {directory} && {text}") as process:
            output, errors = process.communicate(timeout=HANG_S)
        printed = output + errors
        machine.note(f"$ {text}\n{printed}")
        done = process.returncode == 0
        return done and (not command.output or as_shown(command.output, output))

    if command.text.removeprefix("sudo ").startswith(READS):
        wait_until(once, what=f"{text} prints what is shown", seen=lambda: printed)
    else:
        assert once(), f"{text}\n{printed}"


def follow(machine: ServiceHost, page: str) -> Iterator[str]:
    """Does what a page says, step by step; gives each command once it has been typed."""
    directory = "/root"
    for step in steps(ROOT / "docs" / page):
        match step:
            case Written(path, text):
                machine.path(path.removeprefix("/")).write_text(text)
            case Typed(text) if text.startswith("cd "):
                directory = text.removeprefix("cd ")
            case Typed(text) if text not in NOT_TYPED:
                typed(machine, step, directory)
                yield text


def wait_balloon(machine: ServiceHost, name: str, size_mib: int) -> None:
    """Waits until a VM's balloon has this size, and the host has all of it."""

    def sizes() -> list[int]:
        vms = json.loads(machine.run("balloonctl", "status", "--json"))["vms"]
        (vm,) = (vm for vm in vms if vm["name"] == name)
        return [vm[f"{which}_bytes"] for which in ("target", "balloon", "returned")]

    wait_until(
        lambda: sizes() == 3 * [size_mib * MIB],
        what=f"{name} has a balloon of {size_mib} MiB, and so has the host",
        seen=sizes,
    )


def test_libvirt_tutorial_is_as_it_says(machine: ServiceHost) -> None:
    for name in ("web", "db"):
        xml = DOMAIN.format(name=name, memory_mib=MEMORY_MIB, now_mib=MEMORY_MIB, kernel=KERNEL)
        machine.path(f"root/{name}.xml").write_text(xml)
        machine.run("virsh", "create", f"/root/{name}.xml")

    for command in follow(machine, "tutorial-libvirt.md"):
        if "reclaim" in command:
            wait_balloon(machine, "web", 100)
        if "release" in command:
            wait_balloon(machine, "web", 0)
    assert not machine.path("etc/balloond").exists()
    assert not machine.path("usr/bin/balloond").exists()


def test_device_tutorial_is_as_it_says(machine: ServiceHost, images: Images) -> None:
    shutil.copytree(images.root / "qemu", machine.path("srv/qemu"))
    program = machine.path("usr/local/bin/qemu-system-x86_64")
    program.write_text(QEMU)
    program.chmod(0o755)
    machine.run("sh", "-c", f"dpkg --install {CHECKOUT}/build/package/*.deb")

    for command in follow(machine, "tutorial-device.md"):
        if "reclaim" in command:
            wait_balloon(machine, "build", 128)
        if "release" in command:
            wait_balloon(machine, "build", 0)
    assert machine.errors() == []


def test_service_is_installed_by_make_as_it_says(machine: ServiceHost) -> None:
    for text in commands(ROOT / "docs/install.md"):
        if text not in NOT_TYPED and text != DEB:
            typed(machine, Typed(text, ()), CHECKOUT)
    assert machine.run("systemctl", "is-enabled", "balloond") == "enabled"
    assert machine.run("balloonctl", "status").startswith("no VM is driven")
    assert machine.unit("FragmentPath") == "/usr/local/lib/systemd/system/balloond.service"
    machine.run("systemctl", "restart", "balloond")
    assert "margin 1 GiB" in machine.run("balloonctl", "status")
    assert machine.path("usr/local/share/man/man8/balloond.8").exists()


def test_drop_ins_and_sockets_are_set_up_as_it_says(machine: ServiceHost) -> None:
    typed(machine, Typed(DEB, ()), CHECKOUT)
    for page in ("attach.md", "metrics.md"):
        for text in commands(ROOT / "docs" / page):
            if text.startswith(("sudo", "echo")):
                typed(machine, Typed(text, ()), CHECKOUT)
    assert machine.path("run/vms").is_dir()
    for unit in ("balloond", "balloond.socket", "balloond-api.socket"):
        assert machine.run("systemctl", "is-active", unit) == "active"
    drop_ins = machine.unit("DropInPaths")
    assert "vms.conf" in drop_ins
    # Whoever reads the journal first finds no warning in it.
    assert [line.text for line in machine.journal() if "unset" in line.text] == []
    assert machine.errors() == []
