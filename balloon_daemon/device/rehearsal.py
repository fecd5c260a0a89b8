"""A long life in a moment: what CPython may ever ask of the kernel for a device, for ``--check``.

A device of ours needs no more memory after a year than after its first buffer, so whether its
interpreter could have more under the seccomp policy does not show in its work. Here it takes what
no device needs, of each kind of memory that CPython has.
"""

import contextlib
import gc
from collections.abc import Callable

from balloon_daemon.device.death_record import describe_error


def rehearse(say: Callable[[str], None]) -> None:
    """Grows each kind of memory, and lets it go again; takes some 0.1 s and 10 MiB.

    Args:
        say: hears what comes next, in one line, before it does.
    """
    for what, step in _STEPS:
        say(what)
        step()


def _make_objects() -> None:
    """More small ones than any free memory of CPython's own holds."""
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
    """Each step of their growth is another size to malloc."""
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
