"""When states that can wait are stored: those of one user's VMs one after the other.

A driver writes the size of its balloon over and over, and the state with each size can wait. One
VM's states are stored 20 times a second at most, but a user may have hundreds of VMs. Each state
takes the controller some 50 µs, in which no VM is served, and more time of whoever stores it:
systemd compares a descriptor with all others that it stores for the service.
"""

from collections.abc import Callable
from itertools import islice
from time import monotonic

STATES_A_SECOND = 200
"""States of one user's VMs that are stored in a second. Ten VMs of which each size is stored need
no more."""

LATEST_S = 2.0
"""How long a state waits at most, so that one user's 768 VMs have 384 states stored in a
second."""

LOOKED_AT = 2
"""At how many users each state looks whether nothing of theirs waits any more: at more than one,
so that their number does not grow."""


class Pacing:
    """Gives each state that can wait a time.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._next_s: dict[int | None, float] = {}
        """By user: from when on its next state may be stored."""

    def wait_s(self, user: int | None, least_s: float) -> float:
        """In how many seconds a state is to be stored, which takes that time for itself.

        Args:
            user: the user who runs the VM's VMM; None: unknown.
            least_s: how many seconds it waits in any case.
        """
        now_s = self._clock()
        for each in list(islice(self._next_s, LOOKED_AT)):
            # Whoever stays is looked at again after all others.
            next_s = self._next_s.pop(each)
            if next_s > now_s:
                self._next_s[each] = next_s
        next_s = min(self._next_s.pop(user, now_s), now_s + LATEST_S)
        at_s = max(now_s + least_s, next_s)
        self._next_s[user] = at_s + 1 / STATES_A_SECOND
        return at_s - now_s
