"""One VM: its VMM's connection, its balloon, its device, and its place in the store."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial

from balloon_daemon.config.model import Config
from balloon_daemon.errors import FrontendError, StateFileError
from balloon_daemon.events import (
    Connected,
    ConnectionClosed,
    ConnectionFailed,
    Disconnected,
    Publish,
    VmmHungUp,
)
from balloon_daemon.guests.in_turn import IN_TURN
from balloon_daemon.guests.jailed.balloon import Balloon, BalloonSettings
from balloon_daemon.guests.jailed.conversation import Conversation
from balloon_daemon.guests.jailed.forks import Forks
from balloon_daemon.guests.jailed.kept import Kept
from balloon_daemon.guests.jailed.peers import Peer
from balloon_daemon.guests.jailed.saver import Saver, Snapshot
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor, Jail
from balloon_daemon.guests.jailed.turns import EachStep
from balloon_daemon.guests.seam import Gone, ReportTo, Stats, VmRow
from balloon_daemon.guests.vmm_files import Ask
from balloon_daemon.linux.jail import Identity
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.tube.messages import Progress
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import Connection, inspect_memory, right_kind
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature


class Shared(NamedTuple):
    """The objects that all sessions of a controller share.

    Attributes:
        config: the settings.
        identity: the user that devices become; None: they keep balloond's user.
        forks: forks the devices.
        publish: takes events.
        report: takes reports to the controller.
        ask: has a child look at VMMs' processes; None: nobody looks.
    """

    config: Config
    identity: Identity | None
    forks: Forks
    publish: Publish
    report: ReportTo
    ask: Ask | None = None


class Session:
    """One VM, from the moment when its VMM connects until the VMM hangs up. Implements ``Guest``
    and ``Hears``.

    Args:
        vm: the VM.
        connection: the VMM's connection; the session closes it.
        peer: the VMM's user.
        shared: the objects shared by all sessions.
        saver: puts the VM into the store.
    """

    def __init__(
        self, vm: VmId, connection: Connection, peer: Peer, shared: Shared, saver: Saver
    ) -> None:
        self.vm = vm
        self._connection = connection
        self._peer = peer
        self._publish = publish = shared.publish
        self._report = report = shared.report
        self._closing = self._closed = False
        offered = OFFERED_FEATURES
        if not shared.config.page_reporting:
            offered &= ~(BalloonFeature.REPORTING | BalloonFeature.PAGE_POISON)
        self.backend = Backend(MemoryTable(inspect_memory), offered, right_kind)
        self.device = DeviceSupervisor(
            self.backend,
            Jail(
                shared.identity,
                partial(shared.forks.ask, peer),
                peer.charge_reports,
                peer.hold_hanging,
                partial(IN_TURN.do, peer.uid),
            ),
            publish,
            vm,
            self._device_changed,
            self,
        )
        config = shared.config
        settings = BalloonSettings(
            config.vm_mem_bytes,
            config.poll_s,
            connection.peer_pid(),
            config.dry_run,
            peer.charge_measuring,
            shared.ask,
        )
        self._balloon = Balloon(vm, self.backend, self.device, settings, publish, report)
        self._kept = Kept(vm, saver, self._snapshot, connection.close_dropped, publish)
        self._conversation = Conversation(
            vm,
            connection,
            peer,
            self.backend,
            self.device,
            self._balloon,
            self._kept,
            publish,
        )
        publish(Connected(vm, peer.uid))

    @property
    def socket_path(self) -> str:
        """The path of the socket at which its VMM has connected."""
        return self._connection.local_path

    def is_of(self, pid: int) -> bool:
        """Whether this process is its VMM, and the session is not closing."""
        return not self._closing and self._connection.is_of(pid)

    @property
    def has_ended(self) -> bool:
        """Whether all parts of this session are closed."""
        return self._closed

    @property
    def is_ending(self) -> bool:
        """Whether the VMM has hung up, or this session is closing the connection."""
        return self._closing or self._connection.is_hung_up()

    # --- the controller's calls ---------------------------------------------------------------

    async def serve(self) -> None:
        """Answers the VMM until it hangs up or breaks the protocol; then closes everything."""
        try:
            self._kept.begin()
            self._conversation.inbox.join()
            await self._conversation.finish_pending()
            # This call matters for a VM that was taken over. The earlier controller may have died
            # before it reported the VM as attached, or while it searched for the balloon's size:
            # report it now, or search anew.
            self._balloon.rings_changed()
            charge = partial(self._peer.turns.charge_task, self._connection.fileno())
            await EachStep(self._converse(), charge)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            if self._conversation.inbox.handled:
                self._publish_end(VmmHungUp(self.vm))
        except (FrontendError, StateFileError) as err:
            self._publish_end(ConnectionClosed(self.vm, str(err)))
        except OSError as err:
            self._publish_end(ConnectionFailed(self.vm, err.strerror or str(err)))
        finally:
            await self._close()

    async def _converse(self) -> None:
        while True:
            await self._conversation.take_turn()

    def _publish_end(self, ended: VmmHungUp | ConnectionClosed | ConnectionFailed) -> None:
        suppressed = self._peer.ends.admit(asyncio.get_running_loop().time())
        if suppressed is not None:
            self._publish(ended._replace(suppressed=suppressed))

    def set_target(self, target_bytes: int) -> None:
        if not self._closing:
            self._balloon.set_target(target_bytes)

    def request_stats(self) -> None:
        if not self._closing:
            self.device.request_stats()

    def watch(self, every_s: float | None) -> None:
        if not self._closing:
            self._balloon.watching.watch(every_s)
            # A guest that is watched is protected, by each movement of its balloon.
            self._conversation.report_each(each=every_s is not None)

    def against_more(self, level: int) -> Reason | None:
        return self._balloon.limits.against_more(level)

    def keep(self, row: VmRow) -> bool:
        return self._closing or self._kept.keep(row)

    async def give_back(self) -> None:
        if not self._closing:
            self._conversation.report_each(each=True)  # A second signal has what is left said.
            await self._balloon.give_back()

    @property
    def stays(self) -> bool:
        """Whether the store has a valid state of this VM. Without one no other controller can
        serve the VM, and the guest never gets back the memory in its balloon."""
        return not self._closing and self._kept.has_valid_state

    def leave(self) -> None:
        """Leaves the VM in the store for another controller; this session's task ends next."""
        if self._closing:
            return
        try:
            self._conversation.hand_over()
            # ``begin`` allows saving. The task of a VM that was just taken over may not have
            # called ``begin`` yet (``serve``). The VM's state may be saved nevertheless: it was
            # restored completely.
            self._kept.begin()
            self._kept.save()
        finally:
            # Even if saving failed, leave the state that is in the store there, for the next
            # controller.
            self._kept.stay()

    # --- taking over --------------------------------------------------------------------------

    def restore(self, handled: int, num_pages: int, actual: int, row: VmRow | None) -> None:
        """Restores what another controller stored of this VM, other than its vrings and memory.

        Args:
            handled: how many messages of the VMM were handled so far, by all controllers.
            num_pages: the balloon's target, in 4 KiB pages.
            actual: the balloon's size, in 4 KiB pages.
            row: the state of the VM's policy; None: none was stored.

        Raises:
            StateError: the row holds a state that no policy can be in.
        """
        self._conversation.inbox.handled = handled
        self.backend.restore_config(num_pages, actual, balloon_known=row is not None)
        self._balloon.restore(row)
        self.device.take_over()

    def give_up(self) -> None:
        """Closes a guest that cannot be restored and that no task serves."""
        self._closing = self._closed = True
        self._report(self.vm, Gone("it cannot be restored"))
        self._balloon.close()
        self._conversation.close()
        self.backend.close()
        self.device.close()
        self._connection.close()
        self._kept.stays = True  # The caller, ``recovery``, removes the guest from the store.
        self._kept.close()
        self._publish(Disconnected(self.vm))
        self._forget_parts()

    def _snapshot(self, row: VmRow | None) -> Snapshot:
        handled, pipe = self._conversation.inbox.handled, self.device.stderr_pipe
        return Snapshot(handled, row, self.backend, self._connection, pipe)

    # --- devices' reports ---------------------------------------------------------------------

    def progressed(self, done: Progress) -> None:
        if not self._closed:
            self._balloon.limits.take_progress(done)

    def stats_came(self, stats: Stats, *, first: bool) -> None:
        if not self._closing:
            self._balloon.take_stats(stats, first=first)

    def _device_changed(self) -> None:
        if not self._closed:
            self._balloon.device_changed()
            self._kept.save()

    # --- the end ------------------------------------------------------------------------------

    async def _close(self) -> None:
        self._closing = True
        self._report(self.vm, Gone("its connection is closed"))
        self._conversation.report_no_more()
        self._balloon.close()
        stays = self._kept.stays
        # A child process that hangs in close(2) (``Closer``) outlives this process, and has the
        # same descriptor table: a memory file left open in that table would stay allocated. So
        # close all of the VM's descriptors now. If the store has them too (``here``), no close is
        # a file's last close and none blocks, so this process closes them; else a child does.
        here = stays and self._kept.is_kept
        # Close the memory files while the device still maps them, so that the device is the last
        # user of their memory. The last user's end frees all of the memory: that takes long, and
        # must not happen in this process.
        with self._connection.foreign.closed_here() if here else contextlib.nullcontext():
            self._kept.close()
            self.backend.close()
        self._conversation.inbox.drop()
        self._connection.close_dropped()
        try:
            await self.device.stop()
        except StateFileError:
            self.device.close()
        finally:
            self._conversation.close()
            self._connection.close(kept=stays)
            self._balloon.wait_no_more()
            self._closed = True
            self._publish(Disconnected(self.vm))
            self._forget_parts()

    def _forget_parts(self) -> None:
        # Break the reference cycles between this session and its parts. The garbage collector
        # would free them too, but with a thousand VMs it stops the service of all for up to 50 ms.
        del self.device, self._balloon, self._kept, self._conversation


MakeSession = Callable[[VmId, Connection, Saver], Session]
"""Makes a session of a controller: (VM, connection, saver)."""
