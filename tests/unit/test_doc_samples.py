"""What the documents show of balloond's output is what it prints: every line, figures included.

Each sample is made anew, from events and statuses by the functions that make the log, the API's
answers and balloonctl's tables. The tutorials' samples are compared where they are typed
(tests/packages/test_tutorials.py), the tables of docs/judgement.md in test_judgement.py, those of
docs/doctor.md and the quotes of docs/troubleshooting.md in test_troubleshooting.py.
"""

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.api.shown import host_shown, vm_shown
from balloon_daemon.config.changes import changes
from balloon_daemon.config.vms import Discover
from balloon_daemon.ctl.ask.explanation import explained
from balloon_daemon.ctl.ask.screen import BLOCKS, Seen, screen
from balloon_daemon.ctl.ask.tables import status_table
from balloon_daemon.errors import ConfigFileError
from balloon_daemon.events import (
    Decided,
    DeviceStarted,
    Event,
    MemoryKnown,
    PageKind,
    TargetReached,
    VmAttached,
)
from balloon_daemon.guests.seam import Stats
from balloon_daemon.records.log import as_json
from balloon_daemon.records.words import worded
from balloon_daemon.seccomp import libseccomp_process
from balloon_daemon.seccomp.judge import (
    Agreement,
    Disagreement,
    NoOpinion,
    Opinion,
    opinion_in_words,
)
from balloon_daemon.seccomp.policy import Action
from balloon_daemon.seccomp.probes import Probe
from balloon_daemon.sizing.decision import Decision, PolicyStatistics, Reading, Reason
from balloon_daemon.sizing.vm_settings import SEED
from balloon_daemon.status import HostStatus, LastDecision, PolicyStatus, SourceStatus, VmStatus
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.config_text import parse_config
from tests.harness.doc_commands import PROGRAMS, indented

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"

COLUMNS, ROWS = 80, 14
"""The terminal of docs/running.md."""

CI, DB, WEB, VM1 = VmId(3, "ci"), VmId(2, "db"), VmId(1, "web"), VmId(1, "vm1")
SOURCE = SourceStatus("chromeos", "", 1, 0, 0, Reading(432, 400), 0.0)
AT_S = datetime(2026, 3, 2, 7, 48, 38).timestamp()
"""When the first decision of docs/running.md was made, about ``web``, by the reader's clock; the
others came 0.2 and 0.4 s later."""


def sample(page: Path, command: str) -> list[str]:
    """The lines that a page shows below an indented command, up to the end of the block; empty
    lines may be among them."""
    shown = re.search(
        rf"^    \$ {re.escape(command)}\n((?:(?:    .*)?\n)+?)(?=\S|\Z)",
        page.read_text(),
        re.MULTILINE,
    )
    assert shown is not None, f"{page.name} shows nothing of {command}"
    return unindented(shown[1])


def unindented(block: str) -> list[str]:
    return [line.removeprefix("    ") for line in block.rstrip("\n").split("\n")]


def grown(level: int, target_mib: int, available_mib: int) -> Decision:
    """A balloon grows by one level, as the host has this much."""
    reading = Reading(available_mib, 400)
    return Decision(Reason.LOW_MEMORY, level - 1, level, 16, target_mib * MIB, reading)


DECISIONS = {CI: grown(4, 80, 389), DB: grown(4, 128, 388), WEB: grown(4, 96, 386)}


def vm(
    vm_id: VmId, size_mib: int, balloon_mib: int, has_mib: float, age_s: float, back_in_s: float
) -> VmStatus:
    """A VM of docs/running.md, whose balloon is at its fourth level."""
    at_most = size_mib * MIB // 2
    counters = PolicyStatistics()
    level = 4 if balloon_mib else 0
    return VmStatus(
        vm_id,
        frozenset(),
        PolicyStatus(
            size_mib * MIB, at_most, level, 16, balloon_mib * MIB, counters, None, back_in_s, 448
        ),
        balloon_mib * MIB,
        Stats(0.0, available_bytes=int(has_mib * MIB)),
        None,
        SEED,
        held_bytes=(size_mib - balloon_mib) * MIB,
        kind="vhost_user",
        decided=LastDecision(vm_id, DECISIONS[vm_id], age_s) if balloon_mib else None,
    )


