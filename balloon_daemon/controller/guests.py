"""One guest: its VMM's connection, its governor, its device's keeper, and what is kept of it."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from balloon_daemon.balloon_policy import Reason
from balloon_daemon.config import Config
from balloon_daemon.controller.governor import Governor
from balloon_daemon.controller.inbox import CONFIG_ACCESS, Inbox
from balloon_daemon.controller.introduction import SHARED_WITHIN_POLLS, giving_back, not_shared
from balloon_daemon.controller.keeper import DeviceKeeper, Jail
from balloon_daemon.controller.limits import BalloonLimits
from balloon_daemon.controller.peers import Peer
from balloon_daemon.controller.saver import GuestSaver, Snapshot
from balloon_daemon.controller.sounding import Sounding
from balloon_daemon.controller.turns import ESTABLISHED_S, TURN_S
from balloon_daemon.controller.watch import MemoryWatch
from balloon_daemon.errors import FrontendError, StateError, StateFileError
from balloon_daemon.handover.journal import Phase
from balloon_daemon.log import EventLog, OnceEach, RateLimit
from balloon_daemon.tube.messages import Progress
from balloon_daemon.units import PAGE_SIZE, format_size
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import Connection, Received, inspect_memory, right_kind
from balloon_daemon.vhost_user.effects import (
    ActualWritten,
    AnswerVringBase,
    Effect,
    NotServed,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.vhost_user.messages import Message, decode_message
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature, pages_of

REACHED_A_SECOND = 4
"""Lines that say so; a guest may write ``actual`` as often as it likes."""

SAVE_ACTUAL_S = 0.05
"""``actual`` changes with every buffer and heals with the next: it is kept a little later."""

NOT_SERVED_LINES = 32
"""Lines on what cannot be served, each once: a driver may choose any size, over and over."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all guests of a controller share."""

    config: Config
    watch: MemoryWatch
    jail: Jail


