"""Frees the balloon's memory anew after a migration to a file or a snapshot has allocated it.

Pure. A migration or snapshot reads all of the guest's memory, and reading a hole of a shared
memory file allocates the page: the host then holds the memory that the balloon had freed, while
the guest still does without it. Neither the guest nor its VMM notices. The VMM frees a page only
when the guest's driver puts the page into the balloon. So all that balloond took is given back,
and taken again in steps of a sixteenth of the VM's memory, each when the guest has given the one
before.

If the balloon stops moving before a step is reached, the steps end and the VMM is told the whole
target. During the steps (``GuestState.RETAKING``) the balloon policy does not judge the balloon's
movements; after them it treats this balloon, if it stands still, as stalled like any other.
"""

from balloon_daemon.guests.driven.target import BalloonTarget
from balloon_daemon.units import MIB

SLACK_BYTES = 64 * MIB
"""How much more than the VM's size less its balloon a memory file may hold without counting as
filled again: the two figures are not read at the same moment."""

SAMPLES = 3
"""How many samples in a row have to show a memory file that holds over ``SLACK_BYTES`` more."""

STEPS = 16
REACHED_BYTES = 16 * MIB
"""A balloon is refilled in steps of the VM's memory / ``STEPS``. The next step comes once the
balloon's size is within ``REACHED_BYTES`` of the one last asked for."""

STANDS_SAMPLES = 8
"""The steps end when a balloon below its step's size has not moved in so many samples in a row, a
second apart."""


class Refill:
    """Watches for memory that was filled again, and limits the balloon's target meanwhile.

    Args:
        balloon: the VM's balloon.
    """

    def __init__(self, balloon: BalloonTarget) -> None:
        self._balloon = balloon
        self._noticed = False
        self._over = 0
        self._stood = 0
        self._seen_bytes = 0

    def notice(self) -> None:
        """Notes that the VMM may have read all of the guest's memory."""
        self._noticed, self._over = True, 0

    def look(self, held_bytes: int | None) -> int:
        """Looks at a new sample; called once for each, while the guest runs.

        Args:
            held_bytes: how many bytes the VM's memory file holds; None: unknown.

        Returns:
            How many bytes too many the file holds, if the balloon is now to be given back; else 0.
        """
        balloon = self._balloon
        if balloon.balloon_bytes is None:
            return 0
        if balloon.most_bytes is not None:
            self._take_again(balloon.most_bytes)
        if not self._noticed or held_bytes is None:
            return 0
        over_bytes = held_bytes - (balloon.vm_mem_bytes - balloon.balloon_bytes)
        filled = over_bytes > SLACK_BYTES and balloon.taken_bytes > SLACK_BYTES
        self._over = self._over + 1 if filled else 0
        if self._over < SAMPLES:
            return 0
        self._noticed = False
        balloon.most_bytes = 0
        return over_bytes

    def _take_again(self, most_bytes: int) -> None:
        balloon = self._balloon
        taken_bytes, was_bytes = balloon.taken_bytes, self._seen_bytes
        self._seen_bytes = taken_bytes
        if not balloon.is_told:
            return
        if abs(taken_bytes - balloon.asked_bytes) > REACHED_BYTES:
            self._stood = self._stood + 1 if taken_bytes == was_bytes else 0
            if self._stood == STANDS_SAMPLES:
                self._end()
        elif balloon.asked_bytes < most_bytes:
            self._end()  # The whole target is reached.
        else:
            self._stood = 0
            balloon.most_bytes = most_bytes + balloon.vm_mem_bytes // STEPS

    def _end(self) -> None:
        self._balloon.most_bytes, self._stood = None, 0
