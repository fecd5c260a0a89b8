"""Python with libvirt's library, as each Debian that balloond runs on has them.

They are unpacked from Debian's packages (python3-libvirt) and run where they lie, with their own C
library, so that whoever runs the tests need have neither installed.
"""

import platform
from pathlib import Path

from tests.vm import apt, cache
from tests.vm.cache import ImagesError

MAJOR_VERSIONS = {"bookworm": 9, "trixie": 11}
"""Debian's suites, 12 and 13, each with the major version of its libvirt."""

_PACKAGES = ("base-files", "python3", "python3-libvirt")
_RECIPE = [Path(__file__), Path(apt.__file__)]


def ready_interpreter(suite: str) -> list[str]:
    """Gives the command of a suite's Python, made first if it is not there.

    Args:
        suite: one of `MAJOR_VERSIONS`.

    Raises:
        ImagesError: it cannot be made, or not be used, on this machine.
    """
    if platform.machine() != "x86_64":
        raise ImagesError(f"libvirt's clients are for x86_64, this is {platform.machine()}")
    root = cache.ready(cache.Recipe("libvirt's clients", _RECIPE, _make_roots)) / suite
    libraries = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"]
    # Python finds its modules by the path that it was started with.
    return [
        str(root / "lib64/ld-linux-x86-64.so.2"),
        *("--library-path", ":".join(map(str, libraries))),
        # It must not add compiled modules to the root, which is checked against its manifest.
        *(str(root / "usr/bin/python3"), "-B"),
    ]


def _make_roots(work: Path, made: Path) -> dict[str, list[str]]:
    packages = {}
    for name in MAJOR_VERSIONS:
        suite = apt.AptSuite(apt.debian_mirror(work), name, work)
        packages[name] = suite.closure(*_PACKAGES)
        suite.unpack(packages[name], made / name)
    return packages
