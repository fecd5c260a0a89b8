"""A booted Linux guest: runs commands in it and reads what its kernel says of itself."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.vm.images import Images
from tests.vm.qemu import Qemu, QemuConfig

_BOOT_S = 120
"""A boot takes 3 to 5 s alone; this is for a machine that does much else."""

_COMMAND_S = 180
"""The longest command takes 10 s alone; this is for a slow machine with two guests at a time."""

_PAGE = 4096


class GuestCommandError(AssertionError):
    """A command in the guest ended with another status than 0."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command that runs in the guest."""

    number: int
    text: str


class Guest:
    """A guest that has booted. `stop` it at the end, whatever happened."""

    def __init__(self, images: Images, config: QemuConfig, log_dir: Path) -> None:
        """Starts QEMU and waits until the guest takes commands."""
        log_dir.mkdir(parents=True, exist_ok=True)
        self.log_dir = log_dir
        self._received = ""
        self._last = 0
        self.qemu = Qemu(images, config, log_dir)
        try:
            self.qemu.serial.setblocking(False)
            self.release = self.wait_boot()
        except BaseException:
            self.qemu.stop()
            raise

    def wait_boot(self) -> str:
        """Waits until the guest, started or restarted, takes commands; returns its kernel."""
        ready = self._wait_output(r"@@READY (\S+)\n", "the guest has booted", _BOOT_S)
        return ready[1]

    def run(self, command: str, deadline_s: float = _COMMAND_S) -> str:
        """Runs a command in the guest's shell.

        Args:
            command: one line of shell.
            deadline_s: for the whole of it.

        Returns:
            What it wrote, standard output and error, without the last newline.

        Raises:
            GuestCommandError: its status is not 0.
        """
        return self.finish(self.begin(command), deadline_s)

    def begin(self, command: str) -> Command:
        """Starts a command in the guest's shell, to be `finish`ed before the next begins."""
        assert "\n" not in command
        self._last += 1
        self.qemu.serial.sendall(f"{self._last} {command}\n".encode())
        return Command(self._last, command)

    def finish(self, command: Command, deadline_s: float = _COMMAND_S) -> str:
        """Waits for a command's end; returns and raises like `run`."""
        answer = self._wait_output(
            rf"@@BEGIN {command.number}\n(.*)\n@@END {command.number} (\d+)\n",
            f"the guest has run `{command.text}`",
            deadline_s,
        )
        output = answer[1].removesuffix("\n")
        if answer[2] != "0":
            raise GuestCommandError(f"`{command.text}` ended with {answer[2]}: {output}")
        return output

    def is_done(self, command: Command) -> bool:
        """Whether a command that was begun has ended, so that `finish` will not wait."""
        self._read()
        return f"@@END {command.number} " in self._received

    def reboot(self) -> None:
        """Restarts the guest's kernel, unprepared, and waits until it takes commands again."""
        self.begin("reboot -f")
        self.wait_boot()

    def balloon_bytes(self) -> int:
        """What is in the balloon, by the guest kernel's own count."""
        counts = dict(line.split() for line in self.run("cat /proc/vmstat").splitlines())
        return (int(counts["balloon_inflate"]) - int(counts["balloon_deflate"])) * _PAGE

    def meminfo_bytes(self, name: str) -> int:
        """One line of the guest's /proc/meminfo."""
        (kib,) = re.findall(rf"^{name}: +(\d+) kB$", self.run("cat /proc/meminfo"), re.MULTILINE)
        return int(kib) * 1024

    def kernel_log(self) -> str:
        """The guest kernel's messages of level warning and above since QEMU started."""
        return self.qemu.console_path.read_text(errors="replace")

    def stop(self) -> None:
        """Ends it without asking."""
        self.qemu.stop()

    def _wait_output(self, pattern: str, what: str, deadline_s: float) -> re.Match[str]:
        compiled = re.compile(pattern, re.DOTALL)

        def find() -> re.Match[str] | None:
            self._read()
            return compiled.search(self._received)

        found = self.qemu.wait(find, deadline_s=deadline_s, what=what)
        assert found is not None
        self._received = self._received[found.end() :]
        return found

    def _read(self) -> None:
        try:
            data = self.qemu.serial.recv(1 << 16)
        except BlockingIOError:
            return
        self._received += data.decode(errors="replace").replace("\r", "")
