"""Where balloond shuts itself out of other processes, asked of the real kernel."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.needs import needs_landlock, needs_root, needs_scoped_signals

ROOT = Path(__file__).parents[2]
pytestmark = needs_root

RIGHTS = ("setuid", "setgid", "setpcap", "kill", "syslog")
"""Those of the shipped unit, less CAP_SYS_RESOURCE, which the tests' root itself may lack."""

PROGRAM = """
import json, os, resource, signal, subprocess, sys
from pathlib import Path
from balloon_daemon.linux.landlock import stay_out_of_other_processes
from balloon_daemon.linux.seccomp import set_no_new_privs
from balloon_daemon.seccomp.filter import compile_policy

def attempt(call):
    try:
        call()
    except OSError as err:
        return err.strerror
    return "done"

def look(pid):
    os.setresgid(-1, 65534, -1)
    os.setresuid(-1, 65534, -1)
    try:
        os.readlink(f"/proc/{pid}/root")
    finally:
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 0, -1)

def limit(pid):
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        resource.prlimit(pid, resource.RLIMIT_CPU)
        resource.prlimit(pid, resource.RLIMIT_CPU, (3600, 3600))
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)

def limit_itself():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))

others, policy = int(sys.argv[1]), sys.argv[2]
set_no_new_privs()
if policy:
    compile_policy(Path(policy)).load()
entered = stay_out_of_other_processes()
child = subprocess.Popen(["sleep", "60"])
seen = {
    "entered": entered,
    "look": attempt(lambda: look(others)),
    "kill": attempt(lambda: os.kill(others, 0)),
    "limit": attempt(lambda: limit(others)),
    "own limits": attempt(limit_itself),
    "own child": attempt(lambda: os.kill(child.pid, signal.SIGKILL)),
}
child.wait()
print(json.dumps(seen))
"""


def reached(tmp_path: Path, *rights: str, refused: str = "") -> dict[str, object]:
    """What a root with these rights alone reaches of another user's process.

    Args:
        tmp_path: for a seccomp policy file.
        rights: its capabilities.
        refused: the system calls that its filter refuses, with blanks between.
    """
    policy = ""
    if refused:
        policy = str(tmp_path / "refused.policy")
        rules = "".join(f"{call}: return EPERM\n" for call in refused.split())
        Path(policy).write_text(f"@denylist\n{rules}")
    bounds = ",".join(["-all", *(f"+{right}" for right in rights)])
    others = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
    with subprocess.Popen(others, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"  # It is the other user's by now.
        run = subprocess.run(
            [
                *("setpriv", "--bounding-set", bounds, sys.executable, "-c", PROGRAM),
                *(str(process.pid), policy),
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        process.stdin.close()
    assert run.returncode == 0, run.stderr
    found: dict[str, object] = json.loads(run.stdout)
    return found


@needs_landlock
def test_root_with_the_units_rights_and_filter_shuts_itself_out(tmp_path: Path) -> None:
    found = reached(tmp_path, *RIGHTS, refused="setfsuid")

    assert (found["entered"], found["look"], found["own child"]) == (
        True,
        "Permission denied",
        "done",
    )


@needs_scoped_signals
def test_root_that_has_shut_itself_out_ends_its_own_children_alone(tmp_path: Path) -> None:
    found = reached(tmp_path, *RIGHTS, refused="setfsuid")

    assert (found["kill"], found["own child"]) == ("Operation not permitted", "done")


@needs_landlock
def test_root_that_has_shut_itself_out_sets_limits_of_its_own_alone(tmp_path: Path) -> None:
    """A process whose limit of processor time is used up is killed."""
    found = reached(tmp_path, *RIGHTS, refused="setfsuid")

    assert (found["limit"], found["own limits"]) == ("Operation not permitted", "done")


@pytest.mark.parametrize(
    ("rights", "refused"),
    [
        pytest.param(RIGHTS, "", id="may look for other users"),
        pytest.param((*RIGHTS, "sys_ptrace"), "setfsuid", id="may look at every process"),
        pytest.param((*RIGHTS, "sys_admin"), "setfsuid", id="may mount for its devices"),
        pytest.param(RIGHTS, "setfsuid landlock_restrict_self", id="an older unit's filter"),
    ],
)
def test_root_that_would_lose_something_or_may_not_goes_on_as_it_is(
    tmp_path: Path, rights: tuple[str, ...], refused: str
) -> None:
    found = reached(tmp_path, *rights, refused=refused)

    reaches = ("look", "kill", "limit", "own limits", "own child")
    assert found == {"entered": False, **dict.fromkeys(reaches, "done")}
