"""Counts a store's free room for descriptors, and how many each guest may have there.

Pure. A full store drops further descriptors without an error. So ``Room`` counts the names in the
store, and the caller asks it (``admits``) before storing descriptors.

Each present guest has a *share*, whether it uses the share or not, and room for its states. The
room beyond the shares goes to the guests that ask first, up to half of the store: the other half
is for guests still to come. So no guest can take room that another guest has or will need. All
guests of one user have three quarters of the store together, with what they have beyond their
shares.

The names need room, too (``NAMES_BYTES``), of which one user has three quarters as well.
"""

import math
from collections import Counter

from balloon_daemon.handover.keys import STATE

SHARE = 64
"""Descriptors that each guest may have, besides its states. A QEMU has some 25, and a few more
while its guest restarts."""

STATES = 2
"""Room for each guest's states: the newest one, and the one before until the store has removed
it."""

OF_ONE_USER = 3 / 4
"""The part of the store that the guests of one user may have."""

NAMES_BYTES = 112 * 1024
"""How many bytes all names in systemd's store may have, each with the colon behind it. systemd
passes them to the next balloond in one environment variable, LISTEN_FDNAMES, and execve(2) fails
with E2BIG if one has more than 128 KiB: balloond could not be started any more. The rest is for
the names of socket units, and for states whose removal systemd has not been told yet."""

NAME_BYTES, GUEST_BYTES = 20, 400
"""As how long a name is counted before it is known, and how many bytes of names a guest may need
at first: QEMU has some 270, in 25 descriptors and a state."""

_OWN = 16
"""Room that no guest gets: for the listening sockets, and for descriptors whose removal the store
has not performed yet."""


class Room:
    """The room of one store.

    Args:
        capacity: how many descriptors the store holds at most.
        names: the names of the descriptors that it holds now.
        names_bytes: how many bytes all names may have.
    """

    def __init__(
        self,
        capacity: int,
        names: "list[str] | tuple[str, ...]" = (),
        names_bytes: float = math.inf,
    ) -> None:
        self.capacity = capacity
        self._names_bytes = names_bytes
        self._others = set[str]()
        """The names that are not in ``_guests``: states and listening sockets."""
        self._bytes, self._bytes_of = Counter[str](), Counter[int]()
        """How many bytes the names of each guest have, and those of each user's guests; under ""
        the names of no guest."""
        self._all_bytes = 0
        self._guests: dict[str, set[str]] = {}
        self._claimed = self._beyond = 0
        self._users: dict[str, int] = {}
        self._claimed_of = Counter[int]()
        """By user, what its guests claim; a guest that has nothing in the store yet claims its
        share, too."""
        for name in names:
            self.put(name)

    def set_user(self, guest: str, user: int | None) -> None:
        """Counts a guest as this user's; None: the guest is gone."""
        claim = _claim(max(1, len(self._guests.get(guest, ()))))
        before = self._users.pop(guest, None)
        if before is not None:
            self._claimed_of[before] -= claim
            self._bytes_of[before] -= self._bytes[guest]
            if not self._claimed_of[before]:
                del self._claimed_of[before], self._bytes_of[before]
        if user is not None:
            self._users[guest] = user
            self._claimed_of[user] += claim
            self._bytes_of[user] += self._bytes[guest]

    def guests_of(self, user: int) -> int:
        """How many guests of a user there are."""
        return sum(each == user for each in self._users.values())

    def takes_another_of(self, user: int) -> bool:
        """Whether another guest of a user may have its share; each user's first one may."""
        claimed = self._claimed_of[user]
        fits = claimed + _claim(1) <= int(self.capacity * OF_ONE_USER)
        return not claimed or (fits and self._has_names_bytes(GUEST_BYTES, user))

    def put(self, name: str) -> None:
        """Counts a name (``keys``) of a guest's descriptor. Of a state's name and a name of no
        guest only the bytes are counted: ``STATES`` and ``_OWN`` are their room."""
        guest, _, what = name.partition(".")
        if what and STATE not in name:
            names = self._guests.setdefault(guest, set())
            if name not in names:
                self._count_bytes(name, 1)
            self._count(guest, names, -1)
            names.add(name)
            self._count(guest, names, 1)
        elif name not in self._others:
            self._others.add(name)
            self._count_bytes(name, 1)

    def remove(self, name: str) -> None:
        """Stops counting a name."""
        guest = name.partition(".")[0]
        names = self._guests.get(guest, set())
        if name in self._others:
            self._others.remove(name)
            self._count_bytes(name, -1)
        if name in names:
            self._count_bytes(name, -1)
            self._count(guest, names, -1)
            names.remove(name)
            self._count(guest, names, 1)
            if not names:
                del self._guests[guest]

    def admits(self, guest: str, fds: int) -> bool:
        """Whether a guest may have so many descriptors, besides its states.

        A guest may always have as many as it has already.
        """
        held = len(self._guests.get(guest, ()))
        claimed = self._claimed - _claim(held) + _claim(fds)
        beyond = self._beyond - _beyond(held) + _beyond(fds)
        fits = claimed + _OWN <= self.capacity
        fits_beyond = beyond <= self.capacity // 2
        if (user := self._users.get(guest)) is not None:
            of_user = self._claimed_of[user] - _claim(max(1, held)) + _claim(fds)
            fits_beyond &= of_user <= int(self.capacity * OF_ONE_USER)
        fits &= self._has_names_bytes((fds - held) * NAME_BYTES, user)
        return fds <= held or (fits and (fds <= SHARE or fits_beyond))

    def _has_names_bytes(self, more: int, user: int | None) -> bool:
        """Whether names may have so many bytes more, for a guest of this user."""
        of_user = 0 if user is None else self._bytes_of[user]
        return (
            self._all_bytes + more <= self._names_bytes
            and of_user + more <= self._names_bytes * OF_ONE_USER
        )

    def _count_bytes(self, name: str, sign: int) -> None:
        guest, dot, _ = name.partition(".")
        guest, change = guest if dot else "", sign * (len(name) + 1)
        self._all_bytes += change
        self._bytes[guest] += change
        if not self._bytes[guest]:
            del self._bytes[guest]
        if (user := self._users.get(guest)) is not None:
            self._bytes_of[user] += change

    def _count(self, guest: str, names: set[str], sign: int) -> None:
        self._claimed += sign * _claim(len(names))
        self._beyond += sign * _beyond(len(names))
        if (user := self._users.get(guest)) is not None:
            self._claimed_of[user] += sign * _claim(max(1, len(names)))


def _claim(fds: int) -> int:
    return max(SHARE, fds) + STATES if fds else 0


def _beyond(fds: int) -> int:
    return max(0, fds - SHARE)
