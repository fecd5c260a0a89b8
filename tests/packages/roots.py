"""Clean roots of Debian 12, 13 and the next, each with its own systemd and Python.

They have what the package depends on, so that it is installed without a network, and are kept in
the cache, outside the tree. `python -m tests.packages.roots` makes them and prints where they are,
or says in one line what is missing.
"""

import subprocess
import sys
from pathlib import Path

from tests.vm import apt, cache
from tests.vm.cache import ImagesError
from tests.vm.service_root import ready_root

SUITES = ("bookworm", "trixie", "forky")
"""Debian 12, 13 and the next one."""

_INCLUDED = (
    *("dbus", "procps", "systemd", "systemd-sysv"),
    *("python3", "python3-h11", "python3-prctl", "python3-seccomp"),
)
_RECIPE = [Path(__file__), Path(apt.__file__)]


def ready_roots() -> dict[str, Path]:
    """Gives each suite's root directory, made first if they are not there.

    Raises:
        ImagesError: they cannot be made on this machine.
    """
    made = cache.ready(cache.Recipe("the clean Debians", _RECIPE, _make_roots))
    return {suite: made / suite for suite in SUITES}


def _make_roots(work: Path, made: Path) -> dict[str, list[str]]:
    mirror = apt.debian_mirror(work)
    return {suite: make_root(suite, mirror, made / suite) for suite in SUITES}


def make_root(suite: str, mirror: str, root: Path, *more: str) -> list[str]:
    """Makes a clean root with what the package depends on.

    Args:
        suite: the Debian's name.
        mirror: where its packages are fetched from.
        root: the directory that is made.
        more: further packages.

    Returns:
        All packages in it, each with its version.

    Raises:
        ImagesError: it cannot be made.
    """
    command = [
        *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
        # systemd-nspawn gives the machine its devices.
        "--skip=output/dev",
        # A mirror that is a copy of some day is of that day.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *("--include", ",".join((*_INCLUDED, *more))),
        *(suite, str(root), mirror),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImagesError(f"a clean {suite} cannot be made: {done.stderr.strip()}")
    asking = ["chroot", str(root), "dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]
    found = subprocess.run(asking, capture_output=True, text=True, check=True)
    return found.stdout.splitlines()


if __name__ == "__main__":
    try:
        print(ready_root(), *ready_roots().values(), sep="\n")
    except (ImagesError, apt.AptError) as error:
        sys.exit(f"test-packages: {error}")
