"""balloond's side of one process that makes libvirt's calls (``process.py``).

libvirt cannot give a call up. A call that gets no answer in time goes on in that process: it still
counts as one of the ``MAX_CALLS`` calls at a time, and its domain gets no further call. When
``MAX_HANGING`` calls hang, the process is killed.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.control import CALL_WITHIN_S, ControlError
from balloon_daemon.guests.libvirt import wire
from balloon_daemon.guests.libvirt.process import MAX_CALLS, MAX_LINE_BYTES
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.figures import lockable

MAX_HANGING = MAX_CALLS - 1
"""The process is killed when so many calls hang. Until then one further call is possible."""

ENDS_WITHIN_S = 5.0
"""How long to wait for a killed process to end."""

_PASSED_ON = ("HOME", "LD_LIBRARY_PATH", "XDG_RUNTIME_DIR")
"""Environment variables that libvirt needs: for SSH keys, libraries and a user's own sockets."""

_GONE = "libvirt's client has ended"

Heard = Callable[[wire.Happened], None]


class Client:
    """The process that makes calls of one libvirt for balloond, and those calls.

    Args:
        process: the process, which has been started.
        heard: takes libvirt's events, in the event loop.
        streams: what the process sends, and what it receives.
    """

    def __init__(
        self,
        process: "_Process",
        heard: Heard,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._process = process
        self._heard = heard
        reader, self._writer = streams
        self._places = asyncio.Semaphore(MAX_CALLS)
        self._calls: dict[int, asyncio.Future[object]] = {}
        self._busy: set[str] = set()
        """Domains with a call that has no answer yet."""
        self._hanging: dict[int, str] = {}
        """The calls that hang, each with its domain."""
        self.hung: tuple[str, ...] = ()
        """The domains whose calls hung, if the process was killed because ``MAX_HANGING`` calls
        hung; else empty."""
        self._last = 0
        self._ended: asyncio.Future[ControlError] = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._listen(reader))

    @classmethod
    async def start(cls, command: Sequence[str], low: LowNumbers, heard: Heard) -> "Client":
        """Starts a process.

        Args:
            command: its program and arguments; the number of its socket is added.
            low: starts the process without any descriptor that a VMM has sent.
            heard: takes events, in the event loop.

        Raises:
            OSError: the kernel allows no further process or descriptor.
        """
        process, sock = _Process.start(command, low)
        try:
            streams = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES)
        except BaseException:
            sock.close()
            process.kill()
            raise
        return cls(process, heard, streams)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def why_ended(self) -> ControlError | None:
        """Why no more calls can be made; None: calls can be made."""
        return self._ended.result() if self._ended.done() else None

    async def ended(self, within_s: float | None = None) -> bool:
        """Waits until no more calls can be made; False: calls can still be made after so many
        seconds."""
        await asyncio.wait([self._ended], timeout=within_s)
        return self._ended.done()

    async def call(
        self,
        do: str,
        arguments: Mapping[str, str | int],
        domain: str = "",
        within_s: float = CALL_WITHIN_S,
    ) -> object:
        """Makes a call.

        Args:
            do: the call's name in ``process.py``.
            arguments: the call's arguments.
            domain: the domain, which may have one call at a time; "": the whole connection.
            within_s: how long the call may take.

        Returns:
            The JSON value that the process answers, unchecked.

        Raises:
            ControlError: the call has failed.
        """
        if domain in self._busy:
            raise ControlError(Fault.HANGS, "an earlier call has not returned")
        self._busy.add(domain)
        try:
            await self._places.acquire()
        except asyncio.CancelledError:
            self._busy.discard(domain)
            raise
        self._last += 1
        number = self._last
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._returned(number, domain))
        if self.why_ended is None:
            self._writer.write(wire.encode_call(number, do, arguments))
        else:
            answer.set_result(ControlError(Fault.GONE, _GONE))
        await asyncio.wait([answer], timeout=within_s)
        if not answer.done():
            self._hangs(number, domain)
            raise ControlError(Fault.HANGS, f"no answer within {within_s:.0f} s")
        content = answer.result()
        if isinstance(content, ControlError):
            # Raise a new error: raising one error object again would extend its traceback.
            raise ControlError(content.fault, content.detail)
        return content

    def _returned(self, number: int, domain: str) -> None:
        del self._calls[number]
        self._busy.discard(domain)
        self._hanging.pop(number, None)
        self._places.release()

    def _hangs(self, number: int, domain: str) -> None:
        self._hanging[number] = domain
        if len(self._hanging) >= MAX_HANGING and self.why_ended is None:
            self.hung = tuple(self._hanging.values())
            self.kill(ControlError(Fault.HANGS, f"{len(self._hanging)} calls have not returned"))

    def kill(self, why: ControlError) -> None:
        """Ends the process at once; calls that have not returned fail with ``GONE``."""
        self._process.kill()
        if self._ended.done():
            return
        self._ended.set_result(why)
        for answer in self._calls.values():
            if not answer.done():
                answer.set_result(ControlError(Fault.GONE, _GONE))

    async def close(self) -> bool:
        """Ends the process; False where the kernel does not end it in time."""
        self.kill(ControlError(Fault.GONE, _GONE))
        await asyncio.wait([self._task])
        return await self._process.wait(ENDS_WITHIN_S)

    # --- what the process says ------------------------------------------------------------------

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        why = ControlError(Fault.GONE, _GONE)
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                self._process.began()
                self._take(wire.decode_line(line))
        except ControlError as err:
            why = err
        except (OSError, ValueError) as err:  # ValueError: too long a line
            why = ControlError(Fault.NONSENSE, wire.shown(str(err)))
        finally:
            self._writer.close()
            self.kill(why)

    def _take(self, said: wire.Answer | wire.Happened | wire.Died) -> None:
        match said:
            case wire.Answer():
                answer = self._calls.get(said.call)
                if answer is None or answer.done():
                    raise ControlError(Fault.NONSENSE, "an answer to no call")
                answer.set_result(said.content)
            case wire.Happened():
                self._heard(said)
            case wire.Died():
                raise ControlError(Fault.GONE, said.detail)


