"""A real guest with a balloond of its own: what most tests here drive.

The test is the host: it says how much memory there is, balloond decides, the guest obeys.
"""

import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.low_mem_dir import LowMemDir
from tests.vm.guest import Guest
from tests.vm.images import Images
from tests.vm.qemu import MIB, QemuConfig

BALLOON_S = 180
"""Deadline for the balloon to reach a target, most of which takes a guest about a second."""


_TRACING = "/sys/kernel/tracing"


@dataclass(frozen=True, slots=True)
class VmConfig:
    """What kind of VM.

    Attributes:
        suite: whose kernel the guest runs; one of `images.GUEST_SUITES`.
        memory_mib: its memory. 512 MiB is the least that comes with a balloon worth testing.
        memory_backends: how many memfds that memory is made of.
        cpus: how many the guest has.
        speed: of the balloon policy. At 300 times crosvm's, all levels up take 60 ms and all
            levels down 1.8 s, about as fast as a guest under TCG can follow.
        disk: a raw image for the guest's disk.
        keep_fds: balloond's VMs outlive it.
        careful: the VM's profile is careful, and the seed's otherwise.
        kernel_options: further ones of the guest's kernel, as they are typed.
    """

    suite: str
    memory_mib: int = 512
    memory_backends: int = 1
    cpus: int = 1
    speed: float = 300
    disk: Path | None = None
    keep_fds: bool = False
    careful: bool = False
    kernel_options: str = ""


