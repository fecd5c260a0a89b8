"""Finds the answer to each request of the API: a request as a value in, an answer as a value out.

Pure. ``openapi.yaml`` describes requests and answers; a test holds the two together.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, assert_never
from urllib.parse import unquote

from balloon_daemon.api.bodies import RefusedError, asked_of, cut, size_of, time_of, truth_of
from balloon_daemon.api.messages import (
    JSON,
    Answer,
    Later,
    Parts,
    Request,
    Result,
    Rights,
    Stream,
    TraceStream,
    Waiting,
    Whole,
    refusal,
)
from balloon_daemon.api.metrics import OPENMETRICS, TEXT, Metrics, wants_openmetrics
from balloon_daemon.api.shown import (
    answer_parts,
    as_json,
    host_shown,
    key_of,
    seconds,
    undriven_shown,
    vm_shown,
)
from balloon_daemon.commands import (
    MOST_RESERVES,
    MOST_WAITING,
    MOST_WITHIN_S,
    Desk,
    Done,
    NotDone,
    NotReloaded,
    Pause,
    Reclaim,
    Reclaimed,
    Refusal,
    Release,
    Reloaded,
    Reloader,
    Reserve,
    ReserveAnswer,
    Resume,
    SetBalloon,
    Unreserve,
)
from balloon_daemon.status import Undriven
from balloon_daemon.units import VmId, format_size

WITHIN_S = 30.0
"""How long a reclaim or a reserve waits for memory where the request does not say."""

MOST_NAMED = 64
"""How many VMs a request may name: each is looked for among all VMs."""

_MOST_KEYS = 8
"""How many keys of VMs with the same name an error lists."""


class RecentEvents(Protocol):
    """The methods of ``records.recent.Recent`` that the routes call."""

    def lines_of(self, vm: VmId) -> Iterator[str]:
        """The last events about a VM, as lines of JSON."""

    def has_lines_of(self, name: str) -> bool:
        """Whether any of the last events is about a VM of this name."""

    def undriven(self, name: str = "") -> Iterator[Undriven]:
        """The VMs whose balloons balloond cannot drive now; with a name, that VM alone."""


class Routes:
    """All paths of the API.

    Args:
        desk: the controller.
        recent: the last events.
        metrics: makes the metrics.
        reloader: has the configuration read anew; None: there is no configuration to read.
    """

    def __init__(
        self,
        desk: Desk,
        recent: RecentEvents,
        metrics: Metrics,
        reloader: Reloader | None = None,
    ) -> None:
        self._desk = desk
        self._recent = recent
        self._metrics = metrics
        self._reloader = reloader

    def answer(self, request: Request) -> Result:
        """Answers a request; every mistake of the client's has a status and a sentence."""
        try:
            return self._answer(request)
        except RefusedError as err:
            return refusal(err.status, str(err), err.allow)

    def begin(self, waiting: Waiting, done: Callable[[Parts], None]) -> int | Answer:
        """Begins a command that takes a while.

        Args:
            waiting: what is asked.
            done: gets the answer, perhaps before this call returns.

        Returns:
            The number by which it is withdrawn, or an answer that refuses it.
        """

        def ended(answer: Reclaimed | ReserveAnswer) -> None:
            dry_run = self._desk.host_status().dry_run
            done(Parts(answer_parts(answer, dry_run=dry_run)))

        ticket = self._desk.want(waiting.command, waiting.uid, ended)
        if not isinstance(ticket, NotDone):
            return ticket
        err = _not_done(None, ticket)
        return refusal(err.status, str(err))

    def withdraw(self, ticket: int) -> None:
        """Ends the command that ``begin`` has begun, as its client has gone."""
        self._desk.withdraw(ticket)

    def whole_parts(self, kind: str) -> Iterator[bytes]:
        """The parts of an answer about all VMs: of the status for JSON, else of the metrics."""
        metrics = self._metrics.parts(openmetrics=kind == OPENMETRICS)
        return self.status_parts() if kind == JSON else metrics

    def status_parts(self) -> Iterator[bytes]:
        """The parts of ``GET /v1/status``."""
        yield b'{"host":' + as_json(host_shown(self._desk.host_status())) + b',"vms":['
        comma = b""
        for vm_id in tuple(self._desk.vm_ids()):
            # The VM may have gone since the first part was made.
            if (status := self._desk.vm_status(vm_id)) is not None:
                yield comma + as_json(vm_shown(status))
                comma = b","
        yield b'],"not_driven":['
        comma = b""
        for undriven in self._recent.undriven():
            yield comma + as_json(undriven_shown(undriven))
            comma = b","
        yield b"]}\n"

    def _answer(self, request: Request) -> Result:
        if request.rights < Rights.SCRAPE:
            raise RefusedError(
                403,
                "you may not ask: only root, the user that balloond runs as, and members of the "
                "group of its socket may; have yourself added to that group (balloond)",
            )
        path, _, query = request.target.partition("?")
        if request.rights is Rights.SCRAPE and path != "/metrics":
            raise RefusedError(404, "here is /metrics alone; all else is on the API's own socket")
        asked = asked_of(query)
        match path.split("/"):
            case ["", "metrics"]:
                _expect(request, "GET", asked)
                return Whole(OPENMETRICS if wants_openmetrics(request.accept) else TEXT)
            case ["", "v1", "status"]:
                _expect(request, "GET", asked)
                return Whole()
            case ["", "v1", "events"]:
                _expect(request, "GET", asked, "vm", "follow")
                return self._stream(asked.get("vm"), asked.get("follow", "true"))
            case ["", "v1", "trace"]:
                _expect(request, "GET", asked)
                return TraceStream()
            case ["", "v1", "vms", name]:
                _expect(request, "GET", asked)
                return self._explain(unquote(name))
            case ["", "v1", "vms", name, "balloon"]:
                _expect(request, "PUT", asked)
                return self._set(request, unquote(name))
            case ["", "v1", "release"]:
                _expect(request, "POST", asked)
                return self._release(request)
            case ["", "v1", "pause"]:
                _expect(request, "POST", asked)
                body = _body(request, "vms", "for_s")
                return self._steer(request, Pause(self._listed(body), time_of(body, "for_s")))
            case ["", "v1", "resume"]:
                _expect(request, "POST", asked)
                return self._steer(request, Resume(self._listed(_body(request, "vms"))))
            case ["", "v1", "reload"]:
                _expect(request, "POST", asked)
                return self._reload(request)
            case ["", "v1", "reclaim"]:
                _expect(request, "POST", asked)
                return self._reclaim(request)
            case ["", "v1", "reserve"]:
                _expect(request, "POST", asked)
                return self._reserve(request)
            case ["", "v1", "unreserve"]:
                _expect(request, "POST", asked)
                _body(request)
                return self._unreserve(request)
            case _:
                raise RefusedError(
                    404, f"there is no {cut(path)}; docs/api.md lists all that there is"
                )

    def _stream(self, name: str | None, follow: str) -> Stream:
        stream = Stream(name, truth_of(follow))
        # A VM that has gone may still have events; the empty name is the host's.
        if name and not self._recent.has_lines_of(name):
            # ``Recent`` keeps events by name: of several VMs with one name, all events come.
            return stream._replace(vm=self._vm_named(name).name)
        return stream

    def _explain(self, name: str) -> Answer:
        vm_id = self._vm_named(name)
        status = self._desk.vm_status(vm_id)
        if status is None:
            raise _unknown(name)
        host = as_json(host_shown(self._desk.host_status()))
        events = ",".join(self._recent.lines_of(vm_id)).encode(errors="replace")
        vm = as_json(vm_shown(status))
        return Answer(200, b'{"host":%b,"vm":%b,"events":[%b]}\n' % (host, vm, events))

    def _set(self, request: Request, name: str) -> Answer:
        body = _body(request, "size_bytes", "for_s")
        size, for_s = size_of(body), time_of(body, "for_s")
        vm = self._vm_named(name)
        done = self._desk.obey(SetBalloon(vm, size, for_s), request.uid)
        if isinstance(done, NotDone):
            raise _not_done(vm, done)
        dry_run = self._desk.host_status().dry_run
        return Answer(200, as_json({**_done(vm, done), "dry_run": dry_run}) + b"\n")

    def _release(self, request: Request) -> Parts:
        name = _body(request, "vm").get("vm")
        if name is None:
            return Parts(self._released(tuple(self._desk.vm_ids()), request.uid))
        if not isinstance(name, str):
            raise RefusedError(400, "vm must be a VM's name")
        return Parts(self._released((self._vm_named(name),), request.uid))

    def _released(self, vm_ids: Sequence[VmId], uid: int) -> Iterator[bytes]:
        """Gives each VM its balloon back; a VM that has none, or has gone, is left out."""
        yield b'{"vms":['
        comma = b""
        for vm_id in vm_ids:
            status = self._desk.vm_status(vm_id)
            policy = None if status is None else status.policy
            if status is None or policy is None:
                continue
            if status.balloon_bytes or policy.target_bytes:
                done = self._desk.obey(Release(vm_id), uid)
                if isinstance(done, Done):
                    yield comma + as_json(_done(vm_id, done))
                    comma = b","
        yield b"]}\n"

    def _steer(self, request: Request, command: Pause | Resume) -> Answer:
        """Pauses or resumes; answers with the pauses of the named VMs, and that of all VMs."""
        not_done = self._desk.steer(command, request.uid)
        if not_done is not None:
            raise _not_done(None, not_done)
        statuses = filter(None, map(self._desk.vm_status, command.vms))
        vms = [{"vm": status.vm.name, "paused_s": seconds(status.paused_s)} for status in statuses]
        paused_s = self._desk.host_status().paused_s
        return Answer(200, as_json({"paused_s": seconds(paused_s), "vms": vms}) + b"\n")

    def _reclaim(self, request: Request) -> Waiting:
        body = _body(request, "size_bytes", "vms", "within_s", "hold_s")
        within_s = time_of(body, "within_s", WITHIN_S, MOST_WITHIN_S)
        size_bytes, hold_s = size_of(body), time_of(body, "hold_s")
        command = Reclaim(self._listed(body), size_bytes, within_s, hold_s)
        return Waiting(command, request.uid)

    def _reserve(self, request: Request) -> Waiting:
        body = _body(request, "size_bytes", "within_s", "for_s")
        within_s = time_of(body, "within_s", WITHIN_S, MOST_WITHIN_S)
        return Waiting(Reserve(size_of(body), within_s, time_of(body, "for_s")), request.uid)

    def _unreserve(self, request: Request) -> Answer:
        before_mib = self._desk.host_status().reserved_mib
        if (not_done := self._desk.steer(Unreserve(), request.uid)) is not None:
            raise _not_done(None, not_done)
        return Answer(200, as_json({"ended_mib": before_mib}) + b"\n")

    def _listed(self, body: Mapping[str, Any]) -> tuple[VmId, ...]:
        """The VMs that a body names; none where it names none."""
        names = body.get("vms", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RefusedError(400, "vms must be a list of VMs' names")
        if len(names) > MOST_NAMED:
            raise RefusedError(400, f"vms names more than {MOST_NAMED} VMs; name none for all")
        return tuple(dict.fromkeys(map(self._vm_named, names)))

    def _reload(self, request: Request) -> Later:
        _body(request)
        reloader = self._reloader
        if reloader is None:
            raise RefusedError(503, "there is no configuration to be read anew")
        return Later(lambda take: reloader.reload(lambda result: take(_reload_answer(result))))

    def _vm_named(self, name: str) -> VmId:
        """The VM of this key, or of this name."""
        vm_ids = self._desk.vm_ids()
        # Keys first: balloond gives them, and whoever starts a VM gives its name, which may be
        # another VM's key.
        for vm_id in vm_ids:
            if key_of(vm_id) == name:
                return vm_id
        match [vm_id for vm_id in vm_ids if vm_id.name == name]:
            case [vm_id]:
                return vm_id
            case [_, *_] as several:
                keys = ", ".join(map(key_of, several[:_MOST_KEYS]))
                raise RefusedError(
                    409,
                    f"{len(several)} VMs are named {cut(name)}; name one of them by its key, "
                    f"which the status has: {keys}",
                )
        for undriven in self._recent.undriven(name):
            raise RefusedError(404, f"a VM that is not driven: {undriven.why}")
        raise _unknown(name)


def _done(vm: VmId, done: Done) -> dict[str, object]:
    return {"vm": vm.name, **done._asdict()}


def _reload_answer(result: Reloaded | NotReloaded) -> Answer:
    if isinstance(result, Reloaded):
        return Answer(200, as_json({"changed": result.changed}) + b"\n")
    error = "the configuration is not applied: the one before stays in force, whole"
    return Answer(409, as_json({"error": error, "mistakes": result.mistakes}) + b"\n")


def _not_done(vm: VmId | None, not_done: NotDone) -> RefusedError:
    name = "one of them" if vm is None else cut(vm.name)
    match not_done.why:
        case Refusal.ENDING:
            return RefusedError(503, "balloond is ending, and gives all memory back")
        case Refusal.NO_SIZE:
            return RefusedError(409, f"the size of {name} is not known yet; ask again later")
        case Refusal.TOO_LARGE:
            most = format_size(not_done.most_bytes)
            return RefusedError(409, f"the balloon of {name} may be {most} at most")
        case Refusal.OBJECTION:
            objection = not_done.objection
            why = "unknown" if objection is None else objection.value
            return RefusedError(409, f"{name} must not be asked for more now: {why}")
        case Refusal.TOO_MANY:
            sentence = f"{MOST_WAITING} requests wait for memory already; ask again later"
            return RefusedError(503, sentence)
        case Refusal.TOO_MANY_RESERVES:
            sentence = f"you have {MOST_RESERVES} reserves already; balloonctl unreserve ends them"
            return RefusedError(409, sentence)
        case Refusal.BEYOND_HOST:
            most = format_size(not_done.most_bytes)
            sentence = (
                f"with the margin and all other reserves, this is as much as the host can have, "
                f"or more ({most}); reserve less, or end the others (balloonctl unreserve)"
            )
            return RefusedError(409, sentence)
        case Refusal.ALL_PAUSED:
            return RefusedError(409, "all VMs are paused; resume all of them, naming none")
        case _:
            assert_never(not_done.why)


def _body(request: Request, *known: str) -> dict[str, Any]:
    """The body of a request that changes something; empty where it has none."""
    if request.rights < Rights.CHANGE:
        raise RefusedError(
            403,
            "you may read, but change nothing; only root and the user that balloond runs as may",
        )
    try:
        # Decode here: of bytes json guesses the encoding, and Python loads the module of UTF-16 or
        # UTF-32 at its first use, which reads files while VMs are served.
        body = json.loads(request.body.decode()) if request.body else {}
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is no JSON in UTF-8") from None
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is no JSON object")
    if unknown := sorted(body.keys() - set(known)):
        allowed = f"only {', '.join(known)} may be" if known else "nothing can be"
        raise RefusedError(400, f"{cut(unknown[0])} is not known here; {allowed} set")
    return body


def _unknown(name: str) -> RefusedError:
    return RefusedError(404, f"there is no VM {cut(name)}; balloonctl status names all")


def _expect(request: Request, method: str, asked: Mapping[str, str], *known: str) -> None:
    """Refuses a request of another method than ``method``, one whose query (``asked``) has a key
    that is not in ``known``, and a GET with a body."""
    if request.method != method:
        raise RefusedError(405, f"this path has {method} alone", method)
    if unknown := sorted(asked.keys() - set(known)):
        allowed = f"only {', '.join(known)} may be" if known else "nothing can be"
        raise RefusedError(400, f"{cut(unknown[0])} is not known here; {allowed} asked")
    if method == "GET" and request.body:
        raise RefusedError(400, "a GET has no body; send it without")
