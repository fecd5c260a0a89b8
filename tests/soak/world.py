"""What is soaked: balloonds with their guests, and how to make faults in them.

Two balloonds. The *lasting* one never dies, so that what it gains over time shows. The *mortal*
one's controller is killed again and again; where balloond can keep its VMs over that
(``--keep-fds``), its guests must not notice, else their VMMs connect again.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.guests.jailed.life import DEATHS_WITHIN_S, MAX_DEATHS
from tests.harness.daemon import BALLOOND, Daemon, DaemonConfig
from tests.harness.jail_watch import device_names, devices_of, is_alive
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import ENDED

T = TypeVar("T")

VM_MEM_MIB = 512
MAXIMUM_BYTES = VM_MEM_MIB // 2 << 20
SPEED = 200.0
PATIENCE_S = 60.0
"""Longest wait for anything: the machine may be very busy."""

SHORT_QUIET_S, LONG_QUIET_S = 0.3, 1.5
"""A device that ended so long ago has no successor: after balloond said farewell, and if it did
not say so. One that is killed while its VMM hangs up may still get one."""

SHAPES = (
    ("--style", "qemu"),
    ("--style", "crosvm", "--features", "deflate-on-oom,stats-vq"),
    ("--style", "qemu-mem-table", "--in-flight", "4", "--parts", "3", "--order", "fragmented"),
    ("--style", "qemu", "--no-interrupts", "--order", "random"),
)
"""Guests unlike each other: VMM, features, ring use, order of pages."""


def can_keep_fds() -> bool:
    """Whether this balloond can be killed and restarted under its VMs."""
    run = subprocess.run([BALLOOND, "--help"], capture_output=True, text=True, check=True)
    return "--keep-fds" in run.stdout


class SoakedGuest:
    """One fake guest, in a process of its own.

    Args:
        process: its handle.
    """

    def __init__(self, process: FakeGuestProcess) -> None:
        self.process = process
        self.vm = ""
        """What balloond calls it; another name after each reconnection."""
        self.deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        """When its device was killed, the last few times since its VMM connected."""
        self.killed: int | None = None
        """The device that was killed last: it may look alive for a while, and must not count
        twice."""

    def may_lose_its_device(self) -> bool:
        """Whether one more death now would not be the one at which balloond gives up."""
        recent = len(self.deaths) == MAX_DEATHS
        return not recent or time.monotonic() - self.deaths[0] > DEATHS_WITHIN_S + 1


class Host:
    """One balloond with its guests.

    Args:
        name: ``lasting`` or ``mortal``.
        folder: for its socket, files and logs.
        guests: how many.
        keep_fds: start it so that its VMs outlive it.
        speed: how many times faster than crosvm's its balloon policy runs.
    """

    def __init__(
        self, name: str, folder: Path, guests: int, *, keep_fds: bool, speed: float = SPEED
    ) -> None:
        self.name = name
        self._folder = folder.resolve()
        self.keeps = keep_fds
        self.low_mem = LowMemDir(self._folder / "low-mem", margin_mib=100)
        options = ("--keep-fds",) if keep_fds else ()
        self.config = DaemonConfig(self._folder / "sock", VM_MEM_MIB, self.low_mem, speed, options)
        self.life = 0
        self._forgotten: set[str] = set()
        self._keeper: int | None = None
        self.daemon = self._start()
        self.guests: list[SoakedGuest] = []
        for number in range(guests):
            self.guests.append(self._new_guest(number))

    def _start(self) -> Daemon:
        return Daemon(self.config, self._folder / f"log-{self.life}")

    def _new_guest(self, number: int) -> SoakedGuest:
        known = set(self._devices())
        seed = 1 + number + (100 if self.name == "mortal" else 0)
        process = FakeGuestProcess(
            [
                *("--socket", str(self.config.socket), "--mem", f"{VM_MEM_MIB}M", "--refill"),
                *("--touched", "24M", "--pinned", "12M", "--seed", str(seed)),
                *("--timeout", f"{PATIENCE_S:.0f}"),
                *SHAPES[number % len(SHAPES)],
            ],
            timeout_s=PATIENCE_S,
        )
        guest = SoakedGuest(process)
        self._learn_name(guest, known)
        return guest

    def close(self) -> None:
        """Ends the guests, without asking, and the daemon, in order: its keeper ends with it."""
        for guest in self.guests:
            with contextlib.suppress(BrokenPipeError):  # It has ended already.
                guest.process.kill()
        try:
            if is_alive(self.pid):
                os.kill(self.pid, signal.SIGTERM)
                self._wait_end()
        finally:
            self.daemon.kill()

    @property
    def pid(self) -> int:
        """The present controller's."""
        return self.daemon.pid

    def keeper(self) -> int | None:
        """The process that keeps this host's VMs over its controller's death, if there is one."""
        if self.keeps and self._keeper is None:
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                ours = any(word.startswith(str(self._folder)) for word in words)
                if ours and any("fd_keeper" in word for word in words):
                    self._keeper = process.pid
        return self._keeper

    # --- which device is whose ----------------------------------------------------------------

    def _devices(self) -> dict[str, int]:
        """The devices that run now, by their VMs' names.

        By the processes' names, not by the log: of a user's lines balloond writes only so many.
        """
        return {name.removeprefix("balloon-"): pid for pid, name in device_names(self.pid)}

    def _read_log(self) -> None:
        """Notes the VMs whose end the log has told."""
        records = self.daemon.records()
        for record in records:
            if record["event"] in ENDED:
                self._forgotten.add(record["vm"])
        # They are read; hours of them would fill our own memory.
        records.clear()

    def _learn_name(self, guest: SoakedGuest, known: set[str]) -> None:
        def new() -> list[str]:
            return [vm for vm in self._devices() if vm not in known]

        guest.vm = self._wait(new, "a device for a new connection")[-1]
        guest.deaths.clear()

    def device_of(self, guest: SoakedGuest) -> int:
        """The pid of a guest's present device, waiting for one where none runs."""
        pid = self._wait(lambda: self._living(guest), f"a device of {guest.vm}")
        assert pid is not None
        return pid

    def _living(self, guest: SoakedGuest) -> int | None:
        pid = self._devices().get(guest.vm)
        return pid if pid != guest.killed else None

    # --- faults -------------------------------------------------------------------------------

    def kill_devices(self, guests: Sequence[SoakedGuest]) -> int:
        """Kills the devices of guests, all at once; others take their place.

        Returns:
            How many were killed.
        """
        pids = [self.device_of(guest) for guest in guests]
        return sum(self._kill(guest, pid) for guest, pid in zip(guests, pids, strict=True))

    def _kill(self, guest: SoakedGuest, pid: int) -> int:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It was replaced meanwhile; only what we killed counts.
            return 0
        guest.deaths.append(time.monotonic())
        guest.killed = pid
        return 1

    def kill_present_device(self, guest: SoakedGuest) -> int:
        """Kills a guest's device if one runs at this moment. Returns how many were killed."""
        pid = self._living(guest)
        if pid is None or not guest.may_lose_its_device():
            return 0
        return self._kill(guest, pid)

    def reconnect(self, guest: SoakedGuest) -> None:
        """A VMM is killed and started again: a new connection, a new balloon.

        The fake guest keeps its memory over that, which no killed VMM's guest does. So it must not
        use it again before the device that it left behind has ended.
        """
        guest.process.command("disconnect")
        alone_since: list[float] = []

        def forgotten() -> bool:
            self._read_log()
            if guest.vm in self._devices():
                alone_since.clear()
                return False
            alone_since.append(time.monotonic())
            quiet_s = alone_since[-1] - alone_since[0]
            # Of many farewells in a second balloond logs only some.
            return quiet_s > (SHORT_QUIET_S if guest.vm in self._forgotten else LONG_QUIET_S)

        self._wait(forgotten, f"{guest.vm} to be forgotten")
        self._connect(guest)

    def _connect(self, guest: SoakedGuest) -> None:
        # A balloond that was started anew counts on from the VMs that it found: the name of a
        # visitor to the one before it may come again.
        own = {each.vm for each in self.guests}
        self._forgotten &= own
        known = own | set(self._devices())
        guest.process.command("connect")
        self._learn_name(guest, known)

    def kill_controller(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Kills the controller and starts another; its devices end with it.

        Its guests keep their balloons where balloond keeps its VMs, else their VMMs reconnect.

        Args:
            number: SIGKILL, or SIGUSR1 to let it make way in order.
        """
        devices = devices_of(self.pid)
        os.kill(self.pid, number)
        self._wait_end()
        wait_until(
            lambda: not any(map(is_alive, devices)),
            deadline_s=PATIENCE_S,
            what="the devices end with their controller",
        )
        self.life += 1
        if not self.keeps:
            for guest in self.guests:
                guest.vm = ""
        self.daemon = self._start()
        for guest in self.guests:
            guest.deaths.clear()
            if not self.keeps:
                self._connect(guest)

    def _wait_end(self) -> None:
        what = f"{self.name}: balloond ends"
        wait_until(lambda: not is_alive(self.pid), deadline_s=PATIENCE_S, what=what)
        self.daemon.kill()

    # --- what must hold -----------------------------------------------------------------------

    def wait_balloons(self, size_bytes: int) -> None:
        """Waits until every guest's balloon has a size, and nothing is under way."""
        for guest in self.guests:
            guest.process.wait_status(
                lambda status: bool(status["actual_bytes"] == size_bytes and status["idle"]),
                f"{self.name}: a balloon of {size_bytes} bytes in {guest.vm}",
            )

    def _wait(self, condition: Callable[[], T], what: str) -> T:
        return self.daemon.wait(condition, deadline_s=PATIENCE_S, what=f"{self.name}: {what}")
