"""Devices as processes: one that this controller has forked, and one that another has left.

Runs in the controller. Any device may have been taken over by its guest.
"""

import asyncio
import os
from collections.abc import Callable

from balloon_daemon.device.process import MAX_DEATH_RECORD_BYTES, DeviceProcess
from balloon_daemon.events import Publish
from balloon_daemon.guests.jailed import hearing
from balloon_daemon.guests.jailed.hearing import OrderWatch, ReportReader
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.tube.messages import Command, Down, Up
from balloon_daemon.units import VmId


class Ended(NamedTuple):
    """How a device ended.

    Attributes:
        pid: its process id.
        exit_code: its exit status, or a negative signal number.
        death_record: the end of its standard error; "" where it wrote nothing.
    """

    pid: int
    exit_code: int
    death_record: str


class RunningDevice:
    """A forked device: gets orders, sends reports, and is reaped when it ends.

    Args:
        process: the device's process.
        vm: its VM.
        publish: takes events.
        take: called with each report.
        misbehaved: called once, with a description, for a message that no device sends, or where
            a device that was not told to stop has closed its tube and has not ended ``CLOSED_S``
            later.
        ended: called once it is reaped and all of its reports are handled.
        charge: charges the seconds that its reports take to its user, as ``ReportReader`` says.
        in_turn: has its end handled in one of its user's turns (``InTurn.do``).
        look: True: its first order is STOP, so it serves nothing and only reports its rings'
            ``used.idx``.
    """

    def __init__(
        self,
        process: DeviceProcess,
        vm: VmId,
        publish: Publish,
        take: Callable[[Up], None],
        misbehaved: Callable[[str], None],
        ended: Callable[[Ended], None],
        charge: Callable[[float], float],
        in_turn: Callable[[Callable[[], None]], None],
        *,
        look: bool,
    ) -> None:
        process.begin(look=look)
        self._process = process
        self._in_turn = in_turn
        self._ended = ended
        self._misbehaved = misbehaved
        self._is_to_end = look
        self._closed: asyncio.TimerHandle | None = None
        """The timer of ``CLOSED_S``; None: the device has not closed its end of the tube, or the
        timer has ended, or the device is reaped."""
        self._reader = ReportReader(process.tube, take, misbehaved, charge, self._tube_closed)
        self._orders = OrderWatch(vm, process.pid, process.tube, publish)
        # The device has been sent its first order (``DeviceProcess.begin``): watch from now on
        # whether it is read.
        self._orders.sent()
        self._watch()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr_pipe(self) -> OwnedFd:
        """Read end of its standard error, which reaches its end when the device is gone."""
        return self._process.stderr_pipe

    def order(self, order: Down) -> None:
        """Sends an order. If the tube is full the order is dropped, which does no harm: the next
        order of its kind replaces it."""
        if self._process.tube.send(order):
            self._orders.sent()

    def stop(self) -> None:
        """Sends STOP; kills the device where the tube is full, or closed by the device."""
        self._is_to_end = True
        self._reader.rest_no_more()
        if not self._process.tube.send(Command.STOP):
            self._process.kill()

    def kill(self) -> None:
        """Sends SIGKILL; does nothing where the device has ended."""
        self._process.kill()

    def _tube_closed(self) -> None:
        loop = asyncio.get_running_loop()
        self._closed = loop.call_later(hearing.CLOSED_S, self._closed_for_long)

    def _closed_for_long(self) -> None:
        self._closed = None
        # A device that was told to stop closes its tube, too, and may end much later: the kernel
        # may have to free guest memory first.
        if not self._is_to_end:
            self._misbehaved("it closed its tube and has not ended")

    def _watch(self) -> None:
        asyncio.get_running_loop().add_reader(self._process.pidfd.fileno(), self._has_ended)

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.pidfd.fileno())
        # The end of its tube may be read only now, before ``_reap`` has its turn.
        self._is_to_end = True
        self._in_turn(self._reap)

    def _reap(self) -> None:
        exit_code = self._process.reap()
        if exit_code is None:
            self._watch()
            return
        self._reader.end()
        self._orders.end()
        if self._closed is not None:
            self._closed.cancel()
            self._closed = None
        death_record = self._process.read_death_record()
        self._process.close()
        self._ended(Ended(self._process.pid, exit_code, death_record))


class Predecessor:
    """The device of another controller, known by the pipe that is its standard error.

    Args:
        stderr_pipe: the pipe's read end.
        gone: called once at the pipe's end of file, which means that the device has ended.
    """

    def __init__(self, stderr_pipe: OwnedFd, gone: Callable[[], None]) -> None:
        self.stderr_pipe = stderr_pipe
        self._gone = gone
        asyncio.get_running_loop().add_reader(stderr_pipe.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            # A readable pipe need not be at its end: the device may be writing its death record.
            # Only an empty read means that the device has ended.
            if os.read(self.stderr_pipe.fileno(), MAX_DEATH_RECORD_BYTES):
                return
        except BlockingIOError:
            return
        self.close()
        self._gone()

    def close(self) -> None:
        """Stops watching the pipe, and closes it."""
        if self.stderr_pipe.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.stderr_pipe.fileno())
            self.stderr_pipe.close()
