"""Whoever forks without exec has one thread: who forks, who starts programs, who starts threads.

A child that is forked without exec has the memory of all its parent's threads and only the one
that forked: a lock that another thread held stays locked for ever. The template forks devices so,
the controller the children that close what VMMs sent. A program that is started by exec may have
threads, and so may whoever forks nothing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "balloon_daemon"

FORKS_WITHOUT_EXEC = {
    "os.fork": set[str](),
    "os.forkpty": set[str](),
    "pty": set[str](),
    "multiprocessing": set[str](),
    "libc.clone_sibling": {"device.forker"},
    "libc.fork_sharing_fds": {"linux.apart", "linux.closing_child", "linux.reading_child"},
    # The template and the writer of a trace; all others have it start libvirt's clients, by exec.
    "apart.LowNumbers": {
        "device.template",
        "records.scribe",
        "linux.asked_child",
        "linux.measuring_child",
        "guests.driven.lookups",
        "guests.driven.memory_files",
        "guests.libvirt",
        "guests.open_guest",
        "guests.look",
        "cli",
    },
}
"""Each wrapper that forks, and the modules or rooms that may name it."""

STARTS_PROGRAMS = {
    "subprocess": {"ctl", "fake_guest", "seccomp.libseccomp"},
    "os.posix_spawn": {"ctl", "handover.keeper_process"},
    "os.posix_spawnp": set[str](),
    "os.system": set[str](),
    "os.popen": set[str](),
    "asyncio.create_subprocess_exec": set[str](),
    "asyncio.create_subprocess_shell": set[str](),
}

STARTS_THREADS = {
    # The keeper's: it forks nothing.
    "_thread": {"handover.fd_keeper"},
    # libvirt's client: a program of its own.
    "threading": {"guests.libvirt.process"},
    "concurrent": set[str](),
    "asyncio.to_thread": set[str](),
    "loop.run_in_executor": set[str](),
    "loop.getaddrinfo": set[str](),
}

ALL = FORKS_WITHOUT_EXEC | STARTS_PROGRAMS | STARTS_THREADS


def modules() -> dict[str, Path]:
    paths = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def named(source: str) -> Iterator[tuple[int, str]]:
    """Whatever a source imports or reads by a dotted name, with its line; ours without package."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                for alias in names:
                    yield node.lineno, alias.name
            case ast.ImportFrom(module, names):
                for alias in names:
                    yield node.lineno, f"{module}.{alias.name}"
            case ast.Attribute():
                yield node.lineno, ast.unparse(node)


def wrappers_in(source: str) -> Iterator[tuple[int, str]]:
    """The wrappers of ``ALL`` that a source names, with the line."""
    for line, name in named(source):
        parts = name.lstrip("_").split(".")
        for wrapper in ALL:
            room, _, function = wrapper.partition(".")
            if not function:
                # A whole module: by import alone, as a name of ours may be alike.
                if name == wrapper or name.startswith(f"{wrapper}."):
                    yield line, wrapper
            elif parts[-1] == function and (len(parts) == 1 or room in parts[-2]):
                yield line, wrapper


@pytest.mark.parametrize("name", modules())
def test_only_who_may_names_a_wrapper_that_forks_or_starts_something(name: str) -> None:
    source = modules()[name].read_text()
    offences = [
        f"{name}:{line}: {wrapper}"
        for line, wrapper in wrappers_in(source)
        if not any(name == may or name.startswith(f"{may}.") for may in ALL[wrapper])
    ]
    assert offences == []


@pytest.mark.parametrize(
    ("source", "wrapper"),
    [
        ("import os\nos.fork()", "os.fork"),
        ("from os import fork", "os.fork"),
        ("from balloon_daemon.linux.libc import clone_sibling", "libc.clone_sibling"),
        ("from balloon_daemon.linux import libc\nlibc.clone_sibling()", "libc.clone_sibling"),
        ("import multiprocessing", "multiprocessing"),
        ("from subprocess import run", "subprocess"),
        ("from threading import Thread", "threading"),
        ("from concurrent.futures import ThreadPoolExecutor", "concurrent"),
        ("import _thread", "_thread"),
        ("class A:\n def f(self): self._loop.run_in_executor(None, g)", "loop.run_in_executor"),
    ],
)
def test_each_way_to_name_a_wrapper_is_found(source: str, wrapper: str) -> None:
    assert wrapper in {found for _, found in wrappers_in(source)}


def test_all_that_may_exists() -> None:
    rooms = {name.partition(".")[0] for name in modules()}
    allowed = {name for names in ALL.values() for name in names}
    assert allowed <= rooms | modules().keys()


def loaded_by(name: str) -> set[str]:
    """The modules of the package that one imports, and those that these import."""
    found, left = set[str](), [name]
    while left:
        module = left.pop()
        if module in found or module not in modules():
            continue
        found.add(module)
        for _, target in named(modules()[module].read_text()):
            inner = target.removeprefix("balloon_daemon.")
            if inner != target:
                # A module, or a name in one.
                left += [inner, inner.rpartition(".")[0]]
    return found


def test_template_loads_nothing_that_starts_a_thread() -> None:
    loaded = loaded_by("device.forker_start")
    assert {"device.forker", "device.loop", "linux.libc"} <= loaded
    starters = {
        name
        for name in loaded
        for _, wrapper in wrappers_in(modules()[name].read_text())
        if wrapper in STARTS_THREADS
    }
    assert starters == set()
