"""The garbage collector rests while balloond loads, and works once it serves."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import wait_until

PROGRAM = """\
import gc, sys
count = 0
def collected(phase, info):
    global count
    count += phase == "stop"
gc.callbacks.append(collected)
enable = gc.enable
def enabled():
    later = ["tokenize", "ipaddress", "textwrap", "asyncio.sslproto"]
    if sys.version_info < (3, 14):  # From then on asyncio.graph has dataclasses load inspect.
        later += ["inspect", "ast", "dis"]
    loaded = [name for name in later if hasattr(sys.modules.get(name), "__file__")]
    print("loaded", len(loaded), *loaded, flush=True)
    print("serves", count, gc.get_freeze_count(), flush=True)
    enable()
gc.enable = enabled
from balloon_daemon.__main__ import main
count = 0
status = main()
print("ends", gc.isenabled())
sys.exit(status)
"""

LOAD = """\
import gc
gc.disable()
import balloon_daemon.cli.run, balloon_daemon.cli.own_device, balloon_daemon.device.forker
print(gc.collect())
"""

FEW_OBJECTS = 1000
"""Of 100,000: loading leaves some 200 behind that only the collector would free."""


def test_start_collects_nothing_and_loads_little_until_balloond_serves(tmp_path: Path) -> None:
    host = LowMemDir(tmp_path / "host", margin_mib=400)
    options = ["--socket", str(tmp_path / "socket"), "--low-mem-dir", str(host.path)]
    out = tmp_path / "out"
    with out.open("w") as stdout, (tmp_path / "log").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *options], stdout=stdout, stderr=stderr
        )
    try:
        wait_until(lambda: "serves" in out.read_text(), what="the collector works")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    words = dict(line.split(" ", 1) for line in out.read_text().splitlines() if " " in line)
    collections, frozen = map(int, words["serves"].split())
    assert collections == 0
    assert words["loaded"] == "0"
    assert frozen > 10 * FEW_OBJECTS
    assert words["ends"] == "True"


def test_loading_makes_no_garbage_worth_a_collection() -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert int(done.stdout) < FEW_OBJECTS
