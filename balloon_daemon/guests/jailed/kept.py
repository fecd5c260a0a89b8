"""Keeps one guest for another controller: when it is saved, and with what."""

import asyncio
from collections.abc import Callable

from balloon_daemon.events import NotStored, Publish, StoreStalled
from balloon_daemon.guests.jailed.saver import NullSaver, Saver, Snapshot
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.journal import RequestJournal
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.units import VmId


class Kept:
    """What is kept of one guest.

    Args:
        vm: which.
        saver: puts it into the store.
        snapshot: the guest as it is now, with this row of its policy.
        let_go: has closed what the VMM sent and the guest has no more.
        publish: takes what happens.
    """

    def __init__(
        self,
        vm: VmId,
        saver: Saver,
        snapshot: Callable[[VmRow | None], Snapshot],
        let_go: Callable[[], None],
        publish: Publish,
    ) -> None:
        self._vm = vm
        self._saver = saver
        self._snapshot = snapshot
        self._let_go = let_go
        self._publish = publish
        self._row: VmRow | None = None
        self._began = self._missed = False
        # It is tried again with each ``actual``, 20 times a second.
        self._failures = RateLimit(1)
        self.stays = False
        """The guest stays in the store for another controller."""
        saver.when_not_kept(self._save_late)

    @property
    def journal(self) -> RequestJournal:
        """Of the request in hand."""
        return self._saver.journal

    @property
    def is_kept(self) -> bool:
        """Whether all of the guest was put into the store when it was last saved."""
        return self._saver.is_kept

    def begin(self) -> None:
        """Saves from now on. A guest that is still being restored would be saved half."""
        self._began = True
        if self._missed:
            self.save()

    def keep(self, row: VmRow) -> None:
        """Keeps this row of the VM's policy from now on."""
        self._row = row
        self._save_late()

    def save(self) -> None:
        """Keeps the guest as it is now."""
        if not self._began:
            self._missed = True
        elif not self.stays:
            try:
                self._saver.save(self._snapshot(self._row))
            except OSError as err:
                suppressed = self._failures.admit(asyncio.get_running_loop().time())
                if suppressed is not None:
                    self._publish(NotStored(self._vm, err.strerror or str(err), suppressed))

    def _save_late(self) -> None:
        """Keeps the guest while no request is in hand.

        The saver may close duplicates of descriptors that the VMM has replaced long before, and
        the next request, which would let go of them, may never come.
        """
        self.save()
        self._let_go()

    def save_soon(self) -> None:
        """Keeps the guest as it is a little later."""
        self._saver.save_soon()

    def stay(self) -> None:
        """Leaves the guest in the store, where the store has a state of it; saves no more."""
        self.stays = self._saver.has_state

    async def stored(self) -> None:
        """Keeps the guest as it is now, and waits until the store has it."""
        self.save()
        try:
            await self._saver.drained()
        except TimeoutError as err:
            # A VMM that is not answered has no balloon any more; one that is has none only if
            # this controller dies before the store takes its state.
            self._publish(StoreStalled(self._vm, str(err)))

    def close(self) -> None:
        """Takes the guest out of the store, unless it stays there; saves no more."""
        saver, self._saver = self._saver, NullSaver()
        if not self.stays:
            saver.forget()
        saver.close()
