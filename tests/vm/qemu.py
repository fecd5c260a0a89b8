"""One QEMU process: its command line, its sockets, its end, and what its guest's memory holds."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.harness.open_files import open_files
from tests.harness.waiting import wait_until
from tests.vm.images import Images
from tests.vm.qmp import Qmp

T = TypeVar("T")
MIB = 1 << 20


class QemuError(Exception):
    """QEMU ended when it should not have; carries what it said."""


@dataclass(frozen=True, slots=True)
class QemuConfig:
    """What kind of machine to start.

    Attributes:
        suite: whose kernel it boots; one of `images.GUEST_SUITES`.
        memory_mib: guest memory, as one or more shared memfds of equal size.
        memory_backends: how many memfds.
        balloond_socket: the vhost-user socket that the balloon is served from.
        qemu_balloon: QEMU's own virtio-balloon-pci instead, as a peer to compare with.
        disk: a raw image for /dev/vda; None for a disk of zeros that swallows writes.
        kernel_options: further ones of the guest's kernel, as they are typed.
        options: further ones, as they are typed.
    """

    suite: str
    memory_mib: int = 512
    memory_backends: int = 1
    cpus: int = 1
    balloond_socket: Path | None = None
    qemu_balloon: bool = False
    disk: Path | None = None
    kernel_options: str = ""
    options: tuple[str, ...] = ()


class Qemu:
    """A running QEMU. `stop` it at the end, whatever happened."""

    def __init__(self, images: Images, config: QemuConfig, log_dir: Path) -> None:
        """Starts it and connects to its monitor and its guest's second serial port.

        Args:
            images: where QEMU and the kernels are.
            config: the machine.
            log_dir: existing; gets `qemu.log` and `console.log`.

        Raises:
            QemuError: it ended before it had connected to us.
        """
        self.config = config
        self.log_path = log_dir / "qemu.log"
        self.console_path = log_dir / "console.log"
        # In /tmp, because a socket's path has room for 107 bytes only.
        self._run_dir = Path(tempfile.mkdtemp(prefix="balloond-qemu-"))
        self.monitor_path = self._run_dir / "monitor"
        """Where a second monitor listens, for one client at a time."""
        self._connections: list[socket.socket] = []
        self._memfds: list[Path] = []
        # We listen and QEMU connects: nothing that it says can be lost.
        listeners = [self._listen("qmp"), self._listen("serial")]
        command = ["setpriv", "--pdeathsig", "KILL", *images.qemu_command()]
        command += _machine(config, images) + self._channels()
        with self.log_path.open("w") as log:
            log.write(" ".join(command) + "\n")
            log.flush()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            monitor, self.serial = (self._accept(listener) for listener in listeners)
            self.monitor = Qmp(monitor)
        except BaseException:
            self.stop()
            raise
        finally:
            for listener in listeners:
                listener.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def memory_blocks_bytes(self) -> int:
        """What the host really holds for the guest: the blocks of its memfds."""
        if not self._memfds:
            self._memfds = self._find_memfds()
        return sum(os.stat(path).st_blocks * 512 for path in self._memfds)

    def _find_memfds(self) -> list[Path]:
        """QEMU's descriptors of guest memory, which it opens once and for all; one for each."""
        found: dict[int, Path] = {}
        for link, name in open_files(self.pid).items():
            if name.startswith("/memfd:memory-backend-memfd"):
                found[os.stat(link).st_ino] = link
        assert len(found) == self.config.memory_backends, found
        return list(found.values())

    def cpu_seconds(self) -> float:
        """User and system time that QEMU has used (proc(5), fields 14 and 15 of stat)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self, condition: Callable[[], T], *, deadline_s: float, what: str) -> T:
        """Waits for a condition, but no longer than QEMU lives.

        Raises:
            QemuError: QEMU has ended.
            DeadlineError: the condition stayed false.
        """

        def checked() -> T:
            value = condition()
            if not value and self._process.poll() is not None:
                raise QemuError(
                    f"QEMU ended with status {self._process.returncode} before: {what}\n"
                    + "\n".join(self.log_path.read_text().splitlines()[1:])
                )
            return value

        return wait_until(checked, deadline_s=deadline_s, what=what)

    def wait_end(self, deadline_s: float) -> int:
        """Waits until QEMU has ended by itself; returns its exit status."""
        return self._process.wait(deadline_s)

    def stop(self) -> None:
        """Kills it and waits until it and its sockets are gone."""
        self._process.kill()
        self._process.wait()
        for connection in self._connections:
            connection.close()
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._run_dir / name))
        listener.listen(1)
        listener.setblocking(False)
        return listener

    def _accept(self, listener: socket.socket) -> socket.socket:
        def attempt() -> socket.socket | None:
            try:
                return listener.accept()[0]
            except BlockingIOError:
                return None

        connection = self.wait(attempt, deadline_s=60, what="QEMU connects to us")
        assert connection is not None
        self._connections.append(connection)
        return connection

    def _channels(self) -> list[str]:
        return [
            *("-chardev", f"file,id=console,path={self.console_path}"),
            *("-serial", "chardev:console"),
            *("-chardev", f"socket,id=commands,path={self._run_dir}/serial"),
            *("-serial", "chardev:commands"),
            *("-qmp", f"unix:{self._run_dir}/qmp"),
            *("-qmp", f"unix:{self.monitor_path},server=on,wait=off"),
        ]


def _machine(config: QemuConfig, images: Images) -> list[str]:
    kernel = images.kernel(config.suite)
    # loglevel=5 shows the kernel's warnings, such as an OOM kill; a panic ends the guest.
    append = f"console=ttyS0 loglevel=5 panic=-1 mitigations=off {config.kernel_options}"
    command = [
        # TCG does "rep movsb" and "rep stosb" byte by byte. Without these two flags Linux copies
        # and clears its pages by eight bytes at a time, in half the time or less.
        *("-accel", "tcg", "-cpu", "max,erms=off,fsrm=off", "-smp", str(config.cpus)),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(kernel.vmlinuz), "-initrd", str(kernel.initrd)),
        *("-append", append),
        *("-m", f"{config.memory_mib}M"),
        *_memory(config),
        *_disk(config),
        *config.options,
    ]
    if config.balloond_socket is not None:
        command += ["-chardev", f"socket,id=balloond,path={config.balloond_socket}"]
        command += ["-device", BALLOOND_DEVICE]
    if config.qemu_balloon:
        command += ["-device", QEMU_BALLOON]
    return command


QEMU_BALLOON = "virtio-balloon-pci,deflate-on-oom=on"

BALLOOND_DEVICE = (
    "vhost-user-test-device-pci,id=balloon,chardev=balloond,virtio-id=5,num_vqs=5,config_size=16"
)


def _memory(config: QemuConfig) -> list[str]:
    size_mib = config.memory_mib // config.memory_backends
    objects: list[str] = []
    for number in range(config.memory_backends):
        memfd = f"memory-backend-memfd,id=mem{number},size={size_mib}M,share=on"
        objects += ["-object", memfd]
    if config.memory_backends == 1:
        return [*objects, "-machine", "q35,memory-backend=mem0"]
    nodes = (("-numa", f"node,memdev=mem{n}") for n in range(config.memory_backends))
    return [*objects, "-machine", "q35", *(word for node in nodes for word in node)]


def _disk(config: QemuConfig) -> list[str]:
    if config.disk is None:
        blockdev = f"driver=null-co,node-name=disk,size={8 << 30},read-zeroes=on"
    else:
        file = f"file.driver=file,file.filename={config.disk}"
        blockdev = f"driver=raw,node-name=disk,{file},cache.no-flush=on"
    return ["-blockdev", blockdev, "-device", "virtio-blk-pci,drive=disk"]
