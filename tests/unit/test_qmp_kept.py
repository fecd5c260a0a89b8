"""How much memory a QEMU monitor makes balloond keep: little, whatever the monitor sends."""

import asyncio
import json
import tracemalloc
from collections.abc import Callable

import pytest

from balloon_daemon.guests.driven.answers import MAX_NESTED
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.qmp_wire import (
    MAX_EVENT_BYTES,
    MAX_MESSAGE_BYTES,
    Monitor,
    Question,
)
from tests.harness.faults import fault

USER = 1002
LARGE = [{"x" * 24: 0}] * 8_000
"""250 KiB as JSON, 2 MiB as CPython's objects."""
SMALL_BYTES = 256 * 1024


class Wire(asyncio.Transport):
    """A connection on which everything is read at once."""

    is_closed = False

    def write(self, data: object) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.is_closed = True


class Fed:
    """A monitor to which a test feeds bytes."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.monitor = Monitor(lambda event: None, USER)
        self.monitor.connection_made(self.wire)

    def feed(self, content: bytes) -> None:
        while content and not self.wire.is_closed:
            buffer = self.monitor.get_buffer(-1)
            part, content = content[: len(buffer)], content[len(buffer) :]
            buffer[: len(part)] = part
            self.monitor.buffer_updated(len(part))


async def asking(monitor: Monitor) -> asyncio.Task[None]:
    """Asks two questions."""
    asked = asyncio.create_task(monitor.ask(*(Question(name, bool) for name in "ab")))
    await asyncio.sleep(0)
    return asked


async def kept_bytes(content: bytes) -> int:
    """What is kept of a line while the monitor is connected, and has not answered all."""
    fed = Fed()
    asked = await asking(fed.monitor)
    tracemalloc.start()
    try:
        fed.feed(content)
        assert not fed.wire.is_closed
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        asked.cancel()
        fed.monitor.connection_lost(None)


@fault("a QEMU monitor hangs, sends garbage")
@pytest.mark.parametrize("message", [{"QMP": LARGE}, {"id": 1, "return": LARGE}])
def test_nothing_is_kept_of_a_large_message(message: object) -> None:
    content = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    assert asyncio.run(kept_bytes(content)) < SMALL_BYTES


async def asked_of(content: bytes) -> ControlError | None:
    """The error of a question to which a monitor sends this line; None: the line answers it."""
    fed = Fed()
    question = Question("query-cpus-fast", bool)
    asked = asyncio.create_task(fed.monitor.ask(question))
    await asyncio.sleep(0)
    fed.feed(content)
    try:
        await asked
    except ControlError as err:
        return err
    finally:
        fed.monitor.connection_lost(None)
    return None


def answer(rows: list[object]) -> bytes:
    return json.dumps({"id": 1, "return": rows}).encode() + b"\n"


@fault("a QEMU monitor hangs, sends garbage")
@pytest.mark.parametrize("value", [[], {}])
def test_line_of_very_many_values_ends_the_connection_unparsed(value: object) -> None:
    failure = asyncio.run(asked_of(answer([value] * MAX_NESTED)))
    assert failure is not None
    assert failure.fault is Fault.NONSENSE
    assert failure.detail == f"a line of over {MAX_NESTED} arrays and objects"


def test_longest_list_of_cpus_that_a_line_holds_is_parsed() -> None:
    cpu = {
        "thread-id": 25627,
        "props": {"core-id": 0, "thread-id": 0, "socket-id": 0},
        "qom-path": "/machine/unattached/device[0]",
        "cpu-index": 0,
        "target": "x86_64",
    }
    count = MAX_MESSAGE_BYTES // len(json.dumps(cpu))
    assert asyncio.run(asked_of(answer([cpu] * (count - 30)))) is None


async def unfinished(prepare: Callable[[Fed], None], *, waits: bool) -> bool:
    """Whether a monitor is disconnected for a line that goes on beyond an event's length."""
    fed = Fed()
    prepare(fed)
    asked = await asking(fed.monitor) if waits else None
    fed.feed(b" " * (MAX_EVENT_BYTES + 1))
    if asked is not None:
        asked.cancel()
    is_closed = fed.wire.is_closed
    fed.monitor.connection_lost(None)
    return is_closed


def greet(fed: Fed) -> None:
    fed.feed(b'{"QMP": {}}\n')


@fault("a QEMU monitor hangs, sends garbage")
def test_long_line_is_kept_only_while_a_greeting_or_an_answer_is_waited_for() -> None:
    assert not asyncio.run(unfinished(lambda fed: None, waits=False))
    assert not asyncio.run(unfinished(greet, waits=True))
    assert asyncio.run(unfinished(greet, waits=False))
