"""Fixtures: the images, and guests that live through several tests, one for each kernel.

A guest is booted once and shared, because a boot costs seconds. After a test that failed, its
guest is thrown away, so that each failure stands for itself; and on every failure the report
names the logs of all that ran.
"""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.harness.low_mem_dir import LowMemDir
from tests.vm.ballooned_vm import BalloonedVm, VmConfig
from tests.vm.images import GUEST_SUITES, Images, ready_images

BUILD = Path(__file__).parents[2] / "build"
_ALL_LOGS = BUILD / "vm-logs"
SESSION_LOGS = _ALL_LOGS / str(os.getpid())

_FAILED = pytest.StashKey[bool]()
_RUNNING = pytest.StashKey["Running"]()


class Running:
    """All VMs that run now: the shared ones, by kernel, and a test's own."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._shared: dict[str, BalloonedVm] = {}
        self._own: list[BalloonedVm] = []
        self._started = 0

    def shared(self, suite: str) -> BalloonedVm:
        """A VM of this kernel whose balloon is empty, as after boot."""
        if suite not in self._shared:
            self._shared[suite] = self._start(VmConfig(suite), suite, None)
        return self._shared[suite]

    def own(self, config: VmConfig, name: str, host: LowMemDir) -> BalloonedVm:
        """A VM for one test only, on a host that the test has made."""
        vm = self._start(config, name, host)
        self._own.append(vm)
        return vm

    def end_test(self, *, failed: bool) -> None:
        """Ends the test's own VMs; after a failure the shared ones too."""
        own, self._own = self._own, []
        if failed:
            for vm in (*own, *self._shared.values()):
                vm.kill()
            self._shared.clear()
            return
        for vm in own:
            vm.stop()
        for vm in self._shared.values():
            vm.daemon.check_log()

    def end(self) -> None:
        """Ends all of them."""
        for vm in self._shared.values():
            vm.stop()

    def log_paths(self) -> list[Path]:
        """The logs of all that run."""
        vms = (*self._own, *self._shared.values())
        return [path for vm in vms for path in vm.log_paths()]

    def _start(self, config: VmConfig, name: str, host: LowMemDir | None) -> BalloonedVm:
        self._started += 1
        log_dir = SESSION_LOGS / f"{self._started:02}-{name}"
        return BalloonedVm(self._images, config, log_dir, host)


def _remove_old_logs() -> None:
    """Removes the logs of sessions that have ended; another may run in this checkout."""
    _ALL_LOGS.mkdir(parents=True, exist_ok=True)
    for session in _ALL_LOGS.iterdir():
        if not Path("/proc", session.name).exists():
            # Two workers of one run may do this at the same moment.
            shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="session")
def images() -> Images:
    """QEMU and the guests' kernels, checked."""
    return ready_images()


@pytest.fixture(scope="session")
def running(images: Images, request: pytest.FixtureRequest) -> Iterator[Running]:
    """All VMs of this session."""
    _remove_old_logs()
    running = Running(images)
    request.config.stash[_RUNNING] = running
    yield running
    running.end()


@pytest.fixture
def vms(running: Running, request: pytest.FixtureRequest) -> Iterator[Running]:
    """All VMs, with the ones that a test starts for itself ended behind it."""
    yield running
    running.end_test(failed=request.node.stash.get(_FAILED, False))


@pytest.fixture(params=GUEST_SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    """Whose kernel the guest runs."""
    return str(request.param)


@pytest.fixture
def vm(vms: Running, suite: str) -> BalloonedVm:
    """The shared VM of this kernel, with an empty balloon and no file of an earlier test."""
    vm = vms.shared(suite)
    vm.guest.run("rm -rf /tmp/*; exec 9<&-")
    vm.deflate()
    return vm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """On a failure, throws the shared guests away and names their logs in the report."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        running = item.config.stash.get(_RUNNING, None)
        if running is not None:
            names = "\n".join(str(path) for path in running.log_paths())
            report.sections.append(("logs of balloond, QEMU and the guests", names))
    return report
