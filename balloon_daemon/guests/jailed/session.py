"""One guest: its VMM's connection, its governor, its device, and what is kept of it."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from balloon_daemon import events
from balloon_daemon.config.model import Config
from balloon_daemon.controller.governor import Governor
from balloon_daemon.errors import FrontendError, StateError, StateFileError
from balloon_daemon.events import Publish
from balloon_daemon.guests.jailed.inbox import CONFIG_ACCESS, Inbox
from balloon_daemon.guests.jailed.limits import BalloonLimits
from balloon_daemon.guests.jailed.peers import Peer
from balloon_daemon.guests.jailed.saver import NullSaver, Saver, Snapshot
from balloon_daemon.guests.jailed.sounding import Sounding
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor, Jail
from balloon_daemon.guests.jailed.turns import ESTABLISHED_S, TURN_S
from balloon_daemon.guests.seam import Stats, VmRow
from balloon_daemon.handover.journal import Phase
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.rate_limit import OnceEach, RateLimit
from balloon_daemon.sizing.balloon_policy import Reason
from balloon_daemon.tube.messages import Progress
from balloon_daemon.units import PAGE_SIZE, VmId
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
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature

REACHED_A_SECOND = 4
"""Times that are more than ``quiet``; a guest may write ``actual`` as often as it likes."""

NOT_SERVED = 32
"""Reasons why something cannot be served that are published, each once: a driver may choose any
size, over and over."""

SHARED_WITHIN_POLLS = 60
"""How long a VMM may take to give its guest's memory before it is named, in times of the policy's
poll, which is 1 s. It does so when the guest's driver starts."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all guests of a controller share."""

    config: Config
    watch: MemoryWatch
    jail: Jail


