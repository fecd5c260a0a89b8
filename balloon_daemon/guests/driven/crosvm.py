"""Drives the balloon of a crosvm VM through its control socket.

Each request is one JSON value in one packet (SOCK_SEQPACKET), and has one answer. What the socket
lacks, and what follows:

- **The VM's size** is not told. It is the size of the file that is the VM's memory, if balloond
  may look at crosvm's descriptors (/proc/PID/fd). Otherwise the total that the guest reports
  counts as the size; it is less, so the balloon stays smaller, but nothing breaks.
- **Statistics**, and with them the balloon's size, are answered when the guest's driver has
  answered. Without a driver, versions before June 2026 never answer; later ones answer ENOTCONN.
  crosvm queues each request, and requests to set the size wait behind it: so no second request
  for statistics is sent before the first has its answer. A guest that has answered before and does
  not now counts as paused.
- Statistics are read on a second connection, as an answer does not name its request.

Source: crosvm's vm_control/src/lib.rs (VmRequest, VmResponse), balloon_tube.rs
(BalloonControlCommand), base/src/sys/linux/tube.rs (messages), 2023-08 and 2026-08.
"""

import asyncio
import errno
import json
import socket
import time
from collections.abc import Mapping

from balloon_daemon.guests.driven.answers import (
    member,
    named_stats,
    nonsense,
    parse,
    shown,
    whole_number,
)
from balloon_daemon.guests.driven.control import (
    CALL_WITHIN_S,
    ControlError,
    Fault,
    Found,
    Noticed,
    Sample,
)
from balloon_daemon.guests.driven.parsing import TURNS
from balloon_daemon.guests.driven.unix_socket import connect
from balloon_daemon.guests.driven.vmm_process import open_files
from balloon_daemon.guests.seam import Ability, GuestState, Stats
from balloon_daemon.linux.credentials import living_peer_of, peer_of
from balloon_daemon.linux.passed_fds import DescriptorsSentError
from balloon_daemon.units import MOST_MEMORY_BYTES

MAX_MESSAGE_BYTES = 64 * 1024
"""The longest answer; one with statistics is below 1 KiB."""

STATS_WITHIN_S = 1.0
"""How long a guest may take to answer before it counts as paused, or as one without driver."""

_STATS: Mapping[str, object] = {"BalloonCommand": "Stats"}
_MEMORY_FILE = "/memfd:crosvm_guest"