def vms(age_s: float, back_in_s: float) -> list[VmStatus]:
    """The VMs of docs/running.md: the last decision is this old, and ``web`` gets a step back
    first."""
    return [
        vm(CI, 640, 80, 528, age_s, back_in_s + 0.4),
        vm(DB, 1024, 128, 864, age_s + 0.2, back_in_s + 0.4),
        vm(WEB, 768, 96, 639.95, age_s + 0.4, back_in_s),
    ]


def status(each: list[VmStatus], host: HostStatus) -> dict[str, Any]:
    """The answer to ``GET /v1/status``."""
    made = {"host": host_shown(host), "vms": [vm_shown(one) for one in each], "not_driven": []}
    loaded: dict[str, Any] = json.loads(json.dumps(made))
    return loaded


def said(event: Event, name: str = "") -> str:
    """An event's line in the log."""
    line = worded(event)
    assert line is not None
    return f"{name}: {line.message}" if name else line.message


def test_readme_shows_a_status() -> None:
    heads, db, web = sample(README, "sudo balloonctl status")
    driven = [
        _libvirt(DB, most_mib=128, balloon_mib=0, has_mib=440),
        _libvirt(WEB, most_mib=256, balloon_mib=100, has_mib=341),
    ]
    shown = status(driven, HostStatus(SOURCE))
    assert status_table(shown, COLUMNS)[:3] == [heads, db, web]


def _libvirt(vm_id: VmId, most_mib: int, balloon_mib: int, has_mib: int) -> VmStatus:
    made = vm(vm_id, 512, balloon_mib, has_mib, 0.0, 0.0)
    assert made.policy is not None
    policy = made.policy._replace(max_balloon_bytes=most_mib * MIB)
    return made._replace(policy=policy, kind="libvirt")


def test_running_shows_a_status() -> None:
    decided = LastDecision(CI, DECISIONS[CI], 7.2)
    shown = status(vms(7.2, 59.0), HostStatus(SOURCE, decided))
    assert sample(DOCS / "running.md", "sudo balloonctl status") == status_table(shown, COLUMNS)