class BalloonedVm:
    """A guest and its balloond, running. `stop` it at the end, whatever happened."""

    def __init__(
        self, images: Images, config: VmConfig, log_dir: Path, host: LowMemDir | None = None
    ) -> None:
        """Starts balloond, then the guest.

        Args:
            images: where QEMU and the kernels are.
            config: what kind of VM.
            log_dir: gets the logs of both.
            host: one that several VMs share; None for one of its own.
        """
        self.config = config
        self.log_dir = log_dir
        self._run_dir = Path(tempfile.mkdtemp(prefix="balloond-vm-"))
        self.host = host or LowMemDir(self._run_dir / "low_mem", margin_mib=400)
        socket = self._run_dir / "balloond.sock"
        options = ("--keep-fds",) if config.keep_fds else ()
        if config.careful:
            options = (*options, "--config", str(self._configure(socket.with_name("vm.sock"))))
        self._started_daemons = 0
        self._daemon_config = DaemonConfig(
            socket, config.memory_mib, self.host, config.speed, options
        )
        self.daemon = Daemon(self._daemon_config, log_dir)
        try:
            machine = QemuConfig(
                config.suite,
                memory_mib=config.memory_mib,
                memory_backends=config.memory_backends,
                cpus=config.cpus,
                balloond_socket=socket.with_name("vm.sock") if config.careful else socket,
                disk=config.disk,
                kernel_options=config.kernel_options,
            )
            self.guest = Guest(images, machine, log_dir)
        except BaseException:
            self.daemon.kill()
            raise

    def _configure(self, socket: Path) -> Path:
        """Writes a configuration file that names the VM, whose profile is careful then."""
        file = self._run_dir / "balloond.toml"
        size = f'memory = "{self.config.memory_mib}M"'
        file.write_text(f'[vm.guest]\nvhost_user = "{socket}"\n{size}\nprofile = "careful"\n')
        return file

    def kill_device(self) -> None:
        """Ends the jailed device without asking, and waits until balloond has forked another."""
        device = self._device_pid()
        os.kill(device, signal.SIGKILL)
        self.daemon.wait(
            lambda: self._device_pid() != device,
            deadline_s=BALLOON_S,
            what="another device serves the guest",
        )

    def _device_pid(self) -> int:
        serving = [r["pid"] for r in self.daemon.records() if r["event"] == "device-started"]
        return int(serving[-1])

    def replace_daemon(self) -> None:
        """Ends balloond without asking and starts another, that goes on with the guest."""
        self.daemon.kill()
        self._started_daemons += 1
        self.daemon = Daemon(self._daemon_config, self.log_dir / f"after-{self._started_daemons}")

    @property
    def max_bytes(self) -> int:
        """The balloon's maximum by crosvm's rule; no VM here is smaller than 500 MiB."""
        memory_bytes = self.config.memory_mib * MIB
        return memory_bytes - 1024 * MIB if memory_bytes > 1536 * MIB else memory_bytes // 2

    def host_bytes(self) -> int:
        """What the host really holds for the guest."""
        return self.guest.qemu.memory_blocks_bytes()

    def fill_page_cache(self, size_mib: int | None = None) -> None:
        """Lets the guest use its memory for what it can drop at any time.

        The disk is kept open: closing it would drop the pages of its cache.

        Args:
            size_mib: how much of its memory; None for all.
        """
        count = size_mib or self.config.memory_mib
        self.guest.run(f"exec 9</dev/vda && dd if=/dev/vda of=/dev/null bs=1M count={count}")

    def write_file(self, size_mib: int) -> str:
        """Writes a file that stays in the guest's memory; returns its checksum.

        Its first 16 MiB are random and the rest repeats them: under TCG randomness is slow. No
        page is like another for 4,096 pages, and none is zero, as a page lost to the host is.
        """
        pieces, rest = divmod(size_mib, 16)
        assert rest == 0
        self.guest.run(
            "dd if=/dev/urandom of=/tmp/file bs=1M count=16"
            f" && for n in $(seq {pieces - 1}); do"
            " dd if=/tmp/file of=/tmp/file bs=16M count=1 seek=$n conv=notrunc; done"
        )
        return self.checksum()

    def checksum(self) -> str:
        """The checksum of what `write_file` wrote, as the guest sees it now."""
        return self.guest.run("md5sum /tmp/file")

    def drop_page_cache(self) -> None:
        """Lets the guest free what `fill_page_cache` took."""
        self.guest.run("exec 9<&-")

    def probe(self, function: str) -> None:
        """Sets a probe on one of the guest kernel's functions.

        On ``virtballoon_changed`` for the driver's config interrupts: the device's one interrupt
        line is no witness, as it also tells of used buffers.
        """
        self.guest.run(
            f"mount -t tracefs none {_TRACING}"
            f" && echo p:called {function} >{_TRACING}/kprobe_events"
            f" && echo 1 >{_TRACING}/events/kprobes/called/enable"
        )

    def probe_hits(self) -> int:
        """How often the probe was hit."""
        name, hits, _missed = self.guest.run(f"cat {_TRACING}/kprobe_profile").split()
        assert name == "called"
        return int(hits)

    def wait_target(self, target_bytes: int) -> None:
        """Waits until balloond has decided on a target."""
        self.daemon.wait(
            lambda: self.daemon.target_bytes() == target_bytes,
            deadline_s=BALLOON_S,
            what=f"balloond decides on a balloon of {target_bytes // MIB} MiB",
        )

    def wait_reason(self, reason: str) -> None:
        """Waits until balloond's latest decision has this reason."""
        self.daemon.wait(
            lambda: self.daemon.decision()["reason"] == reason,
            deadline_s=BALLOON_S,
            what=f"balloond decides because of {reason}",
        )

    def wait_balloon(self, balloon_bytes: int) -> None:
        """Waits until the guest's driver has brought the balloon to exactly this size."""
        self.daemon.wait(
            lambda: self.guest.balloon_bytes() == balloon_bytes,
            deadline_s=BALLOON_S,
            what=f"the guest's balloon holds {balloon_bytes // MIB} MiB",
        )

    def inflate(self) -> None:
        """Makes the host low on memory until the balloon is at its maximum."""
        self.host.set_low()
        self.wait_target(self.max_bytes)
        self.wait_balloon(self.max_bytes)

    def deflate(self) -> None:
        """Gives the host plenty until the balloon is empty."""
        self.host.set_plenty()
        self.wait_target(0)
        self.wait_balloon(0)

    def oom_kills(self) -> list[str]:
        """What the guest's kernel said of processes that it had to kill."""
        return re.findall(r".*(?:oom-kill|Out of memory).*", self.guest.kernel_log())

    def log_paths(self) -> list[Path]:
        """Where to look when something went wrong."""
        return sorted(path for path in self.log_dir.rglob("*") if path.is_file())

    def kill(self) -> None:
        """Ends guest and balloond without asking."""
        self.guest.stop()
        self.daemon.kill()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def stop(self) -> None:
        """Ends the guest, then balloond as systemd would.

        Raises:
            DaemonError: balloond did not end well.
        """
        self.guest.stop()
        try:
            self.daemon.stop()
        finally:
            self.daemon.kill()
            shutil.rmtree(self._run_dir, ignore_errors=True)
