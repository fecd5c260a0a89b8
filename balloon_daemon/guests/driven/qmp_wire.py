"""One connection to a QEMU monitor: QMP's lines, commands, answers and events, within limits.

Runs in the controller. Written by hand instead of with ``qemu.qmp`` (0.0.6), which keeps each
event until somebody takes it, has no time limits, and imports ``ssl``: loading ``qemu.qmp`` costs
4.4 MiB and 39 ms, loading this module and the others of QMP 0.1 MiB and 2 ms.

Source: QEMU, docs/interop/qmp-spec.rst.
"""

import asyncio
import json
import socket
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from balloon_daemon.errors import printable
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import CALL_WITHIN_S, ControlError
from balloon_daemon.guests.driven.in_turn import IN_TURN
from balloon_daemon.guests.driven.qmp_answers import Refusal, shown
from balloon_daemon.guests.driven.unix_socket import connect
from balloon_daemon.guests.waiting import is_done_within
from balloon_daemon.linux.credentials import living_peer_of, peer_of
from balloon_daemon.linux.passed_fds import DescriptorsSentError
from balloon_daemon.named_tuple import NamedTuple

MAX_MESSAGE_BYTES = 256 * 1024
"""The longest line taken. The longest answer that is asked for, query-blockstats, has 1 KiB for
each node of a VM's disks."""

MAX_BYTES_PER_S = 512 * 1024
"""How many bytes of one monitor are read in a second; more are left unread until the second is
over. Reading short messages takes 60 ns a byte, of the one thread that serves all VMs."""

MAX_BYTES_OF_A_USER_PER_S = 2 * 1024 * 1024
"""How many bytes of all monitors of one user are read in a second: an eighth of that thread's
time. Each monitor has an equal part of these bytes, so that a monitor that floods delays no other
one."""

LEAST_BYTES_PER_S = 2 * 1024
"""How many bytes of a monitor are read in a second at least, enough for a sample a second. It is
each monitor's part where its user has 1,024 monitors, the most sockets that are found."""

_READ_BYTES = 16 * 1024
_BUFFER = memoryview(bytearray(_READ_BYTES))
"""Shared by all connections: asyncio fills this buffer and calls ``buffer_updated`` before it
reads from another connection."""


_NOT_GREETED = "it does not greet; nor does a socket that is not QMP's"

_connected_of = Counter[int]()
"""How many monitors are connected, for each user."""


