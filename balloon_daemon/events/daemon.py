"""Events about balloond as a whole and about its host. Pure."""

from enum import Enum

from balloon_daemon.events.clients import ClientEvent
from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple

# --- start and end ------------------------------------------------------------------------------


@fact
class Listening(NamedTuple):
    """balloond has begun to serve.

    Attributes:
        socket: the path of the vhost-user socket.
    """

    socket: str


@fact
class Stopping(NamedTuple):
    """A signal ends balloond.

    Attributes:
        signal: its name.
        vms_stay: True: all VMs keep their balloons for the next balloond; False: memory is given
            back, to all VMs or to those whose driver cannot leave them to the next balloond.
    """

    signal: str
    vms_stay: bool


@fact
class StoppingAtOnce(NamedTuple):
    """A second signal: balloond no longer waits for guests to take their memory back.

    Attributes:
        signal: its name.
    """

    signal: str


@fact
class MemoryNotGivenBack(NamedTuple):
    """At its end balloond has not given all memory back in time.

    Attributes:
        vms: how many guests have not taken all of it back.
    """

    vms: int


@fact
class DrivesOthers(NamedTuple):
    """balloond looks for VMs whose balloon is served by their own VMM.

    Attributes:
        named: how many such VMs the configuration names.
        places: where other VMs are found: libvirt's connection URIs, patterns of monitors' paths.
    """

    named: int
    places: tuple[str, ...]


@fact
class SocketUnitNotServed(NamedTuple):
    """A socket unit hands over a listening socket that no setting names.

    Attributes:
        unit: the unit's name.
        socket: the socket's path.
    """

    unit: str
    socket: str


@fact
class SocketNotPrivate(NamedTuple):
    """Other users may write to a directory of balloond's sockets and files, or list it. Whoever
    may write to the directory can put a socket at balloond's path, and VMMs that connect to that
    socket hand over their guests' memory. Whoever lists the directory (getdents64(2)) holds its
    lock (inode->i_rwsem), so that balloond waits when it makes, renames or removes a file there.

    Attributes:
        risk: the harm that they could do, and the remedy.
    """

    risk: str


@fact
class PolicyFileWarning(NamedTuple):
    """The compiler warns of something in the seccomp policy file.

    Attributes:
        problem: its place and description, without the file's line.
    """

    problem: str


@fact
class DevicesShareUser(NamedTuple):
    """Devices run as a user as which other programs run too.

    Attributes:
        user: the user's name.
    """

    user: str


@fact
class UserIgnored(NamedTuple):
    """--user names a user, but balloond is not root: devices keep the user that balloond has.

    Attributes:
        user: the name that was given.
    """

    user: str


# --- the store of VMs' descriptors --------------------------------------------------------------


@fact
class KeeperUnreachable(NamedTuple):
    """An earlier balloond's keeper (the process that holds VMs' descriptors for the next balloond)
    does not answer, so its VMs cannot be served.

    Attributes:
        why: the error's text.
    """

    why: str


@fact
class StoreLost(NamedTuple):
    """The store that keeps the VMs' descriptors for the next balloond is gone."""


# --- connections --------------------------------------------------------------------------------


@fact
class NotAccepted(NamedTuple):
    """accept(2) failed for a VMM that waits for a connection.

    Attributes:
        error: the kernel's text.
    """

    error: str


class Share(Enum):
    """A limit on the VMMs of one user, or on all VMMs together."""

    USERS_CONNECTIONS = "users-connections"
    CONNECTIONS = "connections"
    CLOSES = "closes"
    """Descriptors that one user's VMMs have sent, and whose close(2) has not returned."""
    USERS_DESCRIPTORS = "users-descriptors"
    DESCRIPTORS = "descriptors"


@fact
class ConnectionRefused(NamedTuple):
    """A new connection was closed at once, because a limit was reached.

    Attributes:
        uid: the user who runs the VMM.
        share: which limit.
        taken: how many connections or descriptors count towards the limit now.
        most: the limit.
        closing: for ``USERS_DESCRIPTORS``, how many of the descriptors are those whose close(2)
            has not returned.
    """

    uid: int
    share: Share
    taken: int
    most: int
    closing: int = 0
    suppressed: int = 0


@fact
class SocketNotOpened(NamedTuple):
    """A named VM's vhost-user socket cannot be opened: that VM gets no balloon.

    Attributes:
        name: the VM's name.
        why: the socket, what is wrong with it, and the remedy.
    """

    name: str
    why: str


# --- the host, and balloond itself --------------------------------------------------------------


