"""A VMM's requests: each is handled, its effects are performed, and it is answered."""

import asyncio
import contextlib
from typing import assert_never

from balloon_daemon.errors import FrontendError, StateError
from balloon_daemon.events import Publish, RequestNotServed
from balloon_daemon.guests.jailed.actual_reports import ActualReports
from balloon_daemon.guests.jailed.balloon import Balloon
from balloon_daemon.guests.jailed.inbox import CONFIG_ACCESS, Inbox
from balloon_daemon.guests.jailed.kept import Kept
from balloon_daemon.guests.jailed.peers import Peer
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor
from balloon_daemon.guests.jailed.turns import TURN_S
from balloon_daemon.handover.journal import Phase
from balloon_daemon.rate_limit import OnceEach
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import Connection, Received
from balloon_daemon.vhost_user.effects import (
    ActualWritten,
    AnswerVringBase,
    Effect,
    NotServed,
    PoisonValWritten,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.known_accesses import KnownAccesses
from balloon_daemon.vhost_user.messages import Message, decode_message
from balloon_daemon.vhost_user.requests import lacks_fds

NOT_SERVED = 32
"""How many different reasons why a request cannot be served are published, each of them once. A
reason may contain a number that the driver chooses, such as a ring's size."""


class Conversation:
    """The requests of one VMM.

    Args:
        vm: its VM.
        connection: the VMM's connection.
        peer: the VMM's user.
        backend: handles the requests.
        device: is stopped and forked for the requests' effects.
        balloon: is told of ``actual``, and of changed rings.
        kept: stores the VM's state before a VMM is answered.
        publish: takes events.
    """

    def __init__(
        self,
        vm: VmId,
        connection: Connection,
        peer: Peer,
        backend: Backend,
        device: DeviceSupervisor,
        balloon: Balloon,
        kept: Kept,
        publish: Publish,
    ) -> None:
        self._vm = vm
        self._connection = connection
        self._backend = backend
        self._device = device
        self._balloon = balloon
        self._kept = kept
        self._publish = publish
        loop = asyncio.get_running_loop()
        self._actual = ActualReports(backend.config, self._report_actual, loop)
        known = KnownAccesses(backend.driver, backend.vrings[0])
        self.inbox = Inbox(connection, peer, kept.journal, known, self, self._actual.written)
        self._not_served = OnceEach(NOT_SERVED)
        self._changed = self._unsaved = False
        """Whether the state has changed since it was last saved; and whether the store may not
        have received it yet."""

    def report_each(self, *, each: bool) -> None:
        """Sets whether each size of the balloon is reported (``ActualReports``)."""
        self._actual.each = each

    def report_no_more(self) -> None:
        """Reports no size of the balloon any more, as the VM is gone."""
        self._actual.end()

    def close(self) -> None:
        """Answers nothing more."""
        asyncio.get_running_loop().remove_writer(self._connection.fileno())
        self.inbox.leave()
        self._actual.end()
        # Break the reference cycles between this object and these two: only the garbage collector
        # would free a cycle.
        del self.inbox, self._actual

    async def take_turn(self) -> None:
        """Waits for a request other than a config access; handles it and those that follow at
        once.

        Raises:
            EOFError, FrontendError, OSError: the VMM has hung up, has sent a malformed message, or
                the connection failed (``Inbox.receive``).
            StateFileError, DeviceHangsError: the device does not end.
        """
        loop = asyncio.get_running_loop()
        received: Received | None = await self.inbox.next()
        ends_at = loop.time() + TURN_S
        while received is not None:
            await self._handle(received)
            self.inbox.done()
            received = self.inbox.next_at_once(ends_at)

    async def _handle(self, received: Received) -> None:
        message, fds, lost = received
        self.inbox.handled += 1
        self.inbox.known.forget()
        effects = self._backend.handle(message, fds, lost=lost)
        if fds:
            # Put the new descriptors into the store now, before the effects below: StopDevice
            # among them may take a second. If this process crashed during that second, the new
            # descriptors, which only this process has received, would be lost.
            self._save()
        self._changed = not fds
        self._unsaved = True
        for effect in effects:
            await self._perform(effect)
        if self._changed:
            self._save()

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(reply):
                await self._send(reply)
            case StopDevice():
                self._changed = True
                await self._device.stop()
            case AnswerVringBase(index):
                await self._device.learn_indices()
                # The answer tells the front-end that this vring has stopped, but the state in the
                # store says that it runs. Have ``_send`` store the new state before it sends the
                # answer.
                self._changed = self._unsaved = True
                await self._send(self._backend.stop_vring(index))
            case RingsChanged():
                self._changed |= self._unsaved
                self._balloon.rings_changed()
                self._device.settle()
            case ActualWritten():
                self._actual.written()
            case PoisonValWritten():
                self._kept.save_poison_val()
            case NotServed(why):
                if self._not_served.admit(why):
                    self._publish(RequestNotServed(self._vm, why))
            case _:
                assert_never(effect)

    def access_config(self, received: Received) -> None:
        """Answers an access to the config space, without waiting for the store to receive a state.

        ``actual`` changes with each MiB that the guest gives, so it is stored a little later.
        ``poison_val`` is stored before the answer: a controller that went on with an earlier
        driver's value might remove pages that this driver reports.
        """
        answer = b""
        for effect in self._backend.handle(received.message, received.fds, lost=received.lost):
            match effect:
                case Send(reply):
                    answer = reply
                    self._send_now(reply)
                case ActualWritten():
                    self._actual.written()
                case PoisonValWritten():
                    self._kept.save_poison_val()
                case _:
                    raise StateError(f"{effect} of an access to the config space")
        self.inbox.known.learn(received.message, answer)

    def _report_actual(self, pages: int) -> None:
        self._balloon.actual_written(pages)
        self._kept.save_soon()

    # --- answers ------------------------------------------------------------------------------

    def _save(self) -> None:
        self._changed = False
        self._kept.save()

    async def _send(self, reply: bytes) -> None:
        if self._unsaved:
            # The front-end relies on this answer, even if another controller serves the VM later:
            # wait until the store has received the state that the answer confirms.
            if self._changed:
                self._save()
            self._unsaved = False
            await self._kept.stored()
        self._send_now(reply)

    def _send_now(self, reply: bytes) -> None:
        self._kept.journal.sending()
        if not self._connection.send(reply):
            self.flush_later()

    def flush_later(self) -> None:
        """Sends what the socket did not take, once it takes more."""
        asyncio.get_running_loop().add_writer(self._connection.fileno(), self._flush)

    def _flush(self) -> None:
        try:
            done = self._connection.flush()
        except OSError:
            done = True  # The next read of the connection fails too, and that ends the session.
        if done:
            asyncio.get_running_loop().remove_writer(self._connection.fileno())

    # --- between two controllers --------------------------------------------------------------

    def hand_over(self) -> None:
        """Handles a request that was received, but that no task of this controller will handle.

        Only this process has the request's descriptors. The journal has the request too: the next
        controller performs its effects and answers it.
        """
        if self.inbox.taken is None:
            return
        message, fds, lost = self.inbox.taken
        with contextlib.suppress(FrontendError, StateError):
            self._backend.handle(message, fds, lost=lost)
            self.inbox.handled += 1

    async def finish_pending(self) -> None:
        """Finishes the request that another controller had in hand when it died.

        Raises:
            FrontendError, StateFileError: the request is malformed, or its journal is damaged.
        """
        entry = self._kept.journal.pending()
        if entry is None:
            return
        # Phase SENDING: assume that the answer was sent, which is wrong only if the controller
        # died just before its sendmsg(2). A second answer would be worse: the VMM would take it
        # for the answer to its next request. Phase HANDLING: if the request is still in the socket
        # (``peek``), it is read later, like any other request.
        if entry.phase is Phase.HANDLING and self._connection.peek() != entry.request:
            message = decode_message(entry.request)
            if entry.number > self.inbox.handled:
                # No state in the store includes this request: the controller that read it died
                # before it saved the guest's state. The descriptors that came with the request
                # died with that controller.
                received = Received(message, (), lacks_fds(message))
                if message.request in CONFIG_ACCESS:
                    self.inbox.access_config(received)
                else:
                    await self._handle(received)
            else:
                await self._answer_again(message)
        self._kept.journal.done()

    async def _answer_again(self, message: Message) -> None:
        """Answers a request that the stored state includes, and performs those of its effects that
        the earlier controller may not have performed."""
        await self._device.stop()
        if self._backend.vring_is_to_stop(message):
            await self._device.learn_indices()
        for reply in self._backend.reply_again(message):
            self._changed = self._unsaved = True
            await self._send(reply)
        await self._perform(RingsChanged())
