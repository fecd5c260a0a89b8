"""The root directory of a libvirt's daemon with its QEMU, unpacked from Debian's packages.

`python -m tests.vm.libvirt_root` makes it and prints where it is, or says in one line what is
missing.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from tests.vm import apt, cache
from tests.vm.cache import ImagesError

_SUITE = "forky"
_PACKAGES = (
    *("base-files", "base-passwd", "coreutils"),
    *("libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-qemu", "qemu-system-x86"),
)
_RECIPE = [Path(__file__), Path(apt.__file__)]

# What the packages' scripts make, as far as libvirt asks for it.
_USERS = (
    "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\ntss:x:64056:64056::/:/usr/sbin/nologin\n"
)
_GROUPS = "libvirt-qemu:x:64055:\ntss:x:64056:\nkvm:x:64057:\n"

_DAEMON = """\
auth_unix_rw = "none"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"""
_QEMU = """\
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""


def ready_root() -> Path:
    """Gives the root directory, made first if it is not there or not as the manifest says.

    Raises:
        ImagesError: it cannot be made, or not be used, on this machine.
    """
    if platform.machine() != "x86_64":
        raise ImagesError(f"libvirt's machine is x86_64, this one is {platform.machine()}")
    if os.geteuid() != 0:
        raise ImagesError("only root may run libvirt's daemon in a directory of its own")
    return cache.ready(cache.Recipe("libvirt's machine", _RECIPE, _make_root)) / "root"


def _make_root(work: Path, made: Path) -> dict[str, list[str]]:
    suite = apt.AptSuite(apt.debian_mirror(work), _SUITE, work)
    packages = suite.closure(*_PACKAGES)
    root = made / "root"
    suite.unpack(packages, root)
    for name, more in (("passwd", _USERS), ("group", _GROUPS)):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
        with (root / "etc" / name).open("a") as file:
            file.write(more)
    (root / "etc/libvirt/libvirtd.conf").write_text(_DAEMON)
    (root / "etc/libvirt/qemu.conf").write_text(_QEMU)
    (root / "images").mkdir()
    (root / "var/run").rmdir()
    (root / "var/run").symlink_to("../run")
    return {"root": packages}


if __name__ == "__main__":
    try:
        print(ready_root())
    except ImagesError as error:
        sys.exit(f"test-vm: {error}")
