"""One connection to a QEMU monitor: QMP's lines, commands, answers and events, within limits.

Runs in the controller. Written by hand instead of with ``qemu.qmp`` (0.0.6), which keeps each
event until somebody takes it, has no time limits, and imports ``ssl``: loading ``qemu.qmp`` costs
4.4 MiB and 39 ms, loading this module and the others of QMP 0.1 MiB and 2 ms.

Source: QEMU, docs/interop/qmp-spec.rst.
"""

import asyncio
import gc
import json
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from balloon_daemon.errors import printable
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.answers import MAX_NESTED, has_few_nested
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import CALL_WITHIN_S, ControlError
from balloon_daemon.guests.driven.parsing import TURNS, Lines
from balloon_daemon.guests.driven.qmp_answers import Refusal, shown
from balloon_daemon.guests.driven.reading_share import ReadingShare
from balloon_daemon.guests.driven.unix_socket import connect
from balloon_daemon.guests.waiting import is_done_within
from balloon_daemon.linux.credentials import living_peer_of, peer_of
from balloon_daemon.linux.passed_fds import DescriptorsSentError
from balloon_daemon.named_tuple import NamedTuple

MAX_MESSAGE_BYTES = 256 * 1024
"""The longest line taken. The longest answer that is asked for, query-blockstats, has 1 KiB for
each node of a VM's disks."""

MAX_EVENT_BYTES = 16 * 1024
"""The longest line taken while no answer is waited for. The longest events are below 1 KiB; a line
that does not end may be kept as long as its monitor likes, in each of a user's monitors."""

_NOT_GREETED = "it does not greet; nor does a socket that is not QMP's"


def _refuse(word: str) -> object:
    raise ValueError(f"{word} is no JSON")


_decode = json.JSONDecoder(parse_constant=_refuse).decode
_encode = json.JSONEncoder(separators=(",", ":")).encode


T = TypeVar("T")


