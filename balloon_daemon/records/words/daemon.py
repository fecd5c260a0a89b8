"""The log's sentences for events about balloond as a whole and its host. Pure."""

from typing import assert_never

from balloon_daemon.events import (
    ApiClientTooSlow,
    ApiListening,
    ApiMisused,
    ApiNotOpened,
    CallbackFailed,
    ConfigMistake,
    ConfigRefused,
    ConfigReloaded,
    ConnectionRefused,
    DaemonEvent,
    DevicesShareUser,
    DrivesOthers,
    DryRunBegins,
    EventsLost,
    HistoryEnded,
    HistorySetAside,
    KeeperUnreachable,
    LinesLost,
    Listening,
    MemoryNotGivenBack,
    MetricsFileEnded,
    MetricsListening,
    MetricsNotWritten,
    NotAccepted,
    PolicyFileWarning,
    ReaderFailed,
    RecordingEnded,
    Share,
    SocketNotOpened,
    SocketNotPrivate,
    SocketUnitNotServed,
    SourceKnown,
    SourceOff,
    SourceOn,
    SourceTrouble,
    SourceUnknown,
    Stopping,
    StoppingAtOnce,
    StoreLost,
    TemplateLost,
    TemplateStarted,
    UserIgnored,
)
from balloon_daemon.records.line import Level, more
from balloon_daemon.units import format_size

CHANGES_SAID = 8
"""How many changed settings a line names."""


