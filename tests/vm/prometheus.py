"""Debian's Prometheus and promtool, unpacked into the cache; nothing is installed."""

import shutil
from pathlib import Path

from tests.vm import apt, cache

_SUITE = "bookworm"
"""The oldest Prometheus that hosts of balloond have (2.42), by which the metrics must be read."""

_HERE = Path(__file__).parent
_PROGRAMS = ("prometheus", "promtool")


def ready_prometheus() -> Path:
    """Gives the directory with both programs, made first if it is not there.

    Raises:
        ImagesError: it cannot be made on this machine.
    """
    files = [_HERE / "prometheus.py", _HERE / "apt.py"]
    return cache.ready(cache.Recipe("Prometheus", files, _make))


def _make(work: Path, made: Path) -> dict[str, list[str]]:
    suite = apt.AptSuite(apt.debian_mirror(work), _SUITE, work)
    # Without what it depends on: both are linked to libc alone.
    suite.unpack(["prometheus"], work / "unpacked")
    for name in _PROGRAMS:
        shutil.move(work / "unpacked/usr/bin" / name, made / name)
    return {"prometheus": ["prometheus"]}
