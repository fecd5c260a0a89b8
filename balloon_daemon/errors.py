"""Every error of ours, by whose fault it is. Pure; imports nothing of ours.

::

    BalloondError
    ├── ConfigError      operator: a bad setting              -> one line, exit status 2
    ├── PolicyFileError  operator: a bad seccomp policy file  -> its lines, exit status 2
    ├── GuestError       the guest broke the virtio rules     -> drop that chain, count, go on
    │   └── RingError    its ring cannot be trusted any more  -> stop that queue, report
    ├── FrontendError    the VMM broke vhost-user             -> close that connection
    ├── TubeError        our two processes disagree           -> ignore and count the message
    └── StateError       a call made in the wrong state       -> our bug

None of them ends the controller. Failures of the kernel stay ``OSError``, with their errno.
"""


class BalloondError(Exception):
    """The root of all errors that balloond raises on purpose."""


class ConfigError(BalloondError):
    """The operator's mistake: names the setting, what was found and what is allowed."""


class PolicyFileError(BalloondError):
    """The operator's mistake in a seccomp policy file, with its place in that file."""


class GuestError(BalloondError):
    """The guest broke the virtio rules in one descriptor chain."""

    def __init__(self, queue: str, head: int, message: str) -> None:
        """Args: the queue's name, the chain's head descriptor index, what was found."""
        super().__init__(f"{queue}: chain {head} {message}")
        self.queue = queue
        self.head = head


class RingError(GuestError):
    """The ring itself cannot be trusted any more; its queue must stop."""

    def __init__(self, queue: str, message: str) -> None:
        super().__init__(queue, -1, message)
        self.args = (f"{queue}: {message}",)


class FrontendError(BalloondError):
    """The VMM broke vhost-user; carries the request's name."""

    def __init__(self, request: str, message: str) -> None:
        super().__init__(f"{request}: {message}")
        self.request = request


class TubeError(BalloondError):
    """A message between controller and device that neither of them would send."""


class StateError(BalloondError):
    """A call made in the wrong state: a bug of ours."""
