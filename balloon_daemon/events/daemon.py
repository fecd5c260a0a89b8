"""What happens with balloond as a whole and with its host. Pure."""

from dataclasses import dataclass
from enum import Enum

# --- start and end ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listening:
    """balloond has begun to serve.

    Attributes:
        socket: the path of the vhost-user socket.
    """

    socket: str


@dataclass(frozen=True, slots=True)
class Stopping:
    """A signal ends balloond.

    Attributes:
        signal: its name.
        vms_stay: the VMs stay in the store for the next balloond; else their memory is given back.
    """

    signal: str
    vms_stay: bool


@dataclass(frozen=True, slots=True)
class StoppingAtOnce:
    """A second signal: nobody waits any longer for guests to take their memory back.

    Attributes:
        signal: its name.
    """

    signal: str


@dataclass(frozen=True, slots=True)
class MemoryNotGivenBack:
    """The end: guests have not taken all of their memory back in time.

    Attributes:
        vms: how many.
    """

    vms: int


@dataclass(frozen=True, slots=True)
class SocketNotPrivate:
    """Others could put a socket of theirs where balloond listens.

    Attributes:
        risk: what they could do, and the remedy.
    """

    risk: str


@dataclass(frozen=True, slots=True)
class PolicyFileWarning:
    """The seccomp policy file says something that surprises.

    Attributes:
        problem: its place and what it is, without the line itself.
    """

    problem: str


@dataclass(frozen=True, slots=True)
class DevicesShareUser:
    """Devices run as a user whom other programs run as too.

    Attributes:
        user: the user's name.
    """

    user: str


# --- the store ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeeperUnreachable:
    """An earlier balloond's keeper does not answer.

    Attributes:
        why: the error's text.
    """

    why: str


@dataclass(frozen=True, slots=True)
class StoreLost:
    """What keeps the VMs for a later balloond is gone."""


# --- connections --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotAccepted:
    """The kernel gives no connection to a VMM that waits for it.

    Attributes:
        error: the kernel's text.
    """

    error: str


class Share(Enum):
    """What a VMM's user, or all together, have taken up."""

    USERS_CONNECTIONS = "users-connections"
    CONNECTIONS = "connections"
    CLOSES = "closes"
    """Descriptors that wait for a close that does not end."""
    USERS_DESCRIPTORS = "users-descriptors"
    DESCRIPTORS = "descriptors"


@dataclass(frozen=True, slots=True)
class ConnectionRefused:
    """A new connection is closed at once, as too much is taken up already.

    Attributes:
        uid: the user who runs the VMM.
        share: what is taken up.
        taken: how much of it.
        most: how much may be.
        closing: for ``USERS_DESCRIPTORS``, how many of them wait for a close that does not end.
    """

    uid: int
    share: Share
    taken: int
    most: int
    closing: int = 0
    suppressed: int = 0


# --- the host, and us ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceUnknown:
    """The low-memory source gives no figures any more, or gives none for another reason.

    Attributes:
        figure: which of them: ``available memory``, ``the margin``.
        why: what was found in its place.
    """

    figure: str
    why: str


@dataclass(frozen=True, slots=True)
class SourceKnown:
    """The low-memory source gives figures again.

    Attributes:
        figure: which of them was missing.
        failed_reads: how many readings gave nothing meanwhile.
    """

    figure: str
    failed_reads: int


@dataclass(frozen=True, slots=True)
class SourceOff:
    """The low-memory source is switched off: nothing is low, whatever is available.

    Attributes:
        why: what switched it off.
    """

    why: str


@dataclass(frozen=True, slots=True)
class SourceOn:
    """The low-memory source is switched on again.

    Attributes:
        margin_mib: below so much available memory it is low.
    """

    margin_mib: int


@dataclass(frozen=True, slots=True)
class SourceTrouble:
    """The low-memory source goes by other figures than it might, or is not woken by the kernel.

    Attributes:
        what: what began or ended, in the source's words.
    """

    what: str


SourceEvent = SourceUnknown | SourceKnown | SourceOff | SourceOn | SourceTrouble
"""All that a low-memory source says of itself."""


@dataclass(frozen=True, slots=True)
class TemplateLost:
    """The process that forks devices is gone, or cannot be started.

    Attributes:
        why: what became of it and what is done, in the template's words.
    """

    why: str


@dataclass(frozen=True, slots=True)
class TemplateStarted:
    """Another process forks devices from now on.

    Attributes:
        what: which one, in the template's words.
    """

    what: str


@dataclass(frozen=True, slots=True)
class CallbackFailed:
    """A callback of the event loop ended by an error that nobody expected: a bug.

    Attributes:
        error: the exception's class and text.
    """

    error: str


@dataclass(frozen=True, slots=True)
class ReaderFailed:
    """A reader of events failed at one: a bug; other events go on to it.

    Attributes:
        event: the event's class.
        error: the exception's class and text.
    """

    event: str
    error: str


@dataclass(frozen=True, slots=True)
class EventsLost:
    """Events came faster than their readers took them.

    Attributes:
        lost: how many nobody has seen.
    """

    lost: int


@dataclass(frozen=True, slots=True)
class LinesLost:
    """Whoever reads the log has not taken lines, or they could not be written.

    Attributes:
        lost: how many.
    """

    lost: int


DaemonEvent = (
    Listening
    | Stopping
    | StoppingAtOnce
    | MemoryNotGivenBack
    | SocketNotPrivate
    | PolicyFileWarning
    | DevicesShareUser
    | KeeperUnreachable
    | StoreLost
    | NotAccepted
    | ConnectionRefused
    | SourceUnknown
    | SourceKnown
    | SourceOff
    | SourceOn
    | SourceTrouble
    | TemplateLost
    | TemplateStarted
    | CallbackFailed
    | ReaderFailed
    | EventsLost
    | LinesLost
)
"""All that happens with balloond as a whole."""
