"""What each request of the API is answered, as values; and that openapi.yaml says the same."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from balloon_daemon.api.messages import (
    JSON,
    REASONS,
    Answer,
    Later,
    Parts,
    Request,
    Rights,
    Stream,
    TraceStream,
    Waiting,
    Whole,
)
from balloon_daemon.api.metrics import OPENMETRICS, TEXT, Metrics
from balloon_daemon.api.own_figures import own_figures
from balloon_daemon.api.routes import Routes
from balloon_daemon.commands import (
    Done,
    NotDone,
    NotReloaded,
    Pause,
    Reclaim,
    Reclaimed,
    Refusal,
    Release,
    Reloaded,
    Reserve,
    ReserveAnswer,
    Resume,
    SetBalloon,
    TakeAnswer,
    Unreserve,
)
from balloon_daemon.guests.seam import Ability, GuestState, Stats, Stuck
from balloon_daemon.records.counters import Counters
from balloon_daemon.sizing.decision import (
    Decision,
    Ended,
    NeverLow,
    PolicyStatistics,
    Reading,
    Reason,
    Share,
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
    Stats(1.0, free_bytes=500 * MIB, available_bytes=600 * MIB),
    Stuck("no answer"),
    VmSettings(floor_bytes=GIB // 2, ceiling_bytes=GIB, priority=-1),
    GuestState.PAUSED,
    GIB - 8 * MIB,
    ProtectionStatus(Reason.IN_NEED, frozenset({Sign.STUCK, Sign.FAULTS}), 60.0, 2.0, 8 * MIB),
    "qmp",
    UP,
    4711,
)
BARE = VmStatus(DB, frozenset(), None, 0, None, None, kind="vhost_user")


class Desk:
    """Knows two VMs, and more that go while the status is made."""

    def __init__(self) -> None:
        self.vms = {WEB: FULL, DB: BARE}
        self.gone: list[VmId] = []
        self.obeyed: list[tuple[Release | SetBalloon | Pause | Resume | Unreserve, int]] = []
        self.answer: Done | NotDone = Done(2 * MIB, 0)
        self.wanted: dict[int, tuple[Reclaim | Reserve, int, TakeAnswer]] = {}
        self.withdrawn: list[int] = []
        self.seen: Reading | NeverLow | None = LOW

    def host_status(self) -> HostStatus:
        return host(self.seen)

    def vm_ids(self) -> tuple[VmId, ...]:
        return (*self.gone, *self.vms)

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        return self.vms.get(vm_id)

    def obey(self, command: Release | SetBalloon, uid: int) -> Done | NotDone:
        self.obeyed.append((command, uid))
        return self.answer

    def steer(self, command: Pause | Resume | Unreserve, uid: int) -> NotDone | None:
        self.obeyed.append((command, uid))
        return self.answer if isinstance(self.answer, NotDone) else None

    def want(self, command: Reclaim | Reserve, uid: int, answer: TakeAnswer) -> int | NotDone:
        if isinstance(self.answer, NotDone):
            return self.answer
        self.wanted[len(self.wanted) + 1] = (command, uid, answer)
        return len(self.wanted)

    def withdraw(self, ticket: int) -> None:
        self.withdrawn.append(ticket)


class Events:
    """The last events of every VM are the same two."""

    def lines_of(self, vm: VmId) -> Iterator[str]:
        common = {"time": "2026-01-01", "level": "info", "message": vm.name}
        yield json.dumps({"event": "decided", "vm": vm.name, **common})
        yield json.dumps({"event": "target-reached", "vm": vm.name, **common})

    def has_lines_of(self, name: str) -> bool:
        return name == "gone"

    def undriven(self, name: str = "") -> Iterator[Undriven]:
        for one in ("old", "x" * 100):
            if name in ("", one):
                yield Undriven(one, "/run/old", "held", f"{one}: somebody holds it")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def routes_of(desk: Desk, reloader: Any = None) -> Routes:
    recent = Events()
    metrics = Metrics(desk, recent.undriven, Counters(), own_figures)
    return Routes(desk, recent, metrics, reloader)


@pytest.fixture
def routes(desk: Desk) -> Routes:
    return routes_of(desk)


def get(target: str, method: str = "GET", body: bytes = b"") -> Request:
    return Request(method, target, body, Rights.CHANGE)


def test_status_has_the_host_each_vm_and_those_that_are_not_driven(routes: Routes) -> None:
    assert routes.answer(get("/v1/status")) == Whole()
    status = json.loads(b"".join(routes.whole_parts(JSON)))

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
        "dry_run": False,
        "paused_s": None,
        "reclaims": [],
        "reserves": [],
        "reserved_mib": 0,
    }
    web = status["vms"][0]
    assert web["last_decision"]["age_s"] == 1.235
    assert web["last_decision"]["message"].startswith("low memory (10 MiB available within /sys")
    assert web["protection"]["signs"] == ["major-faults", "stuck"]
    assert (web["guest_free_bytes"], web["vmm_pid"]) == (500 * MIB, 4711)
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


@pytest.mark.parametrize("target", ["/v1/vms/web", "/v1/vms/web/balloon"])
def test_one_of_several_vms_of_a_name_is_named_by_its_key(
    target: str, routes: Routes, desk: Desk
) -> None:
    other = VmId(77, "web")
    desk.vms = {WEB: FULL, DB: BARE, other: BARE._replace(vm=other)}
    method = "PUT" if target.endswith("balloon") else "GET"
    body = b'{"size_bytes":0}' if method == "PUT" else b""

    told = routes.answer(get(target, method, body))
    assert isinstance(told, Answer)
    assert told.status == 409
    told_keys = "2 VMs are named web; name one of them by its key, which the status has: #1, #77"
    assert json.loads(told.body)["error"] == told_keys

    routes.answer(get("/v1/vms/%2377/balloon", "PUT", b'{"size_bytes":0}'))
    assert desk.obeyed == [(SetBalloon(other, 0, 600.0), 0)]
    explained = routes.answer(get("/v1/vms/%2377"))
    assert isinstance(explained, Answer)
    assert json.loads(explained.body)["vm"]["key"] == "#77"
    assert routes.answer(get("/v1/events?vm=%2377")) == Stream("web", follow=True)


@fault("two VMs have one name")
def test_key_names_its_own_vm_whatever_another_vm_is_called(routes: Routes, desk: Desk) -> None:
    called = VmId(78, "#1")
    desk.vms = {WEB: FULL, called: BARE._replace(vm=called)}
    for key in ("%231", "%2378"):
        routes.answer(get(f"/v1/vms/{key}/balloon", "PUT", b'{"size_bytes":0}'))
    assert desk.obeyed == [(SetBalloon(vm, 0, 600.0), 0) for vm in (WEB, called)]


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
        ("?vm=gone&follow=false", Stream("gone", follow=False)),
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
        ("/v1/vms/none", "GET", b"", 404, "there is no VM none; balloonctl status names all"),
        ("/v1/vms/old", "GET", b"", 404, "a VM that is not driven: old: somebody holds it"),
        ("/v1/vms/%1b%5B2J", "GET", b"", 404, "there is no VM \\x1b[2J;"),
        ("/v1/vms/" + 200 * "y", "GET", b"", 404, f"there is no VM {80 * 'y'}…;"),
        ("/v1/status", "DELETE", b"", 405, "this path has GET alone"),
        ("/v1/status", "GET", b"{}", 400, "a GET has no body"),
        ("/v1/status?vm=x", "GET", b"", 400, "vm is not known here; nothing can be asked"),
        ("/v1/events?who=x", "GET", b"", 400, "who is not known here; only vm, follow may be"),
        (
            "/v1/events?vm=nope",
            "GET",
            b"",
            404,
            "there is no VM nope; balloonctl status names all",
        ),
        ("/v1/events?vm=old", "GET", b"", 404, "a VM that is not driven: old: somebody holds it"),
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


@pytest.mark.parametrize(
    "target", ["/v1/status", "/v1/events", "/v1/trace", "/v1/vms/web", "/v1/nothing", "/metrics"]
)
def test_whoever_may_not_read_learns_nothing(target: str, routes: Routes) -> None:
    answer = routes.answer(Request("GET", target, b"", Rights.NOTHING))
    assert isinstance(answer, Answer)
    assert answer.status == 403
    assert "you may not ask" in json.loads(answer.body)["error"]


def test_metrics_are_in_the_format_that_is_asked_for(routes: Routes) -> None:
    for accept, kind, end in (("", TEXT, b""), (OPENMETRICS, OPENMETRICS, b"# EOF\n")):
        request = Request("GET", "/metrics", b"", Rights.READ, accept=accept)
        assert routes.answer(request) == Whole(kind)
        text = b"".join(routes.whole_parts(kind))
        assert text.startswith(b"# HELP balloond_build")
        assert text.endswith(end)
        assert (b"# EOF" in text) == (end != b"")


def test_whoever_may_read_the_metrics_alone_reads_nothing_else(routes: Routes) -> None:
    assert routes.answer(Request("GET", "/metrics", b"", Rights.SCRAPE)) == Whole(TEXT)
    for target in ("/v1/status", "/v1/events", "/v1/trace", "/v1/vms/web", "/", "/v1/release"):
        for method in ("GET", "POST", "PUT"):
            answer = routes.answer(Request(method, target, b"", Rights.SCRAPE))
            assert isinstance(answer, Answer)
            assert answer.status == 404, target
    answer = routes.answer(Request("POST", "/metrics", b"", Rights.SCRAPE))
    assert isinstance(answer, Answer)
    assert (answer.status, answer.allow) == (405, "GET")


def test_whoever_may_read_may_record(routes: Routes) -> None:
    assert routes.answer(Request("GET", "/v1/trace", b"", Rights.READ)) == TraceStream()
    answer = routes.answer(Request("GET", "/v1/trace?vm=web", b"", Rights.READ))
    assert isinstance(answer, Answer)
    assert answer.status == 400


def test_every_path_of_the_description_is_there_and_no_other_method(routes: Routes) -> None:
    methods = {"get", "put", "post", "delete", "patch", "head"}
    for path, operations in description()["paths"].items():
        for method in methods:
            request = get(path.replace("{name}", "web"), method.upper(), b"")
            answer = routes.answer(request)
            refused = isinstance(answer, Answer) and answer.status == 405
            assert refused is (method not in operations), (path, method)


def put(body: object, name: str = "web", rights: Rights = Rights.CHANGE) -> Request:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request("PUT", f"/v1/vms/{name}/balloon", text, rights, uid=7)


def test_balloon_is_set_for_a_time_as_the_client_says(routes: Routes, desk: Desk) -> None:
    desk.answer = Done(MIB, 5 * MIB)
    for body, for_s in (({"size_bytes": 5 * MIB}, 600.0), ({"size_bytes": 5, "for_s": 1}, 1.0)):
        check("Setting")(body)
        answer = routes.answer(put(body))
        assert isinstance(answer, Answer)
        assert answer.status == 200
        told = json.loads(answer.body)
        check("Told")(told)
        sizes = {"balloon_bytes": MIB, "target_bytes": 5 * MIB}
        assert told == {"vm": "web", **sizes, "dry_run": False}
        assert desk.obeyed[-1] == (SetBalloon(WEB, body["size_bytes"], for_s), 7)


@pytest.mark.parametrize(
    ("not_done", "status", "sentence"),
    [
        (NotDone(Refusal.ENDING), 503, "balloond is ending"),
        (NotDone(Refusal.NO_SIZE), 409, "the size of web is not known yet"),
        (NotDone(Refusal.TOO_LARGE, 512 * MIB), 409, "the balloon of web may be 512 MiB at most"),
        (
            NotDone(Refusal.OBJECTION, objection=Reason.IN_NEED),
            409,
            "web must not be asked for more now: in-need",
        ),
    ],
)
def test_what_is_not_done_is_said(
    not_done: NotDone, status: int, sentence: str, routes: Routes, desk: Desk
) -> None:
    desk.answer = not_done
    answer = routes.answer(put({"size_bytes": 0}))
    assert isinstance(answer, Answer)
    assert answer.status == status
    assert json.loads(answer.body)["error"].startswith(sentence)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "size_bytes must be a whole number of bytes"),
        (b"{", 400, "the body is no JSON in UTF-8"),
        (b"\xff", 400, "the body is no JSON in UTF-8"),
        (b"[" * 4000, 400, "the body is no JSON in UTF-8"),
        # JSON's text is UTF-8 (RFC 8259, 8.1); Python would load a module for these.
        ('{"size_bytes": 0}'.encode("utf-16-be"), 400, "the body is no JSON in UTF-8"),
        ('{"size_bytes": 0}'.encode("utf-32-le"), 400, "the body is no JSON in UTF-8"),
        ([], 400, "the body is no JSON object"),
        ({"size": 1}, 400, "size is not known here; only size_bytes, for_s may be set"),
        ({"size_bytes": True}, 400, "size_bytes must be a whole number of bytes"),
        ({"size_bytes": 1.5}, 400, "size_bytes must be a whole number of bytes"),
        ({"size_bytes": -1}, 400, "size_bytes must be a whole number of bytes"),
        ({"size_bytes": 1 << 60}, 400, "size_bytes must be a whole number of bytes"),
        ({"size_bytes": 1, "for_s": 0}, 400, "for_s must be from 1 to 86400 seconds"),
        ({"size_bytes": 1, "for_s": "1"}, 400, "for_s must be from 1 to 86400 seconds"),
        ({"size_bytes": 1, "for_s": None}, 400, "for_s must be from 1 to 86400 seconds"),
        (b'{"size_bytes": 1, "for_s": NaN}', 400, "for_s must be from 1 to 86400 seconds"),
        (b'{"size_bytes": 1, "for_s": 1e999}', 400, "for_s must be from 1 to 86400 seconds"),
    ],
)
@fault("a request that asks for what there is not")
def test_mistake_in_a_body_is_a_status_and_a_sentence_and_changes_nothing(
    body: object, status: int, sentence: str, routes: Routes, desk: Desk
) -> None:
    answer = routes.answer(put(body))
    assert isinstance(answer, Answer)
    assert answer.status == status
    assert json.loads(answer.body)["error"].startswith(sentence)
    assert desk.obeyed == []


def test_release_is_of_all_vms_that_have_a_balloon_one_at_a_time(
    routes: Routes, desk: Desk
) -> None:
    answer = routes.answer(Request("POST", "/v1/release", b"", Rights.CHANGE, uid=7))
    assert isinstance(answer, Parts)
    assert desk.obeyed == []
    released = json.loads(b"".join(answer.parts))
    check("Released")(released)
    assert released == {"vms": [{"vm": "web", "balloon_bytes": 2 * MIB, "target_bytes": 0}]}
    assert desk.obeyed == [(Release(WEB), 7)]


def test_release_is_of_one_vm_where_it_is_named(routes: Routes, desk: Desk) -> None:
    desk.vms[DB] = FULL._replace(vm=DB)
    body = json.dumps({"vm": DB.name}).encode()
    answer = routes.answer(Request("POST", "/v1/release", body, Rights.CHANGE))
    assert isinstance(answer, Parts)
    list(answer.parts)
    assert [command for command, _ in desk.obeyed] == [Release(DB)]

    wrong = routes.answer(Request("POST", "/v1/release", b'{"vm": 1}', Rights.CHANGE))
    assert isinstance(wrong, Answer)
    assert wrong.status == 400


class Reloader:
    """Reads a configuration anew when a test says so."""

    def __init__(self) -> None:
        self.done: list[Callable[[Reloaded | NotReloaded], None]] = []

    def reload(self, done: Callable[[Reloaded | NotReloaded], None]) -> None:
        self.done.append(done)


@pytest.mark.parametrize(
    ("result", "status", "schema"),
    [
        (Reloaded(("[vm.web] priority: 0 -> 1",)), 200, "Reloaded"),
        (NotReloaded(("b.toml:3: [vm.web] flor: there is no such key",)), 409, "NotReloaded"),
    ],
)
def test_reload_is_answered_when_the_configuration_was_read(
    result: Reloaded | NotReloaded, status: int, schema: str, desk: Desk
) -> None:
    reloader, answers = Reloader(), list[Answer]()
    routes = routes_of(desk, reloader)
    later = routes.answer(Request("POST", "/v1/reload", b"", Rights.CHANGE))
    assert isinstance(later, Later)
    assert reloader.done == []
    later.begin(answers.append)
    assert answers == []

    reloader.done[0](result)

    (answer,) = answers
    content = json.loads(answer.body)
    check(schema)(content)
    assert (answer.status, content.get("changed") or content["mistakes"]) == (status, [*result[0]])


def test_reload_of_what_cannot_be_read_anew_or_with_a_body_is_refused(
    routes: Routes, desk: Desk
) -> None:
    for asked, body, status in (
        (routes, b"", 503),
        (routes_of(desk, Reloader()), b'{"file": "/x"}', 400),
    ):
        answer = asked.answer(Request("POST", "/v1/reload", body, Rights.CHANGE))
        assert isinstance(answer, Answer)
        assert answer.status == status


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("PUT", "/v1/vms/web/balloon", b'{"size_bytes": 0}'),
        ("POST", "/v1/release", b""),
        ("POST", "/v1/reload", b""),
    ],
)
@fault("a client that may not ask")
def test_whoever_may_only_read_changes_nothing(
    method: str, target: str, body: bytes, routes: Routes, desk: Desk
) -> None:
    answer = routes.answer(Request(method, target, body, Rights.READ))
    assert isinstance(answer, Answer)
    assert answer.status == 403
    assert json.loads(answer.body)["error"].startswith("you may read, but change nothing")
    assert desk.obeyed == []


def post(path: str, body: object, rights: Rights = Rights.CHANGE) -> Request:
    return Request("POST", path, json.dumps(body).encode(), rights, uid=7)


def test_vms_or_all_are_paused_for_their_time_and_resumed(routes: Routes, desk: Desk) -> None:
    desk.vms[WEB] = FULL._replace(paused_s=90.0)
    named = routes.answer(post("/v1/pause", {"vms": ["web", "web"], "for_s": 90}))
    everyone = routes.answer(post("/v1/pause", {}))
    resumed = routes.answer(post("/v1/resume", {"vms": ["d\u00e9b/1"]}))
    assert desk.obeyed == [
        (Pause((WEB,), 90.0), 7),
        (Pause((), 600.0), 7),
        (Resume((DB,)), 7),
    ]
    assert isinstance(named, Answer)
    assert isinstance(everyone, Answer)
    assert isinstance(resumed, Answer)
    for answer in (named, everyone, resumed):
        check("Pauses")(json.loads(answer.body))
    assert json.loads(named.body)["vms"] == [{"vm": "web", "paused_s": 90.0}]
    assert json.loads(everyone.body)["vms"] == []
    assert json.loads(resumed.body)["vms"] == [{"vm": "d\u00e9b/1", "paused_s": None}]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"vms": "web"}, 400, "vms must be a list of VMs' names"),
        ({"vms": [1]}, 400, "vms must be a list of VMs' names"),
        ({"vms": ["web"] * 65}, 400, "vms names more than 64 VMs; name none for all"),
        ({"vms": ["web", "none"]}, 404, "there is no VM none; balloonctl status names all"),
        ({"for_s": 0}, 400, "for_s must be from 1 to 86400 seconds"),
        ({"for_s": 86_401}, 400, "for_s must be from 1 to 86400 seconds"),
        ({"for_s": True}, 400, "for_s must be from 1 to 86400 seconds"),
        ({"until": 1}, 400, "until is not known here; only vms, for_s may be set"),
    ],
)
def test_pause_that_makes_no_sense_is_refused(
    body: object, status: int, sentence: str, routes: Routes, desk: Desk
) -> None:
    answer = routes.answer(post("/v1/pause", body))
    assert isinstance(answer, Answer)
    assert (answer.status, json.loads(answer.body)) == (status, {"error": sentence})
    assert desk.obeyed == []


def test_reader_pauses_nothing(routes: Routes, desk: Desk) -> None:
    for path in ("/v1/pause", "/v1/resume"):
        answer = routes.answer(post(path, {}, Rights.READ))
        assert isinstance(answer, Answer)
        assert answer.status == 403
    assert desk.obeyed == []


def test_vm_of_a_host_that_is_paused_does_not_resume_alone(routes: Routes, desk: Desk) -> None:
    desk.answer = NotDone(Refusal.ALL_PAUSED)
    answer = routes.answer(post("/v1/resume", {"vms": ["web"]}))
    assert isinstance(answer, Answer)
    assert answer.status == 409
    assert b"resume all of them" in answer.body


def test_reclaim_waits_for_its_answer(routes: Routes, desk: Desk) -> None:
    body = {"size_bytes": 64 * MIB, "vms": ["web"], "within_s": 5, "hold_s": 60}
    waiting = routes.answer(post("/v1/reclaim", body))
    assert waiting == Waiting(Reclaim((WEB,), 64 * MIB, 5.0, 60.0), 7)
    assert isinstance(waiting, Waiting)
    answers: list[Parts] = []
    assert routes.begin(waiting, answers.append) == 1
    command, uid, answer = desk.wanted[1]
    assert (command, uid) == (waiting.command, 7)
    shares = (
        Share(WEB, 64 * MIB, 32 * MIB, Reason.IN_NEED),
        Share(DB, 8 * MIB, 0, None, gone=True),
    )
    answer(Reclaimed(Ended.TIME, 64 * MIB, 5.00004, shares))
    (parts,) = answers
    told = json.loads(b"".join(parts.parts))
    check("Reclaimed")(told)
    assert told == {
        "why": "time",
        "wanted_bytes": 64 * MIB,
        "came_bytes": 32 * MIB,
        "took_s": 5.0,
        "dry_run": False,
        "vms": [
            {
                "vm": "d\u00e9b/1",
                "asked_bytes": 8 * MIB,
                "came_bytes": 0,
                "objection": None,
                "gone": True,
            },
            {
                "vm": "web",
                "asked_bytes": 64 * MIB,
                "came_bytes": 32 * MIB,
                "objection": "in-need",
                "gone": False,
            },
        ],
    }
    routes.withdraw(1)
    assert desk.withdrawn == [1]


def test_reclaim_from_any_vm_has_30_s_and_holds_for_10_min(routes: Routes) -> None:
    answer = routes.answer(post("/v1/reclaim", {"size_bytes": 1}))
    assert answer == Waiting(Reclaim((), 1, 30.0, 600.0), 7)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({}, 400, "size_bytes must be a whole number of bytes, 0 or more"),
        ({"size_bytes": 1, "within_s": 601}, 400, "within_s must be from 1 to 600 seconds"),
        ({"size_bytes": 1, "hold_s": 0}, 400, "hold_s must be from 1 to 86400 seconds"),
        (
            {"size_bytes": 1, "vms": ["none"]},
            404,
            "there is no VM none; balloonctl status names all",
        ),
    ],
)
def test_reclaim_that_makes_no_sense_is_refused(
    body: object, status: int, sentence: str, routes: Routes
) -> None:
    answer = routes.answer(post("/v1/reclaim", body))
    assert isinstance(answer, Answer)
    assert (answer.status, json.loads(answer.body)) == (status, {"error": sentence})


def test_reclaim_beyond_those_that_wait_is_refused(routes: Routes, desk: Desk) -> None:
    desk.answer = NotDone(Refusal.TOO_MANY)
    refused = routes.begin(Waiting(Reclaim((), 1, 30.0, 600.0), 7), lambda parts: None)
    assert isinstance(refused, Answer)
    assert refused.status == 503
    assert b"16 requests wait for memory already" in refused.body


def test_reserve_waits_for_its_answer_and_all_are_ended(routes: Routes, desk: Desk) -> None:
    body = {"size_bytes": 2 * GIB, "for_s": 60}
    waiting = routes.answer(post("/v1/reserve", body))
    assert waiting == Waiting(Reserve(2 * GIB, 30.0, 60.0), 7)
    assert isinstance(waiting, Waiting)
    answers: list[Parts] = []
    routes.begin(waiting, answers.append)
    _, _, answer = desk.wanted[1]
    reading = Reading(1200, 2448, reserved_mib=2048)
    shares = (Share(WEB, 0, 0, Reason.IN_NEED),)
    answer(ReserveAnswer(Ended.NOBODY, 2 * GIB, 4.0, 56.0, reading, shares))
    told = json.loads(b"".join(answers[0].parts))
    check("Reserved")(told)
    assert (told["available_mib"], told["needed_mib"], told["left_s"]) == (1200, 2448, 56.0)
    assert told["vms"][0]["objection"] == "in-need"
    ended = routes.answer(post("/v1/unreserve", {}))
    assert isinstance(ended, Answer)
    check("Unreserved")(json.loads(ended.body))
    assert desk.obeyed == [(Unreserve(), 7)]


def test_reserves_beyond_those_that_a_user_may_have_are_refused(
    routes: Routes, desk: Desk
) -> None:
    desk.answer = NotDone(Refusal.TOO_MANY_RESERVES)
    refused = routes.begin(Waiting(Reserve(1, 30.0, 60.0), 7), lambda parts: None)
    assert isinstance(refused, Answer)
    assert refused.status == 409
    assert b"balloonctl unreserve" in refused.body


@fault("a reserve of all that the host can have")
def test_reserve_of_more_than_the_host_has_is_refused_with_what_it_has(
    routes: Routes, desk: Desk
) -> None:
    desk.answer = NotDone(Refusal.BEYOND_HOST, 12 * GIB)
    refused = routes.begin(Waiting(Reserve(1 << 44, 30.0, 60.0), 7), lambda parts: None)
    assert isinstance(refused, Answer)
    assert refused.status == 409
    assert json.loads(refused.body)["error"] == (
        "with the margin and all other reserves, this is as much as the host can have, or more "
        "(12 GiB); reserve less, or end the others (balloonctl unreserve)"
    )
