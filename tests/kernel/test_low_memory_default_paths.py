"""ChromeOS's real paths, made for one process in a mount namespace of its own.

Each test starts this very file as a program inside ``unshare``: it mounts a tmpfs on
/sys/kernel/mm and another on /dev, puts ChromeOS's directory and a FIFO for its device there, and
plays one scenario with the source that ``choose_source`` then finds. The machine's own /sys and
/dev are never written to.
"""

import asyncio
import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from balloon_daemon.events import SourceTrouble
from balloon_daemon.host.low_memory import (
    CHROMEOS_DEVICE,
    CHROMEOS_DIR,
    ChromeosLowMemory,
    choose_source,
)
from balloon_daemon.units import MIB
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

ROOT = Path(__file__).parents[2]

# What Python and the libraries below it open while they start and run.
DEVICES = ("null", "zero", "random", "urandom")

Report = dict[str, object]


# --- inside the namespace ---


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True, capture_output=True, text=True)


def set_available(mib: int) -> None:
    (CHROMEOS_DIR / "new").write_text(f"{mib}\n")
    (CHROMEOS_DIR / "new").rename(CHROMEOS_DIR / "available")


def build_chromeos() -> int:
    """Makes ChromeOS's directory and device; gives the far end of the device."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(CHROMEOS_DIR.parent))
    CHROMEOS_DIR.mkdir()
    set_available(1000)
    (CHROMEOS_DIR / "margin").write_text("400 3200\n")

    # Bound from the old /dev before it disappears below the new one.
    new_dev = Path(tempfile.mkdtemp(dir=CHROMEOS_DIR.parent))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(new_dev))
    for name in DEVICES:
        (new_dev / name).touch()
        mount("--bind", f"/dev/{name}", str(new_dev / name))
    mount("--rbind", str(new_dev), "/dev")
    os.mkfifo(CHROMEOS_DEVICE)
    return os.open(CHROMEOS_DEVICE, os.O_RDWR | os.O_NONBLOCK)


def found_source(margin_bytes: int | None = None) -> ChromeosLowMemory:
    source = choose_source(low_mem_dir=None, margin_bytes=margin_bytes)
    assert isinstance(source, ChromeosLowMemory)
    atexit.register(source.close)
    return source


def scenario_found(far_end: int) -> Report:
    source = found_source()
    return {
        "directory": str(source.directory),
        "reading": str(source.read()),
        "needs_poll": source.needs_poll,
        "describe": source.describe(),
        "margin_given": str(found_source(300 * MIB).read()),
    }


def scenario_explicit(far_end: int) -> Report:
    source = choose_source(low_mem_dir=CHROMEOS_DIR, margin_bytes=None)
    atexit.register(source.close)
    return {"needs_poll": source.needs_poll}


def scenario_woken(far_end: int) -> Report:
    source = found_source()

    async def run() -> str:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[str] = loop.create_future()
        fd = source.wait_fd()
        assert fd is not None

        def woken() -> None:
            source.acknowledge()
            seen.set_result(str(source.read()))

        loop.add_reader(fd, woken)
        set_available(399)
        loop.call_soon(os.write, far_end, b"!")
        return await asyncio.wait_for(seen, HANG_S)

    return {"reading": asyncio.run(run()), "wakeups": source.statistics().wakeups}


def scenario_device_gone(far_end: int) -> Report:
    source = found_source()
    CHROMEOS_DEVICE.unlink()
    set_available(399)
    reading = source.read()
    return {
        "reading": str(reading),
        "needs_poll": source.needs_poll,
        "notice": str(source.take_notice()),
    }


def scenario_directory_gone(far_end: int) -> Report:
    source = found_source()
    away = CHROMEOS_DIR.with_name("away")
    CHROMEOS_DIR.rename(away)
    gone, error = source.read(), source.last_error
    away.rename(CHROMEOS_DIR)
    return {"gone": str(gone), "error": error, "back": str(source.read())}


def play(scenario: str) -> None:
    far_end = build_chromeos()
    function: Callable[[int], Report] = globals()[f"scenario_{scenario}"]
    print(json.dumps(function(far_end)))


# --- outside ---


@cache
def way_in() -> list[str] | None:
    """The command that gives a namespace in which we may mount; None: there is none."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return None
    for options in (["-m"], ["-U", "-r", "-m"]):
        command = ["unshare", *options]
        probe = [*command, "mount", "-t", "tmpfs", "tmpfs", str(CHROMEOS_DIR.parent)]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return command
    return None


@pytest.fixture
def in_chromeos() -> Iterator[Callable[[str], Report]]:
    """Plays a scenario of this file inside and gives what it reports."""
    command = way_in()
    if command is None:
        pytest.skip("needs root or user namespaces (unshare -Urm), to mount on /sys and /dev")

    def play_inside(scenario: str) -> Report:
        run = subprocess.run(
            [*command, sys.executable, "-W", "error", __file__, scenario],
            capture_output=True,
            text=True,
            timeout=2 * HANG_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        assert (run.returncode, run.stderr) == (0, "")
        report: Report = json.loads(run.stdout)
        return report

    yield play_inside
    assert not CHROMEOS_DIR.with_name("away").exists()  # nothing got out


def test_default_paths_where_they_exist_are_found_without_a_flag(
    in_chromeos: Callable[[str], Report],
) -> None:
    assert in_chromeos("found") == {
        "directory": "/sys/kernel/mm/chromeos-low_mem",
        "reading": "Reading(available_mib=1000, margin_mib=400, within='', reserved_mib=0)",
        "needs_poll": False,
        "describe": (
            "/sys/kernel/mm/chromeos-low_mem/available against "
            "/sys/kernel/mm/chromeos-low_mem/margin; woken by /dev/chromeos-low-mem; "
            "now 1,000 MiB available, margin 400 MiB, not low"
        ),
        "margin_given": "Reading(available_mib=1000, margin_mib=300, within='', reserved_mib=0)",
    }


def test_default_directory_named_by_a_flag_keeps_its_device(
    in_chromeos: Callable[[str], Report],
) -> None:
    assert in_chromeos("explicit") == {"needs_poll": False}


def test_default_device_that_becomes_readable_wakes_an_asyncio_loop(
    in_chromeos: Callable[[str], Report],
) -> None:
    assert in_chromeos("woken") == {
        "reading": "Reading(available_mib=399, margin_mib=400, within='', reserved_mib=0)",
        "wakeups": 1,
    }


@fault("`/dev/chromeos-low-mem` gone, replaced, of another kind")
def test_default_device_that_vanishes_leaves_polling(
    in_chromeos: Callable[[str], Report],
) -> None:
    assert in_chromeos("device_gone") == {
        "reading": "Reading(available_mib=399, margin_mib=400, within='', reserved_mib=0)",
        "needs_poll": True,
        "notice": str(SourceTrouble("/dev/chromeos-low-mem: No such file or directory")),
    }


@fault("low-memory file or its directory vanishes")
def test_default_directory_that_vanishes_is_unknown_and_recovers(
    in_chromeos: Callable[[str], Report],
) -> None:
    assert in_chromeos("directory_gone") == {
        "gone": "None",
        "error": "/sys/kernel/mm/chromeos-low_mem/available: No such file or directory",
        "back": "Reading(available_mib=1000, margin_mib=400, within='', reserved_mib=0)",
    }


if __name__ == "__main__":
    play(sys.argv[1])
