"""A Debian 12 with piuparts, Debian's own judge of installing, removing and purging packages.

It is kept in the cache, outside the tree. `python -m tests.packages.piuparts_root` makes it and
prints where it is, or says in one line what is missing.
"""

import sys
from pathlib import Path

from tests.packages import roots
from tests.vm import apt, cache
from tests.vm.cache import ImagesError

SUITE = "bookworm"

_RECIPE = [Path(__file__), Path(roots.__file__), Path(apt.__file__)]


def ready_root() -> Path:
    """Gives the root directory, made first if it is not there.

    Raises:
        ImagesError: it cannot be made on this machine.
    """
    return cache.ready(cache.Recipe("a Debian with piuparts", _RECIPE, _make_root)) / SUITE


def _make_root(work: Path, made: Path) -> dict[str, list[str]]:
    return {SUITE: roots.make_root(SUITE, apt.debian_mirror(work), made / SUITE, "piuparts")}


if __name__ == "__main__":
    try:
        print(ready_root())
    except (ImagesError, apt.AptError) as error:
        sys.exit(f"test-packages: {error}")
