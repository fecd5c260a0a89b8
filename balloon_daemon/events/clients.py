"""Events about the API and the metrics, and about their clients. Pure."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple


@fact
class ApiListening(NamedTuple):
    """Clients of the API can connect.

    Attributes:
        socket: the path of the API's socket.
        group: the group whose members may read; "": none may.
    """

    socket: str
    group: str


@fact
class MetricsListening(NamedTuple):
    """The metrics can be read over TCP.

    Attributes:
        address: the IP address and the port.
    """

    address: str


@fact
class MetricsFileEnded(NamedTuple):
    """No more is written to the file of ``--metrics``.

    Attributes:
        why: the kernel's text.
    """

    why: str


@fact
class MetricsNotWritten(NamedTuple):
    """The file of ``--metrics`` keeps an older text. Published once, until a text is written.

    Attributes:
        text_bytes: the size of the text that was not written.
        most_bytes: how many bytes may wait for the program that writes the file. If the text is
            no larger, the program has not taken the text before it.
    """

    text_bytes: int
    most_bytes: int


@fact
class ApiNotOpened(NamedTuple):
    """balloond runs without its API, which could not be opened at its default path; at a path that
    a flag names, the same failure ends the start.

    Attributes:
        why: the error's text.
    """

    why: str


@fact
class ApiMisused(NamedTuple):
    """A client of the API has sent file descriptors, which no request has.

    Attributes:
        uid: the client's user.
        closed: True: members of the socket's group are refused from now on, because they have sent
            descriptors too often.
    """

    uid: int
    closed: bool


@fact
class ApiClientTooSlow(NamedTuple):
    """A client of the API was dropped, because too many bytes of answers wait for all clients
    together, and it was the slowest.

    Attributes:
        uid: the client's user.
        most_bytes: how many bytes of answers may wait.
        suppressed: how many other clients were dropped so since the last such event.
    """

    uid: int
    most_bytes: int
    suppressed: int = 0


ClientEvent = (
    ApiListening
    | MetricsListening
    | MetricsFileEnded
    | MetricsNotWritten
    | ApiNotOpened
    | ApiMisused
    | ApiClientTooSlow
)
"""The union of all events about clients."""
