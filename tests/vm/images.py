"""The images that real guests run from: a QEMU, and a kernel with its initramfs for each guest.

They are made once, from Debian's packages, and kept outside the tree, in a directory named by the
SHA-256 of everything that decides what they are. Each use checks every file against the manifest.

`python -m tests.vm.images` makes them and prints where they are, or says in one line what is
missing.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.vm import apt, initramfs

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


class ImagesError(Exception):
    """The images cannot be made here; one line says what is missing."""


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
    cache = _cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ImagesError(f"the cache for guest images cannot be made: {err}") from err
    root = cache / _recipe_hash()
    with _only_maker(cache):
        if (fault := find_fault(root)) is not None:
            if root.exists():
                print(f"guest images: {fault}; making them anew", file=sys.stderr)
                shutil.rmtree(root)
            _make(cache, root)
    return Images(root)


def _cache_dir() -> Path:
    if own := os.environ.get("BALLOOND_VM_CACHE"):
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "balloond-vm"


def _recipe_hash() -> str:
    digest = hashlib.sha256()
    for path in _RECIPE:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _only_maker(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_fault(root: Path) -> str | None:
    """Compares a directory of images with its manifest, whole.

    Returns:
        What is wrong, in words; None if all is as it was made.
    """
    try:
        wanted = dict(json.loads((root / "manifest.json").read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        return f"no manifest that can be read ({err})"
    found = hash_files(root)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            return f"{name} is not what was made"
    return None


def hash_files(root: Path) -> dict[str, str]:
    """Gives every file below a directory with its SHA-256, every link with its target."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file() and name != "manifest.json":
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _make(cache: Path, root: Path) -> None:
    # Made beside its final place and renamed: a half-made directory never has the right name.
    with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as temporary:
        work = Path(temporary)
        made = work / "made"
        made.mkdir()
        try:
            packages = _make_images(work, made)
        except (apt.AptError, OSError) as err:
            raise ImagesError(f"guest images cannot be made: {err}") from err
        manifest = {"packages": packages, "files": hash_files(made)}
        (made / "manifest.json").write_text(json.dumps(manifest, indent=1))
        made.rename(root)


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
