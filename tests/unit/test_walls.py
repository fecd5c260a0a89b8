"""The house: which module may import which, read from the sources themselves.

``docs/architecture.md`` draws it. A forbidden import fails here, with its file and line.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.driver_state import DriverState
from balloon_daemon.vhost_user.vring import Vring
from balloon_daemon.virtio.balloon import BalloonConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "balloon_daemon"

PURE = {
    "errors",
    "units",
    "listing",
    "rate_limit",
    "fact",
    "named_tuple",
    "events",
    "events.daemon",
    "events.devices",
    "events.driven",
    "events.memory",
    "events.policy",
    "events.protection",
    "events.steering",
    "events.vms",
    "records.budget",
    "records.line",
    "records.trace",
    "records.trace_reader",
    "records.trace_values",
    "records.counters",
    "records.words",
    "records.words.daemon",
    "records.words.devices",
    "records.words.driven",
    "records.words.memory",
    "records.words.protection",
    "records.words.steering",
    "records.words.vms",
    "sizing.decision",
    "sizing.adaptive",
    "sizing.adaptive_vm",
    "sizing.admission",
    "sizing.asking",
    "sizing.outlook",
    "sizing.shares",
    "sizing.spare",
    "sizing.balloon_policy",
    "sizing.back_off",
    "sizing.deadlines",
    "sizing.drift",
    "sizing.guard",
    "sizing.host_events",
    "sizing.host_policy",
    "sizing.need",
    "sizing.new_settings",
    "sizing.outcome",
    "sizing.pauses",
    "sizing.priorities",
    "sizing.protection",
    "sizing.proof",
    "sizing.reclaims",
    "sizing.reserves",
    "sizing.resumable",
    "sizing.row",
    "sizing.stall",
    "sizing.steering",
    "sizing.terms",
    "sizing.vm_settings",
    "virtio.balloon",
    "virtio.split_queue",
    "virtio.guest_memory",
    "vhost_user.messages",
    "vhost_user.memory_requests",
    "vhost_user.memory_table",
    "vhost_user.backend",
    "vhost_user.driver_state",
    "vhost_user.known_accesses",
    "vhost_user.effects",
    "vhost_user.replay",
    "vhost_user.requests",
    "vhost_user.vring",
    "vhost_user.vrings",
    "tube.messages",
    "guests.seam",
    "guests.driven.answers",
    "guests.driven.control",
    "guests.driven.qmp_answers",
    "guests.driven.qmp_balloon",
    "guests.driven.qmp_interval",
    "guests.driven.claims",
    "guests.driven.target",
    "guests.driven.refill",
    "guests.driven.http_answer",
    "guests.libvirt.wire",
    "config.entries",
    "config.statements",
    "config.vms",
    "status",
    "ctl.doctor.finding",
    "ctl.doctor.host_checks",
    "ctl.doctor.vm_checks",
    "ctl.charts.past",
    "ctl.simulate.course",
    "ctl.simulate.contenders",
    "ctl.simulate.drawn",
    "ctl.simulate.fit",
    "ctl.simulate.guest",
    "ctl.simulate.judge",
    "ctl.simulate.live_guest",
    "ctl.simulate.load",
    "ctl.simulate.loads",
    "ctl.simulate.memory",
    "ctl.simulate.off",
    "ctl.simulate.peers.crosvm",
    "ctl.simulate.peers.mom",
    "ctl.simulate.peers.peer",
    "ctl.simulate.peers.pi",
    "ctl.simulate.peers.proxmox",
    "ctl.simulate.peers.squeezed",
    "ctl.simulate.peers.table",
    "ctl.simulate.peers.vmmms",
    "ctl.simulate.policies",
    "ctl.simulate.programs",
    "ctl.simulate.replay",
    "ctl.simulate.recording",
    "ctl.simulate.rerun",
    "ctl.simulate.samples",
    "ctl.simulate.scenario",
    "ctl.simulate.scores",
    "ctl.simulate.scripts",
    "ctl.simulate.tally",
    "ctl.simulate.world",
    "commands",
    "api.bodies",
    "api.messages",
    "api.metrics",
    "api.routes",
    "api.shown",
    "guests.jailed.gain",
    "guests.jailed.statistics",
    "guests.jailed.life",
    "guests.jailed.vm_size",
    "handover.keys",
    "handover.room",
    "handover.state",
    "handover.state_v1",
    "device.huge_pages",
    "seccomp.bpf",
    "seccomp.c_rules",
    "seccomp.compiler",
    "seccomp.constants",
    "seccomp.evaluator",
    "seccomp.flat_rules",
    "seccomp.judge",
    "seccomp.machine",
    "seccomp.nearest_name",
    "seccomp.parser",
    "seccomp.policy",
    "seccomp.policy_sources",
    "seccomp.probes",
    "seccomp.remarks",
    "seccomp.rules",
    "seccomp.span",
    "seccomp.tokens",
    "seccomp.values",
    "seccomp.words",
}
IMPURE = {
    "os", "socket", "select", "time", "random", "ctypes", "mmap", "logging",
    "asyncio", "subprocess", "signal",
}  # fmt: skip

# Each room and the rooms it may import from; errors, units, listing, rate_limit, fact,
# named_tuple, stand_in and small_typing are open to all.
ROOMS = {
    "errors": set[str](),
    "units": set[str](),
    "listing": set[str](),
    "rate_limit": set[str](),
    "fact": set[str](),
    "named_tuple": set[str](),
    "stand_in": set[str](),
    "small_typing": set[str](),
    "sizing": set[str](),
    "virtio": set[str](),
    "linux": set[str](),
    # What the policy is told is an event, too, where it is recorded.
    "events": {"sizing.decision", "sizing.host_events"},
    "records": {"events", "status", "sizing", "linux"},
    "host": {"events", "status", "sizing", "linux"},
    "vhost_user": {"virtio", "linux"},
    "tube": {"virtio", "linux"},
    "seccomp": {"linux"},
    "device": {"virtio", "tube", "seccomp", "linux"},
    "config": {"sizing", "linux"},
    "guests.waiting": set[str](),
    "guests.in_turn": set[str](),
    # How children are asked about VMMs' processes: the same for VMs of all kinds.
    "guests.vmm_files": {"linux"},
    "guests.seam": {"sizing.decision", "sizing.vm_settings"},
    "handover": {"guests.seam", "linux"},
    "guests.jailed": {
        "events", "sizing.decision", "sizing.vm_settings", "config", "guests.seam",
        "guests.vmm_files", "guests.waiting", "guests.in_turn", "handover", "vhost_user", "virtio",
        "tube", "device", "seccomp", "linux",
    },
    "guests.driven": {
        "events", "sizing", "config", "guests.seam", "guests.vmm_files", "guests.waiting",
        "guests.in_turn", "linux",
    },
    "guests.libvirt": {"events", "sizing", "config", "guests.seam", "guests.driven", "linux"},
    "guests.look": {
        "events", "sizing", "config", "guests.seam", "guests.driven", "guests.libvirt", "linux",
    },
    "guests.open_guest": {
        "events", "config", "guests.seam", "guests.vmm_files", "guests.driven", "guests.libvirt",
        "linux",
    },
    # The seam's values, too: what a guest reports is shown as it is.
    "status": {"sizing.decision", "sizing.vm_settings", "guests.seam"},
    "commands": {"status", "sizing.decision"},
    # What is, what may be asked, what happened; never the controller nor a guest.
    "api": {"events", "status", "commands", "records", "sizing.decision", "linux"},
    # No protocol: a VM is whatever stands behind the seam.
    "controller": {
        "events", "status", "commands", "sizing", "host", "config", "guests.seam", "linux",
    },
    "cli": {
        "config", "controller", "guests.seam", "guests.waiting", "guests.jailed", "guests.look",
        "guests.open_guest", "guests.vmm_files", "device", "host", "seccomp", "linux", "sizing",
        "events", "records", "handover", "vhost_user", "tube", "virtio", "commands", "api",
    },
    "__main__": {"cli", "device", "linux"},
    "fake_guest": {"virtio", "vhost_user", "linux"},
    "ctl": {
        "config", "seccomp", "linux", "sizing", "records.trace", "records.trace_reader",
        "records.trace_values",
        "fake_guest.client",
    },
}  # fmt: skip

# Third-party and standard modules that have one door only.
DOORS = {
    "ctypes": {"linux", "ctl.seccomp.ptrace"},
    # What tests alone import is no dependency of the daemon's.
    "psutil": set[str](),
    # In a process of its own: not even --check loads it.
    "pyseccomp": {"seccomp.libseccomp_process"},
    "prctl": set[str](),
    "_prctl": {"linux.jail"},
    "h11": {"api.client", "ctl.ask.client"},
    "asyncio": {
        "controller",
        "guests",
        "host.watch",
        "handover.outbox",
        "handover.store",
        "cli",
        "api.server",
        "api.textfile",
    },
    # Whoever has something to say publishes an event; records/log.py writes the lines itself.
    "logging": set[str](),
    "threading": {"guests.libvirt.process"},
    # In a process of its own: it blocks, and it brings threads.
    "libvirt": {"guests.libvirt.process"},
    "_thread": {"handover.fd_keeper"},
    # In a process of its own: it costs 2 MiB, and its writes wait for a disk.
    "sqlite3": {"records.history_writer", "ctl"},
    "rich": {"ctl"},
    "matplotlib": {"ctl"},
    "numpy": {"ctl", "fake_guest"},
}


@cache
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
            leaves = {
                "errors", "units", "listing", "rate_limit", "fact", "named_tuple", "stand_in",
                "small_typing", "__version__",
            }  # fmt: skip
            open_to_it = {room} | leaves | ROOMS[room]
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


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The modules that import each other in a circle, also inside one room."""
    reached = {name: set(targets) for name, targets in arrows.items()}
    for middle in arrows:
        for targets in reached.values():
            if middle in targets:
                targets |= reached[middle]
    return [
        {other for other in targets if name in reached[other]}
        for name, targets in reached.items()
        if name in targets
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {
        name: {target.removeprefix("balloon_daemon.") for _, target in imports(path)}
        & modules().keys()
        for name, path in modules().items()
    }
    assert circles(arrows) == []


def test_circle_of_imports_is_found() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set[str]()}
    assert circles(arrows) == [{"b", "c"}] * 2


