"""Whatever a QEMU monitor says, in whatever pieces: one kind of error, and nothing else."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_answers as answers
from balloon_daemon.guests.driven import qmp_wire
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.qmp_answers import Refusal
from balloon_daemon.guests.driven.qmp_balloon import QmpBalloon
from balloon_daemon.units import GIB

NAMES = st.sampled_from(
    ("actual", "base-memory", "type", "data", "size", "slots", "running", "stats", "status", "id",
     "last-update", "stat-free-memory", "rd_bytes", "qdev", "name", "thread-id", "dimm", "x")
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(1 << 70), 1 << 70), st.floats(), st.sampled_from((0, -1, 1 << 63, GIB))
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, NAMES, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=5)
    ),
    max_leaves=12,
)
READERS: list[Callable[[Any], object]] = [
    answers.accepted,
    answers.base_bytes,
    answers.can_plug_dimms,
    answers.devices,
    answers.disk_read_bytes,
    answers.guest_stats,
    answers.interval_s,
    answers.is_running,
    answers.last_saved,
    answers.memory_backends,
    answers.plugged,
    answers.text,
    answers.thread_id,
    answers.uuid,
    answers.vm_bytes,
]


@given(JSON | st.builds(Refusal, st.text(max_size=5), st.just("QEMU's words")))
def test_answer_of_any_form_is_a_value_or_one_kind_of_error(answer: Any) -> None:
    for read in READERS:
        with contextlib.suppress(ControlError):
            read(answer)


class Wire(asyncio.Transport):
    """A connection that goes nowhere."""

    aborted = False

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None:
        pass


NOBODY = -1
"""The user of connections that never end: they take no part of a real user's share."""

GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}
EVENT: dict[str, Any] = {"event": "RESET", "timestamp": {"seconds": 1, "microseconds": 2}}
LINES = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from((GREETING, EVENT, {"id": 1, "return": {}}, {"id": 2, "return": 7})).map(
        lambda value: json.dumps(value).encode()
    ),
)


@given(st.lists(LINES, max_size=8), st.integers(1, 64))
def test_bytes_in_any_pieces_are_messages_or_one_kind_of_error(
    lines: list[bytes], piece: int
) -> None:
    def read(answer: object) -> object:
        return answer

    async def feed() -> tuple[BaseException | None, list[object]]:
        heard: list[qmp_wire.Event] = []
        monitor, wire = qmp_wire.Monitor(heard.append, NOBODY), Wire()
        monitor.connection_made(wire)
        questions = [qmp_wire.Question(name, read) for name in "ab"]
        asked = asyncio.create_task(monitor.ask(*questions))
        await asyncio.sleep(0)
        content = b"\n".join(lines) + b"\n"
        for at in range(0, len(content), piece):
            if wire.aborted:
                break
            part = content[at : at + piece]
            monitor.get_buffer(-1)[: len(part)] = part
            monitor.buffer_updated(len(part))
        monitor.connection_lost(None)
        (failure,) = await asyncio.gather(asked, return_exceptions=True)
        return failure, [] if failure else [question.value for question in questions]

    failure, values = asyncio.run(feed())
    if failure is not None:
        assert isinstance(failure, ControlError)
        assert failure.fault in (Fault.GONE, Fault.NONSENSE)
        assert failure.detail.isprintable()
    else:
        assert len(values) == 2


STEPS = st.one_of(
    st.tuples(st.just("read"), st.integers(0, GIB), st.integers(0, 3)),
    st.tuples(st.just("told"), st.integers(0, GIB), st.just(0)),
    st.tuples(st.just("reset"), st.integers(0, 9), st.just(0)),
    st.tuples(st.just("written"), st.integers(0, 9), st.just(0)),
)


@given(st.lists(STEPS, max_size=30))
def test_size_is_one_that_was_read_or_none_or_unknown(steps: list[tuple[str, int, int]]) -> None:
    balloon, read = QmpBalloon(), {0}
    for what, number, last_update in steps:
        match what:
            case "read":
                balloon.read(number, last_update)
                read.add(number)
            case "told":
                balloon.told(number)
            case "reset":
                balloon.reset(number)
                assert balloon.balloon_bytes is None
            case "written":
                balloon.written(number)
        assert balloon.balloon_bytes is None or balloon.balloon_bytes in read
        if what == "read" and not balloon.listens:
            assert balloon.balloon_bytes is None


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_message_in_any_pieces_is_heard_whole(piece: int) -> None:
    content = b"".join(json.dumps(each).encode() + b"\r\n" for each in (GREETING, EVENT, EVENT))

    async def feed() -> list[str]:
        heard: list[qmp_wire.Event] = []
        monitor = qmp_wire.Monitor(heard.append, NOBODY)
        monitor.connection_made(Wire())
        for at in range(0, len(content), piece):
            part = content[at : at + piece]
            monitor.get_buffer(-1)[: len(part)] = part
            monitor.buffer_updated(len(part))
        monitor.connection_lost(None)
        return [event.name for event in heard]

    assert asyncio.run(feed()) == ["RESET", "RESET"]
