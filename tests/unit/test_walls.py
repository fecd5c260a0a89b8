"""The house: which module may import which, read from the sources themselves.

``docs/architecture.md`` draws it. A forbidden import fails here, with its file and line.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "balloon_daemon"

PURE = {
    "errors",
    "units",
    "sizing.decision",
    "sizing.balloon_policy",
    "virtio.balloon",
    "virtio.split_queue",
    "virtio.guest_memory",
    "vhost_user.messages",
    "vhost_user.memory_table",
    "vhost_user.backend",
    "vhost_user.driver_state",
    "vhost_user.effects",
    "vhost_user.replay",
    "vhost_user.vring",
    "tube.messages",
    "guests.jailed.gain",
    "guests.jailed.vm_size",
    "handover.room",
    "handover.state",
    "seccomp.bpf",
    "seccomp.c_rules",
    "seccomp.compiler",
    "seccomp.constants",
    "seccomp.evaluator",
    "seccomp.flat_rules",
    "seccomp.judge",
    "seccomp.machine",
    "seccomp.parser",
    "seccomp.policy",
    "seccomp.probes",
    "seccomp.rules",
    "seccomp.span",
    "seccomp.tokens",
    "seccomp.words",
}
IMPURE = {
    "os", "socket", "select", "time", "random", "ctypes", "mmap", "logging",
    "asyncio", "subprocess", "signal",
}  # fmt: skip

# Each room and the rooms it may import from; errors and units are open to all.
ROOMS = {
    "errors": set[str](),
    "units": set[str](),
    "sizing": set[str](),
    "virtio": set[str](),
    "linux": set[str](),
    "records": {"linux"},
    "host": {"sizing", "linux", "records"},
    "vhost_user": {"virtio", "linux"},
    "tube": {"virtio", "linux"},
    "seccomp": {"linux"},
    "device": {"virtio", "tube", "seccomp", "linux"},
    "config": {"sizing", "linux"},
    "handover": {"sizing", "linux"},
    "guests.jailed": {
        "sizing", "host", "config", "records", "handover", "controller.governor",
        "vhost_user", "virtio", "tube", "device", "seccomp", "linux",
    },
    "controller": {
        "sizing", "host", "config", "records", "handover", "guests.jailed", "device",
        "vhost_user", "linux",
    },
    "cli": {
        "config", "controller", "guests.jailed", "device", "host", "seccomp", "linux", "sizing",
        "records", "handover", "vhost_user", "tube", "virtio",
    },
    "__main__": {"cli", "device", "linux"},
    "fake_guest": {"virtio", "vhost_user", "linux"},
    "ctl": {"config", "seccomp", "linux", "sizing", "fake_guest.client"},
}  # fmt: skip

# Third-party and standard modules that have one door only.
DOORS = {
    "ctypes": {"linux", "ctl.seccomp.ptrace"},
    # What tests alone import is no dependency of the daemon's.
    "psutil": set[str](),
    # In a process of its own: not even --check loads it.
    "pyseccomp": {"seccomp.libseccomp_process"},
    "prctl": {"linux.jail"},
    "asyncio": {"controller", "guests", "host.watch", "handover.outbox", "handover.store", "cli"},
    "threading": set[str](),
    "_thread": {"handover.fd_keeper"},
    "rich": {"ctl"},
    "matplotlib": {"ctl"},
    "numpy": {"ctl", "fake_guest"},
}


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        names[name] = path
    del names[""]
    return names


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute module name imported in the file, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                # A name is a module where there is such a file, else something inside one.
                inner = f"{node.module}.{alias.name}"
                is_module = inner.removeprefix("balloon_daemon.") in modules()
                yield node.lineno, inner if is_module else node.module


def room_of(name: str) -> str:
    """The room of a module: a folder, or below ``guests`` a driver's."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "guests" else words[0]


def offences(name: str, path: Path) -> Iterator[str]:
    room = room_of(name)
    for line, target in imports(path):
        where = f"{path.relative_to(ROOT)}:{line}: imports {target}"
        if target.startswith("balloon_daemon."):
            inner = target.removeprefix("balloon_daemon.")
            target_room = room_of(inner)
            if name in PURE and not any(inner == p or inner.startswith(p + ".") for p in PURE):
                yield f"{where}, which is not pure"
            open_to_it = {room, "errors", "units", "__version__"} | ROOMS[room]
            if target_room not in open_to_it and inner not in open_to_it:
                yield f"{where}: an arrow that does not point down"
        else:
            top = target.partition(".")[0]
            if name in PURE and top in IMPURE:
                yield f"{where}, but {name} is pure"
            doors = DOORS.get(top)
            if doors is not None and not doors & {name, room, room.partition(".")[0]}:
                yield f"{where}, which only {sorted(doors)} may"


@pytest.mark.parametrize("name", modules())
def test_module_imports_only_what_it_may(name: str) -> None:
    assert list(offences(name, modules()[name])) == []


def test_fork_appears_in_one_place_at_most() -> None:
    users = {name for name, path in modules().items() if "os.fork(" in path.read_text()}
    assert users <= {"device.process"}


@pytest.mark.parametrize("name", modules())
def test_module_is_at_most_500_lines(name: str) -> None:
    assert len(modules()[name].read_text().splitlines()) <= 500