class Question(Generic[T]):
    """A command of the monitor, asked once, and what is read of its answer.

    The answer is read as soon as it has come, and dropped: CPython takes up to 30 bytes for each
    byte of JSON, and one user's monitors may have many answers waited for at a time.

    Args:
        name: the command's name.
        read: makes the value of an answer; may raise ``ControlError``.
        arguments: the command's arguments.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[object], T],
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self._read = read
        self._value: T | ControlError = ControlError(Fault.GONE)

    @property
    def value(self) -> T:
        """The answer's value. Raises ControlError: the answer has none."""
        if isinstance(self._value, ControlError):
            raise self._value.anew()
        return self._value

    def take(self, answer: object) -> None:
        """Reads the answer: the value of "return", or a ``Refusal``."""
        try:
            self._value = self._read(answer)
        except ControlError as err:
            self._value = err.anew()


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
    """Commands sent together, whose answers are waited for together.

    Args:
        count: how many answers are to come.
    """

    def __init__(self, count: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: ControlError | None = None
        """Why some answers do not come."""
        self._left = count

    def answered(self) -> None:
        """Notes that another answer has come."""
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(None)


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
        self._lines = Lines()
        self._greeting = _Batch(1)
        self._asked: deque[tuple[int, Question[Any], _Batch]] = deque()
        self._last_id = 0
        self._failure: ControlError | None = None
        self._ended = asyncio.Event()
        self._reading: ReadingShare | None = None
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
            negotiated = Question("qmp_capabilities", _negotiated)
            await monitor.ask(negotiated)
            if negotiated.value:
                raise ControlError(Fault.NONSENSE, f"qmp_capabilities: {negotiated.value}")
        except BaseException:
            monitor.close()
            raise
        return monitor

    async def ask(self, *questions: Question[Any]) -> None:
        """Sends commands in one write, and waits until all of their answers have been read.

        Raises:
            ControlError: the connection cannot be used any more.
        """
        if self._failure is not None:
            raise self._failure.anew()
        if not questions:
            return
        assert self._transport is not None
        batch = _Batch(len(questions))
        lines = bytearray()
        for question in questions:
            self._last_id += 1
            self._asked.append((self._last_id, question, batch))
            # QEMU reads a monitor's socket byte by byte, so lines are short: without blanks, and
            # without "arguments" where a command has none.
            arguments = f',"arguments":{_encode(question.arguments)}' if question.arguments else ""
            line = f'{{"execute":"{question.name}"{arguments},"id":{self._last_id}}}\n'
            lines += line.encode()
        self._transport.write(lines)
        await self._answered(batch, ControlError(Fault.HANGS))

    async def ended(self) -> ControlError | None:
        """Waits until the connection is closed, by whichever side; returns why."""
        await self._ended.wait()
        return self._failure

    def close(self) -> None:
        """Disconnects at once. Commands without an answer raise ``GONE``."""
        self._fail(ControlError(Fault.GONE))

    async def _answered(self, batch: _Batch, late: ControlError) -> None:
        """Waits for a batch's answers; ``late`` is the error where they do not come in time."""
        if not await is_done_within(batch.done, CALL_WITHIN_S):
            self._fail(late)
        if batch.failure is not None:
            raise batch.failure.anew()

    # --- asyncio's callbacks ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._reading = ReadingShare(self._user, self._resume)

    def connection_lost(self, exc: Exception | None) -> None:
        fault = Fault.NONSENSE if isinstance(exc, DescriptorsSentError) else Fault.GONE
        why = exc.strerror if isinstance(exc, OSError) else ""
        self._fail(ControlError(fault, printable(why or "")))
        if self._reading is not None:
            self._reading.end()
        self._ended.set()
        self._heard = _unheard  # It refers to whoever refers to this connection.

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self._reading is not None
        return self._reading.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        assert self._reading is not None
        assert self._transport is not None
        self._lines.add(self._reading.take(nbytes))
        if not self._reading.has_room:
            self._transport.pause_reading()
        if not self._lines.waits:
            self._parse()

    def _parse(self) -> None:
        """Takes the lines that are complete, as far as ``TURNS`` has room for them."""
        while (line := self._lines.take()) is not None:
            # Python's garbage collector would look at all of a line's values, which are soon
            # dropped, up to several times: for some lines that takes as long as parsing them.
            gc.disable()
            try:
                self._take(line)
            finally:
                gc.enable()
            if self._failure is not None:
                return
        if self._lines.waits:
            assert self._transport is not None
            self._transport.pause_reading()
            TURNS.wait(self._user, self._go_on)
            return
        is_asked = self._asked or not self._greeting.done.done()
        most = MAX_MESSAGE_BYTES if is_asked else MAX_EVENT_BYTES
        if self._lines.unfinished_bytes > most:
            self._fail(ControlError(Fault.NONSENSE, f"a line of over {most} bytes"))

    def _go_on(self) -> None:
        if self._failure is None:
            self._parse()
            self._resume()

    def _resume(self) -> None:
        """Goes on reading, unless this second's bytes are used up or a line waits for parsing."""
        assert self._reading is not None
        assert self._transport is not None
        if not self._lines.waits and self._reading.has_room:
            self._transport.resume_reading()

    # --- messages --------------------------------------------------------------------------------

    def _take(self, line: bytearray) -> None:
        if not has_few_nested(line):
            self._fail(
                ControlError(Fault.NONSENSE, f"a line of over {MAX_NESTED} arrays and objects")
            )
            return
        try:
            message = _decode(line.decode())
        except (ValueError, RecursionError) as err:
            # RecursionError: brackets deeper than the interpreter's limit.
            self._fail(ControlError(Fault.NONSENSE, f"no JSON: {printable(str(err))}"))
            return
        match message:
            case {"QMP": _} if not self._greeting.done.done():
                self._greeting.answered()
            case {"event": str(name), "timestamp": {"seconds": int(s), "microseconds": int(us)}}:
                self._heard(Event(name, message.get("data"), s * 1_000_000 + us))
            case {"id": int(number), "return": value} if self._expects(number):
                self._answer(value)
            case {"id": int(number), "error": {"class": str(kind), "desc": str(desc)}} if (
                self._expects(number)
            ):
                self._answer(Refusal(kind, shown(desc)))
            case _:
                self._fail(ControlError(Fault.NONSENSE, "not an answer that was asked for"))

    def _expects(self, number: int) -> bool:
        return bool(self._asked) and self._asked[0][0] == number

    def _answer(self, value: object) -> None:
        _, question, batch = self._asked.popleft()
        question.take(value)
        batch.answered()

    def _fail(self, failure: ControlError) -> None:
        """Ends the connection; calls that wait for answers, and later calls, raise the error."""
        if self._failure is not None:
            return
        self._failure = failure
        for batch in (self._greeting, *(batch for *_, batch in self._asked)):
            if not batch.done.done():
                batch.failure = failure
                batch.done.set_result(None)
        self._asked.clear()
        assert self._transport is not None
        self._transport.abort()


def property_of(path: str, name: str) -> dict[str, object]:
    """The arguments of qom-get."""
    return {"path": path, "property": name}


def _unheard(event: Event) -> None:
    """Takes no events of a connection that has ended."""


def _negotiated(answer: object) -> str:
    """Why negotiation mode was not left; "": it was."""
    return answer.desc if isinstance(answer, Refusal) else ""


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
