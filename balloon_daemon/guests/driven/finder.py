"""Finds one VM that a configuration names or a pattern has found, and drives it while it is there.

Runs in the controller. A finder connects, makes a ``DrivenVm`` if a VMM answers, waits until the
``DrivenVm`` has ended, and connects again: after 1 s, then after twice as long each time, up to
30 s. The pause is 1 s again for a VM that has been driven for a while, and for a VM whose socket
has just appeared (``discovery.py``). Of several failures in a row for the same reason, the events
of all but the first are ``quiet`` (logged at level DEBUG). If the reason changes again and again,
most events are ``quiet``, too (``CHANGES``).
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from random import random

from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.events import (
    FinderFailed,
    NotGivenBack,
    ProcessNotSeen,
    VmDriven,
    VmLetGo,
    VmLost,
    VmNotDriven,
    VmNotSought,
    VmNotWanted,
)
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import vmm_process
from balloon_daemon.guests.driven.bases import Place
from balloon_daemon.guests.driven.claims import Claim
from balloon_daemon.guests.driven.control import Control, ControlError, Found, Noticed
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.reporting import (
    NOT_TO_BE_DRIVEN,
    Reporter,
    Shared,
    check_process,
    check_sizes,
    keys_of,
)
from balloon_daemon.guests.driven.unix_socket import socket_at
from balloon_daemon.guests.driven.vm import HANGS_AFTER_S, DrivenVm
from balloon_daemon.guests.driven.waking import Bell, Notices
from balloon_daemon.guests.seam import VmRegistry
from balloon_daemon.guests.waiting import is_done_within
from balloon_daemon.rate_limit import LineBudget
from balloon_daemon.units import VmId

AGAIN_S, AGAIN_MOST_S = 1.0, 30.0
"""The first and the longest pause before another attempt."""

JITTER = 0.25
"""Each pause is shortened by a random fraction of itself, between 0 and this number, so that
finders that failed together do not all try again at the same moment."""

STEADY_S = 60.0
"""After a VM was driven for so long, its next pause is the shortest again."""


CHANGES, CHANGES_A_SECOND = 8, 1 / 600
"""How often the event for another reason why a VM is not driven is not ``quiet``: ``CHANGES``
times at once, then ``CHANGES_A_SECOND`` times a second. One user may have 768 VMMs, each of which
refuses each attempt for another reason."""


class Pause:
    """The pause before the next attempt, and whether the last attempts were all alike."""

    def __init__(self) -> None:
        self._pause_s = AGAIN_S
        self._fault: Fault | None = None
        self._said: Fault | None = None
        """The reason of the last event that was not ``quiet``."""
        self._changes = LineBudget(CHANGES, CHANGES_A_SECOND)
        self.short_lives = 0
        """How many times in a row the VM was driven for less than ``STEADY_S``."""

    def failed(self, fault: Fault) -> bool:
        """Notes a failed attempt; returns whether its event is to be ``quiet``: because the last
        event that was not ``quiet`` had the same reason, or because reasons change too often. In
        the second case a reason that lasts has an event that is not ``quiet`` later."""
        self._fault = fault
        now_s = asyncio.get_running_loop().time()
        if fault is self._said or not self._changes.has_one(now_s):
            return True
        self._said = fault
        return False

    def ended(self, fault: Fault, lived_s: float) -> bool:
        """Notes that a driven VM has ended; returns what ``failed`` does."""
        if lived_s >= STEADY_S:
            self.short_lives, self._pause_s = 0, AGAIN_S
            self._fault = self._said = fault
            return False
        self.short_lives += 1
        return self.failed(fault)

    def next_s(self) -> float:
        """The next pause, in seconds; longer each time."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, AGAIN_MOST_S)
        return pause_s * (1 - JITTER * random())

    @property
    def is_absent(self) -> bool:
        """Whether the VM was not there at the last attempt."""
        return self._fault in (Fault.NOT_THERE, Fault.NO_VM, Fault.GONE)

    def start_anew(self) -> None:
        """Returns to the shortest pause."""
        self._pause_s = AGAIN_S