def _refuse(word: str) -> object:
    raise ValueError(f"{word} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Command(NamedTuple):
    """A command of the monitor."""

    name: str
    arguments: dict[str, object] | None = None


class Event(NamedTuple):
    """An event that the monitor has sent.

    Attributes:
        name: such as ``RESET``.
        data: its data, unchecked.
        at_us: when it happened, by the VMM's own clock, in µs.
    """

    name: str
    data: object
    at_us: int


class _Batch:
    """Commands sent together, whose answers are waited for together."""

    def __init__(self, count: int) -> None:
        self.done: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        self.answers: list[object] = []
        self.count = count


class Monitor(asyncio.BufferedProtocol):
    """A connection. The monitor carries commands out in the order in which they were sent."""

    def __init__(self, heard: Callable[[Event], None], user: int) -> None:
        """Made by ``connect``.

        Args:
            heard: takes events from then on, in the event loop.
            user: whose monitor it is, as the kernel knows it.
        """
        self._heard = heard
        self._user = user
        self._transport: asyncio.Transport | None = None
        self._rest = bytearray()
        self._greeting = _Batch(1)
        self._asked: deque[tuple[int, _Batch]] = deque()
        self._last_id = 0
        self._failure: ControlError | None = None
        self._ended = asyncio.Event()
        self._unread_since: asyncio.TimerHandle | None = None
        self._heard_bytes = 0
        self.pid: int | None = None
        """The process that listens at the address, as the kernel knows it; None: unknown."""

    @classmethod
    async def connect(
        cls, path: str, identity: SocketId | None, heard: Callable[[Event], None]
    ) -> "Monitor":
        """Connects, waits for the greeting and leaves negotiation mode.

        A monitor serves one client at a time. Others can connect, but are greeted only after the
        first has left; the monitor then runs all that they have sent meanwhile. So nothing is sent
        before the greeting.

        Args:
            path: the monitor's socket.
            identity: the device and inode numbers that the socket must have; None: any.
            heard: takes events, in the event loop.

        Raises:
            ControlError: the monitor cannot be reached, serves another client, or is no monitor.
        """
        sock = await _connected(path, identity)
        try:
            pid = living_peer_of(sock)
            monitor = cls(heard, peer_of(sock).uid)
            await asyncio.get_running_loop().create_unix_connection(lambda: monitor, sock=sock)
        except BaseException:
            sock.close()
            raise
        # The process id is 0 if the process has ended or is outside our PID namespace.
        monitor.pid = pid or None
        try:
            await monitor._answered(monitor._greeting, ControlError(Fault.HELD, _NOT_GREETED))
            (answer,) = await monitor.ask(Command("qmp_capabilities"))
            if isinstance(answer, Refusal):
                raise ControlError(Fault.NONSENSE, f"qmp_capabilities: {answer.desc}")
        except BaseException:
            monitor.close()
            raise
        return monitor

    async def ask(self, *commands: Command) -> list[object]:
        """Sends commands in one write, and waits for all of their answers.

        Returns:
            For each command, in order, the value of "return", or a ``Refusal``.

        Raises:
            ControlError: the connection cannot be used any more.
        """
        if self._failure is not None:
            raise self._failure
        if not commands:
            return []
        assert self._transport is not None
        batch = _Batch(len(commands))
        lines = bytearray()
        for command in commands:
            self._last_id += 1
            self._asked.append((self._last_id, batch))
            # QEMU reads a monitor's socket byte by byte, so lines are short: without blanks, and
            # without "arguments" where a command has none.
            arguments = f',"arguments":{_encode(command.arguments)}' if command.arguments else ""
            line = f'{{"execute":"{command.name}"{arguments},"id":{self._last_id}}}\n'
            lines += line.encode()
        self._transport.write(lines)
        return await self._answered(batch, ControlError(Fault.HANGS))

    async def ended(self) -> ControlError | None:
        """Waits until the connection is closed, by whichever side; returns why."""
        await self._ended.wait()
        return self._failure

    def close(self) -> None:
        """Disconnects at once. Commands without an answer raise ``GONE``."""
        self._fail(ControlError(Fault.GONE))

    async def _answered(self, batch: _Batch, late: ControlError) -> list[object]:
        """A batch's answers; ``late`` is the error where they do not come in time."""
        if not await is_done_within(batch.done, CALL_WITHIN_S):
            self._fail(late)
            raise late
        return batch.done.result()

    # --- asyncio's callbacks ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _connected_of[self._user] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        _connected_of[self._user] -= 1
        fault = Fault.NONSENSE if isinstance(exc, DescriptorsSentError) else Fault.GONE
        why = exc.strerror if isinstance(exc, OSError) else ""
        if self._unread_since is not None:
            self._unread_since.cancel()

        def lost() -> None:
            self._fail(ControlError(fault, printable(why or "")))
            self._ended.set()

        # After what has come before: the last answers say more than that nobody answers any more.
        IN_TURN.do(self._user, lost)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER[: max(1, self._part() - self._heard_bytes)]

    def buffer_updated(self, nbytes: int) -> None:
        self._limit_rate(nbytes)
        IN_TURN.do(self._user, partial(self._read_if_open, bytes(_BUFFER[:nbytes])))

    def _read_if_open(self, some: bytes) -> None:
        if self._failure is None:
            self._read(some)

    def _read(self, some: bytes) -> None:
        first, *lines = some.split(b"\n")
        self._rest += first
        for line in lines:
            whole, self._rest = self._rest, bytearray(line)
            self._take(whole)
            if self._failure is not None:
                return
        if len(self._rest) > MAX_MESSAGE_BYTES:
            self._fail(ControlError(Fault.NONSENSE, f"a line of over {MAX_MESSAGE_BYTES} bytes"))

    def _limit_rate(self, nbytes: int) -> None:
        """Stops reading for the rest of this second once ``_part`` bytes have come in it."""
        assert self._transport is not None
        if self._unread_since is None:
            self._unread_since = asyncio.get_running_loop().call_later(1, self._read_on)
        self._heard_bytes += nbytes
        if self._heard_bytes >= self._part():
            self._transport.pause_reading()

    def _part(self) -> int:
        """How many bytes of this monitor are read in a second."""
        part = MAX_BYTES_OF_A_USER_PER_S // max(1, _connected_of[self._user])
        return min(max(part, LEAST_BYTES_PER_S), MAX_BYTES_PER_S)

    def _read_on(self) -> None:
        assert self._transport is not None
        self._unread_since = None
        self._heard_bytes = 0
        self._transport.resume_reading()

    # --- messages --------------------------------------------------------------------------------

    def _take(self, line: bytearray) -> None:
        try:
            message = _decode(line.decode())
        except (ValueError, RecursionError) as err:
            # RecursionError: brackets deeper than the interpreter's limit.
            self._fail(ControlError(Fault.NONSENSE, f"no JSON: {printable(str(err))}"))
            return
        match message:
            case {"QMP": _} if not self._greeting.answers:
                self._answer(self._greeting, message)
            case {"event": str(name), "timestamp": {"seconds": int(s), "microseconds": int(us)}}:
                self._heard(Event(name, message.get("data"), s * 1_000_000 + us))
            case {"id": int(number), "return": value} if self._expects(number):
                self._answer(self._asked.popleft()[1], value)
            case {"id": int(number), "error": {"class": str(kind), "desc": str(desc)}} if (
                self._expects(number)
            ):
                self._answer(self._asked.popleft()[1], Refusal(kind, shown(desc)))
            case _:
                self._fail(ControlError(Fault.NONSENSE, "not an answer that was asked for"))

    def _expects(self, number: int) -> bool:
        return bool(self._asked) and self._asked[0][0] == number

    def _answer(self, batch: _Batch, value: object) -> None:
        batch.answers.append(value)
        if len(batch.answers) == batch.count and not batch.done.done():
            batch.done.set_result(batch.answers)

    def _fail(self, failure: ControlError) -> None:
        """Ends the connection; calls that wait for answers, and later calls, raise the error."""
        if self._failure is not None:
            return
        self._failure = failure
        for batch in (self._greeting, *(batch for _, batch in self._asked)):
            if not batch.done.done():
                batch.done.set_exception(failure)
                # Read the exception: asyncio would log it if nobody waits for this batch.
                batch.done.exception()
        self._asked.clear()
        assert self._transport is not None
        self._transport.abort()


async def _connected(path: str, identity: SocketId | None) -> socket.socket:
    """A socket connected to a path.

    Raises:
        ControlError: nobody listens there, or the connection is refused.
    """
    try:
        return await connect(path, socket.SOCK_STREAM, identity)
    except ControlError as err:
        if err.fault is Fault.HANGS:
            # The listener's backlog (QEMU's: 1) is full of connections that it has not accepted.
            raise ControlError(Fault.HELD) from err
        raise
