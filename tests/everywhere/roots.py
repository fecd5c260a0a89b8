"""Roots of the Debians that balloond is for, with a compiler and all that `make setup` looks for.

Each root is kept in the cache, outside the tree, and nothing is written to it: a run's files lie
over it (`enter.py`).
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.vm import apt, cache
from tests.vm.cache import ImagesError


@dataclass(frozen=True, slots=True)
class Place:
    """One Python on one Debian.

    Attributes:
        name: as it is named on the command line.
        suite: Debian's name of the release, which decides glibc and libseccomp.
        python: the interpreter's path in the root.
        packages: beside those that each root has.
    """

    name: str
    suite: str
    python: str = "/usr/bin/python3"
    packages: tuple[str, ...] = ()


_NEXT_PYTHON = ("python3.15-dev", "python3.15-venv")
PLACES = (
    Place("bookworm", "bookworm"),
    Place("trixie", "trixie"),
    Place("forky", "forky", packages=_NEXT_PYTHON),
    Place("forky-3.15", "forky", "/usr/bin/python3.15", _NEXT_PYTHON),
)
"""Python 3.11 with glibc 2.36, 3.13 with 2.41, 3.14 and 3.15 with 2.43; 3.12 is in no Debian."""

_INCLUDED = (
    *("python3", "python3-dev", "python3-venv", "python3-libvirt"),
    *("gcc", "libc6-dev", "libcap-dev", "libseccomp2", "make", "git"),
    *("ca-certificates", "curl", "groff-base", "iproute2", "procps", "systemd", "util-linux"),
)


def ready_root(place: Place) -> Path:
    """Gives a place's root directory, made first if it is not there.

    Raises:
        ImagesError: it cannot be made on this machine.
    """
    recipe = cache.Recipe(
        f"Debian {place.suite} with a compiler",
        [Path(apt.__file__)],
        lambda work, made: {
            place.suite: _make_root(place, apt.debian_mirror(work), made / "root")
        },
        variant=" ".join(_command(place, "MIRROR", Path("ROOT"))),
    )
    return cache.ready(recipe) / "root"


def _command(place: Place, mirror: str, root: Path) -> list[str]:
    return [
        *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
        # The machine's own /dev is mounted there.
        "--skip=output/dev",
        # A mirror that is a copy of some day is of that day.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *("--include", ",".join(_INCLUDED + place.packages)),
        *(place.suite, str(root), mirror),
    ]


def _make_root(place: Place, mirror: str, root: Path) -> list[str]:
    command = _command(place, mirror, root)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as err:
        raise ImagesError("mmdebstrap is missing; make package installs it") from err
    if done.returncode:
        raise ImagesError(f"Debian {place.suite} cannot be made: {done.stderr.strip()}")
    asking = ["chroot", str(root), "dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]
    return subprocess.run(asking, capture_output=True, text=True, check=True).stdout.splitlines()
