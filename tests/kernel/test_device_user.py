"""Whom devices become where balloond is root and nobody says whom."""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from balloon_daemon.cli.device_user import OWN_USER, SHARED_USER
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.makers import MakeGuest, StartDaemon
from tests.harness.processes import process_status
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import attach, facts, wait_for_device

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: nobody else changes users")
OWN_UID = 64_321
IN_OWN_MOUNTS = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"')
MAY_BE_STOPPED = "devices run as nobody, as whom other programs run too"


@pytest.fixture(params=[True, False], ids=["own", "shared"])
def with_own(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[bool, tuple[str, ...]]:
    """Whether there is a user for devices, and a launcher for a host like that."""
    others = [
        ":".join((u.pw_name, "x", str(u.pw_uid), str(u.pw_gid), "", u.pw_dir, u.pw_shell))
        for u in pwd.getpwall()
        if u.pw_name != OWN_USER
    ]
    own = [f"{OWN_USER}:x:{OWN_UID}:{OWN_UID}::/:/bin/false"] if request.param else []
    users = tmp_path / "passwd"
    users.write_text("\n".join([*others, *own, ""]))
    return request.param, (*IN_OWN_MOUNTS, str(users))


@fault("no user of the devices' own (`--user` not given, no user `balloond`)")
def test_devices_have_a_user_of_their_own_where_there_is_one(
    with_own: tuple[bool, tuple[str, ...]], start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    own, launcher = with_own
    daemon = start_daemon(launcher=launcher)
    device = wait_for_device([attach(make_guest(), daemon)], daemon, "vm1")

    uid = OWN_UID if own else pwd.getpwnam(SHARED_USER).pw_uid
    assert process_status(device)["Uid"].split() == [str(uid)] * 4
    shared = [record["user"] for record in facts(daemon, "devices-share-user")]
    assert shared == ([] if own else [SHARED_USER])


@fault("no user of the devices' own (`--user` not given, no user `balloond`)")
@pytest.mark.parametrize("named", [None, SHARED_USER])
def test_check_warns_of_a_user_that_is_everybodys_unless_it_was_named(
    named: str | None, with_own: tuple[bool, tuple[str, ...]], tmp_path: Path
) -> None:
    own, launcher = with_own
    options = ["--check", "--socket", str(tmp_path / "s"), *(["--user", named] if named else [])]
    run = subprocess.run(
        [*launcher, str(BALLOOND), *options], capture_output=True, text=True, timeout=HANG_S
    )
    assert run.returncode == 0
    assert f"runs as user {named or (OWN_USER if own else SHARED_USER)}," in run.stdout
    warned = f"\nwarning      {MAY_BE_STOPPED}" in run.stdout
    assert warned == (not own and named is None)
    assert not warned or "systemd-sysusers with systemd/balloond.sysusers" in run.stdout
