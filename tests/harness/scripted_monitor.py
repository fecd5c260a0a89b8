"""A QEMU monitor without a QEMU: QMP over a real Unix socket, for a VM that a test makes up.

It answers what balloond asks, in QEMU 11.1's words (``tests/vm/test_qmp.py`` asks a real one the
same), and misbehaves as it is told. One event loop serves hundreds.
"""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import uuid4

from balloon_daemon.units import GIB, MIB

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 2, "minor": 1, "major": 11}, "package": "scripted"},
        "capabilities": ["oob"],
    }
}
UNKNOWN = (1 << 64) - 1
Call = Callable[[Callable[[], None]], None]
DEVICE = "/machine/peripheral-anon/device[1]"
STATS = (
    "swap-in", "swap-out", "major-faults", "minor-faults", "free-memory", "total-memory",
    "available-memory", "disk-caches", "htlb-pgalloc", "htlb-pgfail", "oom-kills", "alloc-stalls",
    "async-scans", "direct-scans", "async-reclaims", "direct-reclaims",
)  # fmt: skip


class Misdeed(Enum):
    """What a monitor does instead of answering."""

    HANG = "hang"
    """Reads, and never answers again."""

    NO_GREETING = "no greeting"
    """Accepts, and says nothing: as where somebody else holds the monitor."""

    GARBAGE = "garbage"
    """1 MiB of bytes that are no JSON, in lines."""

    ENDLESS_LINE = "endless line"
    """A line that goes on until the reader closes."""

    HALF_MESSAGE = "half a message"
    """Closes in the middle of a line."""

    CLOSE = "close"
    """Closes between two lines."""

    DEEP = "deep"
    """A hundred thousand brackets."""

    NOT_ASKED = "not asked"
    """An answer to a command that nobody has sent."""

    EVENT_FLOOD = "event flood"
    """Events without end, and no answer."""


