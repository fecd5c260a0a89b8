"""The controller: one asyncio loop that listens, watches the host and serves every guest."""

import asyncio
import contextlib
import signal
from typing import Any

from balloon_daemon.config import Config
from balloon_daemon.controller.ending import end_tasks, give_back, leave_at_once
from balloon_daemon.controller.guests import Guest, Surroundings
from balloon_daemon.controller.keeper import Jail
from balloon_daemon.controller.listening import LISTENER, Listener
from balloon_daemon.controller.peers import Peers
from balloon_daemon.controller.recovery import recover
from balloon_daemon.controller.saver import GuestSaver
from balloon_daemon.controller.watch import MemoryWatch
from balloon_daemon.device.process import prepare_fork
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.closing import Closer, ForeignFds
from balloon_daemon.linux.signals import END_SIGNALS, hold_end_signals, release_end_signals
from balloon_daemon.linux.systemd import notify
from balloon_daemon.log import EventLog
from balloon_daemon.low_memory import LowMemorySource
from balloon_daemon.vhost_user.connection import Connection

ACCEPT_AGAIN_S = 1.0
"""Out of file descriptors: how long to leave the next connection waiting."""

ACCEPT_EACH_S = 0.001
"""Between two connections: whoever makes them as fast as they are taken would have a core."""