def said_of_daemon(event: DaemonEvent) -> tuple[Level, str]:
    """The level and the sentence of an event."""
    match event:
        case Listening(socket):
            return Level.INFO, f"listening on {socket}"
        case ApiListening(socket, group):
            readers = f"; members of the group {group} may read" if group else ""
            return Level.INFO, f"the API listens on {socket}{readers}"
        case MetricsListening(address):
            return Level.INFO, f"metrics can be read at http://{address}/metrics"
        case MetricsFileEnded(why):
            ended = why or "its writer has ended"
            return Level.WARNING, f"no more is written to the file of --metrics: {ended}"
        case MetricsNotWritten(text_bytes, most_bytes):
            why = "its writer's disk has not taken the ones before"
            if text_bytes > most_bytes:
                why = f"they are {format_size(text_bytes)}, and it takes {format_size(most_bytes)}"
                why += ": have Prometheus ask the API or a port (docs/metrics.md)"
            said = "the file of --metrics keeps its old figures, as new ones cannot be written"
            return Level.WARNING, f"{said}: {why}"
        case ApiNotOpened(why):
            return Level.WARNING, f"there is no API: {why}"
        case ApiMisused(uid, closed):
            message = f"the API: user {uid} has sent file descriptors; its connection is dropped"
            alone = ", and from now on the socket is root's and balloond's own user's alone"
            return Level.WARNING, message + (alone if closed else "")
        case ApiClientTooSlow(uid, most_bytes, suppressed):
            message = (
                f"the API: user {uid} takes an answer too slowly while more than "
                f"{format_size(most_bytes)} of answers wait; its connection is dropped"
            )
            return Level.WARNING, message + more(suppressed)
        case DrivesOthers(named, places):
            words = [f"{named} named VM{'' if named == 1 else 's'}"] if named else []
            words += [f"all VMs at {place}" for place in places]
            return Level.INFO, f"driving the balloons of {' and of '.join(words)}"
        case Stopping(signal, vms_stay):
            how = "ending, the guests stay for the next balloond" if vms_stay else "ending"
            return Level.INFO, f"{signal}: {how}"
        case StoppingAtOnce(signal):
            return Level.INFO, f"{signal} again: ending at once"
        case MemoryNotGivenBack(vms):
            message = f"{vms} guests have not taken all of their memory back in time"
            return Level.WARNING, message
        case SocketUnitNotServed(unit, socket):
            return Level.WARNING, (
                f"{unit} listens on {socket}, which no setting names, so that whoever connects "
                "there waits for ever: name it (socket, api, vhost_user), or stop that unit"
            )
        case SocketNotPrivate(risk):
            return Level.WARNING, risk
        case PolicyFileWarning(problem):
            return Level.WARNING, problem
        case DevicesShareUser(user):
            return Level.WARNING, (
                f"devices run as {user}, as whom other programs run too, and any of those may "
                "stop or kill them: make a user balloond (systemd-sysusers with "
                "systemd/balloond.sysusers), or name another (--user)"
            )
        case UserIgnored(user):
            return Level.WARNING, (
                f"--user {user} has no effect, as only root can give devices another user: they "
                "run as the user who starts balloond; leave it out, or start balloond as root"
            )
        case KeeperUnreachable(why):
            return Level.ERROR, (
                f"{why}; no VM is kept for a later balloond, and those that it keeps have no "
                "balloon until they are started again: end that process and restart balloond"
            )
        case StoreLost():
            return Level.ERROR, (
                "the store (systemd's, or a keeper), which keeps the VMs for a later balloond, is "
                "gone: should this one end, they have no balloon until they are started again"
            )
        case NotAccepted(error):
            return Level.ERROR, f"cannot take a VMM's connection: {error}; trying again"
        case ConnectionRefused():
            message = f"a connection of user {event.uid} is refused: {_taken(event)}"
            return Level.ERROR, message + more(event.suppressed)
        case SocketNotOpened(name, why):
            return Level.ERROR, f"the VM {name} cannot attach: {why}; then restart balloond"
        case SourceUnknown(figure, why):
            return Level.WARNING, f"{figure} is unknown: {why}"
        case SourceKnown(figure, failed_reads):
            return Level.WARNING, f"{figure} is known again, after {failed_reads} failed reads"
        case SourceOff(why):
            message = (
                f"low memory is switched off ({why}): nothing is low, balloons are given back"
            )
            return Level.WARNING, message
        case SourceOn(margin_mib):
            margin = f"a margin of {margin_mib:,} MiB"
            return Level.WARNING, f"low memory is switched on again, with {margin}"
        case SourceTrouble(what):
            return Level.WARNING, what
        case TemplateLost(why):
            return Level.WARNING, why
        case TemplateStarted(what):
            return Level.INFO, what
        case CallbackFailed(error):
            return Level.ERROR, f"unexpected error in balloond: {error}; going on"
        case ReaderFailed(name, error):
            return Level.ERROR, (
                f"unexpected error in balloond: {error}; an event {name} may be missing in the "
                "log, the API or a file; going on"
            )
        case EventsLost(lost):
            events = "1 event" if lost == 1 else f"{lost} events"
            return Level.WARNING, f"{events} came too fast to be written: lost"
        case LinesLost(lost):
            lines = "1 line" if lost == 1 else f"{lost} lines"
            return (
                Level.WARNING,
                f"{lines} could not be written here (a full disk, or a slow reader): lost",
            )
        case HistorySetAside(why, ending):
            message = f"the file of --history cannot be used ({why}): renamed to end in {ending}"
            return Level.WARNING, f"{message}, a new one begins"
        case HistoryEnded(why):
            ended = why or "its writer has ended"
            return Level.WARNING, f"no more is written to the file of --history: {ended}"
        case DryRunBegins():
            return Level.WARNING, "dry run: decides and logs, and changes no VM's balloon"
        case ConfigReloaded(changed):
            return Level.INFO, f"the configuration is read anew: {_changed(changed)}"
        case ConfigMistake(mistake):
            return Level.ERROR, mistake
        case ConfigRefused(mistakes):
            of = "a mistake" if mistakes == 1 else f"{mistakes} mistakes"
            return Level.ERROR, f"the configuration has {of}: the one before stays in force, whole"
        case RecordingEnded(why):
            return (
                Level.WARNING,
                f"the trace of --record ends here: {why or 'its writer has ended'}",
            )
        case _:
            assert_never(event)


def _changed(changed: tuple[str, ...]) -> str:
    if not changed:
        return "nothing has changed"
    more = len(changed) - CHANGES_SAID
    return "; ".join(changed[:CHANGES_SAID]) + (f"; and {more} more" if more > 0 else "")


def _taken(event: ConnectionRefused) -> str:
    taken, most = event.taken, event.most
    allow_more = f"of {most} at most; allow more (ulimit -n, LimitNOFILE=)"
    match event.share:
        case Share.USERS_CONNECTIONS:
            return f"it has {taken} connections, as many as one user may have"
        case Share.CONNECTIONS:
            return f"there are {taken} connections, as many as there may be"
        case Share.CLOSES:
            return f"{taken} of its descriptors wait for a close that does not end, {most} may"
        case Share.USERS_DESCRIPTORS:
            closing = event.closing
            of_them = f" ({closing} of them wait for a close that does not end)" if closing else ""
            return f"it takes {taken} descriptors{of_them}, {allow_more}"
        case Share.DESCRIPTORS:
            return f"all VMs together take {taken} descriptors, {allow_more}"
        case _:
            assert_never(event.share)
