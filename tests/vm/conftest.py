"""Fixtures: the images, and guests that live through several tests, one for each kernel.

A guest is booted once and shared, because a boot costs seconds. After a test that failed, its
guest is thrown away, so that each failure stands for itself; and on every failure the report
names the logs of all that ran.
"""

from collections.abc import Generator, Iterator

import pytest

from tests.vm.ballooned_vm import BalloonedVm
from tests.vm.images import GUEST_SUITES, Images, ready_images
from tests.vm.running import Running, remove_old_logs

_FAILED = pytest.StashKey[bool]()
_RUNNING = pytest.StashKey["Running"]()


@pytest.fixture(scope="session")
def images() -> Images:
    """QEMU and the guests' kernels, checked."""
    return ready_images()


@pytest.fixture(scope="session")
def running(images: Images, request: pytest.FixtureRequest) -> Iterator[Running]:
    """All VMs of this session."""
    remove_old_logs()
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
