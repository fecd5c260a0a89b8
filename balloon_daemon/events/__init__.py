"""What happened: each fact that balloond notices, as a value.

Pure. Whoever notices a fact publishes its event and knows no reader of it; ``records/words/`` has
the log's words for each. An event holds numbers, enums and short technical strings (the kernel's
text for an errno, the name of a system call, an error's own text), never a sentence of the log.

``vm`` is the VM that an event is about. Two fields keep floods away from readers. ``suppressed``
counts the events like this one that were left out since the last one that was published. ``quiet``
marks an event that comes at a rate which its subject chooses: it is published for whoever counts,
and is of no interest to most readers.
"""

from collections.abc import Callable

# One namespace: whoever publishes need not know which file an event stands in.
from balloon_daemon.events.daemon import *  # noqa: F403
from balloon_daemon.events.daemon import DaemonEvent
from balloon_daemon.events.devices import *  # noqa: F403
from balloon_daemon.events.devices import DeviceEvent
from balloon_daemon.events.memory import *  # noqa: F403
from balloon_daemon.events.memory import MemoryEvent
from balloon_daemon.events.vms import *  # noqa: F403
from balloon_daemon.events.vms import VmEvent

Event = DaemonEvent | DeviceEvent | MemoryEvent | VmEvent
"""All that can happen."""

Publish = Callable[[Event], None]
"""Takes an event for all of its readers; never blocks."""