def sentences_published(path: Path) -> Iterator[str]:
    """Words that a call of ``publish`` is given: it is records/words/ that has them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name.lstrip("_") == "publish":
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and re.search("[a-z] [a-z]", str(part.value)):
                    yield f"{path.name}:{part.lineno}: {part.value!r}"


@pytest.mark.parametrize("name", modules())
def test_module_publishes_no_sentences(name: str) -> None:
    assert list(sentences_published(modules()[name])) == []


def test_sentence_that_is_published_is_found(tmp_path: Path) -> None:
    changed = tmp_path / "loop.py"
    changed.write_text('self._publish(StoreLost(f"{number} lines are lost"))')
    assert list(sentences_published(changed)) == ["loop.py:1: ' lines are lost'"]


@pytest.mark.parametrize("name", modules())
def test_module_is_at_most_500_lines(name: str) -> None:
    assert len(modules()[name].read_text().splitlines()) <= 500


MAX_CLASS_LINES = 250
MAX_ATTRIBUTES = 12


def large_classes(path: Path) -> Iterator[str]:
    """Classes with more lines, or more attributes assigned to ``self``, than one may have."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        assert node.end_lineno is not None
        lines = node.end_lineno - node.lineno + 1
        # Every target of an assignment, also inside a tuple, is a store.
        attributes = {
            part.attr
            for part in ast.walk(node)
            if isinstance(part, ast.Attribute)
            and isinstance(part.ctx, ast.Store)
            and isinstance(part.value, ast.Name)
            and part.value.id == "self"
        }
        if lines > MAX_CLASS_LINES or len(attributes) > MAX_ATTRIBUTES:
            where = f"{path.name}:{node.lineno}: {node.name}"
            yield f"{where}: {lines} lines, {len(attributes)} attributes"


