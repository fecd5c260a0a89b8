"""All VMs of a session, and where their logs are."""

import os
import shutil
from pathlib import Path

from tests.harness.low_mem_dir import LowMemDir
from tests.vm.ballooned_vm import BalloonedVm, VmConfig
from tests.vm.images import Images

BUILD = Path(__file__).parents[2] / "build"
_ALL_LOGS = BUILD / "vm-logs"
SESSION_LOGS = _ALL_LOGS / str(os.getpid())


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


def remove_old_logs() -> None:
    """Removes the logs of sessions that have ended; another may run in this checkout."""
    _ALL_LOGS.mkdir(parents=True, exist_ok=True)
    for session in _ALL_LOGS.iterdir():
        if not Path("/proc", session.name).exists():
            # Two workers of one run may do this at the same moment.
            shutil.rmtree(session, ignore_errors=True)