@fact
class SourceUnknown(NamedTuple):
    """The low-memory source has no figures any more, or has none for another reason than before.

    Attributes:
        figure: the missing figure: ``available memory``, ``the margin``.
        why: what was found in its place.
    """

    figure: str
    why: str


@fact
class SourceKnown(NamedTuple):
    """The low-memory source has figures again.

    Attributes:
        figure: the figure that was missing.
        failed_reads: how many readings were unknown meanwhile.
    """

    figure: str
    failed_reads: int


@fact
class SourceOff(NamedTuple):
    """The low-memory source is switched off: memory does not count as low, however little is
    available.

    Attributes:
        why: what switched it off.
    """

    why: str


@fact
class SourceOn(NamedTuple):
    """The low-memory source is switched on again.

    Attributes:
        margin_mib: memory is low when less than this is available.
    """

    margin_mib: int


@fact
class SourceTrouble(NamedTuple):
    """Something is wrong with the low-memory source, which still has figures: for example,
    MemAvailable is missing and has to be estimated, or the kernel's alarm cannot wake balloond.

    Attributes:
        what: what is wrong, or that it is right again, in the source's words.
    """

    what: str


SourceEvent = SourceUnknown | SourceKnown | SourceOff | SourceOn | SourceTrouble
"""All events of a low-memory source about itself."""


@fact
class TemplateLost(NamedTuple):
    """The process that forks devices is gone, or cannot be started.

    Attributes:
        why: how it ended and what follows, in the template's words.
    """

    why: str


@fact
class TemplateStarted(NamedTuple):
    """A new template (the process that forks devices) was started in place of the one before.

    Attributes:
        what: the process, in the template's words.
    """

    what: str


@fact
class CallbackFailed(NamedTuple):
    """A callback of the event loop raised an unexpected error: a bug.

    Attributes:
        error: the exception's class and text.
    """

    error: str


@fact
class ReaderFailed(NamedTuple):
    """A reader of events raised an error at an event: a bug; the reader gets later events all the
    same.

    Attributes:
        event: the event's class.
        error: the exception's class and text.
    """

    event: str
    error: str


@fact
class EventsLost(NamedTuple):
    """Events came faster than their readers handled them.

    Attributes:
        lost: how many events no reader has seen.
    """

    lost: int


@fact
class LinesLost(NamedTuple):
    """Log lines could not be written, or their reader has not taken them.

    Attributes:
        lost: how many lines.
    """

    lost: int


@fact
class HistorySetAside(NamedTuple):
    """The file of ``--history`` could not be used: it was renamed, and a new one begun.

    Attributes:
        why: SQLite's text.
        ending: the new ending of the file's name.
    """

    why: str
    ending: str


@fact
class HistoryEnded(NamedTuple):
    """No more is written to the file of ``--history``.

    Attributes:
        why: SQLite's or the kernel's text.
    """

    why: str


@fact
class DryRunBegins(NamedTuple):
    """No VM's balloon is changed until this balloond ends."""


@fact
class ConfigReloaded(NamedTuple):
    """The configuration was read anew, and is in force.

    Attributes:
        changed: the settings that differ from those before, a line each; empty: all are the same.
    """

    changed: tuple[str, ...] = ()


@fact
class ConfigMistake(NamedTuple):
    """A mistake in a configuration that was read anew.

    Attributes:
        mistake: where it is, what it is, and the remedy.
    """

    mistake: str


@fact
class ConfigRefused(NamedTuple):
    """A configuration that was read anew has mistakes: none of it is applied, and all settings
    stay as they were.

    Attributes:
        mistakes: how many there are.
    """

    mistakes: int


@fact
class RecordingEnded(NamedTuple):
    """The trace that ``--record`` writes ends here; what was written until now stays.

    Attributes:
        why: the kernel's text, or that the largest size is reached.
    """

    why: str


DaemonEvent = (
    Listening
    | ClientEvent
    | Stopping
    | StoppingAtOnce
    | MemoryNotGivenBack
    | DrivesOthers
    | SocketNotPrivate
    | SocketUnitNotServed
    | PolicyFileWarning
    | DevicesShareUser
    | UserIgnored
    | KeeperUnreachable
    | StoreLost
    | NotAccepted
    | ConnectionRefused
    | SocketNotOpened
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
    | RecordingEnded
    | DryRunBegins
    | ConfigReloaded
    | ConfigMistake
    | ConfigRefused
    | HistorySetAside
    | HistoryEnded
)
"""The union of all events about balloond as a whole."""
