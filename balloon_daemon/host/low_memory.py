"""The sources that tell whether the host is low on memory: ChromeOS's files, or MemAvailable.

Runs in the controller. A source never blocks, and raises nothing because of the figures that it
reads: if a figure cannot be read, the reading is *unknown* (``read`` gives None), and the next
reading tries again; a source keeps nothing from one reading to the next but the alarm, its open
files and what the margin's file said. A source that the host has switched off gives a known
answer: nothing is low (``NeverLow``).

How one loop uses a source:

- wait until ``wait_fd()``, where it is not None, is readable; then call ``acknowledge()`` and
  ``read()``;
- call ``read()`` every second while ``needs_poll`` is true (it changes), or later if memory cannot
  be filled by then (``fill_mib_s``); otherwise now and then, to notice that a device has gone;
- after every ``read()``, publish each ``take_notice()`` until it gives None.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, assert_never

from balloon_daemon.errors import ConfigError, SourceError
from balloon_daemon.events import SourceEvent, SourceTrouble
from balloon_daemon.host.memory_alarm import DeviceAlarm, PressureAlarm
from balloon_daemon.host.notices import LowMemoryStatistics as LowMemoryStatistics
from balloon_daemon.host.notices import SourceNotices, Unknown
from balloon_daemon.host.zoneinfo import keep_zoneinfo, per_cpu_free_bytes
from balloon_daemon.linux.cgroup import CgroupLimit, MemoryCgroups
from balloon_daemon.linux.figures import FigureFile, one_read_of
from balloon_daemon.linux.meminfo import HostMemory, host_memory
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading
from balloon_daemon.units import MIB, format_size

CHROMEOS_DIR = Path("/sys/kernel/mm/chromeos-low_mem")
CHROMEOS_DEVICE = Path("/dev/chromeos-low-mem")
PRESSURE_FILE = Path("/proc/pressure/memory")

MARGIN_PER_MILLE = 52
"""The default margin, in thousandths of what can be available: ChromeOS's critical margin."""

FILL_MIB_S = 4096.0 * (os.cpu_count() or 1)
"""How fast processors fill memory, in MiB a second: each twice as fast as was measured."""

# A number of MiB in ``available`` or ``margin``. 12 digits allow almost an EiB.
_NUMBER = re.compile(rb"[0-9]{1,12}")
_MOST_BYTES = 256


class LowMemorySource(Protocol):
    """A source as the controller uses it; the module's docstring says how."""

    @property
    def name(self) -> str:
        """``chromeos`` or ``meminfo``."""

    @property
    def fill_mib_s(self) -> float:
        """How fast programs can take available memory, in MiB a second; inf: nobody knows."""

    @property
    def last_error(self) -> str:
        """Why the last reading was unknown; "" where it was known."""

    @property
    def needs_poll(self) -> bool:
        """Whether low memory would go unnoticed at this moment without a poll."""

    def read(self) -> Reading | NeverLow | None:
        """The available memory and the margin; None: unknown, and counted."""

    def check(self) -> None:
        """Checks that low memory can be seen now; leaves the counters as they are.

        Raises:
            SourceError: low memory cannot be seen; says why, and the remedy.
        """

    def set_margin(self, margin_bytes: int | None) -> None:
        """Uses another margin from the next reading on.

        Args:
            margin_bytes: the margin, at least 1 MiB; None: the source's own.
        """

    def wait_fd(self) -> int | None:
        """The fd that becomes readable when memory may be low, the same fd until ``close``."""

    def acknowledge(self) -> None:
        """Consumes a wake-up of ``wait_fd``; to be called for each wake-up, before ``read``."""

    def take_notice(self) -> SourceEvent | None:
        """The next event to publish, for something that began or ended; None: there is none."""

    def statistics(self) -> LowMemoryStatistics:
        """The counters."""

    def describe(self) -> str:
        """One line for people: the source, its paths, margin, alarm and present reading."""

    def close(self) -> None:
        """Closes the alarm, and with it the fd of ``wait_fd``."""


