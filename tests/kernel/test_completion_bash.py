"""bash completes balloonctl's commands, options, values, and the names of VMs that there are."""

import os
import subprocess
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import run
from tests.harness.daemon import ROOT
from tests.harness.makers import SETTINGS, MakeGuest, StartDaemon
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import attach, facts

COMPLETE = """\
. "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
# Outside a completion there is no compopt.
compopt() { :; }
_balloonctl
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(line: str, path: str = os.environ["PATH"], cwd: Path = ROOT) -> list[str]:
    """What bash offers for the last word of a line."""
    done = subprocess.run(
        [
            "bash",
            "--norc",
            "-c",
            COMPLETE,
            "bash",
            ROOT / "completions/balloonctl.bash",
            *line.split(" "),
        ],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        timeout=HANG_S,
    )
    assert done.stderr == ""
    return sorted(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("balloonctl s", ["seccomp", "set", "simulate", "status"]),
        ("balloonctl seccomp c", ["check", "compile"]),
        ("balloonctl --v", ["--version"]),
        ("balloonctl events --", ["--api", "--follow", "--help", "--json"]),
        ("balloonctl seccomp compile --format ", ["bpf", "pfc"]),
        ("balloonctl simulate --profile c", ["careful"]),
        ("balloonctl simulate docs/traces/w", ["docs/traces/waves.trace"]),
        ("balloonctl plot -o doc", ["docs"]),
        ("balloonctl set web ", []),
        ("balloonctl set web 1G --for ", []),
        ("balloonctl status ", []),
    ],
)
def test_bash_offers_what_the_command_line_takes(line: str, offered: list[str]) -> None:
    assert completed(line, path=f"/nowhere:{os.environ['PATH']}") == offered


def test_bash_offers_the_vms_that_there_are(
    start_daemon: StartDaemon, make_guest: MakeGuest, tmp_path: Path
) -> None:
    api = tmp_path / "api.sock"
    daemon = start_daemon("--api", str(api))
    guests = [attach(make_guest(SETTINGS), daemon) for _ in range(2)]
    run(guests, lambda: len(facts(daemon, "vm-attached")) == 2)
    program = tmp_path / "bin/balloonctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {ROOT}/.venv/bin/balloonctl "$@" --api {api}\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    for line in ("balloonctl explain ", "balloonctl history --vm v", "balloonctl plot "):
        assert completed(line, path) == ["vm1", "vm2"]
    assert completed("balloonctl explain x", path) == []
    daemon.stop()
    assert completed("balloonctl explain ", path) == []


def test_bash_runs_nothing_of_a_vms_name_and_quotes_it(tmp_path: Path) -> None:
    names = ["$(echo>run1)", "`echo>run2`", "we'b", "a;b", "${x}", "web"]
    program = tmp_path / "bin/balloonctl"
    program.parent.mkdir()
    rows = "\n".join(f"{name}  qmp  1G" for name in names)
    program.write_text(f"#!/bin/sh\ncat <<'END'\nVM  KIND  MEMORY\n{rows}\nEND\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    offered = completed("balloonctl explain ", path, cwd=tmp_path)
    assert completed("balloonctl explain we", path, cwd=tmp_path) == ["we\\'b", "web"]
    # As the line's end would have the shell read the words that it was offered.
    line = f"printf '%s\\n' {' '.join(offered)}"
    read = subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert sorted(read.stdout.splitlines()) == sorted(names)
    assert os.listdir(tmp_path) == ["bin"]
