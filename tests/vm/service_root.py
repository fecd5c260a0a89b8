"""The root directory of a small machine with systemd, on which balloond is a service.

Debian's oldest release that we promise, unpacked; systemd-nspawn, which boots it, is in it too, so
that the machine that runs the tests needs neither.

`python -m tests.vm.service_root` makes it and prints where it is, or says in one line what is
missing.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.vm import apt, cache
from tests.vm.cache import ImagesError

_SUITE = "bookworm"
_PACKAGES = (
    *("base-files", "base-passwd", "coreutils", "libseccomp2"),
    *("libvirt-daemon", "python3-libvirt"),
    *("python3", "python3-h11", "python3-prctl"),
    *("systemd", "systemd-container", "systemd-sysv"),
)
_MERGED = ("bin", "lib", "lib64", "sbin")
_RECIPE = [Path(__file__), Path(apt.__file__)]
_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def ready_root() -> Path:
    """Gives the root directory, made first if it is not there or not as the manifest says.

    Raises:
        ImagesError: it cannot be made, or not be booted, on this machine.
    """
    if platform.machine() != "x86_64":
        raise ImagesError(f"the service's machine is x86_64, this one is {platform.machine()}")
    if os.geteuid() != 0:
        raise ImagesError("only root may boot a machine with systemd")
    recipe = cache.Recipe("the service's machine", _RECIPE, _make_root)
    return cache.ready(recipe) / "root"


def nspawn_command(root: Path) -> list[str]:
    """Starts the systemd-nspawn of a root directory, by its own loader and libraries."""
    libraries = root / _LIBRARIES
    return [
        str(libraries / "ld-linux-x86-64.so.2"),
        *("--library-path", f"{libraries}:{libraries / 'systemd'}"),
        str(root / "usr/bin/systemd-nspawn"),
    ]


def _make_root(work: Path, made: Path) -> dict[str, list[str]]:
    suite = apt.AptSuite(apt.debian_mirror(work), _SUITE, work)
    packages = suite.closure(*_PACKAGES)
    root = made / "root"
    suite.unpack(packages, root)
    for name in _MERGED:
        _merge_into_usr(root, name)
    # What the packages' scripts would do, as far as anything here needs it.
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    (root / "var/run").rmdir()
    (root / "var/run").symlink_to("../run")
    # There and empty: the machine is not at its first boot, and enables nothing.
    (root / "etc/machine-id").touch()
    compiling = ["chroot", str(root), "python3", "-m", "compileall", "-q", "/usr/lib/python3.11"]
    done = subprocess.run(compiling, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImagesError(f"Debian {_SUITE}'s Python does not serve: {done.stderr.strip()}")
    return {"root": packages}


def _merge_into_usr(root: Path, name: str) -> None:
    """Makes /bin a link to /usr/bin and so on, as on every Debian since bookworm."""
    shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(root / name)
    (root / name).symlink_to(f"usr/{name}")


if __name__ == "__main__":
    try:
        print(ready_root())
    except ImagesError as error:
        sys.exit(f"test-vm: {error}")
