"""Doing something as another user, in this process or in a daemon of its own; for root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

from tests.harness.daemon import DaemonConfig

NOBODY = 65534


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """What is done meanwhile, a connect(2) for example, is this user's."""
    before = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(before)


AS_NOBODY = ("--reuid", "65534", "--regid", "65534", "--clear-groups")


class OtherUserConfig(DaemonConfig):
    """A balloond of another user where the tests are root's: RLIMIT_NPROC does not bind root."""

    def command(self) -> list[str]:
        # It still must be able to read this checkout, wherever it is.
        kept = "+dac_override"
        caps = ["--inh-caps", kept, "--ambient-caps", kept, "--pdeathsig", "KILL"]
        return [*(["setpriv", *AS_NOBODY, *caps] if os.geteuid() == 0 else []), *super().command()]


def limit_processes(pid: int, limit: str) -> None:
    """Sets RLIMIT_NPROC as the process's own user: root may lack CAP_SYS_RESOURCE."""
    as_user = ["setpriv", *AS_NOBODY] if os.geteuid() == 0 else []
    subprocess.run([*as_user, "prlimit", "--pid", str(pid), f"--nproc={limit}:"], check=True)
