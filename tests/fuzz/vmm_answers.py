"""Target: what a VMM answers on its control socket: Firecracker, Cloud Hypervisor, crosvm.

The answers go through real sockets. Whatever comes, a call ends with figures in range or with a
``ControlError`` that can be put into one line, and nothing stays open.
"""

import asyncio
import json
import os
import socket
import tempfile
from pathlib import Path
from unittest.mock import patch

from balloon_daemon.guests.driven.cloud_hypervisor import CloudHypervisorControl
from balloon_daemon.guests.driven.control import Control, ControlError, Found, Sample
from balloon_daemon.guests.driven.crosvm import CrosvmControl
from balloon_daemon.guests.driven.firecracker import FirecrackerControl
from balloon_daemon.guests.driven.lookups import LOOKUPS, ask_here
from balloon_daemon.guests.seam import GuestState
from balloon_daemon.units import GIB, MOST_MEMORY_BYTES
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import no_fd_left_open, require

_PATH = Path(tempfile.mkdtemp(prefix="balloond-fuzz-", dir="/dev/shm")) / "vmm.sock"
MAX_CALLS = 16
_TEXT = 200
"""How much of a VMM's words may be in an error, beside the name of what is wrong."""

_MEMORY = {"size": GIB, "hugepages": False}
_STATS = {"free_memory": 5, "total_memory": GIB, "oom_kill": 1}
_ANSWERS: dict[bytes, object] = {
    b"GET / ": {"state": "Running"},
    b"/vm/config": {
        "balloon": {"amount_mib": 7, "deflate_on_oom": True, "stats_polling_interval_s": 5},
        "machine-config": {"mem_size_mib": 1024, "huge_pages": "None"},
    },
    b"/balloon/statistics": {"actual_pages": 1792, **_STATS},
    b"vm.info": {
        "config": {"memory": _MEMORY, "balloon": {"size": 0}, "devices": None},
        "state": "Running",
        "memory_actual_size": GIB - 4096,
    },
    b"vm.balloon-stats": {"last_update": 7, "stats": _STATS},
    b"Stats": {"BalloonStats": {"stats": _STATS, "balloon_actual": 4096}},
    b"Adjust": "Ok",
    b"none of them": {"Err": 107},
}
"""What fits a request that has the key in it; the last fits any."""

_SILENT_S = 0.02
"""How long a control may send nothing before its VMM hangs up: it waits for an answer's rest."""

_MEMORY_FD = os.memfd_create("crosvm_guest")
os.truncate(_MEMORY_FD, GIB)


def run(data: bytes) -> None:
    """One VMM's life: it is found, sampled, squeezed and watched as its answers come."""
    choices = Choices(data)
    # Look up in this process: a child for each input's event loop would take most of the time.
    with no_fd_left_open(), patch.object(LOOKUPS, "ask", ask_here):
        _PATH.unlink(missing_ok=True)
        asyncio.run(_life(choices))


async def _life(choices: Choices) -> None:
    loop = asyncio.get_running_loop()
    kind = choices.below(3)
    sort = socket.SOCK_SEQPACKET if kind == 2 else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, sort) as listener:
        listener.bind(str(_PATH))
        listener.listen()
        listener.setblocking(False)
        server = loop.create_task(_serve(listener, choices, packets=kind == 2))
        control = _control(kind)
        try:
            await _use(control)
        except ControlError as err:
            require(err.detail.isprintable(), "an error of several lines", err.detail)
            require(len(err.detail) < 4 * _TEXT, "an error without end", len(err.detail))
        finally:
            control.close()
            server.cancel()
            await asyncio.wait([server])
            await asyncio.sleep(0)  # asyncio closes its sockets in the next turn.


def _control(kind: int) -> Control:
    if kind == 0:
        return FirecrackerControl(str(_PATH))
    return (
        CloudHypervisorControl(str(_PATH)) if kind == 1 else CrosvmControl(str(_PATH), _SILENT_S)
    )


async def _use(control: Control) -> None:
    _check(await control.open(lambda notice: None))
    for _ in range(2):
        _check(await control.sample())
        await control.watch(1.0)
        await control.set_balloon(64 << 20)


def _check(seen: Found | Sample) -> None:
    require(0 < seen.vm_mem_bytes <= MOST_MEMORY_BYTES, "an impossible VM", seen.vm_mem_bytes)
    balloon_bytes = 0 if seen.balloon_bytes is None else seen.balloon_bytes
    require(0 <= balloon_bytes <= MOST_MEMORY_BYTES, "an impossible balloon", balloon_bytes)
    require(isinstance(seen.state, GuestState), "no state", seen.state)
    if isinstance(seen, Sample) and seen.stats is not None:
        for name in ("free_bytes", "total_bytes", "oom_kills"):
            figure = getattr(seen.stats, name)
            require(figure is None or 0 <= figure < (1 << 64) - 1, name, figure)


async def _serve(listener: socket.socket, choices: Choices, *, packets: bool) -> None:
    """Answers each request of each connection until the bytes are used up, then hangs up."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    try:
        while True:
            client, _ = await loop.sock_accept(listener)
            tasks.append(loop.create_task(_talk(client, choices, packets=packets)))
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _talk(client: socket.socket, choices: Choices, *, packets: bool) -> None:
    loop = asyncio.get_running_loop()
    try:
        for _ in range(MAX_CALLS):
            async with asyncio.timeout(_SILENT_S):
                request = await loop.sock_recv(client, 4096)
            if not request or not choices:
                break
            text = _text(choices, request)
            await loop.sock_sendall(client, text if packets else _http(choices, text))
        client.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # The control has hung up, or waits (TimeoutError).
    finally:
        client.close()


def _text(choices: Choices, request: bytes) -> bytes:
    """JSON, most of it near to what the VMM would answer, or bytes."""
    if choices.chance(12):
        return choices.take(choices.below(64)) or b"\0"
    if choices.chance(32):
        return json.dumps(_changed(choices, choices.pick(list(_ANSWERS.values())))).encode()
    fitting = [answer for part, answer in _ANSWERS.items() if part in request]
    return json.dumps(_changed(choices, fitting[0] if fitting else {})).encode()


def _changed(choices: Choices, value: object) -> object:
    if choices.chance(8):
        return choices.pick(
            (None, True, -1, choices.wide(8), 1.5, float("nan"), "x\n", [], [{}], {}, 2**70)
        )
    if isinstance(value, dict):
        return {name: _changed(choices, part) for name, part in value.items()}
    return value


def _http(choices: Choices, text: bytes) -> bytes:
    status = choices.pick((204, 100, 400, 404, 500)) if choices.chance(24) else 200
    body = b"" if status in (100, 204) else text
    head = b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n" % (status, len(body))
    answer = bytearray(head + body)
    if choices.chance(12):  # A byte of it is another, or what follows is missing.
        answer[choices.below(len(answer)) % 256] = choices.number(1)
    if choices.chance(6):
        del answer[choices.below(256) :]
        answer += b"\r\n\r\n"
    return bytes(answer)