class ChromeosLowMemory(SourceNotices):
    """A source: ChromeOS's low-memory driver, two text files in MiB and a device to wait for.

    ``margin`` reads ``off`` while the kernel's notifier is switched off (by writing ``off``, or
    anything that is no number, to it): then nothing is low, whatever ``available`` says.

    Args:
        directory: The directory of ``available`` and ``margin``. The first number in ``margin``
            counts.
        device: A file that is readable while memory is low; it may be absent. None: no device.
        margin_bytes: A margin to use instead of the file's, in bytes; the file is not read then.

    Source: mm/low-mem-notify.c of the ChromeOS kernels.

    Raises:
        ConfigError: the margin is less than 1 MiB, the unit of all figures here.
    """

    name = "chromeos"
    fill_mib_s = math.inf  # The directory may be another machine's.

    def __init__(
        self,
        directory: Path = CHROMEOS_DIR,
        *,
        device: Path | None = None,
        margin_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.directory = directory
        self._available = FigureFile(f"{directory}/available")
        self._margin = FigureFile(f"{directory}/margin")
        self._margin_mib = None if margin_bytes is None else _whole_mib(margin_bytes)
        # The margin file's last content and its value, as it seldom changes.
        self._margin_read: tuple[bytes, int | NeverLow] = (b"", 0)
        self._alarm = None if device is None else DeviceAlarm(device)

    @property
    def needs_poll(self) -> bool:
        """False while the device file is there and wakes at the margin that this source uses."""
        if self._margin_mib is not None:
            return True  # The device wakes only at the file's margin, and never while that is off.
        return self._alarm is None or not self._alarm.armed

    def read(self) -> Reading | NeverLow | None:
        # Arm the alarm (ChromeOS's device file) first and read the figures after that. If memory
        # becomes low between the two, the alarm wakes the controller.
        if self._alarm is not None and (change := self._alarm.refresh()):
            self._notices.append(SourceTrouble(change))
        return self.note_reading(self._measure())

    def check(self) -> None:
        match self._measure():
            case Unknown("the margin" as what, why):
                remedy = (
                    "let it hold a whole number of MiB or off, and be readable, or give --margin"
                )
            case Unknown(what, why):
                remedy = "let it hold a whole number of MiB and be readable, or name another "
                remedy += "directory (--low-mem-dir)"
            case _:
                return
        raise SourceError(f"low memory cannot be seen, as {what} is unknown: {why}; {remedy}")

    def set_margin(self, margin_bytes: int | None) -> None:
        self._margin_mib = None if margin_bytes is None else _whole_mib(margin_bytes)

    def wait_fd(self) -> int | None:
        """The epoll fd around the device, which may be absent now; None: no device was named."""
        return None if self._alarm is None else self._alarm.fileno()

    def acknowledge(self) -> None:
        """Consumes a wake-up. The next one comes only after ``read`` has found that the device is
        not readable any more."""
        if self._alarm is not None and self._alarm.acknowledge():
            self.note_wakeup()

    def describe(self) -> str:
        margin = self._margin.path
        if self._margin_mib is not None:
            margin = f"a margin of {self._margin_mib:,} MiB"
        if self._alarm is None:
            woken = "polled"
        elif self._alarm.problem:
            woken = f"polled, as nothing wakes us ({self._alarm.path}: {self._alarm.problem})"
        else:
            woken = f"woken by {self._alarm.path}"
            if self.needs_poll:
                woken = f"polled, and {woken} at the margin of its own"
        return f"{self._available.path} against {margin}; {woken}; now {_now(self._measure())}"

    def close(self) -> None:
        """Closes the files and the alarm; ``wait_fd`` is None afterwards."""
        self._available.close()
        self._margin.close()
        if self._alarm is not None:
            self._alarm.close()
        self._alarm = None

    def _measure(self) -> Reading | NeverLow | Unknown:
        margin_mib = self._margin_mib if self._margin_mib is not None else self._read_margin()
        if isinstance(margin_mib, NeverLow):
            return margin_mib
        try:
            content = self._available.read(_MOST_BYTES, one_read_of)
            available_mib = _whole_number(self._available.path, content.split())
        except (OSError, ValueError) as err:
            return Unknown("available memory", _in_words(err))
        if isinstance(margin_mib, Unknown):
            return margin_mib
        return Reading(available_mib, margin_mib)

    def _read_margin(self) -> int | NeverLow | Unknown:
        try:
            content = self._margin.read(_MOST_BYTES, one_read_of)
            if content != self._margin_read[0] or not content:
                self._margin_read = content, self._parse_margin(content.split())
            return self._margin_read[1]
        except (OSError, ValueError) as err:
            return Unknown("the margin", _in_words(err))

    def _parse_margin(self, words: list[bytes]) -> int | NeverLow:
        if words == [b"off"]:
            return NeverLow(f"{self._margin.path} says off")
        return _whole_number(self._margin.path, words, several=True)


class MeminfoLowMemory(SourceNotices):
    """A source: MemAvailable against a margin, for hosts that are not ChromeOS.

    Where cgroups limit this process's memory, the memory left below each limit is compared with a
    margin of its own, and the reading nearest to its margin, or furthest below, is the one that
    counts.

    A PSI trigger wakes the controller early where the kernel has one. But it reports stalls, which
    may begin long after memory has fallen below a margin, so this source always has to be polled
    too.

    Where MemAvailable is below the margin, the free pages in the kernel's per-CPU lists are added,
    up to the margin and no further. So they can keep balloond from taking more memory from guests,
    but never make it give memory back.

    Args:
        margin_bytes: The margin in bytes. None: 5.2 % of the memory that can be available (or of a
            cgroup's limit), computed at each reading.
        pressure: The file to register the PSI trigger with. None: no trigger.
        memory: Gives the host's memory; raises OSError or ValueError where there are no figures.
        per_cpu_free: (MemTotal in bytes) -> the free bytes in the per-CPU lists.
        cgroups: The cgroups with limits. None: none.

    Raises:
        ConfigError: the margin is less than 1 MiB, or not less than the memory that can be
            available.
    """

    name = "meminfo"
    needs_poll = True

    def __init__(
        self,
        *,
        margin_bytes: int | None = None,
        pressure: Path | None = PRESSURE_FILE,
        memory: Callable[[], HostMemory] = host_memory,
        per_cpu_free: Callable[[int], int] = per_cpu_free_bytes,
        cgroups: MemoryCgroups | None = None,
    ) -> None:
        super().__init__()
        self._margin_mib = None if margin_bytes is None else _whole_mib(margin_bytes)
        self._memory = memory
        self._per_cpu_free = per_cpu_free
        self._cgroups = cgroups
        seen = self._look()
        if not isinstance(seen, Unknown) and (why := self._why_always_low(*seen)):
            raise ConfigError(f"{why}; give a smaller one")
        keep_zoneinfo()
        self._alarm = None if pressure is None else PressureAlarm(pressure)

    @property
    def fill_mib_s(self) -> float:
        # Without a trigger nothing but a poll would tell of faster ones.
        return math.inf if self.wait_fd() is None else FILL_MIB_S

    def read(self) -> Reading | None:
        if self._alarm is not None and (change := self._alarm.refresh()):
            self._notices.append(SourceTrouble(change))
        seen = self._look()
        if isinstance(seen, Unknown):
            return self.note_reading(seen)
        self._note_troubles(*seen)
        return self.note_reading(_tightest(self._readings(*seen)))

    def check(self) -> None:
        seen = self._look()
        if isinstance(seen, Unknown):
            raise SourceError(
                f"low memory cannot be seen, as {seen.what} is unknown: {seen.why}; mount /proc "
                "whole (a service: ProcSubset=all), or name a directory with the files available "
                "and margin (--low-mem-dir)"
            )

    def set_margin(self, margin_bytes: int | None) -> None:
        self._margin_mib = None if margin_bytes is None else _whole_mib(margin_bytes)

    def wait_fd(self) -> int | None:  # None: there is no PSI trigger.
        return self._alarm.fileno() if self._alarm is not None and self._alarm.armed else None

    def acknowledge(self) -> None:
        """Consumes a wake-up; the kernel sends at most one in each window of the trigger."""
        if self._alarm is not None:
            # Count a wake-up even if acknowledge() finds no event: each poll of a PSI trigger
            # consumes its event, and the event loop's wait for the epoll fd polls the trigger.
            self._alarm.acknowledge()
            self.note_wakeup()

    def describe(self) -> str:
        seen, available = self._look(), "available memory"
        margin = f"{MARGIN_PER_MILLE / 10} % of the RAM"
        if isinstance(seen, Unknown):
            now = _now(seen)
        else:
            memory, limits = seen
            readings = self._readings(memory, limits)
            counts = _tightest(readings)
            now = "; ".join(
                [_now(counts)]
                + [
                    f"{_now(other)}" if other.within else f"the host: {_now(other)}"
                    for other in readings
                    if other is not counts
                ]
            )
            if memory.pool_bytes:
                margin += f" without the {format_size(memory.pool_bytes)} in pools of huge pages"
            if limits:
                margin += " and of each cgroup's limit"
            if memory.is_estimated:
                available += " (estimated, as there is no MemAvailable)"
        if self._margin_mib is not None:
            margin = f"a margin of {self._margin_mib:,} MiB"
        woken = "polled"
        if self._alarm is not None:
            woken = f"polled, and woken early by {self._alarm.path}"
            if self._alarm.problem:
                woken = f"polled, as nothing wakes us ({self._alarm.path}: {self._alarm.problem})"
        return f"{available} against {margin}; {woken}; now {now}"

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.close()
        self._alarm = None

    def _look(self) -> tuple[HostMemory, list[CgroupLimit]] | Unknown:
        try:
            memory = self._memory()
        except (OSError, KeyError, ValueError) as err:
            return Unknown("available memory", f"this host's memory figures: {_in_words(err)}")
        limits = [] if self._cgroups is None else self._cgroups.limits(memory.total_bytes)
        return memory, limits

    def _readings(self, memory: HostMemory, limits: Sequence[CgroupLimit]) -> list[Reading]:
        """The host's reading, then one for each limit."""
        margin_mib = self._margin_of(memory.usable_bytes)
        available_bytes = memory.available_bytes
        available_mib = available_bytes // MIB
        if available_mib < margin_mib:
            available_bytes += self._per_cpu_free(memory.total_bytes)
            available_mib = min(available_bytes // MIB, margin_mib)
        return [
            Reading(available_mib, margin_mib),
            *(
                Reading(
                    limit.available_bytes // MIB, self._margin_of(limit.limit_bytes), limit.path
                )
                for limit in limits
            ),
        ]

    def _margin_of(self, whole_bytes: int) -> int:
        """The margin in MiB, where at most ``whole_bytes`` of memory can be available."""
        if self._margin_mib is not None:
            return self._margin_mib
        return whole_bytes * MARGIN_PER_MILLE // 1000 // MIB

    def _note_troubles(self, memory: HostMemory, limits: Sequence[CgroupLimit]) -> None:
        for limit in limits:
            self.note_trouble(
                limit.path, f"{limit.path} is a limit: what is left below it counts too"
            )
        why = self._why_always_low(memory, limits)
        self.note_trouble("margin", why)
        problem = "" if self._cgroups is None else self._cgroups.problem
        self.note_trouble("cgroups", problem and f"{problem}; a limit there does not count")
        estimated = "this host's memory figures: no MemAvailable, it is estimated"
        self.note_trouble("estimate", estimated if memory.is_estimated else "")

    def _why_always_low(self, memory: HostMemory, limits: Sequence[CgroupLimit]) -> str:
        """Why memory would always be low at the margin given; "": it would not."""
        if self._margin_mib is None:
            return ""
        given = f"a margin of {format_size(self._margin_mib * MIB)}"
        if self._margin_mib * MIB >= memory.usable_bytes:
            never = memory.total_bytes - memory.usable_bytes
            without = f", of which {format_size(never)} can never be available," if never else ""
            host = f"on a host of {format_size(memory.total_bytes)}{without}"
            return f"{given} {host} would always be low memory"
        for limit in limits:
            if self._margin_mib * MIB >= limit.limit_bytes:
                below = f"below the limit of {format_size(limit.limit_bytes)} in {limit.path}"
                return f"{given} {below} would always be low memory"
        return ""


def _tightest(readings: Sequence[Reading]) -> Reading:
    """The reading nearest to its margin, or furthest below: if any is low, this one is."""
    return min(readings, key=lambda reading: reading.available_mib - reading.margin_mib)


def choose_source(
    *, low_mem_dir: Path | None, margin_bytes: int | None, device: Path | None = None
) -> LowMemorySource:
    """The source for this host: the directory named, else ChromeOS's own, else MemAvailable.

    Args:
        low_mem_dir: A directory with ``available`` and ``margin``; None: the host's own source.
        margin_bytes: A margin to use instead of the source's own, in bytes.
        device: The device that goes with ``low_mem_dir``; by default ChromeOS's device for
            ChromeOS's own directory and none for any other, as the device knows only ChromeOS's
            figures.

    Raises:
        ConfigError: there is no such directory, or the margin is impossible.
    """
    if low_mem_dir is not None:
        try:
            # os.stat() of "DIR/." succeeds only for a directory that this process may enter.
            os.stat(f"{low_mem_dir}/.")
        except PermissionError as err:
            raise ConfigError(
                f"low-memory directory {low_mem_dir}: {err.strerror}: balloond must be able to "
                "read it; give its user the right to, or name another directory (--low-mem-dir)"
            ) from err
        except OSError as err:
            raise ConfigError(
                f"low-memory directory {low_mem_dir}: {err.strerror}; it must be a directory with "
                "the files available and margin, or leave it out to use this host's own figures"
            ) from err
    elif CHROMEOS_DIR.is_dir():
        low_mem_dir = CHROMEOS_DIR
    else:
        return MeminfoLowMemory(margin_bytes=margin_bytes, cgroups=MemoryCgroups())
    if device is None and low_mem_dir == CHROMEOS_DIR:
        device = CHROMEOS_DEVICE
    return ChromeosLowMemory(low_mem_dir, device=device, margin_bytes=margin_bytes)


def _whole_mib(margin_bytes: int) -> int:
    if margin_bytes < MIB:
        raise ConfigError(f"a margin of {margin_bytes} bytes; it must be at least 1 MiB")
    return margin_bytes // MIB


def _whole_number(path: str, words: list[bytes], *, several: bool = False) -> int:
    """The figure in a file's words; the first one of several, where several are allowed.

    Raises:
        ValueError: there is no such figure; says which file and what it holds.
    """
    if not words:
        raise ValueError(f"{path} is empty")
    if not _NUMBER.fullmatch(words[0]) or not (several or len(words) == 1):
        held = b" ".join(words)[:40]
        raise ValueError(f"{path} holds {held!r}, not a whole number of MiB")
    return int(words[0])


def _in_words(err: Exception) -> str:
    if isinstance(err, OSError) and err.filename is not None:
        return f"{os.fsdecode(err.filename)}: {err.strerror}"
    return str(err)


def _now(measured: Reading | NeverLow | Unknown) -> str:
    match measured:
        case Unknown(_, why):
            return f"unknown: {why}"
        case NeverLow(why):
            return f"switched off, so that nothing is low ({why})"
        case Reading(available_mib, margin_mib, within):
            where = f" within {within}" if within else ""
            low = "low" if measured.is_low else "not low"
            return f"{available_mib:,} MiB available{where}, margin {margin_mib:,} MiB, {low}"
        case _:
            assert_never(measured)
