"""What each request of the API is answered, as values; and that openapi.yaml says the same."""

import json
from collections.abc import Iterator

import pytest

from balloon_daemon.api.routes import (
    REASONS,
    Answer,
    Request,
    Rights,
    Routes,
    Stream,
    WholeStatus,
)
from balloon_daemon.guests.seam import Ability, GuestState, Stats, Stuck
from balloon_daemon.sizing.decision import (
    Decision,
    NeverLow,
    PolicyStatistics,
    Reading,
    Reason,
    Sign,
)
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.status import (
    HostStatus,
    LastDecision,
    PolicyStatus,
    ProtectionStatus,
    SourceStatus,
    Undriven,
    VmStatus,
)
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.api_schemas import check, description
from tests.harness.faults import fault

WEB, DB = VmId(1, "web"), VmId(2, "d\u00e9b/1")
LOW = Reading(10, 400, "/sys/fs/cgroup/vms/memory.max")
UP = LastDecision(WEB, Decision(Reason.LOW_MEMORY, 0, 1, 16, 32 * MIB, LOW), 1.23456)


def host(seen: Reading | NeverLow | None = LOW) -> HostStatus:
    return HostStatus(SourceStatus("meminfo", "", 1, 0, 0, seen, 0.5), UP, 0.25, listens=True)


