"""The way into a root in which `make test-everywhere` runs the tests."""

import subprocess
from pathlib import Path

import pytest

from tests.everywhere.enter import Over
from tests.packages.roots import ready_roots
from tests.vm.cache import hash_files

pytestmark = pytest.mark.package

LIMIT_S = 60


@pytest.fixture(scope="module")
def root() -> Path:
    return ready_roots()["bookworm"]


def run(over: Over, script: str, log: Path, limit_s: float = LIMIT_S, **environment: str) -> int:
    with log.open("w") as file:
        return over.run(["sh", "-c", script], file, limit_s, **environment)


def test_command_runs_on_that_debian_with_the_checkout_and_writes_beside_it(
    root: Path, tmp_path: Path
) -> None:
    before = hash_files(root / "etc")
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / "file").write_text("of the checkout")
    (checkout / ".gitignore").write_text("ignored\n")
    (checkout / "ignored").touch()
    over, log = Over(root, tmp_path / "over"), tmp_path / "log"
    over.put(checkout)

    script = "cat /src/file; ls /src; echo $WHO > /results/it; touch /etc/new; exit 7"
    assert run(over, script, log, WHO="me") == 7
    assert log.read_text() == "of the checkoutfile\n"
    assert (over.results / "it").read_text() == "me\n"
    assert run(over, "cat /etc/debian_version; test -e /etc/new", log) == 0
    assert log.read_text().startswith("12.")
    assert hash_files(root / "etc") == before


def test_tests_may_make_user_namespaces_there(root: Path, tmp_path: Path) -> None:
    over, log = Over(root, tmp_path / "over"), tmp_path / "log"
    assert run(over, "unshare --user true", log) == 0, log.read_text()


def test_what_a_command_leaves_running_ends_with_it(root: Path, tmp_path: Path) -> None:
    over, log = Over(root, tmp_path / "over"), tmp_path / "log"
    assert run(over, "sleep 87654 & exit 0", log) == 0
    assert run(over, "ps -e -o args=", log) == 0
    assert "sleep 87654" not in log.read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        run(over, "sleep 1000", log, limit_s=0.5)
