"""What the kernel lends to be woken when memory may be low: ChromeOS's device, a PSI trigger.

Runs in the controller. Each alarm is one epoll fd around the kernel's own, readable when the
kernel has something to say: the owner can wait for it like for any socket, and it stays the same
fd when the device behind it goes and comes back. An alarm never says *that* memory is low, only
that it is time to look; and it never blocks, nor wakes its owner twice for the same thing.
"""

import os
import select
from contextlib import suppress
from io import FileIO
from pathlib import Path
from time import monotonic

TRIGGER_AGAIN_S = 60.0
"""How long after one that failed another PSI trigger is asked for: one that is withdrawn at once
costs one wake-up in that time."""

_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


def _open_at_once(path: str, flags: int) -> int:
    # A FIFO without a writer would block the whole daemon in open().
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class _Alarm:
    """What both alarms have.

    Attributes:
        path: The kernel's file.
        problem: Why nothing can wake us just now, "" if something can.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self._told = ""
        self._epoll = select.epoll()
        self._file: FileIO | None = None

    def fileno(self) -> int:
        """The fd to wait for; the same one from here to ``close``."""
        return self._epoll.fileno()

    def _change(self) -> str:
        """One line where ``problem`` is another than it was the last time, else ""."""
        if self.problem == self._told:
            return ""
        self._told = self.problem
        return f"{self.path}: {self.problem or 'it is back, waiting for it again'}"


class DeviceAlarm(_Alarm):
    """ChromeOS's ``/dev/chromeos-low-mem``: readable for as long as memory is low.

    It is watched level by level but only once each (EPOLLONESHOT): after a wake-up the alarm is
    muted, and ``refresh`` arms it again as soon as the device is quiet. A device that stays
    readable while the figures say otherwise thus wakes its owner once, who then has to poll. The
    device is never read from: the real one has nothing to read, a FIFO in its place keeps its byte
    for as long as its writer wants to be heard.

    Args:
        path: The device file; it may be absent, and come and go.

    Source: mm/low-mem-notify.c of the ChromeOS kernels.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._armed = False
        self.refresh()

    @property
    def armed(self) -> bool:
        """Whether the kernel can wake us: False while muted and while there is no device."""
        return self._armed

    def acknowledge(self) -> bool:
        """Consumes a wake-up; to be called for each one, or it repeats at once.

        Returns:
            Whether the device is what woke us.
        """
        if not self._epoll.poll(0):
            return False
        self._armed = False
        return True

    def refresh(self) -> str:
        """Opens a device that came, lets go of one that went, arms a muted one that is quiet.

        Returns:
            One line where that has changed what wakes us, else "".
        """
        if self._file is not None and not self._names(self._file):
            self._drop()
        if self._file is not None and not self._armed:
            state = _poll_now(self._file)
            if state & _GONE:
                # A FIFO whose writer has left says so until it is opened anew.
                self._drop()
            elif not state:
                self._epoll.modify(self._file, select.EPOLLIN | select.EPOLLONESHOT)
                self._armed = True
        if self._file is None:
            self._open()
        return self._change()

    def close(self) -> None:
        """Lets go of the device and of the epoll fd."""
        self._drop()
        self._epoll.close()

    def _open(self) -> None:
        try:
            file = FileIO(os.fspath(self.path), opener=_open_at_once)
        except OSError as err:
            self.problem = err.strerror or str(err)
            return
        if _poll_now(file) & _GONE:
            file.close()
            self.problem = "it hangs up at once"
            return
        try:
            self._epoll.register(file, select.EPOLLIN | select.EPOLLONESHOT)
        except OSError:  # EPERM: a regular file, which is always readable
            file.close()
            self.problem = "not a file that can be waited for"
            return
        self._file, self._armed, self.problem = file, True, ""

    def _names(self, file: FileIO) -> bool:
        """Whether our path still means this file."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self.path), os.fstat(file.fileno()))
        return False

    def _drop(self) -> None:
        if self._file is not None:
            # close() alone would not do: a forked child may hold the same open file still, and
            # the kernel forgets a registration only with the last of them.
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
    b"some 150000 2000000\0",  # without it, the window must be a multiple of 2 s (Linux 6.4)
)
"""What to ask for, best first: µs that some task stalled on memory, within a window of µs.

A tenth of the time is well above a healthy host's and well below one that thrashes. The kernel
overwrites the last byte of what is written with NUL, hence ours (kernel/sched/psi.c, psi_write).
"""


class PressureAlarm(_Alarm):
    """A PSI trigger on ``/proc/pressure/memory``, where the kernel lends us one.

    Args:
        path: The pressure file.

    Source: Documentation/accounting/psi.rst.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._failed_at = 0.0
        self._register()
        self._change()

    @property
    def armed(self) -> bool:
        """Whether the kernel took the trigger."""
        return self._file is not None

    def acknowledge(self) -> bool:
        """Consumes a wake-up.

        Returns:
            Whether anything was left to consume. Waiting for our fd polls the trigger inside it,
            and polling is what consumes it, so a False here means nothing.
        """
        events = self._epoll.poll(0)
        if any(happened & (select.EPOLLERR | select.EPOLLHUP) for _fd, happened in events):
            # Reported for ever from now on: better no trigger than a busy loop.
            self._failed("the kernel withdrew the trigger")
            self._drop()
        return bool(events)

    def refresh(self) -> str:
        """Asks for a trigger where there is none, now and then.

        Returns:
            One line where there is none any more, or one again, else "".
        """
        if self._file is None and monotonic() - self._failed_at >= TRIGGER_AGAIN_S:
            self._register()
        return self._change()

    def close(self) -> None:
        """Withdraws the trigger and closes the epoll fd."""
        self._drop()
        self._epoll.close()

    def _register(self) -> None:
        try:
            file = FileIO(os.fspath(self.path), "r+", opener=_open_at_once)
        except OSError as err:
            self._failed(err.strerror or str(err))
            return
        for trigger in PSI_TRIGGERS:
            try:
                file.write(trigger)
                # Only EPOLLPRI is the trigger's: the file is always readable too.
                self._epoll.register(file, select.EPOLLPRI)
            except OSError as err:
                self._failed(err.strerror or str(err))
            else:
                self._file, self.problem = file, ""
                return
        file.close()

    def _failed(self, problem: str) -> None:
        self.problem, self._failed_at = problem, monotonic()

    def _drop(self) -> None:
        if self._file is not None:
            self._epoll.unregister(self._file)  # as in DeviceAlarm: a child may hold it too
            self._file.close()
        self._file = None