class PacketConnection:
    """A connection on which each request has one answer, in the order of the requests.

    Args:
        sock: the connected socket, which this object closes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self.pid, self._user = living_peer_of(sock), peer_of(sock).uid
        self._answer: asyncio.Future[bytes] | None = None
        self.lost: asyncio.Future[ControlError] = self._loop.create_future()
        """Done once the connection has ended; its result is the reason."""
        self._loop.add_reader(self._socket, self._read)

    async def ask(self, request: Mapping[str, object], within_s: float) -> object:
        """Sends a request. If the last request still has no answer, sends nothing, and waits for
        that answer.

        An answer that came after its call had timed out, and before this call, is dropped: it may
        be old by now.

        Returns:
            The answer; None where no answer comes in time.

        Raises:
            ControlError: the connection has ended, or the answer is no JSON.
        """
        if self._answer is None or self._answer.done():
            self._send(json.dumps(request).encode())
            self._answer = self._loop.create_future()
        either: list[asyncio.Future[bytes] | asyncio.Future[ControlError]] = [
            self._answer,
            self.lost,
        ]
        await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if self._answer.done():
            message, self._answer = self._answer.result(), None
            if len(message) > MAX_MESSAGE_BYTES:
                raise nonsense("message", "over 64 KiB")
            await TURNS.room(self._user, len(message))
            if (answer := parse(message)) is None:
                raise nonsense("message", "null")
            return answer
        if self.lost.done():
            raise self.lost.result().anew()
        return None

    def close(self, why: ControlError | None = None) -> None:
        """Disconnects at once; ``why``: None where crosvm has ended, or the connection is not
        needed any more."""
        if not self.lost.done():
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self.lost.set_result(why or ControlError(Fault.GONE))

    def _send(self, message: bytes) -> None:
        if self.lost.done():
            raise self.lost.result().anew()
        try:
            self._socket.send(message, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise ControlError(Fault.HANGS) from None
        except OSError as err:
            raise ControlError(Fault.GONE, err.strerror or "") from err

    def _read(self) -> None:
        try:
            message = self._socket.recv(MAX_MESSAGE_BYTES + 1)
        except BlockingIOError:
            return
        except DescriptorsSentError as err:
            self.close(ControlError(Fault.NONSENSE, err.strerror or ""))
            return
        except OSError:
            message = b""
        if not message:
            self.close()
        elif self._answer is None or self._answer.done():
            self.close(nonsense("message without a request", message[:64]))
        else:
            self._answer.set_result(message)


class CrosvmControl:
    """One VM, by its control socket.

    Args:
        path: the socket's path (``--socket``).
        stats_within_s: how long its guest may take to answer.
    """

    def __init__(self, path: str, stats_within_s: float = STATS_WITHIN_S) -> None:
        self._path, self._stats_within_s = path, stats_within_s
        self._orders: PacketConnection | None = None
        self._stats: PacketConnection | None = None
        self._memory_file, self._memory_bytes = "", 0
        self._guest_bytes = 0
        """The greatest total memory that the guest has reported."""
        self._answered = False
        self._refused_bytes: int | None = None
        """The size to send again once a driver listens; None: crosvm has taken the last one."""

    async def open(self, noticed: Noticed) -> Found:
        self._orders = PacketConnection(await connect(self._path, socket.SOCK_SEQPACKET))
        self._stats = PacketConnection(await connect(self._path, socket.SOCK_SEQPACKET))
        self._memory_file, self._memory_bytes = await _memory_of(self._orders.pid)
        sample = await self.sample()
        return Found(
            sample.vm_mem_bytes,
            sample.balloon_bytes,
            sample.state,
            frozenset({Ability.STATS}),
            self._orders.pid,
            self._memory_file,
        )

    async def set_balloon(self, balloon_bytes: int) -> None:
        assert self._orders is not None
        self._refused_bytes = balloon_bytes
        # Versions before August 2023 know no wait_for_success, and ignore it.
        adjust = {"num_bytes": balloon_bytes, "wait_for_success": False}
        answer = await self._orders.ask({"BalloonCommand": {"Adjust": adjust}}, CALL_WITHIN_S)
        if answer is None:
            raise ControlError(Fault.HANGS)
        if _has_driver(answer):
            if answer != "Ok":
                raise nonsense("Adjust", answer)
            self._refused_bytes = None

    async def sample(self) -> Sample:
        assert self._stats is not None
        state, balloon_bytes, stats = self._read(
            await self._stats.ask(_STATS, self._stats_within_s), now_s := time.monotonic()
        )
        if state is GuestState.RUNNING and self._refused_bytes is not None:
            await self.set_balloon(self._refused_bytes)
        vm_mem_bytes = self._memory_bytes or self._guest_bytes
        if not vm_mem_bytes:
            seen = f"no {_MEMORY_FILE} in /proc/{self._stats.pid}/fd"
            raise ControlError(Fault.NO_SIZE, seen)
        return Sample(vm_mem_bytes, balloon_bytes, state, stats, now_s)

    def _read(self, answer: object, now_s: float) -> tuple[GuestState, int | None, Stats | None]:
        """Reads an answer with statistics. Returns the guest's state, its balloon's size and its
        statistics: only these are kept, not the parsed answer.

        Args:
            answer: the parsed JSON; None: crosvm has not answered in time.
            now_s: when the answer came.
        """
        if answer is None:
            return (GuestState.PAUSED if self._answered else GuestState.NO_DRIVER), None, None
        self._answered = _has_driver(answer)
        if not self._answered:
            return GuestState.NO_DRIVER, None, None
        sent = member(answer, "BalloonStats")
        balloon_bytes = whole_number(
            sent, "balloon_actual", self._memory_bytes or MOST_MEMORY_BYTES
        )
        stats = named_stats(member(sent, "stats"), now_s)
        total_bytes = 0 if stats is None else stats.total_bytes or 0
        if 0 < total_bytes < balloon_bytes:
            total_bytes += balloon_bytes  # This guest leaves the balloon out of its total.
        if total_bytes <= MOST_MEMORY_BYTES:
            self._guest_bytes = max(self._guest_bytes, total_bytes)
        return GuestState.RUNNING, balloon_bytes, stats

    async def watch(self, every_s: float | None) -> None:
        """Does nothing: each sample asks the guest for statistics."""

    async def gone(self) -> ControlError:
        assert self._orders is not None
        assert self._stats is not None
        ended, _ = await asyncio.wait(
            [self._orders.lost, self._stats.lost], return_when=asyncio.FIRST_COMPLETED
        )
        return ended.pop().result()

    def close(self) -> None:
        for connection in (self._orders, self._stats):
            if connection is not None:
                connection.close()


def _has_driver(answer: object) -> bool:
    """Whether an answer comes from a guest with a driver.

    Raises:
        ControlError: the answer is an error other than ENOTCONN, which means no driver.
    """
    match answer:
        case {"Err": errno.ENOTCONN}:
            return False
        case {"Err": errno.ENOTSUP | errno.ENODEV}:
            raise ControlError(Fault.NO_BALLOON)
        case {"Err": why} | {"ErrString": why}:
            raise ControlError(Fault.REFUSED, shown(why))
    return True


async def _memory_of(pid: int) -> tuple[str, int]:
    """The path of the file that a crosvm keeps its VM's memory in, and the file's size; "" and 0
    where balloond may not see crosvm's descriptors, or none of them is that file."""
    files = (await open_files(pid, [_MEMORY_FILE])).found
    return next(((each.path, each.size_bytes) for each in files if each.size_bytes), ("", 0))