class Guest:
    """One VM, from its VMM's connection to its hang-up.

    Args:
        vm: which VM it is.
        connection: the VMM's; the guest closes it.
        peer: the VMM's user.
        shared: what it shares with the others.
        publish: takes what happens.
        saver: keeps it for another controller.
    """

    def __init__(
        self,
        vm: VmId,
        connection: Connection,
        peer: Peer,
        shared: Surroundings,
        publish: Publish,
        saver: Saver,
    ) -> None:
        self.vm = vm
        self.name = vm.name
        self._connection = connection
        self._peer = peer
        self._shared = shared
        self._saver = saver
        self._publish = publish
        saver.when_not_kept(self.save)
        self._loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()
        self._reached = RateLimit(REACHED_A_SECOND)
        # It is tried again with each ``actual``, 20 times a second.
        self._unkept = RateLimit(1)
        self._inbox = Inbox(connection, peer, saver.journal, self._answer_access)
        self._unsaved = False
        self._leaving = self._closed = False
        self._not_served = OnceEach(NOT_SERVED)
        self._not_shared: asyncio.TimerHandle | None = None
        self._established: asyncio.TimerHandle | None = None
        self._sounding = Sounding(self._set_target, shared.config.poll_s)
        offered = OFFERED_FEATURES
        if not shared.config.page_reporting:
            offered &= ~BalloonFeature.REPORTING
        self.backend = Backend(MemoryTable(inspect_memory), offered, right_kind)
        self.limits = BalloonLimits(self.vm, self.backend, shared.config.vm_mem_bytes, publish)
        self.keeper = DeviceSupervisor(
            self.backend,
            replace(shared.jail, fork=peer.charged(shared.jail.fork)),
            publish,
            self.vm,
            self._device_changed,
            self,
        )
        self.governor = Governor(
            shared.config.policy,
            shared.watch,
            self._set_target,
            self._decided,
            self,
            self.vm,
            publish,
        )
        publish(events.Connected(self.vm, peer.uid))

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
                self._publish_end(events.VmmHungUp(self.vm))
        except (FrontendError, StateFileError) as err:
            self._publish_end(events.ConnectionClosed(self.vm, str(err)))
        except OSError as err:
            self._publish_end(events.ConnectionFailed(self.vm, err.strerror or str(err)))
        finally:
            await self._close()

    def _join(self) -> None:
        """Raises OSError: no descriptor left for its user's turns."""
        self._peer.join()
        fd, turns = self._connection.fileno(), self._peer.turns
        self._established = self._loop.call_later(ESTABLISHED_S, turns.establish, fd)

    def _publish_end(
        self, ended: events.VmmHungUp | events.ConnectionClosed | events.ConnectionFailed
    ) -> None:
        suppressed = self._peer.farewells.admit(self._loop.time())
        if suppressed is not None:
            self._publish(replace(ended, suppressed=suppressed))

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
        self._publish(events.GivingBack(self.vm, None if unknown else self.actual_bytes))
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
            self._leaving = True

    def restore(self, handled: int, num_pages: int, actual: int) -> None:
        """Takes over what another controller kept beside the back-end's and policy's state."""
        self._inbox.handled = handled
        self.backend.restore_config(num_pages, actual, balloon_known=self.governor.started)
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
                    self._publish(events.RequestNotServed(self.vm, why))
            case _:
                assert_never(effect)

    def _actual_written(self, effect: ActualWritten) -> None:
        if effect.actual == 0:
            self._empty.set()
        else:
            self._empty.clear()
        if self._sounding.under_way:
            found = self.actual_bytes
            self._publish(events.BalloonFound(self.vm, found))
            self._begin(found)
        elif effect.actual == self.backend.config.num_pages:
            self._target_reached()
        self._saver.save_soon()

    def _target_reached(self) -> None:
        quiet = self._reached.admit(self._loop.time()) is None
        missing_bytes = 0 if quiet else self.limits.judge()
        self._publish(events.TargetReached(self.vm, self.actual_bytes, missing_bytes, quiet))

    async def _send(self, reply: bytes) -> None:
        if self._unsaved:
            # The front-end relies on what it is told: kept first, said afterwards.
            self.save()
            try:
                await self._saver.drained()
            except TimeoutError as err:
                # A VM without a balloon for ever is worse than one that a crash right now costs.
                self._publish(events.StoreStalled(self.vm, str(err)))
        self._send_kept(reply)

    def _send_kept(self, reply: bytes) -> None:
        """Sends what another controller would know about too."""
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
            self._publish(events.VmNotServed(self.vm, refusal))
        if self.governor.started or not self.backend.ready_vrings():
            return
        self.limits.look_at_memory()
        if not self.backend.driver.balloon_unknown:
            self._begin(0)
        elif not self._sounding.under_way:
            self._publish(events.BalloonSought(self.vm))
            self._sounding.begin()

    def _begin(self, balloon_bytes: int) -> None:
        """Begins to decide, with so much in the guest's balloon."""
        self._sounding.end()
        self.governor.start(self.limits.size_bytes, balloon_bytes)

    def _say_not_shared(self) -> None:
        if self.backend.memory.regions or self.backend.refusal:
            return
        self._publish(events.MemoryNotShared(self.vm, self.backend.driver_runs))

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

    def stats_came(self, stats: Stats, *, first: bool) -> None:
        """The guest's statistics.

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
        self.backend.set_target(target_bytes)
        self.keeper.send_target()

    def _decided(self) -> None:
        # What the guest makes of it is worth knowing beside the next decision.
        self.keeper.request_stats()
        self.save()

    # --- what another controller needs ----------------------------------------------------------

    def save(self) -> None:
        """Keeps the guest as it is now, where there is a store."""
        self._unsaved = False
        if self._leaving:
            return
        policy = self.governor.state()
        row = None if policy is None else VmRow(self.governor.vm_mem_bytes, *policy)
        snapshot = Snapshot(
            self._inbox.handled, row, self.backend, self._connection, self.keeper.stderr_pipe
        )
        try:
            self._saver.save(snapshot)
        except OSError as err:
            suppressed = self._unkept.admit(self._loop.time())
            if suppressed is not None:
                self._publish(events.NotStored(self.vm, err.strerror or str(err), suppressed))

    async def _finish_pending(self) -> None:
        """Finishes the request that another controller had in hand when it died.

        Raises:
            FrontendError, StateFileError: it cannot be understood; its journal is damaged.
        """
        entry = self._saver.journal.pending()
        if entry is None:
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
        if self._not_shared is not None:
            self._not_shared.cancel()
        # Before the device ends: whoever lets go of the guest's memory last frees all of it, and
        # that must not be this process.
        saver, self._saver = self._saver, NullSaver()
        if not self._leaving:
            saver.forget()
        saver.close()
        if not self._leaving:
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
            self._publish(events.Disconnected(self.vm))
            # All that knows us: else it would all wait for the garbage collector, and every VM for
            # that, up to 50 ms where there are a thousand.
            del self.keeper, self.governor, self._inbox, self._sounding


MakeGuest = Callable[[VmId, Connection, Saver], Guest]
"""Makes a guest of a controller: (VM, connection, saver)."""
