"""A real libvirt's daemon with real QEMU domains, in a root directory and mounts of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.harness.open_files import open_files
from tests.harness.waiting import HANG_S, wait_until
from tests.vm.images import Images

MIB = 1 << 20
MEMORY_MIB = 512
KERNEL = "bookworm"

# All that is written lies over the root, in memory, and goes with the last process in there.
_MOUNTS = """\
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --bind "$3" images
exec chroot . sleep infinity
"""

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{memory_mib}</memory>
  <currentMemory unit='MiB'>{now_mib}</currentMemory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/images/{kernel}/vmlinuz</kernel>
    <initrd>/images/{kernel}/initrd</initrd>
    <cmdline>console=ttyS0 loglevel=5 panic=-1 mitigations=off</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'>
    <feature name='erms' policy='disable'/>
    <feature name='fsrm' policy='disable'/>
  </cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='/tmp/{name}.console'/></serial>
    <serial type='null'><target port='1'/></serial>
    <memballoon model='virtio' autodeflate='on'/>
  </devices>
</domain>
"""


class LibvirtHost:
    """Libvirt's daemon, running. `stop` it at the end, whatever happened."""

    def __init__(self, root: Path, images: Images, log_dir: Path) -> None:
        """Starts it.

        Args:
            root: from `ready_root`; nothing is written to it.
            images: the guests' kernels.
            log_dir: gets what it and the guests' kernels say.
        """
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log_dir = log_dir
        self._work = Path(tempfile.mkdtemp(prefix="balloond-libvirt-"))
        holding = ["unshare", "--mount", "sh", "-c", _MOUNTS, "sh"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *holding, self._work, root, images.root]
        )
        self._daemon: subprocess.Popen[bytes] | None = None
        try:
            wait_until(self.path("images", KERNEL).exists, what="libvirt's root is mounted")
            self.start_daemon()
        except BaseException:
            self.stop()
            raise

    def path(self, *names: str) -> Path:
        """A file of libvirt's root, as seen from here."""
        return Path(f"/proc/{self._holder.pid}/root", *names)

    @property
    def uri(self) -> str:
        """The connection's, from here."""
        return f"qemu:///system?socket={self.path('run/libvirt/libvirt-sock')}"

    def start_daemon(self) -> None:
        """Starts libvirt's daemon, and waits until it answers."""
        log = (self._log_dir / "libvirtd.out").open("a")
        with log:
            self._daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *self._inside("/usr/sbin/libvirtd")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._virsh("list").returncode == 0, what="libvirt answers")

    def kill_daemon(self) -> None:
        """Ends libvirt's daemon without asking; the domains go on."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()

    def virsh(self, *words: str) -> str:
        """Has libvirt's own command do something; returns what it prints."""
        done = self._virsh(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def create(self, name: str, recipe: str = "", balloon_mib: int = 0) -> None:
        """Starts a domain.

        Args:
            name: its name.
            recipe: a description of which the balloon and QEMU's arguments are taken.
            balloon_mib: the balloon that it begins with (`currentMemory`).
        """
        xml = DOMAIN.format(
            name=name, memory_mib=MEMORY_MIB, now_mib=MEMORY_MIB - balloon_mib, kernel=KERNEL
        )
        if recipe:
            xml = _with_recipe(xml, recipe)
        self.path("tmp", f"{name}.xml").write_text(xml)
        self.virsh("create", f"/tmp/{name}.xml")

    def pid(self, name: str) -> int:
        """A domain's QEMU."""
        return int(self.path("run/libvirt/qemu", f"{name}.pid").read_text())

    def balloon_mib(self, name: str) -> int:
        """The size of a domain's balloon, as libvirt reports it."""
        return MEMORY_MIB - self._statistics(name)["actual"] // 1024

    def has_driver(self, name: str) -> bool:
        """Whether a driver listens in a domain's guest."""
        return self._statistics(name)["last_update"] != 0

    def host_bytes(self, name: str) -> int:
        """What the host really holds for a domain: the blocks of its memfd."""
        for link, file in open_files(self.pid(name)).items():
            if file.startswith("/memfd:memory-backend-memfd"):
                return os.stat(link).st_blocks * 512
        raise AssertionError(f"{name} has no memfd")

    def stop(self) -> None:
        """Ends everything, and keeps the logs."""
        logs = [*self.path("tmp").glob("*.console"), *self.path("var/log/libvirt").rglob("*.log")]
        for log in logs:
            shutil.copyfile(log, self._log_dir / log.name)
        for file in self.path("run/libvirt/qemu").glob("*.pid"):
            if file.name != "driver.pid":
                _kill(int(file.read_text()))
        self.kill_daemon()
        self._holder.kill()
        self._holder.wait()
        self._work.rmdir()

    def _statistics(self, name: str) -> dict[str, int]:
        lines = self.virsh("dommemstat", name).splitlines()
        return {word: int(value) for word, value in map(str.split, lines)}

    def _virsh(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = self._inside("/usr/bin/virsh", "--quiet", *words)
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANG_S
        )

    def _inside(self, *command: str) -> list[str]:
        spaces = ("--mount", "--root", "--wd")
        return ["nsenter", "--target", str(self._holder.pid), *spaces, *command]


def _with_recipe(xml: str, recipe: str) -> str:
    domain, wanted = ElementTree.fromstring(xml), ElementTree.fromstring(recipe)
    devices, (backing,) = domain.find("devices"), domain.findall("memoryBacking")
    assert devices is not None
    (balloon,) = devices.findall("memballoon")
    devices.remove(balloon)
    devices.extend(wanted.findall("devices/memballoon"))
    domain.remove(backing)
    domain.extend(each for each in wanted if each.tag != "devices")
    return ElementTree.tostring(domain, encoding="unicode")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        # It is no child of ours, and holds the mounts until it is gone.
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), what="QEMU is gone")
