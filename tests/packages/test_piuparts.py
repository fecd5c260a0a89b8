"""Debian's piuparts installs, removes, installs again and purges the package in clean Debians.

tests/packages/test_package.py does that under a booted systemd. piuparts looks at more: files that
are left or changed, whoever owns them, broken links, processes that go on, output of scripts of a
package that was removed, checksums of all other packages' files.
"""

import subprocess
from pathlib import Path

import pytest

from tests.packages.piuparts_root import ready_root
from tests.packages.roots import SUITES, ready_roots
from tests.vm.running import SESSION_LOGS

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[2]
WITHIN_S = 400.0

SCRIPT = """\
set -e
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir machine-upper machine-work machine base-upper base-work
mount -t overlay -o "lowerdir=$2,upperdir=machine-upper,workdir=machine-work" overlay machine
mount -t proc proc machine/proc
mount --rbind /dev machine/dev
# The clean Debian has all that the package depends on, and no network to fetch anything else from.
mount -t overlay -o "lowerdir=$3,upperdir=base-upper,workdir=base-work" overlay machine/srv
rm -rf machine/srv/etc/apt/sources.list machine/srv/etc/apt/sources.list.d/*
touch machine/srv/etc/apt/sources.list
cp "$4" machine/root/balloond.deb
# tmp.ci is debconf's, of Debian 13 and later; 12's piuparts does not know it.
exec chroot machine piuparts --existing-chroot /srv --keep-sources-list --distribution "$5" \\
    --no-eatmydata --no-upgrade-test --install-remove-install --install-purge-install \\
    --pedantic-purge-test --ignore /var/cache/debconf/tmp.ci/ /root/balloond.deb
"""
"""What is done in namespaces of its own: directory, piuparts' Debian, the clean one, the package,
the clean one's name. All that is written lies over both, in memory."""


def judged(suite: str, package: Path, work: Path) -> tuple[int, str]:
    """piuparts' exit status, and all that it said."""
    command = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child")
    given = (work, ready_root(), ready_roots()[suite], package, suite)
    done = subprocess.run(
        [*command, "sh", "-c", SCRIPT, "piuparts", *map(str, given)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WITHIN_S,
    )
    log = SESSION_LOGS / f"piuparts-{suite}-{package.stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout)
    return done.returncode, done.stdout


@pytest.fixture(scope="session")
def package() -> Path:
    """The package that ``make package`` has built."""
    built = list((ROOT / "build/package").glob("balloond_*.deb"))
    assert len(built) == 1, "run make package"
    return built[0]


@pytest.mark.parametrize("suite", SUITES)
def test_piuparts_finds_nothing(suite: str, package: Path, tmp_path: Path) -> None:
    status, said = judged(suite, package, tmp_path)
    assert (status, "PASS: All tests." in said) == (0, True), said[-4000:]


LEAVES = "set -e\nmkdir -p /var/lib/left\ntouch /var/lib/left/over\n"


def test_piuparts_finds_what_a_package_leaves(package: Path, tmp_path: Path) -> None:
    tree, worse = tmp_path / "tree", tmp_path / "worse.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    script = (tree / "DEBIAN/prerm").read_text()
    assert "set -e\n" in script
    (tree / "DEBIAN/prerm").write_text(script.replace("set -e\n", LEAVES, 1))
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, worse], check=True)
    work = tmp_path / "work"
    work.mkdir()
    status, said = judged(SUITES[0], worse, work)
    assert (status != 0, "/var/lib/left/over" in said) == (True, True), said[-4000:]
