"""A template in this process, for tests that say themselves what becomes of a request.

balloond's template is a process of its own: ``Forks`` asks it, and reads its answer later.
"""

import os
from functools import partial

from balloon_daemon.device.process import Fork, NotYetError
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.guests.jailed.forks import Ask, Forks
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.linux.events import OwnedFd


class AskedTemplate:
    """A ``Forker`` that forks at once, and answers at once or when the test says so.

    Args:
        fork: forks; its NotYetError is raised, another OSError is the answer.
        at_once: False: the answer comes by ``tell``.

    Attributes:
        asked: the names of the devices that were asked for.
    """

    def __init__(self, fork: Fork, *, at_once: bool = True) -> None:
        self.asked: list[str] = []
        self._fork = fork
        self._at_once = at_once
        self._answer: int | OSError = 0
        self._told = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def ask(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> None:
        try:
            self._answer = self._fork(spec, tube_fd, stderr_fd, parent)
        except NotYetError:
            raise
        except OSError as err:
            self._answer = err
        self.asked.append(spec.name)
        if self._at_once:
            self.tell()

    def tell(self) -> None:
        """Answers the request."""
        os.eventfd_write(self._told.fileno(), 1)

    def fileno(self) -> int:
        return self._told.fileno()

    def answer(self) -> int | None:
        os.eventfd_read(self._told.fileno())
        if isinstance(self._answer, OSError):
            raise self._answer
        return self._answer

    def give_up(self) -> OSError:
        return OSError(11, "does not answer")

    def tend(self) -> None:
        """It does not end."""

    def reap(self) -> bool:
        return True


def asks(fork: Fork) -> Ask:
    """Asks for devices that are forked at once, for one guest alone."""
    return partial(Forks(AskedTemplate(fork)).ask, Peer(1000, Peers()))