class Guest:
    """One VM, from its VMM's connection to its hang-up.

    Args:
        name: for the log.
        connection: the VMM's; the guest closes it.
        peer: the VMM's user.
        shared: what it shares with the others.
        log: the controller's.
        saver: keeps it in a store; None where there is none.
    """

    def __init__(
        self,
        name: str,
        connection: Connection,
        peer: Peer,
        shared: Surroundings,
        log: EventLog,
        saver: GuestSaver | None,
    ) -> None:
        self.name = name
        self._connection = connection
        self._peer = peer
        self._shared = shared
        self._saver = saver
        self._log = peer.log(log.bind(vm=name))
        self._loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._reached = RateLimit(REACHED_A_SECOND)
        # It is tried again with each ``actual``, 20 times a second.
        self._unkept = RateLimit(1)
        journal = None if saver is None else saver.journal
        self._inbox = Inbox(connection, peer, journal, self._answer_access)
        self._unsaved = False
        self._save_later: asyncio.TimerHandle | None = None
        self._leaving = self._closed = False
        self._not_served = OnceEach(NOT_SERVED_LINES)
        self._not_shared: asyncio.TimerHandle | None = None
        self._established: asyncio.TimerHandle | None = None
        self._sounding = Sounding(self._set_target, shared.config.poll_s)
        offered = OFFERED_FEATURES
        if not shared.config.page_reporting:
            offered &= ~BalloonFeature.REPORTING
        self.backend = Backend(MemoryTable(inspect_memory), offered, right_kind)
        self.limits = BalloonLimits(self.backend, shared.config.vm_mem_bytes, self._log)
        self.keeper = DeviceKeeper(
            self.backend,
            replace(shared.jail, fork=peer.charged(shared.jail.fork)),
            lambda: self.backend.config.num_pages * PAGE_SIZE,
            self._log,
            name,
            self._device_changed,
            self,
        )
        self.governor = Governor(
            shared.config.policy, shared.watch, self._set_target, self._decided, self, self._log
        )

    @property
    def actual_bytes(self) -> int:
        """The balloon's size, as the driver says."""
        return self.backend.config.actual * PAGE_SIZE

    async def serve(self) -> None:
        """Answers the VMM until it hangs up or breaks the protocol; then lets go of everything."""
        shared_within_s = SHARED_WITHIN_POLLS * self._shared.config.poll_s
        self._not_shared = self._loop.call_later(shared_within_s, self._say_not_shared)
        try:
            self._join()
            await self._finish_pending()
            # Another controller may have ended before it began, or while it found out a balloon.
            self._start_governor()
            while True:
                await self._take_turn()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            if self._inbox.handled:
                self._farewell(
                    self._log.info, "the VMM has closed its connection; its balloon is forgotten"
                )
        except (FrontendError, StateFileError) as err:
            self._farewell(self._log.error, f"{err}; closing this connection")
        except OSError as err:
            self._farewell(self._log.error, f"the VMM's connection failed: {err.strerror or err}")
        finally:
            await self._close()

    def _join(self) -> None:
        """Raises OSError: no descriptor left for its user's turns."""
        self._peer.join()
        fd, turns = self._connection.fileno(), self._peer.turns
        self._established = self._loop.call_later(ESTABLISHED_S, turns.establish, fd)

    def _farewell(self, log: Callable[..., None], message: str) -> None:
        left_out = self._peer.farewells.admit(self._loop.time())
        if left_out is not None:
            more = f" ({left_out} more connections have ended)" if left_out else ""
            log("vmm", f"{message}{more}")

    async def give_back(self) -> None:
        """Lets the balloon shrink to nothing, and waits until the driver says that it has."""
        if self._closed:
            return
        self.governor.halt()
        self._sounding.end()
        # One that was asked and has not given yet gives all the same, unless it is told.
        unknown = self.backend.driver.balloon_unknown
        asked = self.actual_bytes or self.backend.config.num_pages or unknown
        if not asked or not self.keeper.to_run:
            return
        self._log.info("stop", giving_back(None if unknown else self.actual_bytes))
        self._empty.clear()
        self._set_target(0)
        await self._empty.wait()

    def leave(self) -> None:
        """Stays in the store for another controller when this one's task ends."""
        if self._closed:
            return
        try:
            if self._inbox.taken is not None:
                # Our task will not see it, and its descriptors are nowhere else. It stands in the
                # journal too: the next controller does what is left to do, and answers.
                message, fds, lost = self._inbox.taken
                with contextlib.suppress(FrontendError, StateError):
                    self.backend.handle(message, fds, lost=lost)
                    self._inbox.handled += 1
            self.save()
        finally:
            # Whatever went wrong, its place in the store is not ours to take away now.
            self._leaving = self._saver is not None and self._saver.has_state

    def restore(self, handled: int, num_pages: int, actual: int) -> None:
        """Takes over what another controller kept beside the back-end's and policy's state."""
        self._inbox.handled = handled
        # Rings in mid-life are no news here, unless their balloon was unknown to that one too.
        self.backend.driver.balloon_unknown &= not self.governor.started
        if not self.backend.vrings[0].started:
            self.backend.driver.stopped()
        self.backend.config.num_pages = pages_of(num_pages * PAGE_SIZE)
        self.backend.config.actual = pages_of(actual * PAGE_SIZE)
        if actual == 0:
            self._empty.set()
        self.keeper.take_over()

    # --- messages -----------------------------------------------------------------------------

    async def _take_turn(self) -> None:
        """Waits for a message that is no access to the config space; takes those behind it too."""
        received: Received | None = await self._inbox.next()
        ends_at = self._loop.time() + TURN_S
        while received is not None:
            await self._handle(received)
            self._inbox.done()
            received = self._inbox.receive() if self._loop.time() < ends_at else None

    async def _handle(self, received: Received) -> None:
        message, fds, lost = received
        self._inbox.handled += 1
        effects = self.backend.handle(message, fds, lost=lost)
        if fds:
            # Only this process has them now, and a device that has to end first takes its time.
            self.save()
        self._unsaved = message.request not in CONFIG_ACCESS
        for effect in effects:
            await self._perform(effect)
        if self._unsaved:
            self.save()

    def _answer_access(self, received: Received) -> None:
        """Answers an access to the config space; nothing of it has to be kept."""
        self._unsaved = False
        for effect in self.backend.handle(received.message, received.fds):
            if isinstance(effect, Send):
                self._send_kept(effect.reply)
            elif isinstance(effect, ActualWritten):
                self._actual_written(effect)

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(reply):
                await self._send(reply)
            case StopDevice():
                await self.keeper.stop()
            case AnswerVringBase(index):
                await self.keeper.learn_indices()
                # Whatever was kept since the request came does not know that the vring stands.
                self._unsaved = True
                await self._send(self.backend.stop_vring(index))
            case RingsChanged():
                self._start_governor()
                self.keeper.settle()
            case ActualWritten():
                self._actual_written(effect)
            case NotServed(why):
                if self._not_served.admit(why):
                    self._log.warning("vmm", why)
            case _:
                assert_never(effect)

    def _actual_written(self, effect: ActualWritten) -> None:
        if effect.actual == 0:
            self._empty.set()
        else:
            self._empty.clear()
        if self._sounding.under_way:
            found = self.actual_bytes
            self._log.info("sounding", f"its balloon is {format_size(found)}", actual_bytes=found)
            self._begin(found)
        elif effect.actual == self.backend.config.num_pages:
            self._target_reached()
        if self._saver is not None and self._save_later is None:
            self._save_later = self._loop.call_later(SAVE_ACTUAL_S, self._save_actual)

    def _target_reached(self) -> None:
        admitted = self._reached.admit(self._loop.time()) is not None
        log, size = self._log.info if admitted else self._log.debug, self.actual_bytes
        missing = self.limits.judge() if admitted else 0
        host = f", of which the host has {format_size(max(0, size - missing))}" if missing else ""
        log("reached", f"balloon is {format_size(size)}{host}", actual_bytes=size)

    async def _send(self, reply: bytes) -> None:
        if self._saver is not None and self._unsaved:
            # The front-end relies on what it is told: kept first, said afterwards.
            self.save()
            try:
                await self._saver.drained()
            except TimeoutError as err:
                # A VM without a balloon for ever is worse than one that a crash right now costs.
                self._log.error("store", f"{err}; going on without it")
        self._send_kept(reply)

    def _send_kept(self, reply: bytes) -> None:
        """Sends what another controller would know about too."""
        if self._saver is not None:
            self._saver.journal.sending()
        self._connection.send(reply)
        if not self._connection.flush():
            self._loop.add_writer(self._connection.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            done = self._connection.flush()
        except OSError:
            done = True  # Reading will say so too, and ends the connection.
        if done:
            self._loop.remove_writer(self._connection.fileno())

    # --- the balloon --------------------------------------------------------------------------

    def _start_governor(self) -> None:
        """Starts the balloon policy once the VM's size is known and its rings run."""
        refusal = self.backend.refusal
        if refusal and self._not_served.admit(refusal):
            self._log.error("vmm", f"{refusal}: this VM gets no balloon")
        if self.governor.started or not self.backend.ready_vrings():
            return
        self.limits.look_at_memory()
        if not self.backend.driver.balloon_unknown:
            self._begin(0)
        elif not self._sounding.under_way:
            self._log.info("sounding", "its driver is in mid-life: finding out its balloon")
            self._sounding.begin()

    def _begin(self, balloon_bytes: int) -> None:
        """Begins to decide, with so much in the guest's balloon."""
        self._sounding.end()
        self.governor.start(self.limits.size_bytes, balloon_bytes)

    def _say_not_shared(self) -> None:
        if self.backend.memory.regions or self.backend.refusal:
            return
        self._log.warning("vmm", not_shared(driver_runs=self.backend.driver_runs))

    def _device_changed(self) -> None:
        """Another device runs: the front-end has finished what it had to say of its memory."""
        if self._closed:
            return
        if self.governor.started:
            self.limits.look_at_memory()
            self.governor.resize(self.limits.size_bytes)
        self.save()

    # --- what devices report ------------------------------------------------------------------

    def progressed(self, done: Progress) -> None:
        """All devices of this guest together have done so much."""
        if self._closed:
            return
        self.limits.take_progress(done)

    def stats_came(self, stats: dict[int, int], *, first: bool) -> None:
        """The guest's statistics, by tag.

        A device takes the buffer that its predecessor held, too: after a change of the memory
        table its first statistics may be from before. So new ones are asked for.
        """
        if self._closed:
            return
        if first:
            self.keeper.request_stats()
        if not first or self.limits.knows_no_total:
            self.limits.take_stats(stats)
            self.governor.resize(self.limits.size_bytes)

    # --- what the governor asks ---------------------------------------------------------------

    def against_more(self, level: int) -> Reason | None:
        """Why the guest must not be asked for more just now; None: it may."""
        return self.limits.against_more(level)

    def tell_again(self) -> None:
        """Tells the guest the present target once more."""
        self.keeper.send_target()

    def _set_target(self, target_bytes: int) -> None:
        # The config space first: the driver reads it as soon as it hears of a change.
        self.backend.config.num_pages = pages_of(target_bytes)
        self.keeper.send_target()

    def _decided(self) -> None:
        # What the guest makes of it is worth knowing beside the next decision.
        self.keeper.request_stats()
        self.save_again()

    # --- what another controller needs ----------------------------------------------------------

    def save(self) -> None:
        """Keeps the guest as it is now, where there is a store."""
        self._unsaved = False
        if self._save_later is not None:
            self._save_later.cancel()
            self._save_later = None
        if self._saver is None or self._leaving:
            return
        mem_bytes, policy = self.governor.vm_mem_bytes, self.governor.state()
        backend, life = self.backend, self.keeper.life
        snapshot = Snapshot(
            self._inbox.handled, mem_bytes, policy, backend, self._connection, life
        )
        try:
            self._saver.save(snapshot)
        except OSError as err:
            message = f"cannot be kept for a later balloond: {err.strerror}"
            self._log.limited_error(self._unkept, self._loop.time(), "store", message)

    def save_again(self) -> None:
        """Keeps it some time after it could not be kept, and lets go of what it has no more."""
        self.save()
        self._connection.let_go()

    def _save_actual(self) -> None:
        self._save_later = None
        if self._saver is not None and self._saver.store_is_behind:
            # It has more important things to take, and the next one says the same.
            self._save_later = self._loop.call_later(SAVE_ACTUAL_S, self._save_actual)
        else:
            self.save_again()

    async def _finish_pending(self) -> None:
        """Finishes the request that another controller had in hand when it died.

        Raises:
            FrontendError, StateFileError: it cannot be understood; its journal is damaged.
        """
        entry = None if self._saver is None else self._saver.journal.pending()
        if self._saver is None or entry is None:
            return
        # SENDING: between the mark and the system call lie about a microsecond, behind the call
        # the VMM may run first; so its answer was sent, and a second one would be taken for the
        # next. A request that still waits in the socket is taken like any other.
        if entry.phase is Phase.HANDLING and self._connection.peek() != entry.request:
            message = decode_message(entry.request)
            if entry.number > self._inbox.handled:
                # Taken, and nothing kept of it since: the descriptors that it had are lost.
                lost = self.backend.lacks_fds(message)
                await self._handle(Received(message, (), lost))
            else:
                await self._answer_again(message)
        self._saver.journal.done()

    async def _answer_again(self, message: Message) -> None:
        """Answers a request that was kept as handled, and does what may be left to do of it."""
        await self.keeper.stop()
        if self.backend.vring_is_to_stop(message):
            await self.keeper.learn_indices()
        for reply in self.backend.reply_again(message):
            self._unsaved = True
            await self._send(reply)
        await self._perform(RingsChanged())

    async def _close(self) -> None:
        self.governor.halt()
        self._sounding.end()
        for timer in (self._save_later, self._not_shared):
            if timer is not None:
                timer.cancel()
        # Before the device ends: whoever lets go of the guest's memory last frees all of it, and
        # that must not be this process.
        saver, self._saver = self._saver, None
        if saver is not None and not self._leaving:
            saver.forget()
        # A child that hangs shares our descriptors, beyond our own end too: what is left open here
        # would keep the memory of a VM that ends later.
        kept = self._leaving and saver is not None and saver.is_kept
        with self._connection.foreign.closed_here() if kept else contextlib.nullcontext():
            if saver is not None:
                saver.close()
            self.backend.close()
        self._inbox.drop()
        self._connection.let_go()
        try:
            await self.keeper.stop()
        except StateFileError:
            self.keeper.close()
        finally:
            self._loop.remove_writer(self._connection.fileno())
            if self._established is not None:
                self._established.cancel()
                self._peer.turns.leave(self._connection.fileno())
                self._peer.leave()
            self._connection.close(kept=self._leaving)
            self._empty.set()
            self._closed = True
            # All that knows us: else it would all wait for the garbage collector, and every VM for
            # that, up to 50 ms where there are a thousand.
            del self.keeper, self.governor, self._inbox, self._sounding


MakeGuest = Callable[[str, Connection, GuestSaver | None], Guest]
"""Makes a guest of a controller: (name, connection, saver)."""