FULL = VmStatus(
    WEB,
    frozenset(Ability),
    PolicyStatus(GIB, 512 * MIB, 1, 16, 32 * MIB, PolicyStatistics(), None, 59.9994, 464),
    16 * MIB,
    Stats(1.0, available_bytes=600 * MIB),
    Stuck("no answer"),
    VmSettings(floor_bytes=GIB // 2, ceiling_bytes=GIB, priority=-1),
    GuestState.PAUSED,
    GIB - 8 * MIB,
    ProtectionStatus(Reason.IN_NEED, frozenset({Sign.STUCK, Sign.FAULTS}), 60.0, 2.0, 8 * MIB),
    "qmp",
    UP,
)
BARE = VmStatus(DB, frozenset(), None, 0, None, None, kind="vhost_user")


class Desk:
    """Knows two VMs, and more that go while the status is made."""

    def __init__(self) -> None:
        self.vms = {WEB: FULL, DB: BARE}
        self.gone: list[VmId] = []
        self.seen: Reading | NeverLow | None = LOW

    def host_status(self) -> HostStatus:
        return host(self.seen)

    def vm_ids(self) -> tuple[VmId, ...]:
        return (*self.gone, *self.vms)

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        return self.vms.get(vm_id)


class Events:
    """The last events of every VM are the same two."""

    def lines_of(self, vm: VmId) -> Iterator[str]:
        common = {"time": "2026-01-01", "level": "info", "message": vm.name}
        yield json.dumps({"event": "decided", "vm": vm.name, **common})
        yield json.dumps({"event": "target-reached", "vm": vm.name, **common})

    def undriven(self, name: str = "") -> Iterator[Undriven]:
        for one in ("old", "x" * 100):
            if name in ("", one):
                yield Undriven(one, "/run/old", "held", f"{one}: somebody holds it")


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def routes(desk: Desk) -> Routes:
    return Routes(desk, Events())


def get(target: str, method: str = "GET", body: bytes = b"") -> Request:
    return Request(method, target, body, Rights.CHANGE)


def test_status_has_the_host_each_vm_and_those_that_are_not_driven(routes: Routes) -> None:
    assert routes.answer(get("/v1/status")) == WholeStatus()
    status = json.loads(b"".join(routes.status_parts()))

    check("Status")(status)
    assert [vm["name"] for vm in status["vms"]] == ["web", "d\u00e9b/1"]
    assert [vm["name"] for vm in status["not_driven"]] == ["old", "x" * 100]
    assert status["host"] == {
        "available_mib": 10,
        "margin_mib": 400,
        "within": "/sys/fs/cgroup/vms/memory.max",
        "low": True,
        "source": "meminfo",
        "switched_off": None,
        "source_error": None,
        "age_s": 0.5,
        "last_decision": status["vms"][0]["last_decision"],
        "next_timer_s": 0.25,
        "listens": True,
    }
    web = status["vms"][0]
    assert web["last_decision"]["age_s"] == 1.235
    assert web["last_decision"]["message"].startswith("low memory (10 MiB available within /sys")
    assert web["protection"]["signs"] == ["major-faults", "stuck"]
    assert web["next"] == {"recheck_in_s": None, "release_in_s": 59.999, "needed_mib": 464}
    assert web["trouble"] == "no answer"


def test_memory_that_the_host_has_of_a_balloon_is_what_the_vm_does_not_occupy(
    routes: Routes, desk: Desk
) -> None:
    returned = []
    for held_bytes in (None, GIB + MIB, GIB, GIB - 8 * MIB, GIB // 2):
        desk.vms = {WEB: FULL._replace(held_bytes=held_bytes)}
        (vm,) = json.loads(b"".join(routes.status_parts()))["vms"]
        returned.append(vm["returned_bytes"])
    assert returned == [None, 0, 0, 8 * MIB, 16 * MIB]


@pytest.mark.parametrize("seen", [None, NeverLow("margin reads off")])
def test_figures_that_are_not_known_are_null(
    seen: NeverLow | None, routes: Routes, desk: Desk
) -> None:
    desk.seen = seen
    status = json.loads(b"".join(routes.status_parts()))
    check("Status")(status)
    assert status["host"]["available_mib"] is None
    assert status["host"]["low"] is (None if seen is None else False)
    assert status["host"]["switched_off"] == (None if seen is None else "margin reads off")


def test_vm_that_goes_while_the_status_is_made_is_left_out(routes: Routes, desk: Desk) -> None:
    desk.gone = [VmId(7, "gone")]
    parts = routes.status_parts()
    made = [next(parts)]
    del desk.vms[WEB]
    status = json.loads(b"".join([*made, *parts]))
    assert [vm["name"] for vm in status["vms"]] == ["d\u00e9b/1"]


@pytest.mark.parametrize("name", ["web", "d%C3%A9b%2F1"])
def test_vm_is_explained_by_its_status_and_its_last_events(name: str, routes: Routes) -> None:
    answer = routes.answer(get(f"/v1/vms/{name}"))
    assert isinstance(answer, Answer)
    assert answer.status == 200
    told = json.loads(answer.body)
    check("Explanation")(told)
    assert [event["event"] for event in told["events"]] == ["decided", "target-reached"]
    assert {event["vm"] for event in told["events"]} == {told["vm"]["name"]}


@pytest.mark.parametrize(
    ("query", "stream"),
    [
        ("", Stream(None, follow=True)),
        ("?follow=false", Stream(None, follow=False)),
        ("?vm=web&follow=true", Stream("web", follow=True)),
        ("?vm=d%C3%A9b%2F1", Stream("d\u00e9b/1", follow=True)),
    ],
)
def test_events_are_asked_for_all_or_of_one_vm(query: str, stream: Stream, routes: Routes) -> None:
    assert routes.answer(get(f"/v1/events{query}")) == stream


@pytest.mark.parametrize(
    ("target", "method", "body", "status", "sentence"),
    [
        ("", "GET", b"", 404, "there is no ; docs/api.md lists all that there is"),
        ("/", "GET", b"", 404, "there is no /; docs/api.md lists all that there is"),
        ("http://x/v1/status", "GET", b"", 404, "there is no http://x/v1/status; docs/api.md"),
        ("/v2/status", "GET", b"", 404, "there is no /v2/status; docs/api.md lists all"),
        ("/v1/vms/none", "GET", b"", 404, "there is no VM none; the status names all"),
        ("/v1/vms/old", "GET", b"", 404, "a VM that is not driven: old: somebody holds it"),
        ("/v1/vms/%1b%5B2J", "GET", b"", 404, "there is no VM \\x1b[2J;"),
        ("/v1/vms/" + 200 * "y", "GET", b"", 404, f"there is no VM {80 * 'y'}…;"),
        ("/v1/status", "DELETE", b"", 405, "this path has GET alone"),
        ("/v1/status", "GET", b"{}", 400, "a GET has no body"),
        ("/v1/status?vm=x", "GET", b"", 400, "vm is not known here; nothing can be asked"),
        ("/v1/events?who=x", "GET", b"", 400, "who is not known here; only vm, follow may be"),
        ("/v1/events?follow=yes", "GET", b"", 400, "follow is yes; it must be true or false"),
        ("/v1/events?vm=a&vm=b", "GET", b"", 400, "the query names something twice"),
        ("/v1/events?vm", "GET", b"", 400, "the query is not NAME=VALUE"),
        ("/v1/events?" + "a=1&" * 9, "GET", b"", 400, "the query is not NAME=VALUE"),
    ],
)
@fault("a request that asks for what there is not")
def test_mistake_in_a_request_is_a_status_and_a_sentence(
    target: str, method: str, body: bytes, status: int, sentence: str, routes: Routes
) -> None:
    answer = routes.answer(get(target, method, body))
    assert isinstance(answer, Answer)
    assert answer.status == status
    assert status in REASONS
    said = json.loads(answer.body)
    check("Error")(said)
    assert said["error"].startswith(sentence)
    assert answer.allow == ("GET" if status == 405 else "")


@pytest.mark.parametrize("target", ["/v1/status", "/v1/events", "/v1/vms/web", "/v1/nothing"])
def test_whoever_may_not_read_learns_nothing(target: str, routes: Routes) -> None:
    answer = routes.answer(Request("GET", target, b"", Rights.NOTHING))
    assert isinstance(answer, Answer)
    assert answer.status == 403
    assert "you may not ask" in json.loads(answer.body)["error"]


def test_every_path_of_the_description_is_there_and_no_other_method(routes: Routes) -> None:
    methods = {"get", "put", "post", "delete", "patch", "head"}
    for path, operations in description()["paths"].items():
        for method in methods:
            request = get(path.replace("{name}", "web"), method.upper(), b"")
            answer = routes.answer(request)
            refused = isinstance(answer, Answer) and answer.status == 405
            assert refused is (method not in operations), (path, method)