async def opened(
    control: Control, noticed: Noticed, config: VmConfig, shared: Shared
) -> tuple[Found, HostSide, Claim]:
    """Opens a VM's control, and finds out whether the VM may be driven.

    Returns:
        What was found, the VMM's process, and the claim to make if the VM is driven.

    Raises:
        ControlError: the VM may not be driven; the control is closed then. Before that, a VM that
            must not be driven (``NOT_TO_BE_DRIVEN``) gets back what an earlier balloond, or an
            earlier connection, has taken of it.
    """
    host = None
    try:
        claim = Claim(0, "", config)
        if config.kind is not Kind.LIBVIRT:
            _, socket = await socket_at(config.address, shared.ask)
            claim = claim._replace(socket=socket)
        _check_claim(claim, shared)
        try:
            found = await _answer_of(control.open(noticed))
        except ControlError:
            # A monitor serves one client. That may be balloond itself, which has begun meanwhile
            # to drive this VM by its other name: then say that, not that the monitor is busy.
            _check_claim(claim, shared)
            raise
        check_sizes(found.vm_mem_bytes, found.balloon_bytes)
        process = await vmm_process.opened(found.pid, shared.ask)
        host = HostSide(process, found.memory_file)
        claim = claim._replace(pid=host.pid, vm_uuid=found.vm_uuid)
        _check_claim(claim, shared)
        try:
            if found.against is not None:
                raise found.against.anew()
            await check_process(host, shared)
        except ControlError as err:
            if err.fault in NOT_TO_BE_DRIVEN:
                await _let_go(control, found, host, claim, shared)
            raise
        _check_claim(claim, shared)
    except BaseException:
        control.close()
        if host is not None:
            host.close()
        raise
    return found, host, claim


