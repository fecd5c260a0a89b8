"""docs/api.md's examples, run as they stand there, with another socket's path."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.units import MIB
from tests.harness.api_schemas import check
from tests.harness.makers import SETTINGS, MakeGuest, StartDaemon
from tests.harness.whole_vm import facts

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
SOCKET = "/run/balloond/api.sock"

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def examples() -> list[str]:
    """Every command of the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@needs_curl
def test_every_example_of_the_page_is_answered(
    start_daemon: StartDaemon, make_guest: MakeGuest, tmp_path: Path
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text(f'[vm.web]\nvhost_user = "{tmp_path}/web.sock"\n')
    api = tmp_path / "api.sock"
    daemon = start_daemon("--config", str(file), "--api", str(api))
    web = make_guest(SETTINGS)
    web.connect(str(tmp_path / "web.sock"))
    web.bind()
    run([web], lambda: facts(daemon, "vm-attached") != [])

    answers = []
    for example in examples():
        command = shlex.split(example.replace(SOCKET, str(api)))
        follows = "--no-buffer" in command
        # A stream that goes on is ended by us once it has told the first event.
        with subprocess.Popen(
            [command[0], "--silent", "--show-error", "--fail-with-body", *command[1:]],
            stdout=subprocess.PIPE,
            text=True,
        ) as curl:
            assert curl.stdout is not None
            answers.append(curl.stdout.readline())
            if follows:
                curl.kill()
            curl.stdout.read()
        assert curl.returncode == (-9 if follows else 0), example

    assert answers.pop() == "# HELP balloond_build_info The version of this balloond.\n"
    status, explanation, first, last, trace, one, everyone, told, *more = map(json.loads, answers)
    paused, resumed, reloaded, reclaimed, reserved, unreserved = more
    check("Status")(status)
    assert [vm["name"] for vm in status["vms"]] == ["web"]
    check("Explanation")(explanation)
    check("Event")(first)
    assert last["vm"] == "web"
    check("TraceLine")(trace)
    assert trace["balloond_trace"] == 1
    for released in (one, everyone):
        check("Released")(released)
    check("Told")(told)
    check("Reloaded")(reloaded)
    assert told == {
        "vm": "web",
        "balloon_bytes": 0,
        "target_bytes": 64 * MIB,
        "dry_run": False,
    }
    for pauses in (paused, resumed):
        check("Pauses")(pauses)
    [pause] = paused["vms"]
    # The answer is worded some milliseconds after the pause began, and tells what is left of it.
    assert pause["vm"] == "web"
    assert 0 < pause["paused_s"] <= 600
    assert resumed == {"paused_s": None, "vms": []}
    check("Reclaimed")(reclaimed)
    assert reclaimed["why"] == "nobody"
    assert [vm["vm"] for vm in reclaimed["vms"]] == ["web"]
    check("Reserved")(reserved)
    assert reserved["why"] == "complete"
    check("Unreserved")(unreserved)
    assert unreserved == {"ended_mib": 64}
