"""Requests of the API and their answers, as values. Pure.

``routes`` finds the answer to a request, ``answering`` makes those that take longer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from balloon_daemon.api.shown import as_json
from balloon_daemon.commands import Reclaim, Reserve
from balloon_daemon.named_tuple import NamedTuple

MAX_BODY_BYTES = 4096
"""The longest body of a request; no valid body needs more than some 60 bytes."""

JSON = "application/json"

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
"""All statuses that the API answers with (RFC 9110, section 15)."""


class Rights(IntEnum):
    """What a client may do."""

    NOTHING = 0
    SCRAPE = 1
    """It may read the metrics alone."""
    READ = 2
    CHANGE = 3


class Request(NamedTuple):
    """A request.

    Attributes:
        method: ``GET``, for example.
        target: the path, with its query.
        body: the body.
        rights: what the client may do.
        uid: the client's user.
        accept: the value of the header ``Accept``; "": there is none.
    """

    method: str
    target: str
    body: bytes
    rights: Rights
    uid: int = 0
    accept: str = ""


class Answer(NamedTuple):
    """An answer that is complete.

    Attributes:
        status: the status code.
        body: the content.
        allow: the value of the header ``Allow``, the path's methods; "": no such header.
        kind: the content's type.
    """

    status: int
    body: bytes
    allow: str = ""
    kind: str = JSON


class Whole(NamedTuple):
    """The answer is about all VMs: the parts of ``Routes.whole_parts``, joined. With many VMs it
    takes long, so it is made in parts, and once for all clients that wait for it.

    Attributes:
        kind: the content's type, which also tells what the answer is: the status if it is JSON,
            else the metrics.
    """

    kind: str = JSON


class Parts(NamedTuple):
    """The answer is these parts, joined. The request is carried out for one VM as each part is
    made.

    Attributes:
        parts: makes the parts.
    """

    parts: Iterator[bytes]


class Waiting(NamedTuple):
    """The answer is made once a command has ended (``Routes.begin``), which takes a while.

    Attributes:
        command: what is asked.
        uid: the client's user.
    """

    command: Reclaim | Reserve
    uid: int


class Stream(NamedTuple):
    """The answer is the last events, a line of JSON for each.

    Attributes:
        vm: only events of the VM of this name; None: all.
        follow: later events too, as they come.
    """

    vm: str | None
    follow: bool


@dataclass(frozen=True, slots=True)
class TraceStream:
    """The answer is a trace from now on, for as long as balloond runs."""


class Later(NamedTuple):
    """The answer is made when the work that ``begin`` starts has ended.

    Attributes:
        begin: starts the work, and calls the given function with the answer at the work's end.
    """

    begin: Callable[[Callable[[Answer], None]], None]


Result = Answer | Whole | Parts | Waiting | Stream | TraceStream | Later
"""How a request is answered."""


def refusal(status: int, sentence: str, allow: str = "") -> Answer:
    """The answer to a request that is refused: the sentence, as JSON."""
    return Answer(status, as_json({"error": sentence}) + b"\n", allow)
