"""The kernel's means to wake us when memory may be low: ChromeOS's device, and PSI triggers.

Runs in the controller. Each alarm is an epoll fd around the kernel's own fd, readable when that fd
has an event. The owner waits for the epoll fd like for any socket, and it stays the same fd when
the device behind it goes and comes back. An alarm only means that it is time to read the figures,
not that memory *is* low; it never blocks, and wakes its owner once for each event.
"""

import errno
import math
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from time import monotonic

TRIGGER_AGAIN_S = 60.0
"""Seconds from a PSI trigger's failure to the next attempt to register one. If the kernel
withdraws every trigger at once, that costs one wake-up in this time."""

LOOK_AGAIN_S = 60.0
"""Seconds until a device file is opened again that is there and cannot be waited for."""

FRESH_S = 1.0
"""Seconds after a change of a device's directory in which the device is looked for at each
reading, and once after them: two changes within one tick of the kernel's clock, 4 ms or so, leave
the same mtime, so the second would be missed."""

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


def _open_at_once(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a FIFO without a writer would otherwise block the whole daemon.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class _Alarm:
    """The common part of both alarms.

    Attributes:
        path: The kernel's file.
        problem: Why the kernel cannot wake us just now, "" if it can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self._told = ""
        self._epoll = select.epoll()
        self._file: FileIO | None = None

    def fileno(self) -> int:
        """The fd to wait for, which stays the same until ``close``."""
        return self._epoll.fileno()

    def _change(self) -> str:
        """One line if ``problem`` differs from the last call's, else ""."""
        if self.problem == self._told:
            return ""
        self._told = self.problem
        return f"{self.path}: {self.problem or 'it is back, waiting for it again'}"


class DeviceAlarm(_Alarm):
    """ChromeOS's ``/dev/chromeos-low-mem``: readable for as long as memory is low.

    The device is level-triggered, so it is watched with EPOLLONESHOT: each wake-up mutes the
    alarm, and ``refresh`` arms it again as soon as the device is no longer readable. A device that
    stays readable while the figures say otherwise thus wakes its owner once, who then has to poll.
    The device is never read from: ChromeOS's has no bytes to read, and a FIFO in its place keeps
    its byte, and so stays readable, until its writer closes it.

    A device that is not there is looked for only when its directory's mtime has changed. A file
    system in memory, as /dev is, keeps no dentry of a name that is not there, so the kernel looks
    for such a name under the directory's lock, and whoever lists the directory can keep that
    lookup waiting. A directory's stat(2) takes no such lock.

    Args:
        path: The device file; it may be absent, and come and go.

    Source: mm/low-mem-notify.c of the ChromeOS kernels.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._armed = False
        self._directory = os.fspath(path.parent)
        self._directory_ns: int | None = None
        self._fresh_until_s = self._again_s = -math.inf
        self.refresh()

    @property
    def armed(self) -> bool:
        """Whether the kernel can wake us: False while muted and while there is no device."""
        return self._armed

    def acknowledge(self) -> bool:
        """Consumes a wake-up; must be called for each one, or the fd stays readable.

        Returns:
            Whether the device caused the wake-up.
        """
        if not self._epoll.poll(0):
            return False
        self._armed = False
        return True

    def refresh(self) -> str:
        """Opens a device file that has appeared, closes the device where its file has gone, and
        arms the alarm again where the device is not readable any more.

        Returns:
            One line if ``problem`` has changed, else "".
        """
        had = self._file is not None
        if self._file is not None and not self._names(self._file):
            self._drop()
        if self._file is not None and not self._armed:
            state = _poll_now(self._file)
            if state & _GONE:
                # The file is a FIFO whose last writer has left: it reports POLLHUP until it is
                # opened anew. Close it here; ``_open`` below opens it again.
                self._drop()
            elif not state:
                self._epoll.modify(self._file, select.EPOLLIN | select.EPOLLONESHOT)
                self._armed = True
        if self._file is None:
            # Stat the directory before the device is looked for: a device that comes between the
            # two changes the directory once more.
            is_due = self._is_due()
            if is_due or had:
                self._open()
        return self._change()

    def close(self) -> None:
        """Closes the device and the epoll fd."""
        self._drop()
        self._epoll.close()

    def _is_due(self) -> bool:
        """Whether the device may be there by now, or may have changed its kind."""
        now_s, seen_ns = monotonic(), None
        with suppress(OSError):
            seen_ns = os.stat(self._directory).st_mtime_ns
        if seen_ns != self._directory_ns:
            self._directory_ns, self._fresh_until_s = seen_ns, now_s + FRESH_S
            self._again_s = now_s
        if now_s < self._again_s:
            return False
        self._again_s = now_s if now_s < self._fresh_until_s else math.inf
        return True

    def _look_again(self) -> None:
        """Has a file that is there looked at again after a while: what keeps it from being waited
        for may end without a change of its directory."""
        self._again_s = min(self._again_s, monotonic() + LOOK_AGAIN_S)

    def _open(self) -> None:
        try:
            file = FileIO(os.fspath(self.path), opener=_open_at_once)
        except OSError as err:
            self.problem = err.strerror or str(err)
            if err.errno != errno.ENOENT:
                self._look_again()
            return
        self._look_again()
        if _poll_now(file) & _GONE:
            file.close()
            self.problem = "it hangs up at once"
            return
        try:
            self._epoll.register(file, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:  # EPERM: a regular file, which is always readable.
            file.close()
            self.problem = "not a file that can be waited for"
            return
        self._file, self._armed, self.problem = file, True, ""

    def _names(self, file: FileIO) -> bool:
        """Whether the path still leads to this open file."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        return False

    def _drop(self) -> None:
        if self._file is not None:
            # Closing the file may not end its epoll registration: the kernel drops that only with
            # the last descriptor of the open file, and a forked child may hold one.
            self._epoll.unregister(self._file)
            self._file.close()
        self._file, self._armed = None, False


def _poll_now(file: FileIO) -> int:
    """The file's poll() events at this moment."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return next((events for _fd, events in poll.poll(0)), 0)


PSI_TRIGGERS = (
    b"some 50000 500000\0",  # 50 ms in 0.5 s, the shortest window; needs CAP_SYS_RESOURCE
    # Since Linux 6.4 a process without CAP_SYS_RESOURCE may have a trigger, if its window is a
    # multiple of 2 s; an older kernel refuses such a process both triggers.
    b"some 150000 2000000\0",
)
"""The PSI triggers to ask for, best first: µs for which some task stalled on memory, within a
window of µs.

A tenth of the time is well above a healthy host's stalls and well below a thrashing one's. The
kernel overwrites the last byte written with NUL, so each trigger ends with one
(kernel/sched/psi.c, psi_write).
"""


@contextmanager
def _busy_is_fine() -> Iterator[None]:
    """Takes EBUSY for success: the file has its trigger from an attempt before, after which it
    could not be registered with the epoll instance."""
    try:
        yield
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise


class PressureAlarm(_Alarm):
    """A PSI trigger on ``/proc/pressure/memory``, where the kernel accepts one.

    A file whose trigger the kernel refuses stays open for the next attempt: whoever lists /proc
    could keep a lookup of its name waiting, and whoever locks the file makes each close of it take
    long. Only a trigger that the kernel has withdrawn needs the file opened anew, and of this file
    the kernel withdraws none.

    Args:
        path: The pressure file.

    Source: Documentation/accounting/psi.rst.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._failed_at = 0.0
        self._refused: FileIO | None = None
        self._register()
        self._change()

    @property
    def armed(self) -> bool:
        """Whether the kernel has accepted the trigger."""
        return self._file is not None

    def acknowledge(self) -> bool:
        """Consumes a wake-up.

        Returns:
            Whether an event was left. False does not mean that there was none: the event loop's
            wait for the epoll fd has polled the trigger in it, and that poll consumes the event.
        """
        events = self._epoll.poll(0)
        if any(happened & (select.EPOLLERR | select.EPOLLHUP) for _fd, happened in events):
            # EPOLLERR or EPOLLHUP: the kernel has withdrawn the trigger, and reports that again at
            # every wait. Drop the trigger, to keep this process from a busy loop.
            self._failed("the kernel withdrew the trigger")
            self._drop()
        return bool(events)

    def refresh(self) -> str:
        """Asks for a trigger where there is none, at most every ``TRIGGER_AGAIN_S``.

        Returns:
            One line if the trigger has gone or come back, else "".
        """
        if self._file is None and monotonic() - self._failed_at >= TRIGGER_AGAIN_S:
            self._register()
        return self._change()

    def close(self) -> None:
        """Withdraws the trigger and closes the epoll fd."""
        self._drop()
        if self._refused is not None:
            self._refused.close()
        self._epoll.close()

    def _register(self) -> None:
        if self._refused is None:
            try:
                self._refused = FileIO(os.fspath(self.path), "r+", opener=_open_at_once)
            except OSError as err:
                self._failed(err.strerror or str(err))
                if err.errno == errno.ENOENT:
                    # The kernel makes the file at boot or never. Do not try again: the kernel
                    # caches no name that is missing in /proc, so each attempt looks the name up
                    # under the lock of /proc, which whoever lists /proc may hold for ever.
                    self._failed_at = math.inf
                return
        for trigger in PSI_TRIGGERS:
            try:
                with _busy_is_fine():
                    self._refused.write(trigger)
                # Wait for EPOLLPRI only, which is the trigger's event. EPOLLIN is always set, as
                # for any regular file, and would wake this process without end.
                self._epoll.register(self._refused, select.EPOLLPRI)
            except OSError as err:
                self._failed(err.strerror or str(err))
            else:
                self._file, self._refused, self.problem = self._refused, None, ""
                return

    def _failed(self, problem: str) -> None:
        self.problem, self._failed_at = problem, monotonic()

    def _drop(self) -> None:
        if self._file is not None:
            # Closing the file may not end its epoll registration: the kernel drops that only with
            # the last descriptor of the open file, and a forked child may hold one.
            self._epoll.unregister(self._file)
            self._file.close()
        self._file = None
