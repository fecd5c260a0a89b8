"""Whatever a device fails of, it says so: no kind of exception makes it open a file to tell."""

import linecache
import os
import tracemalloc
from collections.abc import Callable

import pytest

from balloon_daemon.device.death_record import MAX_CALLS, describe_error
from balloon_daemon.device.process import (
    MAX_DEATH_RECORD,
    MAX_DEATH_RECORD_BYTES,
    DeviceProcess,
)
from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.tube.connection import open_tube
from tests.harness.device_rig import DeviceRig, fate_of
from tests.harness.faults import fault


class Thing:
    """What misses a name that is nearly the one asked for."""

    __slots__ = ("used_index",)


def raise_(err: BaseException) -> None:
    raise err


def chain() -> None:
    try:
        dict[str, int]()["a head"]
    except KeyError as err:
        raise ValueError("chäin") from err


def fail_while_failing() -> None:
    try:
        dict[str, int]()["a head"]
    except KeyError:
        raise ValueError("then") from None


def with_a_note() -> None:
    err = ValueError("noted")
    err.add_note("a note")
    raise err


def endless() -> None:
    endless()


def many_lines() -> None:
    raise ValueError("one\n two\n three")


FAILURES: list[tuple[Callable[[], object], str]] = [
    (lambda: Thing().used_indx, "AttributeError: 'Thing' object has no attribute 'used_indx'"),  # type: ignore[attr-defined] # meant
    (lambda: os.ftruncat, "AttributeError: module 'os' has no attribute 'ftruncat'"),  # type: ignore[attr-defined] # meant
    (lambda: eval("chian"), "NameError: name 'chian' is not defined"),
    (lambda: eval("heapq"), "NameError: name 'heapq' is not defined"),
    (lambda: raise_(ImportError("no x", name="os")), "ImportError: no x"),
    (lambda: raise_(SyntaxError("no", ("x", 1, 1, "a b"))), "SyntaxError: no (x, line 1)"),
    (lambda: raise_(ExceptionGroup("all", [KeyError(1)])), "all (1 sub-exception)"),
    (chain, "ValueError: chäin (from KeyError: 'a head')"),
    (fail_while_failing, "ValueError: then"),
    (with_a_note, "ValueError: noted"),
    (endless, "RecursionError: maximum recursion depth exceeded"),
    (many_lines, "ValueError: one two three"),
    (lambda: b"\xff".decode(), "can't decode byte 0xff in position 0: invalid start byte"),
    (lambda: bytearray(1 << 40), "MemoryError"),
    (lambda: raise_(KeyboardInterrupt()), "KeyboardInterrupt"),
    (lambda: raise_(SystemExit(0)), "SystemExit: 0"),
    (lambda: raise_(OSError(22, "Invalid argument")), "OSError: [Errno 22] Invalid argument"),
    (lambda: raise_(AssertionError()), "AssertionError"),
]


@fault("device has a bug (an exception)")
@pytest.mark.parametrize(("fail", "told"), FAILURES, ids=[told for _, told in FAILURES])
def test_device_that_fails_says_of_what(
    rig: DeviceRig, fail: Callable[[], object], told: str
) -> None:
    # As after a traceback of the controller's: what is known of the sources asks for more.
    linecache.getlines(__file__)

    assert fate_of(rig, fail) == EXIT_INTERNAL_ERROR
    assert rig.death_record.startswith("balloon-rig: Traceback (most recent call last):")
    heard = rig.death_record.encode().decode("unicode_escape").encode("latin-1").decode()
    assert heard.endswith(told) or told in heard.rpartition(" | ")[2]


def test_description_names_the_innermost_calls_and_how_many_there_are() -> None:
    def go_down(calls: int) -> None:
        if not calls:
            raise ValueError("deep")
        go_down(calls - 1)

    with pytest.raises(ValueError, match="deep") as caught:
        go_down(99)
    first, skipped, *calls, what = describe_error(caught.value).splitlines()

    assert first == "Traceback (most recent call last):"
    assert skipped == f"  {101 - MAX_CALLS} calls more"
    assert len(calls) == MAX_CALLS
    assert calls[-1].startswith(f'  File "{__file__}", line ')
    assert calls[-1].endswith(".go_down")
    assert what == "ValueError: deep"


@fault("device has a bug (an exception)")
def test_of_a_full_pipe_of_last_words_only_the_end_is_looked_at() -> None:
    out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.write(into, b"\xff" * MAX_DEATH_RECORD_BYTES)
    os.close(into)
    upper, lower = open_tube()
    device = DeviceProcess(os.getpid(), upper, OwnedFd(out))
    tracemalloc.start()
    said = device.read_death_record()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    device.close()
    lower.close()

    assert said == "\\xff" * (MAX_DEATH_RECORD // 4)
    # Besides what is read there is no copy of all of it; four characters of each byte were made.
    assert most_bytes < 2 * MAX_DEATH_RECORD_BYTES