@pytest.mark.parametrize("name", modules())
def test_classes_have_at_most_250_lines_and_12_attributes(name: str) -> None:
    assert list(large_classes(modules()[name])) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ([f"self.a{n} = self.b{n} = {n}" for n in range(6)], []),
        (["self.a = 0"] * 248, []),
        (["self.a = 0"] * 249, ["large.py:1: Large: 251 lines, 1 attributes"]),
        (
            ["self.a, (self.b, *self.c) = 0, (1, 2)", "self.d: int = 0"]
            + [f"self.e{n} = {n}" for n in range(9)],
            ["large.py:1: Large: 13 lines, 13 attributes"],
        ),
    ],
)
def test_large_class_is_found(tmp_path: Path, body: list[str], found: list[str]) -> None:
    changed = tmp_path / "large.py"
    lines = ["class Large:", "    def __init__(self):", *(f"        {line}" for line in body)]
    changed.write_text("\n".join(lines))
    assert list(large_classes(changed)) == found


# What a back-end is made of. Whoever else wants another value there calls a method of Backend's.
BACKEND_FIELDS = {
    name for part in (Backend, Vring, DriverState, BalloonConfig) for name in part.__slots__
}
BACKEND_PARTS = {"config", "driver", "vrings"}


def foreign_writes(text: str) -> Iterator[str]:
    """Assignments to another object's field that has a name of a back-end's, and calls of methods
    on what a back-end is made of: both change it from outside."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name("self")):
                continue
            case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()) if name in BACKEND_FIELDS:
                yield f"{node.lineno}: {ast.unparse(node)}"
            case ast.Call(func=ast.Attribute(value=owner)):
                # backend.driver.stopped(), backend.vrings[0].set_kick(None)
                inner = owner.value if isinstance(owner, ast.Subscript) else owner
                match inner:
                    case ast.Attribute(
                        value=ast.Name(name) | ast.Attribute(attr=name), attr=part
                    ) if part in BACKEND_PARTS and name in ("backend", "_backend"):
                        yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", [n for n in modules() if room_of(n) != "vhost_user"])
def test_nobody_but_the_back_end_writes_what_it_is_made_of(name: str) -> None:
    assert list(foreign_writes(modules()[name].read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "self.backend.config.num_pages = pages",
        "backend.vrings[index].base = used",
        "vring.base = used",
        "self.backend.driver.balloon_unknown &= known",
        "self._backend.config.actual, other = 0, 1",
        "self.backend.driver.stopped()",
        "backend.vrings[0].set_kick(None)",
    ],
)
def test_write_from_outside_the_back_end_is_found(line: str) -> None:
    assert len(list(foreign_writes(line))) == 1
