"""Decides when a guest's state is put into the store (systemd's file descriptor store, or a keeper
process), from which another controller can take it."""

import asyncio
from collections.abc import Callable

from balloon_daemon.events import NotStored, Publish, StoreStalled
from balloon_daemon.guests.jailed.saver import NullSaver, Saver, Snapshot
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.journal import RequestJournal
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.units import VmId

POISON_WRITES_A_SECOND = 4
"""How many writes of ``poison_val`` are each stored before their answer in a second; a driver
writes it once in its life. A VMM that writes it without end has the last value stored a little
later, as with ``actual``: storing a state takes far longer than answering."""


class Kept:
    """Keeps one guest's state in the store, so that a next controller can go on with the guest.

    Args:
        vm: the guest's VM.
        saver: puts the state into the store.
        snapshot: (row of its policy) -> the guest's present state.
        close_dropped: passes descriptors that the guest no longer uses to the closer.
        publish: takes events.
    """

    def __init__(
        self,
        vm: VmId,
        saver: Saver,
        snapshot: Callable[[VmRow | None], Snapshot],
        close_dropped: Callable[[], None],
        publish: Publish,
    ) -> None:
        self._vm = vm
        self._saver = saver
        self._snapshot = snapshot
        self._close_dropped = close_dropped
        self._publish = publish
        self._row: VmRow | None = None
        self._began = self._missed = False
        # Publish at most one failed save a second. The guest is saved again whenever its driver
        # writes ``actual``, up to 20 times a second, and each of these saves may fail.
        self._failures = RateLimit(1)
        self._poison_writes = RateLimit(POISON_WRITES_A_SECOND)
        self.stays = False
        """True: the guest stays in the store for another controller."""
        saver.when_not_kept(self._save_late)

    @property
    def journal(self) -> RequestJournal:
        """The journal of the request in hand."""
        return self._saver.journal

    @property
    def is_kept(self) -> bool:
        """Whether all of the guest was put into the store when it was last saved."""
        return self._saver.is_kept

    @property
    def has_valid_state(self) -> bool:
        """Whether the store has a state with which another controller can go on."""
        return self._saver.has_valid_state

    def begin(self) -> None:
        """Allows saving. While a guest is being restored, its state is incomplete."""
        self._began = True
        if self._missed:
            self.save()

    def keep(self, row: VmRow) -> bool:
        """Stores this row of the VM's policy from now on. Returns whether this is done, or will be
        by ``begin`` or by the saver; False: only the next call tries again."""
        self._row = row
        return self._save_late()

    def save(self) -> bool:
        """Stores the guest's present state; returns what ``keep`` does."""
        if not self._began:
            self._missed = True
        elif not self.stays:
            try:
                self._saver.save(self._snapshot(self._row))
            except OSError as err:
                suppressed = self._failures.admit(asyncio.get_running_loop().time())
                if suppressed is not None:
                    self._publish(NotStored(self._vm, err.strerror or str(err), suppressed))
                return False
        return True

    def _save_late(self) -> bool:
        """Stores the guest's state while no request is in hand.

        The saver may close duplicates of descriptors that the VMM replaced long before; they are
        passed to the closer here, because the next request, which would do that, may never come.
        """
        saved = self.save()
        self._close_dropped()
        return saved

    def save_soon(self) -> None:
        """Stores the guest's state a little later."""
        self._saver.save_soon()

    def save_poison_val(self) -> None:
        """Stores the guest's state now, or, where its VMM writes ``poison_val`` without end, a
        little later."""
        if self._poison_writes.admit(asyncio.get_running_loop().time()) is None:
            self.save_soon()
        else:
            self.save()

    def stay(self) -> None:
        """Leaves the guest in the store, if the store has a state of it; saves no more."""
        self.stays = self._saver.has_state

    async def stored(self) -> None:
        """Waits until the store has received the state that was saved last."""
        try:
            await self._saver.drained()
        except TimeoutError as err:
            # Answer the VMM although the store has not received the state. A VMM that gets no
            # answer has surely lost its balloon. A VMM that gets the answer loses its balloon only
            # if this controller dies before the store receives the state.
            self._publish(StoreStalled(self._vm, str(err)))

    def close(self) -> None:
        """Removes the guest from the store, unless it stays there; saves no more."""
        saver, self._saver = self._saver, NullSaver()
        if not self.stays:
            saver.forget()
        saver.close()