class Finder:
    """Finds one VM, drives it until it has ended, and then finds it again.

    Args:
        config: its name, address and settings.
        new_control: makes a connection to its VMM.
        registry: gets the VM.
        shared: what all driven VMs share.

    Attributes:
        config: its name, address and settings.
        is_dismissed: whether the VM is not wanted any more (``dismiss``, ``return_left_over``).
            The search may go on until the VM has its memory back (``has_ended``).
    """

    def __init__(
        self,
        config: VmConfig,
        new_control: Callable[[], Control],
        registry: VmRegistry,
        shared: Shared,
    ) -> None:
        self.config = config
        self._new_control = new_control
        self._registry = registry
        self._shared = shared
        self._pause = Pause()
        self._bell = Bell()
        self._retired = self.is_dismissed = False
        self._is_left_over = False
        """Whether what an earlier balloond has taken is still to be given back
        (``return_left_over``): False once the VM has been driven, or is gone."""
        self._owed: NotGivenBack | None = None
        """The memory that the VM has not got back, while it is not driven; None: it has got back
        all."""
        self._guest: DrivenVm | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Finds the VM from now on."""
        self._task = asyncio.get_running_loop().create_task(self._find())

    def return_left_over(self) -> None:
        """Finds a VM that the configuration does not have any more, to give back what an earlier
        balloond has taken of it. The search ends once that is done, or once it turns out that the
        VM is gone or that another VM is at its address."""
        self.is_dismissed = self._is_left_over = True
        self.start()

    def wake(self) -> None:
        """Tries at once if the VM was not there: its socket or domain may just have appeared."""
        if self.is_absent:
            self._pause.start_anew()
            self._bell.ring()

    def change(self, config: VmConfig, new_control: Callable[[], Control] | None = None) -> None:
        """Finds the same VM by another configuration. A VM that is driven stays driven, by its new
        settings.

        Args:
            config: the same name and kind, and an address of the same VM.
            new_control: makes the next connection to its VMM; None: as before.
        """
        before, self.config = self.config, config
        self._new_control = new_control or self._new_control
        if self._guest is not None and config.settings != before.settings:
            self._registry.change(self._guest.vm, config.settings)
        if self._guest is not None:
            self._guest.reached(self._place)

    def dismiss(self, *, elsewhere: bool = False) -> None:
        """Ends the search; the VM gets its memory back first. If its VMM does not answer now, the
        search goes on until the VM has got its memory back, or is gone.

        Args:
            elsewhere: whether another finder searches for the VM from now on: if the VM is not
                driven just now, this search ends at once.
        """
        self.is_dismissed = True
        self._shared.publish(VmNotWanted(self.config.name))
        if self._guest is not None:
            self._dismiss(self._guest)
        elif self._owed is not None and not elsewhere:
            self._bell.ring()
        else:
            self.stop()

    @property
    def has_ended(self) -> bool:
        """Whether the search has ended."""
        return self._task is None or self._task.done()

    @property
    def is_absent(self) -> bool:
        """Whether the VM was not there at the last attempt."""
        return self._pause.is_absent

    def retire(self) -> None:
        """Ends the search. A VM that is driven now is driven until it ends, and then not sought
        again."""
        self._retired = True
        self._shared.publish(VmNotSought(self.config.name))
        self._bell.ring()

    def stop(self, *, leaving: bool = True) -> None:
        """Ends the search at once; a VM that is driven now stays driven.

        Args:
            leaving: False: balloond ends, and gives VMs back what it has taken. If this VM is not
                driven just now, so that its VMM cannot be told, publishes what the VM has not got
                back.
        """
        if not leaving and self._guest is None and self._owed is not None:
            self._shared.publish(self._owed)
        if self._task is not None:
            self._task.cancel()

    async def _find(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_over:
            try:
                await self._drive()
            except ControlError as err:
                quiet = self._pause.failed(err.fault)
                if self._owes_no_more(err.fault):
                    self._owed, self._is_left_over = None, False
                name, address = self.config.name, self.config.address
                if not self._is_over:
                    self._shared.publish(VmNotDriven(name, address, err.fault, err.detail, quiet))
            except Exception as err:
                # A bug in one kind of control must not end the search for its VMs.
                self._failed(err)
            if not self._is_over:
                await self._bell.wait_until(loop.time() + self._pause.next_s())

    async def _drive(self) -> None:
        """Connects to the VM, and waits until it has ended.

        Raises:
            ControlError: the VM cannot be driven.
        """
        loop, publish = asyncio.get_running_loop(), self._shared.publish
        guest = await self._open()
        began_s = loop.time()
        # If this task is cancelled, wait() leaves guest.ended alone; "await" would cancel it, too.
        await asyncio.wait([guest.ended])
        self._guest = None
        end = guest.ended.result()
        quiet = self._pause.ended(end.fault, loop.time() - began_s)
        owed_bytes = guest.owed_bytes
        self._is_left_over = False
        self._owed = None if owed_bytes is None else NotGivenBack(guest.vm, owed_bytes)
        if self.is_dismissed:
            # ``_let_go`` publishes the VM's end. After ``GONE`` another attempt would change
            # nothing: the VM has got all back, is gone, or its guest keeps the balloon. But if its
            # VMM has refused every command to give memory back, another attempt may succeed.
            if end.fault is Fault.GONE and guest.is_told:
                self._owed = None
        else:
            publish(VmLost(guest.vm, end.fault, end.detail, quiet))

    async def _open(self) -> DrivenVm:
        control, notices = self._new_control(), Notices()
        found, host, claim = await opened(control, notices.put, self.config, self._shared)
        if self._is_left_over and self._is_another(claim, found, host):
            control.close()
            host.close()
            raise ControlError(Fault.NO_VM)
        notices.user = host.user
        vm = self._registry.next_vm(self.config.name)
        guest = DrivenVm(vm, control, found, host, notices, self._shared, claim.socket)
        quiet = self._pause.short_lives > 1
        address, size = self.config.address, found.vm_mem_bytes
        self._shared.publish(VmDriven(vm, address, size, claim.pid or None, quiet, host.user))
        if host.is_closed:
            self._shared.publish(ProcessNotSeen(vm, host.pid, quiet))
        self._shared.claims.claim(claim)
        guest.ended.add_done_callback(lambda _: self._shared.claims.release(claim))
        self._registry.add(guest, self.config.settings, self.config.kind.value)
        self._registry.serve(guest)
        self._guest = guest
        guest.reached(self._place)
        if self.is_dismissed:
            self._dismiss(guest)
        return guest

    @property
    def _place(self) -> Place:
        # By its address the next balloond could not tell that a pattern of its still finds the VM.
        config = self.config
        return Place(config.kind, config.name, config.matched or config.address)

    @property
    def _is_over(self) -> bool:
        is_owed = self._owed is not None or self._is_left_over
        return self._retired or (self.is_dismissed and not is_owed)

    def _owes_no_more(self, fault: Fault) -> bool:
        """Whether this finder has nothing to give back to the VM any more: the VM is gone, or must
        not be driven and has got all back (``opened``), or is driven in another way, which gives
        back what was taken."""
        if fault in NOT_TO_BE_DRIVEN:
            return self.is_dismissed or fault is not Fault.OWN_DEVICE
        # Where libvirt's daemon is not there, its domains may run all the same.
        misses_libvirt = self.config.kind is Kind.LIBVIRT and fault is Fault.NOT_THERE
        return self.is_absent and not misses_libvirt

    def _is_another(self, claim: Claim, found: Found, host: HostSide) -> bool:
        """Whether no base is noted of the VM that was found, so balloond has taken nothing of
        it."""
        keys = keys_of(self.config.name, claim.socket, found, host)
        return all(self._shared.bases.get(key) is None for key in keys)

    def _dismiss(self, guest: DrivenVm) -> None:
        # Publish the VM's end from a callback, not from ``_drive``: when balloond ends, the search
        # may end before the VM does.
        guest.ended.add_done_callback(partial(self._let_go, guest.vm))
        self._registry.dismiss(guest.vm)

    def _let_go(self, vm: VmId, ended: asyncio.Future[ControlError]) -> None:
        """Publishes the end of a VM that is not wanted any more."""
        end = ended.result()
        gone = end.fault is Fault.GONE
        self._shared.publish(VmLetGo(vm) if gone else VmLost(vm, end.fault, end.detail))

    def _failed(self, err: Exception) -> None:
        error = f"{type(err).__name__}: {err}"
        self._shared.publish(FinderFailed(self.config.name, error))


def _check_claim(claim: Claim, shared: Shared) -> None:
    """Raises ControlError: the VM is driven by another name already."""
    if (other := shared.claims.other(claim)) is not None:
        raise ControlError(Fault.OWN_DEVICE, f"{other.name}: {other.address}")


async def _let_go(
    control: Control, found: Found, host: HostSide, claim: Claim, shared: Shared
) -> None:
    """Gives a VM that must not be driven back what was taken of it while it was driven: a device
    may have been assigned to the VM while no balloond was connected.

    Raises:
        ControlError: its VMM does not take the target; the next attempt to connect tries it again.
    """
    reporter = Reporter(VmId(0, claim.config.name), found, host, shared, claim.socket)
    try:
        await reporter.let_go(control)
    finally:
        reporter.ended()


async def _answer_of(call: Coroutine[object, object, Found]) -> Found:
    """A control's answer. Raises ControlError: the call fails, or has no answer in time."""
    task = asyncio.get_running_loop().create_task(call)
    try:
        if await is_done_within(task, HANGS_AFTER_S):
            return task.result()
    finally:
        task.cancel()
        del task  # It keeps its error, which leads to this variable (``ControlError.anew``).
    raise ControlError(Fault.HANGS)
