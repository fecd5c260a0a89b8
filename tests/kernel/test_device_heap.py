"""A device's memory may grow in the jail, whatever its Python asks the kernel for outside."""

import contextlib
import gc
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import pytest

from balloon_daemon.device.rehearsal import rehearse
from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR
from balloon_daemon.device.template import Template
from balloon_daemon.linux import cpython
from balloon_daemon.seccomp.filter import compile_policy
from tests.harness.device_rig import SHIPPED_POLICY, DeviceRig, fate_of, shipped_filter
from tests.harness.faults import fault

LIVED = 7
"""The exit code of a device that outlived what it was to do (``fate_of``)."""

DATA_STACK_CHUNK_BYTES = 16 * 1024
"""CPython's smallest, which nothing else of it maps (Python/pystate.c)."""


def wide(depth: int) -> int:
    """Calls itself; its frame gets 50 slots more than it needs."""
    return depth and 1 + wide(depth - 1)


wide.__code__ = wide.__code__.replace(co_stacksize=wide.__code__.co_stacksize + 50)


def plain(depth: int) -> int:
    return depth and 1 + plain(depth - 1)


def through_c(depth: int) -> int:
    """A Python function that C calls, all the way down."""
    return max([0], key=lambda _: depth and through_c(depth - 1))


def call_deep(function: Callable[[int], int], depth: int = 900) -> None:
    """Calls so deep, wherever pytest is already."""
    sys.setrecursionlimit(depth + 1000)
    function(depth)


def fail_deep(depth: int) -> None:
    if depth == 0:
        raise RuntimeError("at the bottom")
    fail_deep(depth - 1)


def raise_deep() -> None:
    sys.setrecursionlimit(2000)
    for _ in range(20):
        with contextlib.suppress(RuntimeError):
            fail_deep(900)


def overflow() -> None:
    def endless() -> None:
        endless()

    for _ in range(3):
        with contextlib.suppress(RecursionError):
            endless()


def make_garbage() -> None:
    for _ in range(200_000):
        cycle: list[object] = []
        cycle.append(cycle)
    gc.collect()


def grow_by_realloc() -> None:
    numbers: list[int] = []
    content = bytearray()
    text = ""
    table: dict[int, int] = {}
    for step in range(200):
        content += bytes(1 << 15)
        numbers += range(1 << 10)
        text += "x" * (1 << 12)
        table |= dict.fromkeys(range(step << 10, (step + 1) << 10), step)


def grow_many_small_lists() -> None:
    """Each starts with nothing and is reallocated within what is a small object."""
    lists: list[list[int]] = [[] for _ in range(20_000)]
    for number in range(40):
        for each in lists:
            each.append(number)


def suspend_generators() -> None:
    """Frames that live outside the stack of calls."""

    def count() -> object:
        yield from range(2)

    generators = [iter(count()) for _ in range(20_000)]  # type: ignore[call-overload] # generator
    for generator in generators:
        next(generator)


def grow_and_shrink() -> None:
    """More over time than a device may ever have at once (256 MiB)."""
    for _ in range(100):
        assert len([(number,) for number in range(30_000)]) == 30_000


GROWTHS: list[tuple[str, Callable[[], object]]] = [
    ("5,000 tuples", lambda: [(number,) for number in range(5_000)]),
    ("1,000,000 objects", lambda: [(number,) for number in range(1_000_000)]),
    ("objects of every size", lambda: [bytes(n % 600) for n in range(100_000)]),
    ("900 calls deep", lambda: call_deep(plain)),
    ("900 wide calls deep", lambda: call_deep(wide)),
    ("300 calls through C", lambda: call_deep(through_c, 300)),
    ("errors 900 calls deep", raise_deep),
    ("calls until Python refuses", overflow),
    ("cycles for the collector", make_garbage),
    ("blocks that grow", grow_by_realloc),
    ("small lists that grow", grow_many_small_lists),
    ("20,000 generators", suspend_generators),
    ("much that comes and goes", grow_and_shrink),
    ("a block of 64 MiB", lambda: bytearray(64 << 20)),
]
BY_NAME = pytest.mark.parametrize(
    ("name", "grow"), GROWTHS, ids=[name.replace(" ", "-") for name, _ in GROWTHS]
)


@fault("device needs more memory than ever before")
@BY_NAME
def test_device_that_needs_more_memory_lives(
    rig: DeviceRig, name: str, grow: Callable[[], object]
) -> None:
    assert fate_of(rig, grow) == LIVED, (name, rig.death_record)


def test_device_that_grew_in_every_way_goes_on_serving(rig: DeviceRig) -> None:
    def load_and_grow() -> None:
        shipped_filter().load()
        rehearse(lambda step: None)

    rig.here.load_filter = load_and_grow
    rig.start_ready()
    rig.inflate([3, 5])
    rig.stop()
    assert rig.damaged() == {3, 5}


@fault("device needs more memory than ever before")
def test_device_of_the_template_lives_long_too(rig: DeviceRig, template: Template) -> None:
    rig.fork = template.fork
    rig.spec = rig.spec._replace(rehearse=True)
    rig.start_ready()
    rig.inflate([3])
    rig.stop()
    assert rig.death_record.endswith("blocks that grow")


@fault("device needs more memory than ever before")
def test_calls_of_a_device_need_no_new_memory_on_any_python(
    rig: DeviceRig, tmp_path: Path
) -> None:
    # A Python whose chunks the shipped policy allows shows here what others would die of.
    policy = tmp_path / "no-chunks.policy"
    lines = SHIPPED_POLICY.read_text().splitlines(keepends=True)
    policy.write_text(
        "".join(line for line in lines if not line.startswith("mmap:"))
        + f"mmap: arg2 in 0xfffffffb && arg1 != {DATA_STACK_CHUNK_BYTES}\n"
    )
    load = compile_policy(policy).load

    assert fate_of(rig, lambda: call_deep(plain), load) == LIVED


@fault("device needs more memory than ever before")
def test_calls_deeper_than_the_reserve_are_an_error_of_pythons(rig: DeviceRig) -> None:
    vast = FunctionType(
        plain.__code__.replace(co_stacksize=cpython.RESERVED_SLOTS), {"plain": plain}
    )

    assert fate_of(rig, lambda: vast(0)) == EXIT_INTERNAL_ERROR


def test_device_left_to_its_python_lives_only_where_that_asks_for_nothing_else(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shows that the tests above would find out.
    def run_as_it_is(function: Callable[[], object]) -> None:
        function()

    monkeypatch.setattr(cpython, "run_without_new_arenas", run_as_it_is)
    lives = {LIVED} if sys.version_info < (3, 15) else {-signal.SIGSYS}
    if sys.version_info >= (3, 16):
        lives |= {LIVED}

    assert fate_of(rig, lambda: [(number,) for number in range(50_000)]) in lives
    assert fate_of(rig, lambda: call_deep(plain)) in lives


# --- the interpreter itself --------------------------------------------------------------------

COUNT_ARENAS = """
import os, sys
from balloon_daemon.linux.cpython import run_without_new_arenas
def live():
    sys._debugmallocstats()
    grown = [(number,) for number in range(200_000)]
    sys._debugmallocstats()
    os._exit(0)
run_without_new_arenas(live)
"""


@fault("device needs more memory than ever before")
def test_no_arena_is_made_any_more() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COUNT_ARENAS], capture_output=True, text=True, timeout=60
    )

    assert run.returncode == 0, run.stderr
    before, after = re.findall(r"arenas allocated total +=? +([\d,]+)", run.stderr)
    assert before == after
