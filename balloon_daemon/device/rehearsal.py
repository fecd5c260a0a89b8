"""Does for ``--check`` whatever CPython might ask the kernel for in a device's whole life.

A device needs no more memory after a year than after its first buffer, so its normal work never
shows whether the seccomp policy lets the interpreter get more. The rehearsal allocates memory of
each kind that CPython has.
"""

import contextlib
import gc
from collections.abc import Callable

from balloon_daemon.device.death_record import describe_error


def rehearse(say: Callable[[str], None]) -> None:
    """Grows and frees each kind of memory; takes some 0.1 s and 10 MiB.

    Args:
        say: called before each step with its name, one line.
    """
    for what, step in _STEPS:
        say(what)
        step()


def _make_objects() -> None:
    """Makes more small objects than CPython's free lists and arenas hold."""
    assert len([(number,) for number in range(50_000)]) == 50_000


def _call_deeply() -> None:
    with contextlib.suppress(RecursionError):
        _call_on()


def _call_on() -> None:
    _call_on()


def _raise_errors() -> None:
    for number in range(200):
        try:
            raise ValueError(number)
        except ValueError as err:
            describe_error(err)


def _make_garbage() -> None:
    for _ in range(20_000):
        cycle: list[object] = []
        cycle.append(cycle)
    gc.collect()


def _grow_blocks() -> None:
    """Grows a list and a bytearray: each step asks malloc for another size."""
    numbers: list[int] = []
    content = bytearray()
    for _ in range(64):
        content += bytes(1 << 16)
        numbers += range(1 << 10)


_STEPS = (
    ("50,000 new objects", _make_objects),
    ("calls as deep as Python allows", _call_deeply),
    ("200 errors", _raise_errors),
    ("20,000 pieces of garbage", _make_garbage),
    ("blocks that grow", _grow_blocks),
)
