"""Examines balloond's processes from outside: which ones run, and that every device is jailed."""

import os
import time
from pathlib import Path

import psutil

from balloon_daemon.device.forker import NAME
from tests.harness.invariants import require
from tests.harness.waiting import wait_until

DEVICE_NAME = "balloon-vm"
"""The beginning of a device's name, from the moment when it enters the jail."""

JAILED_WITHIN_S = 60.0
"""From its name to its filter a device needs a millisecond, but the machine may be busy."""


def devices_of(controller: int) -> list[int]:
    """The pids of a controller's devices, without those that have ended or are just forked."""
    return [pid for pid, _ in device_names(controller)]


def device_names(controller: int) -> list[tuple[int, str]]:
    """The pids and names of those devices, the oldest first."""
    found = []
    for child in sorted(psutil.Process(controller).children(), key=lambda child: child.pid):
        try:
            name = _field(child.pid, "Name")
            if name.startswith(DEVICE_NAME) and is_alive(child.pid):
                found.append((child.pid, name))
        except (OSError, KeyError):
            continue
    return found


def template_of(controller: int) -> int:
    """The process that forks a controller's devices."""
    children = psutil.Process(controller).children

    def named() -> list[int]:
        try:
            pids = [child.pid for child in children() if child.name() == NAME]
        except psutil.NoSuchProcess:
            return []  # a device that has just ended
        return pids if len(pids) == 1 else []

    # The template gets its name a moment after its fork; a new device has the template's name
    # until it gets its own.
    (pid,) = wait_until(named, what="the template alone has its name")
    return pid


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return not _field(pid, "State").startswith(("Z", "X"))
    except (OSError, KeyError):
        return False


def started(pid: int) -> int:
    """The start time of a process in ticks since boot, which with the pid is unique."""
    # The fields behind the name, which may contain anything; "starttime" of proc_pid_stat(5).
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


FILTERS = 2
"""The policy's filter, and the one against pooled huge pages."""


class JailWatch:
    """Checks that every device seen stays in a jail that only gets narrower."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()
        """Every device found in its jail: its pid and start time."""

    def look(self, controller: int) -> None:
        """Looks at all devices of a controller.

        Raises:
            InvariantBrokenError: one is not under a filter, can gain privileges, or has some.
        """
        for pid in devices_of(controller):
            self._look_at(pid)

    def _look_at(self, pid: int) -> None:
        deadline = time.monotonic() + JAILED_WITHIN_S
        while True:
            try:
                process = pid, started(pid)
                filters = int(_field(pid, "Seccomp_filters")) - int(
                    _field(os.getpid(), "Seccomp_filters")
                )
                rest = {name: _field(pid, name) for name in ("NoNewPrivs", "CapEff", "Uid")}
                if started(pid) != process[1]:
                    # the values are partly of an ended process, partly of the next one with its
                    # pid
                    continue
            except (OSError, KeyError):
                return
            if filters >= FILTERS or not is_alive(pid):
                break
            require(process not in self.seen, "a device left its jail", pid, filters)
            require(time.monotonic() < deadline, "a device is in no jail", pid, filters)
            os.sched_yield()
        if not is_alive(pid):
            return
        require(rest["NoNewPrivs"] == "1", "a device may gain privileges", pid, rest)
        if os.geteuid() == 0:
            require(int(rest["CapEff"], 16) == 0, "a device has capabilities", pid, rest)
            require("0" not in rest["Uid"].split(), "a device is root", pid, rest)
        self.seen.add(process)


def _field(pid: int, name: str) -> str:
    """One line of /proc/PID/status. Raises OSError or KeyError where there is none."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise KeyError(name)
