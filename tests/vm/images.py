"""The images that real guests run from: a QEMU, and a kernel with its initramfs for each guest.

They are made once, from Debian's packages, and kept in the cache, outside the tree.

`python -m tests.vm.images` makes them and prints where they are, or says in one line what is
missing.
"""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.vm import apt, cache, initramfs
from tests.vm.cache import ImagesError

GUEST_SUITES = ("bookworm", "forky")
"""One guest kernel from each: 6.1, the oldest that we promise, and Debian's newest."""

_QEMU_SUITE = "forky"
"""The oldest suite with QEMU ≥ 10.2, the first to have vhost-user-test-device-pci."""

_MODULES = ["virtio_pci", "virtio_blk", "virtio_balloon"]
_KERNEL_PARTS = ("linux-image-", "linux-binary-", "linux-modules-")
_QEMU_FILES = (
    "usr/bin/qemu-system-x86_64",
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/share/qemu",
    "usr/share/seabios",
)
_HERE = Path(__file__).parent
_RECIPE = [_HERE / name for name in ("images.py", "apt.py", "initramfs.py", "init.sh")]


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """What QEMU's -kernel and -initrd take."""

    vmlinuz: Path
    initrd: Path


@dataclass(frozen=True, slots=True)
class Images:
    """A directory of checked images."""

    root: Path

    def qemu_command(self) -> list[str]:
        """Starts QEMU by its own loader and libraries: no chroot, no mounts, no root needed."""
        usr = self.root / "qemu/usr"
        return [
            str(usr / "lib64/ld-linux-x86-64.so.2"),
            *("--library-path", str(usr / "lib/x86_64-linux-gnu")),
            str(usr / "bin/qemu-system-x86_64"),
            *("-L", str(usr / "share/qemu"), "-L", str(usr / "share/seabios")),
        ]

    def kernel(self, suite: str) -> GuestKernel:
        """The guest kernel of one of `GUEST_SUITES`."""
        return GuestKernel(self.root / suite / "vmlinuz", self.root / suite / "initrd")


def ready_images() -> Images:
    """Gives the images, made first if they are not there or not as the manifest says.

    Raises:
        ImagesError: they cannot be made on this machine.
    """
    if platform.machine() != "x86_64":
        raise ImagesError(f"the guests are x86_64, this machine is {platform.machine()}")
    return Images(cache.ready(cache.Recipe("guest images", _RECIPE, _make_images)))


def _make_images(work: Path, made: Path) -> dict[str, list[str]]:
    """Makes QEMU and the guests below `made`; returns what each was made from."""
    mirror = apt.debian_mirror(work)
    used: dict[str, list[str]] = {}
    for name in GUEST_SUITES:
        suite = apt.AptSuite(mirror, name, work)
        kernel = [
            package
            for package in suite.closure("linux-image-cloud-amd64")
            if package.startswith(_KERNEL_PARTS)
        ]
        used[name] = [*kernel, "busybox-static"]
        suite.unpack(used[name], work / name)
        _make_guest(work / name, made / name)
        if name == _QEMU_SUITE:
            used["qemu"] = suite.closure("qemu-system-x86")
            suite.unpack(used["qemu"], work / "qemu")
            _make_qemu(work / "qemu", made / "qemu")
    return used


def _make_guest(unpacked: Path, guest: Path) -> None:
    guest.mkdir()
    vmlinuz = _the_one(unpacked, "vmlinuz*")
    modules = _the_one(unpacked, "lib/modules/*/kernel").parent
    order = initramfs.module_order(modules, _MODULES)
    init = (_HERE / "init.sh").read_text()
    shutil.copyfile(vmlinuz, guest / "vmlinuz")
    (guest / "initrd").write_bytes(initramfs.pack(_the_one(unpacked, "bin/busybox"), init, order))


def _the_one(root: Path, pattern: str) -> Path:
    found = list(root.rglob(pattern))
    if len(found) != 1:
        raise ImagesError(f"the packages hold {len(found)} of {pattern}, not one")
    return found[0]


def _make_qemu(unpacked: Path, qemu: Path) -> None:
    for name in _QEMU_FILES:
        (qemu / name).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / name).rename(qemu / name)
    command = [*Images(qemu.parent).qemu_command(), "-device", "vhost-user-test-device-pci,help"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ImagesError(f"Debian {_QEMU_SUITE}'s QEMU does not serve: {asked.stderr.strip()}")


if __name__ == "__main__":
    try:
        print(ready_images().root)
    except ImagesError as error:
        sys.exit(f"test-vm: {error}")