@dataclass
class ScriptedVm:
    """The VM behind the monitor, as QEMU would describe it; a test changes it as it likes.

    Attributes:
        ram_bytes: what it was started with.
        dimms: sizes of plugged DIMMs.
        slots: of the machine, for DIMMs.
        actual: what query-balloon says; anything that JSON can hold.
        last_update: of the statistics; 0: no driver.
        stats: by name, without ``stat-``; the others are unknown.
        follows: whether ``actual`` follows each ``balloon`` command at once.
        reports: whether statistics come in the interval that was set.
        interval_s: of the statistics, as found and as set.
        devices: types of the devices that were added.
        place: where they are: those with an id in /machine/peripheral.
        properties: what qom-get says, by path and name.
        uuid: the VM's.
        capabilities: of migrations, those that were switched on.
        answers: what to say to a command instead, by its name.
        targets: what ``balloon`` was told, with the time on CLOCK_MONOTONIC.
        commands: all commands, in order.
    """

    ram_bytes: int = GIB
    dimms: list[int] = field(default_factory=list)
    slots: int = 0
    actual: Any = GIB
    last_update: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    follows: bool = True
    reports: bool = False
    running: bool = True
    interval_s: int = 0
    deflate_on_oom: bool = True
    disk_reads: list[Any] = field(default_factory=lambda: [0])
    migration: dict[str, Any] = field(default_factory=dict)
    uuid: str = field(default_factory=lambda: str(uuid4()))
    capabilities: list[str] = field(default_factory=list)
    memdevs: list[str] = field(default_factory=lambda: ["mem0"])
    thread_id: int = field(default_factory=threading.get_native_id)
    devices: list[str] = field(default_factory=lambda: ["virtio-blk-pci", "virtio-balloon-pci"])
    place: str = "/machine/peripheral-anon"
    properties: dict[tuple[str, str], Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    targets: list[tuple[int, float]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)

    def boot(self) -> None:
        """A driver listens, and has sent its first statistics."""
        self.last_update = int(time.time())

    def send_stats(self, **stats: Any) -> None:
        """The guest sends statistics; names with ``_`` for ``-``."""
        self.stats = {name.replace("_", "-"): value for name, value in stats.items()}
        # A second later than the last ones, however soon a test sends them.
        self.last_update = max(int(time.time()), self.last_update + 1)

    def answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """What QEMU's "return" would hold.

        Raises:
            _RefusedError: QEMU would refuse.
        """
        self.commands.append(command)
        if command in self.answers:
            return self.answers[command]
        method = getattr(self, "_" + command.replace("-", "_"), None)
        if method is None:
            raise _RefusedError("CommandNotFound", f"The command {command} has not been found")
        return method(**{name.replace("-", "_"): value for name, value in arguments.items()})

    def _has_balloon(self) -> None:
        if not any(kind.startswith("virtio-balloon") for kind in self.devices):
            raise _RefusedError("DeviceNotActive", "No balloon device has been activated")

    def _qmp_capabilities(self) -> Any:
        return {}

    def _balloon(self, value: int) -> Any:
        self._has_balloon()
        if value <= 0:
            raise _RefusedError("GenericError", "Parameter 'value' expects a size")
        self.targets.append((value, time.monotonic()))
        if self.follows and self.last_update:
            self.actual = min(value, self.ram_bytes + sum(self.dimms))
        return {}

    def _query_balloon(self) -> Any:
        self._has_balloon()
        return {"actual": self.actual}

    def _query_status(self) -> Any:
        return {"status": "running" if self.running else "paused", "running": self.running}

    def _query_memory_size_summary(self) -> Any:
        return {"base-memory": self.ram_bytes, "plugged-memory": sum(self.dimms)}

    def _query_memory_devices(self) -> Any:
        return [
            {"type": "dimm", "data": {"id": f"dimm{number}", "size": size, "slot": number}}
            for number, size in enumerate(self.dimms)
        ]

    def _query_memdev(self) -> Any:
        return [{"id": name, "size": self.ram_bytes, "share": True} for name in self.memdevs]

    def _query_uuid(self) -> Any:
        return {"UUID": self.uuid}

    def _query_cpus_fast(self) -> Any:
        return [{"thread-id": self.thread_id, "cpu-index": 0}]

    def _query_blockstats(self) -> Any:
        return [
            {"device": "", "qdev": f"/machine/disk{number}", "stats": {"rd_bytes": read}}
            for number, read in enumerate(self.disk_reads)
        ]

    def _query_migrate(self) -> Any:
        return self.migration

    def _migrate_set_capabilities(self, capabilities: Any) -> Any:
        if self.migration.get("status") == "active":
            raise _RefusedError("GenericError", "There's a migration process in progress")
        self.capabilities += [each["capability"] for each in capabilities if each["state"]]
        return {}

    def _qom_list(self, path: str) -> Any:
        kinds = enumerate(self.devices) if path == self.place else ()
        children = [{"name": f"device[{n}]", "type": f"child<{kind}>"} for n, kind in kinds]
        return [{"name": "type", "type": "string"}, *children]

    def _qom_get(self, path: str, property: str) -> Any:
        if (path, property) in self.properties:
            return self.properties[path, property]
        if path == "/machine" and property == "memory":
            room = {"slots": self.slots, "max-size": 8 * self.ram_bytes} if self.slots else {}
            return {"size": self.ram_bytes} | room
        if path.startswith("/objects/") and property == "type":
            return "memory-backend-ram"
        if path == self._device_path():
            return {
                "guest-stats": self._guest_stats(),
                "deflate-on-oom": self.deflate_on_oom,
                "guest-stats-polling-interval": self.interval_s,
            }[property]
        if path.startswith("/machine/peripheral"):
            raise _RefusedError("DeviceNotFound", f"Device '{path}' not found")
        raise _RefusedError("GenericError", f"Property '{property}' not found")

    def _guest_stats(self) -> Any:
        if self.reports and self.last_update and self.interval_s:
            self.last_update = int(time.time())
        known = self.stats if self.last_update else {}
        stats = {f"stat-{name}": known.get(name, UNKNOWN) for name in STATS}
        return {"stats": stats, "last-update": self.last_update}

    def _qom_set(self, path: str, property: str, value: Any) -> Any:
        if path != self._device_path():
            raise _RefusedError("DeviceNotFound", f"Device '{path}' not found")
        assert property == "guest-stats-polling-interval"
        self.interval_s = value
        return {}

    def _device_path(self) -> str:
        for number, kind in enumerate(self.devices):
            if kind.startswith("virtio-balloon"):
                return f"{self.place}/device[{number}]"
        return ""


class _RefusedError(Exception):
    def __init__(self, kind: str, desc: str) -> None:
        self.error = {"class": kind, "desc": desc}


class ScriptedMonitor:
    """A monitor that listens at a path; one client at a time is greeted, as QEMU does it.

    Attributes:
        vm: what it speaks of.
        misdeed: what it does at the next command; ``NO_GREETING`` at the next client.
        clients: how many have connected so far.
    """

    def __init__(self, path: Path, vm: ScriptedVm | None = None) -> None:
        self.path = path
        self.vm = vm or ScriptedVm()
        self.misdeed: Misdeed | None = None
        self.clients = 0
        self._server: asyncio.Server | None = None
        self._turn = asyncio.Lock()
        self._client: asyncio.StreamWriter | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._acting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "ScriptedMonitor":
        """Listens."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        """The VM ends: nobody listens, and every client is disconnected."""
        assert self._server is not None
        self._server.close()
        self.disconnect()
        await self._server.wait_closed()

    @property
    def connected(self) -> bool:
        """Whether a client is connected."""
        return bool(self._open)

    def disconnect(self) -> None:
        """Closes all connections, and goes on listening."""
        for writer in self._open:
            writer.transport.abort()

    def send_event(self, name: str, at_s: float | None = None, **data: Any) -> None:
        """Tells the client of an event that happened now, or at a time of QEMU's clock."""
        assert self._client is not None
        seconds = time.time() if at_s is None else at_s
        stamp = {"seconds": int(seconds), "microseconds": int(seconds % 1 * 1e6)}
        _send(self._client, {"event": name, "data": data, "timestamp": stamp})

    def reset(self) -> None:
        """The guest is reset: QEMU speaks twice of it, and keeps what query-balloon says."""
        self.vm.last_update = 0
        self.send_event("RESET", guest=False, reason="host-qmp-system-reset")
        self.send_event("RESET", guest=True, reason="guest-reset")

    def misbehave(self, misdeed: Misdeed) -> None:
        """Misbehaves towards the present client, at once or, to hang, from its next command on."""
        if misdeed is Misdeed.HANG or self._client is None:
            self.misdeed = misdeed
        else:
            self._acting = asyncio.get_running_loop().create_task(
                _misbehave(misdeed, self._client)
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        self._open.add(writer)
        try:
            async with self._turn:
                self._client = writer
                if self.misdeed is not Misdeed.NO_GREETING:
                    _send(writer, GREETING)
                    await self._answer_all(reader, writer)
                else:
                    await reader.read()
        except (ConnectionError, asyncio.CancelledError):
            pass  # The client, or the test, is through with it.
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer_all(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while line := await reader.readline():
            if self.misdeed is not None:
                misdeed, self.misdeed = self.misdeed, None
                await _misbehave(misdeed, writer)
                await reader.read()
                return
            request = json.loads(line)
            answer = {"id": request["id"]}
            try:
                answer["return"] = self.vm.answer(request["execute"], request.get("arguments", {}))
            except _RefusedError as err:
                answer["error"] = err.error
            _send(writer, answer)
            await writer.drain()


def _send(writer: asyncio.StreamWriter, message: object) -> None:
    writer.write(json.dumps(message).encode() + b"\r\n")


async def _misbehave(misdeed: Misdeed, writer: asyncio.StreamWriter) -> None:
    match misdeed:
        case Misdeed.GARBAGE:
            writer.write((os.urandom(1023).replace(b"\n", b"x") + b"\n") * 1024)
        case Misdeed.HALF_MESSAGE:
            writer.write(b'{"return": {"actu')
            writer.close()
        case Misdeed.CLOSE:
            writer.close()
        case Misdeed.DEEP:
            writer.write(b"[" * 100_000 + b"\n")
        case Misdeed.NOT_ASKED:
            _send(writer, {"return": {}, "id": 1 << 40})
        case Misdeed.ENDLESS_LINE:
            await _send_for_ever(writer, b"x" * 65536)
        case Misdeed.EVENT_FLOOD:
            event = b'{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}}\n'
            await _send_for_ever(writer, event * 100)
        case Misdeed.HANG | Misdeed.NO_GREETING:
            pass


async def _send_for_ever(writer: asyncio.StreamWriter, content: bytes) -> None:
    """Until the reader closes, at which ``drain`` raises ``ConnectionError``."""
    while True:
        writer.write(content)
        await writer.drain()


@contextmanager
def monitors_in_a_thread(
    monitors: Sequence[contextlib.AbstractAsyncContextManager[object]],
) -> Iterator[Call]:
    """Serves monitors, or other VMMs' servers, from a thread's event loop, beside a test that is
    no coroutine.

    Yields:
        Runs a function in that loop, which alone may touch the monitors, and waits for it.
    """
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for monitor in monitors:
                await stack.enter_async_context(monitor)
            started.set()
            await stop.wait()
        # A client that was accepted just now has its task some turns later, and a connection is
        # closed a turn after its task has ended. A loop that closed before would leave their
        # sockets to the garbage collector.
        for _ in range(4):
            await asyncio.sleep(0)
            if rest := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in rest:
                    task.cancel()
                await asyncio.wait(rest)

    def run(function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), loop).result()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    started.wait()
    try:
        yield run
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def well() -> ScriptedVm:
    """A VM of 1 GiB whose guest sends statistics, by which it lacks nothing."""
    vm = ScriptedVm(reports=True)
    vm.boot()
    vm.send_stats(free_memory=300 * MIB, available_memory=400 * MIB)
    return vm