class Controller:
    """The daemon, between a bound socket and its end.

    Args:
        config: the settings.
        source: where low memory comes from.
        jail: what devices are put into.
        listener: the vhost-user socket.
        store: keeps guests for another controller; None where there is none.
    """

    def __init__(
        self,
        config: Config,
        source: LowMemorySource,
        jail: Jail,
        listener: Listener,
        store: Store | None,
    ) -> None:
        self._config = config
        self._source = source
        self._jail = jail
        self._listener = listener
        self._store = store
        self._log = EventLog()
        self._guests: dict[Guest, asyncio.Task[None]] = {}
        self._peers = Peers()
        self._count = 0
        self._accept_later: asyncio.TimerHandle | None = None
        self._hurry: asyncio.Future[None] | None = None
        self.listening = False
        """Whether it has begun to serve: what there is in the store from then on stays there."""

    async def run(self) -> None:
        """Serves until SIGTERM, SIGINT or SIGHUP; then gives the guests' memory back and ends.

        SIGUSR1 ends it too, but leaves the guests in the store, for the next one to go on with.
        The signals are held when it begins, and again when it ends.
        """
        loop = asyncio.get_running_loop()
        watch = MemoryWatch(self._source, self._config.poll_s, self._log)
        self._shared = Surroundings(self._config, watch, self._jail)
        loop.set_exception_handler(self._failed)
        self._closer = Closer(loop.call_later)
        stopping = loop.create_future()
        for number in END_SIGNALS:
            # nohup(1) and a script's "&" have these two ignored, and mean it.
            meant = number in (signal.SIGHUP, signal.SIGINT)
            if not meant or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._stop, stopping, number)
        prepare_fork()
        self._take_over()
        self._listen()
        notify("READY=1", f"STATUS=listening on {self._config.socket}")
        self._log.info("listening", f"listening on {self._config.socket}")
        self.listening = True
        release_end_signals()
        leaving, ended = False, True
        try:
            leaving = await stopping
        finally:
            notify("STOPPING=1")
            ended = await self._end(leaving=leaving)
            watch.close()
            if self._store is not None:
                with contextlib.suppress(TimeoutError):
                    await self._store.drained()
                self._store.close()
            # A second signal on the way out must not end us by its default action.
            hold_end_signals()
            if not ended:
                # asyncio.run() would wait for every task that is left.
                leave_at_once(0)

    def _stop(self, stopping: "asyncio.Future[bool]", number: signal.Signals) -> None:
        if stopping.done():
            # Not SIGHUP: a session that ends sends it right behind SIGTERM.
            asked_again = number in (signal.SIGTERM, signal.SIGINT)
            if asked_again and self._hurry is not None and not self._hurry.done():
                self._log.info("stop", f"{number.name} again: ending at once")
                self._hurry.set_result(None)
        else:
            kept = self._store is not None and not self._store.lost
            leaving = number is signal.SIGUSR1 and kept
            how = "ending, the guests stay for the next balloond" if leaving else "ending"
            self._log.info("stop", f"{number.name}: {how}")
            stopping.set_result(leaving)

    def _take_over(self) -> None:
        """Goes on with what another controller left, and keeps the listening socket too."""
        if self._store is None:
            return
        self._store.watch(self._store_lost)
        self._store.close_late_by(self._closer.close)
        # systemd keeps several of one name: without this, each socket that was ever replaced.
        self._store.remove(LISTENER)
        self._store.put(LISTENER, self._listener.sock)
        for guest in recover(self._store, self._make, self._closer, self._log):
            self._count = max(self._count, int(guest.name.removeprefix("vm")))
            self._serve(guest)
            guest.governor.resume()
            self._log.bind(vm=guest.name).info("recovery", "goes on where another balloond left")

    def _store_lost(self) -> None:
        self._log.error(
            "store",
            "what keeps the VMs for a later balloond is gone: should this one end, they have no "
            "balloon until they are started again",
        )

    def _make(self, name: str, connection: Connection, saver: GuestSaver | None) -> Guest:
        peer = self._peers.of(connection)
        guest = Guest(name, connection, peer, self._shared, self._log, saver)
        if saver is not None:
            saver.is_of(peer.uid)
            saver.when_not_kept(guest.save_again)
        return guest

    def _failed(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A bug of ours in one callback; asyncio would print a traceback into the log.
        err = context.get("exception")
        what = context["message"] if err is None else f"{type(err).__name__}: {err}"
        self._log.error("bug", f"{what}; going on")

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.sock, self._accept)

    def _accept(self) -> None:
        saver: GuestSaver | None = None
        name = f"vm{self._count + 1}"
        try:
            # The journal first: a VMM for which there is none waits like one that finds no room.
            saver = self._saver(name)
            sock, _ = self._listener.sock.accept()
        except OSError as err:
            if saver is not None:
                saver.close()
            if isinstance(err, (BlockingIOError, ConnectionAbortedError)):
                return
            self._log.error("accept", f"cannot take a connection: {err.strerror}")
            self._accept_again_in(ACCEPT_AGAIN_S)
            return
        self._accept_again_in(ACCEPT_EACH_S)
        connection = Connection(sock, ForeignFds(self._closer))
        peer = self._peers.of(connection)
        if self._peers.refuses(peer, self._log):
            connection.close()
            if saver is not None:
                saver.close()
            return
        if saver is not None and self._store is not None:
            capacity = self._store.room.capacity
            if self._peers.keeps_no_more_of(peer, capacity, self._log.bind(vm=name)):
                saver.close()
                saver = None
        self._count += 1
        self._serve(self._make(name, connection, saver))

    def _accept_again_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.sock)
        self._accept_later = loop.call_later(seconds, self._listen)

    def _saver(self, name: str) -> GuestSaver | None:
        if self._store is None:
            return None
        return GuestSaver(self._store, name, Journal.create(f"balloond-{name}"))

    def _serve(self, guest: Guest) -> None:
        task = asyncio.get_running_loop().create_task(guest.serve())
        self._guests[guest] = task
        task.add_done_callback(lambda task: self._forget(guest, task))

    def _forget(self, guest: Guest, task: "asyncio.Task[None]") -> None:
        del self._guests[guest]
        if not task.cancelled() and (err := task.exception()) is not None:
            # A bug of ours in one guest must not take the others down.
            self._log.error("bug", f"{guest.name}: {type(err).__name__}: {err}")

    async def _end(self, *, leaving: bool) -> bool:
        """Ends everything; False where something does not end."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.sock)
        if self._accept_later is not None:
            self._accept_later.cancel()
        if leaving:
            self._listener.sock.close()
        else:
            # With it go connections that nobody has taken yet, and what waits in them.
            self._closer.close([self._listener.sock.detach()])
        guests = dict(self._guests)
        if leaving:
            for guest in guests:
                try:
                    guest.leave()
                except Exception as err:
                    # One guest's must not cost the others their place in the store.
                    self._log.error("bug", f"{guest.name}: {type(err).__name__}: {err}")
        else:
            self._listener.remove_file()
            self._hurry = loop.create_future()
            await give_back(guests, self._hurry, self._log)
        ended = await end_tasks(guests, self._log)
        if self._store is not None and not leaving:
            self._store.remove(LISTENER)
            self._store.forget()
        return ended
