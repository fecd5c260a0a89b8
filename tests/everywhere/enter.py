"""Processes in another root directory, to which nothing is written: an overlay takes their files.

Kernel, /dev, /sys, /proc and network are this machine's. There is no PID namespace: the kernel's
log names processes by the numbers that they have outside. The root is entered by pivot_root(2): a
process that chroot(2) has put there may make no user namespace, and the tests make some.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TextIO

from tests.harness.waiting import wait_until

CHECKOUT = "/src"
RESULTS = "/results"

# $1 is the root, $2 the directory for what is written, the rest is run. /tmp, the checkout and the
# results are no overlay: of its files, /proc/PID/maps and fstat(2) name different devices.
_ENTER = f"""\
set -eu
lower=$1 over=$2
shift 2
mount -t overlay -o "lowerdir=$lower,upperdir=$over/upper,workdir=$over/work" root "$over/root"
mount --rbind /dev "$over/root/dev"
mount --rbind /sys "$over/root/sys"
mount --rbind /proc "$over/root/proc"
mount -t tmpfs -o mode=755 run "$over/root/run"
for each in src results tmp; do
    mkdir -p "$over/root/$each"
    mount --bind "$over/$each" "$over/root/$each"
done
cp -L /etc/resolv.conf "$over/root/etc/resolv.conf"
mkdir -p "$over/root/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$over/root/etc/ssl/certs/ca-certificates.crt"
cd "$over/root"
pivot_root . mnt
umount -l /mnt
cd {CHECKOUT}
exec "$@"
"""

_DIRECTORIES = ("upper", "work", "root", "src", "results", "tmp")
# How packages are fetched. Not PIP_FIND_LINKS: its directories are not in the root.
_PASSED_ON = ("PIP_INDEX_URL", "PIP_CERT", "PIP_DEFAULT_TIMEOUT", "HTTP_PROXY", "HTTPS_PROXY")


class Over:
    """The directory of what is written over a root, and the way into it."""

    def __init__(self, root: Path, over: Path) -> None:
        """Makes the directories, empty.

        Args:
            root: of a Debian; nothing is written to it.
            over: a directory on a file system that an overlay can be written to (no overlay).
        """
        shutil.rmtree(over, ignore_errors=True)
        for name in _DIRECTORIES:
            (over / name).mkdir(parents=True)
        # As everywhere: other users' processes of the tests have files there.
        (over / "tmp").chmod(0o1777)
        self._root = root
        self._over = over

    @property
    def results(self) -> Path:
        """``RESULTS``, as seen from outside."""
        return self._over / "results"

    def put(self, checkout: Path) -> None:
        """Copies a checkout to ``CHECKOUT``: what git has or would take, as it lies there."""
        listing = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others"]
        names = subprocess.run(
            [*listing, "--exclude-standard"], stdout=subprocess.PIPE, check=True
        )
        for name in filter(None, names.stdout.decode().split("\0")):
            target = self._over / "src" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, target, follow_symlinks=False)

    def run(self, command: list[str], log: TextIO, limit_s: float, **environment: str) -> int:
        """Runs a command as root in there, in ``CHECKOUT``; all that it starts ends with it.

        Args:
            log: takes what it prints.
            limit_s: it is killed then.
            environment: its variables, beside those that pip and proxies have here.

        Returns:
            Its exit status, as a shell has it.

        Raises:
            subprocess.TimeoutExpired: it has been killed.
        """
        kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        known = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount"),
                *("sh", "-c", _ENTER, "sh", str(self._root), str(self._over), *command),
            ],
            env=kept | known | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait(limit_s)
        finally:
            process.kill()
            process.wait()
            wait_until(self._end_all, what="what the command has left ends")

    def _end_all(self) -> bool:
        """Kills each process in there.

        Returns:
            Whether there was none.
        """
        left = [
            pid
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if self._is_inside(pid)
        ]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def _is_inside(self, pid: int) -> bool:
        # /results is a bind mount: the same directory inside and outside. A zombie has no root.
        try:
            marked = Path(f"/proc/{pid}/root/results").stat()
        except OSError:
            return False
        own = self.results.stat()
        return (marked.st_dev, marked.st_ino) == (own.st_dev, own.st_ino)
