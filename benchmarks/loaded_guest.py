"""A real guest that works (``guest_load.c``), seen from outside by QMP and from inside."""

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.c_programs import CompilerError
from tests.vm.guest import Command, Guest
from tests.vm.images import Images
from tests.vm.qemu import MIB, QemuConfig

_SOURCE = Path(__file__).with_name("guest_load.c")
_PROGRAM = "/tmp/guest_load"
_UNKNOWN = 2**64 - 1
"""A statistic that the guest did not send, in QEMU's ``guest-stats``."""

_SLOW_DISK = {"bps": 10 * MIB, "iops": 400}
"""Limits in a second: those of the cheaper virtual servers."""


def compile_load(directory: Path) -> Path:
    """Compiles the load, as a disk image that holds the program and zeros.

    Args:
        directory: where to.

    Raises:
        CompilerError: no C compiler is installed, or it refused.
    """
    image = directory / "guest_load"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-static", "-o", str(image), str(_SOURCE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as err:
        raise CompilerError("there is no C compiler (cc)") from err
    if done.returncode:
        raise CompilerError(done.stderr.strip())
    with image.open("r+b") as file:
        # A virtio disk has whole sectors: QEMU would leave out the rest of the last one.
        file.truncate(-(-image.stat().st_size // MIB) * MIB)
    return image


@dataclass(frozen=True, slots=True)
class Outside:
    """What a daemon can see of a guest.

    Attributes:
        balloon_mib: the balloon's size by ``query-balloon``.
        age_s: how old the statistics are.
        stats: the guest's statistics by QEMU's names, in the device's units; without those that
            the guest does not send.
        disk_read_kib: what it has read from its disks.
    """

    balloon_mib: int
    age_s: int
    stats: Mapping[str, int]
    disk_read_kib: int


class LoadedGuest:
    """A booted guest with QEMU's own balloon, a slow disk and no load yet. `stop` it at the end.

    The disk is filled with zeros and takes no writes: 8 GiB, of which a load has its part. Until
    `slow_disk` it is fast, so that caches fill in seconds.

    Args:
        images: where QEMU and the guest's kernel are.
        load: the image of `compile_load`.
        suite: whose kernel.
        memory_mib: the guest's memory.
        log_dir: gets the logs.
    """

    def __init__(
        self, images: Images, load: Path, suite: str, memory_mib: int, log_dir: Path
    ) -> None:
        self.memory_mib = memory_mib
        program = f"driver=raw,node-name=load,read-only=on,file.driver=file,file.filename={load}"
        disk = ("-blockdev", program, "-device", "virtio-blk-pci,drive=load")
        config = QemuConfig(suite, memory_mib, qemu_balloon=True, options=disk)
        self.guest = Guest(images, config, log_dir)
        self._loads = 0
        self._asked: Command | None = None
        try:
            self.guest.run(
                f"dd if=/dev/vdb of={_PROGRAM} bs=1M 2>/dev/null && chmod 700 {_PROGRAM}"
                # Kept open for good: the last close of a disk drops the pages of its cache.
                " && exec 9</dev/vda"
            )
            self._balloon = self._find_balloon()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends it without asking."""
        self.guest.stop()

    # --- the load -----------------------------------------------------------------------------

    def start(self, kind: str, *numbers: int) -> int:
        """Starts a load, and waits until it has touched all that it works on.

        Args:
            kind: ``read``, ``map``, ``anon``, ``idle`` or ``burst``.
            numbers: what ``guest_load.c`` says of that kind.

        Returns:
            The number under which `look` counts its work: ``work_0`` and so on.
        """
        slot, self._loads = self._loads, self._loads + 1
        self._run(slot, kind, *numbers)
        return slot

    def read_once(self, size_mib: int, at_mib: int) -> None:
        """Reads a part of its disk, which stays in its page cache."""
        self._run("once", size_mib, at_mib)

    def slow_disk(self) -> None:
        """Limits what the disk can do in a second."""
        monitor = self.guest.qemu.monitor
        (disk,) = (
            drive["qdev"]
            for drive in monitor.execute("query-block")
            if drive["inserted"]["node-name"] == "disk"
        )
        none = dict.fromkeys(("bps_rd", "bps_wr", "iops_rd", "iops_wr"), 0)
        monitor.execute("block_set_io_throttle", id=disk, **_SLOW_DISK, **none)

    def _run(self, *words: object) -> None:
        self._finish_look()
        self.guest.run(f"{_PROGRAM} {' '.join(map(str, words))} >/dev/null")

    # --- seen from inside ---------------------------------------------------------------------

    def begin_look(self) -> bool:
        """Asks for the figures from inside; False: an answer to an earlier question is missing."""
        if self._asked is not None and not self.guest.is_done(self._asked):
            return False
        self._finish_look()
        self._asked = self.guest.begin(f"{_PROGRAM} look")
        return True

    def looked(self, *, wait: bool = False) -> dict[str, int] | None:
        """The figures that `begin_look` has asked for, once; None: not yet, or not asked for.

        Args:
            wait: for an answer that is still to come.
        """
        if self._asked is None or not (wait or self.guest.is_done(self._asked)):
            return None
        return self._finish_look()

    def look(self, deadline_s: float = 60.0) -> dict[str, int] | None:
        """Asks for the figures from inside, and waits so long; None: the answer is late."""
        if not self.begin_look():
            return None
        ends_s = time.monotonic() + deadline_s
        while (found := self.looked()) is None and time.monotonic() < ends_s:
            time.sleep(0.01)
        return found

    def _finish_look(self) -> dict[str, int]:
        asked, self._asked = self._asked, None
        if asked is None:
            return {}
        lines = self.guest.finish(asked).splitlines()
        return {name: int(value) for name, value in map(str.split, lines)}

    # --- seen from outside --------------------------------------------------------------------

    def outside(self, now_s: float) -> Outside:
        """Asks QEMU.

        Args:
            now_s: seconds since the epoch, for the statistics' age.
        """
        execute = self.guest.qemu.monitor.execute
        told = execute("qom-get", path=self._balloon, property="guest-stats")
        read = sum(d["stats"]["rd_bytes"] for d in execute("query-blockstats"))
        return Outside(
            balloon_mib=self.balloon_mib(),
            age_s=max(0, int(now_s) - told["last-update"]),
            stats={
                name.removeprefix("stat-"): value
                for name, value in told["stats"].items()
                if value != _UNKNOWN
            },
            disk_read_kib=read // 1024,
        )

    def balloon_mib(self) -> int:
        """The balloon's size, as QEMU knows it."""
        return (
            self.memory_mib
            - int(self.guest.qemu.monitor.execute("query-balloon")["actual"]) // MIB
        )

    def poll_statistics(self) -> None:
        """Has QEMU ask the guest for statistics each second, and waits for the first ones."""
        execute = self.guest.qemu.monitor.execute
        execute("qom-set", path=self._balloon, property="guest-stats-polling-interval", value=1)
        self.guest.qemu.wait(
            lambda: execute("qom-get", path=self._balloon, property="guest-stats")["last-update"],
            deadline_s=60,
            what="the guest sends statistics",
        )

    def set_balloon(self, balloon_mib: int) -> None:
        """Asks the guest for a balloon of this size."""
        left = (self.memory_mib - balloon_mib) * MIB
        self.guest.qemu.monitor.execute("balloon", value=left)

    def _find_balloon(self) -> str:
        devices = "/machine/peripheral-anon"
        (balloon,) = (
            child["name"]
            for child in self.guest.qemu.monitor.execute("qom-list", path=devices)
            if child["type"] == "child<virtio-balloon-pci>"
        )
        return f"{devices}/{balloon}"
