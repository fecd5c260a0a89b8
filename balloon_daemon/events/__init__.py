"""The facts that balloond notices, each as a value.

Pure. A publisher of events knows no reader of them; ``records/words/`` has the log's words for
each event. An event holds numbers, enums and short technical strings (the kernel's text for an
errno, the name of a system call, an error's own text), never a sentence of the log.

``vm`` is the VM that an event is about. Two fields protect readers from floods. ``suppressed``
counts the events of the same kind that were left out since the last one published. ``quiet`` marks
an event that a guest or VMM can cause as often as it likes: the event is published for readers
that count events, and other readers should skip it.
"""

from collections.abc import Callable

# Import all events here, so that publishers need not know in which file an event is defined.
from balloon_daemon.events.clients import *  # noqa: F403
from balloon_daemon.events.daemon import *  # noqa: F403
from balloon_daemon.events.daemon import DaemonEvent
from balloon_daemon.events.devices import *  # noqa: F403
from balloon_daemon.events.devices import DeviceEvent
from balloon_daemon.events.driven import *  # noqa: F403
from balloon_daemon.events.driven import DrivenEvent
from balloon_daemon.events.memory import *  # noqa: F403
from balloon_daemon.events.memory import MemoryEvent
from balloon_daemon.events.policy import *  # noqa: F403
from balloon_daemon.events.policy import PolicyEvent
from balloon_daemon.events.protection import *  # noqa: F403
from balloon_daemon.events.protection import ProtectionEvent
from balloon_daemon.events.steering import *  # noqa: F403
from balloon_daemon.events.steering import SteeringEvent
from balloon_daemon.events.vms import *  # noqa: F403
from balloon_daemon.events.vms import VmEvent

Event = (
    DaemonEvent
    | DeviceEvent
    | DrivenEvent
    | MemoryEvent
    | PolicyEvent
    | ProtectionEvent
    | SteeringEvent
    | VmEvent
)
"""The union of all events."""

Publish = Callable[[Event], None]
"""Queues an event for all of its readers; never blocks."""
