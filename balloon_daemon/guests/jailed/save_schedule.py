"""When a guest is saved for another controller, apart from the changes that are saved at once.

A driver writes ``actual`` with each buffer. Saving a state takes some 40 µs, and a user may have
hundreds of guests whose drivers write ``actual`` all the time. So the saves of new values of
``actual`` are made in users' turns (``IN_TURN``), and those for one user take a part of the event
loop's time at most (``turns.SAVING``).
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from balloon_daemon.guests.in_turn import IN_TURN
from balloon_daemon.handover.store import Store

SAVE_SOON_S = 0.05
"""How long a reported value of ``actual`` waits before it is stored; longer where the store is
slow or the user's part of the time is used up. The driver writes a new value with each buffer, and
only the newest counts."""

COMPLAIN_AGAIN_S = 60.0
"""An event reports that a guest is not kept, and no other event does until the guest is saved more
than so many seconds after its last failed save."""


class SaveSchedule:
    """When a guest is saved because of a new value of ``actual``, or again although its state has
    not changed, and when an event reports that the guest is not kept.

    Attributes:
        save: saves the guest.
        user: who runs the guest's VMM; -1: unknown.
        charge: charges seconds of the event loop to the user; returns for how many seconds no new
            value of ``actual`` of the user's guests is to be saved.
        complaint: why the guest's state is not in the store, for the next ``save`` to raise; "":
            it is there.
    """

    def __init__(self) -> None:
        self.save: Callable[[], object] = lambda: None
        self.user = -1
        self.charge: Callable[[float], float] = lambda _spent_s: 0.0
        self.complaint = ""
        self._retry: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._is_due = False
        """Whether a save waits for the user's next turn."""
        self._complained_at: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a retry is pending, before which nothing is saved."""
        return self._retry is not None

    def retry(self, seconds: float) -> None:
        """Saves after so many seconds, and not before."""
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(seconds, self._try_again)

    def retry_and_complain(self, seconds: float) -> bool:
        """Like ``retry``. Returns whether an event is to report that the guest is not kept: not
        again while an earlier report counts (``COMPLAIN_AGAIN_S``)."""
        first = self._complained_at is None
        self._complained_at = asyncio.get_running_loop().time()
        self.retry(seconds)
        return first

    def _try_again(self) -> None:
        self._retry = None
        self.save()

    def soon(self, store: Store, group: str) -> None:
        """Saves after ``SAVE_SOON_S``, or later: once the store is no longer behind with the
        user's VMs, and the user's part of the event loop's time is not used up.

        Args:
            store: where the guest is saved.
            group: the guest's group of keys in the store.
        """
        if self._soon is None and not self._is_due:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(SAVE_SOON_S, self._save_soon, store, group)

    def _save_soon(self, store: Store, group: str) -> None:
        self._soon = None
        if store.is_behind(group) or self.charge(0.0):
            # The store is slow, and other messages are more urgent than this state; or the user's
            # guests have changed too often. Wait: a state that is saved later includes the same
            # change.
            self.soon(store, group)
        else:
            self._is_due = True
            IN_TURN.do(self.user, self._save_in_turn)

    def _save_in_turn(self) -> None:
        if self._is_due:  # False: the guest was saved meanwhile, or is gone.
            self._is_due = False
            began_s = monotonic()
            self.save()
            self.charge(monotonic() - began_s)

    def cancel_soon(self) -> None:
        """Cancels ``soon``, because the guest is being saved."""
        self._is_due = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def kept(self) -> None:
        """Notes that all of the guest is in the store, as far as is known."""
        if self._complained_at is not None:
            now = asyncio.get_running_loop().time()
            if now - self._complained_at > COMPLAIN_AGAIN_S:
                self._complained_at = None

    def cancel(self) -> None:
        """Saves nothing any more."""
        self.cancel_soon()
        if self._retry is not None:
            self._retry.cancel()