def test_running_shows_the_screen_of_top() -> None:
    text = (DOCS / "running.md").read_text()
    (block,) = re.findall(r"^     balloonctl .+q quits\n(?:(?:    .*)?\n)+?(?=\S)", text, re.M)
    seen = Seen(5.0)
    available = [*6 * [1728], 1512, 1080, 864, 648, *3 * [432]]
    for number, available_mib in enumerate(available):
        left = len(available) - 1 - number
        each = [
            one if left < 2 else vm(one.vm, one.policy.vm_mem_bytes // MIB, 0, 500, 0.0, 0.0)
            for one in vms(8.6 - 5 * left, 50.0)
            if one.policy is not None
        ]
        source = SOURCE._replace(seen=Reading(available_mib, 400))
        seen.take(status(each, HostStatus(source)), AT_S + 9.0 - 5 * left)
    lines = ["".join(part for part, _ in line).rstrip() for line in screen(seen, COLUMNS, ROWS)]
    assert BLOCKS[-1] in lines[2]
    assert unindented(block) == lines


def test_running_shows_an_explanation() -> None:
    page = sample(DOCS / "running.md", "sudo balloonctl explain web")
    events: list[tuple[Event, float]] = [
        (TargetReached(WEB, 72 * MIB, 0), AT_S - 1),
        (Decided(WEB, DECISIONS[WEB]), AT_S),
        (TargetReached(WEB, 96 * MIB, 0), AT_S),
    ]
    lines = [(worded(event), at_s) for event, at_s in events]
    told = {
        "host": host_shown(HostStatus(SOURCE)),
        "vm": vm_shown(vms(7.2, 58.0)[-1]),
        "events": [json.loads(as_json(line, at_s)) for line, at_s in lines if line is not None],
    }
    assert [line for line in page if line != "…"] == explained(told, COLUMNS)


def test_running_shows_a_log() -> None:
    text = (DOCS / "running.md").read_text()
    ((block, rest),) = re.findall(
        r"^((?:    vm1: .*\n)+)((?:     .*\n|    vm1: .*\n)*)", text, re.MULTILINE
    )
    shown = re.sub(r"\n {5,}", " ", block + rest)
    level, needed = 192 * MIB, Reading(700, 400)
    back = Decision(Reason.MEMORY_BACK, 1, 0, 16, 0, Reading(5000, 400), 784)
    events: list[Event] = [
        MemoryKnown(VM1, 4 * GIB, frozenset({PageKind(4096, "")})),
        VmAttached(VM1, 4 * GIB, 3 * GIB, 16),
        DeviceStarted(VM1, 12077, ("inflateq", "deflateq", "statsq", "reporting_vq")),
        Decided(VM1, grown(1, 192, 380)),
        TargetReached(VM1, level, 0),
        Decided(VM1, Decision(Reason.NOT_ENOUGH_BACK, 1, 1, 16, level, needed, 784)),
        Decided(VM1, back),
    ]
    assert unindented(shown) == [said(event, "vm1") for event in events]
    assert f"`{said(TargetReached(VM1, 0, 1)).removeprefix('balloon is 0 B, ')}`" in text


def test_adaptive_shows_a_decision() -> None:
    (line,) = re.findall(r"^    (web: .*)$", (DOCS / "adaptive.md").read_text(), re.MULTILINE)
    decision = Decision(
        Reason.RUNNING_LOW, 0, 3, 16, 412 * MIB, Reading(700, 640), None, 960, before_bytes=0
    )
    assert line == said(Decided(WEB, decision), "web")


def mistakes(file: str, text: str) -> Iterator[str]:
    with pytest.raises(ConfigFileError) as caught:
        parse_config(text, file)
    return (f"balloond: {mistake}" for mistake in caught.value.mistakes)


def test_config_shows_mistakes() -> None:
    text = (DOCS / "config.md").read_text()
    shown = re.findall(r"^    (balloond: /etc/\S+\.toml:.*)$", text, re.MULTILINE)
    file = "/etc/balloond/balloond.toml"
    web = '[vm.web]\nqmp = "/run/web.qmp"\n'
    assert shown == [
        *mistakes(file, f'\n\n\n\n{web}flor = "1G"\n'),
        *mistakes(file, f"\n\n\n\n\n\n{web.replace('web', 'db')}floor = 1G\n"),
        *mistakes("/etc/balloond/balloond.d/10-build.toml", '[vm.build]\nqmp = "build.qmp"\n'),
    ]


def test_config_shows_what_a_reload_has_changed() -> None:
    web = '[vm.web]\nqmp = "/run/web.qmp"\n'
    before = parse_config(web, "")
    after = parse_config(f'{web}floor = "1G"\n[vm.db]\nqmp = "/run/db.qmp"\n', "")
    assert before.discover == Discover()
    assert sample(DOCS / "config.md", "sudo balloonctl reload") == list(changes(before, after))


def test_policy_files_shows_second_opinions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("pyseccomp", "seccomp"):
        monkeypatch.setitem(sys.modules, module, None)  # Whoever imports it finds that it lacks.
    assert libseccomp_process.main() == 1
    call = Probe(0xC000003E, 28, (0, 0, 9, 0, 0, 0))
    compiler, killed, allowed = "libseccomp 2.5.4", Action.KILL_PROCESS.value, Action.ALLOW.value
    opinions: list[Opinion] = [
        Agreement(compiler, 25, 5752),
        Disagreement(compiler, call, "madvise", killed, allowed, allowed),
        NoOpinion(capsys.readouterr().err.strip()),
    ]
    text = (DOCS / "policy-files.md").read_text()
    shown = re.findall(r"^    (libseccomp \d.*|no second .*)$", text, re.MULTILINE)
    for line, opinion in zip(shown, opinions, strict=True):
        pattern = ".*".join(map(re.escape, line.split("…")))
        assert re.fullmatch(pattern, opinion_in_words(opinion)), line


ELSEWHERE = {
    "judgement.md": "tables that the judge prints: tests/unit/test_judgement.py",
    "doctor.md": "tests/unit/test_troubleshooting.py",
}
SHOWN = {"README.md", "adaptive.md", "config.md", "policy-files.md", "running.md"}
"""The pages whose samples are above."""


def test_pages_with_samples_are_all_compared() -> None:
    """A block that begins with neither a command nor a table of TOML is a sample."""
    pages = set()
    for page in (README, *DOCS.glob("*.md")):
        for block in indented(page):
            first = block.split()[0]
            if first not in PROGRAMS and not first.startswith(("[", "/")):
                pages.add(page.name)
    assert pages == SHOWN | set(ELSEWHERE)
