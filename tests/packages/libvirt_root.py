"""A clean Debian 13 with its libvirt and QEMU, for the commands of the tutorials.

It is kept in the cache, outside the tree. `python -m tests.packages.libvirt_root` makes it and
prints where it is, or says in one line what is missing.
"""

import sys
from pathlib import Path

from tests.packages import roots
from tests.vm import apt, cache
from tests.vm.cache import ImagesError

SUITE = "trixie"
"""Debian 13."""

_LIBVIRT = ("libvirt-clients", "libvirt-daemon-system", "python3-libvirt", "qemu-system-x86")
_TYPED = ("curl", "make", "sudo")
_RECIPE = [Path(__file__), Path(roots.__file__), Path(apt.__file__)]


def ready_root() -> Path:
    """Gives the root directory, made first if it is not there.

    Raises:
        ImagesError: it cannot be made on this machine.
    """
    return cache.ready(cache.Recipe("a Debian with libvirt", _RECIPE, _make_root)) / SUITE


def _make_root(work: Path, made: Path) -> dict[str, list[str]]:
    mirror = apt.debian_mirror(work)
    return {SUITE: roots.make_root(SUITE, mirror, made / SUITE, *_LIBVIRT, *_TYPED)}


if __name__ == "__main__":
    try:
        print(ready_root())
    except (ImagesError, apt.AptError) as error:
        sys.exit(f"test-packages: {error}")