class _Process:
    """A client's process by its pidfd; it is reaped when it ends.

    Args:
        pid: its process id.
        low: started the process; has a copy of the process's end of the socket until ``began``.
    """

    def __init__(self, pid: int, low: LowNumbers) -> None:
        self.pid = pid
        self._low: LowNumbers | None = low
        self._pidfd = lockable(os.pidfd_open(pid))
        self._reaped = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd.fileno(), self._reap)

    @classmethod
    def start(cls, command: Sequence[str], low: LowNumbers) -> "tuple[_Process, socket.socket]":
        """Starts the process; returns it with the socket to it."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                fd = low.duplicate(theirs.fileno())
                environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
                environment |= {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
                pid = low.exec([*command, str(fd)], environment, fd)
            return cls(pid, low), ours
        except BaseException:
            ours.close()
            low.close_duplicate()
            raise

    def began(self) -> None:
        """Closes balloond's copy of the process's end of the socket.

        Called once the process has sent a message or has ended: before that it may still share
        balloond's descriptor table (CLONE_FILES), and this close would close its end too.
        """
        if self._low is not None:
            self._low.close_duplicate()
            self._low = None

    def kill(self) -> None:
        """Sends SIGKILL; does nothing where the process has ended."""
        if self._pidfd.fileno() >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd.fileno(), signal.SIGKILL)

    async def wait(self, within_s: float) -> bool:
        """Whether the process ends within so many seconds."""
        await asyncio.wait([self._reaped], timeout=within_s)
        return self._reaped.done()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd.fileno())
        self._pidfd.close()
        os.waitpid(self.pid, os.WNOHANG)
        self.began()
        self._reaped.set_result(None)
