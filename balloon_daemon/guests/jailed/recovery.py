"""Goes on with the guests that another controller left in the store."""

import socket
from dataclasses import replace

from balloon_daemon.errors import FrontendError, StateError, StateFileError
from balloon_daemon.guests.jailed.saver import GuestSaver
from balloon_daemon.guests.jailed.session import Guest, MakeGuest
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.kept_guests import KeptGuest, discard, find_guests
from balloon_daemon.handover.keys import FdKey
from balloon_daemon.handover.state import GuestState
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.closing import Closes, ForeignFds
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.records.log import EventLog
from balloon_daemon.sizing.balloon_policy import PolicyState
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.messages import decode_message


def recover(store: Store, make: MakeGuest, closer: Closes, log: EventLog) -> list[Guest]:
    """Makes a guest of everything that the store has kept of one.

    A guest that cannot be restored gets one line in the log, and its VMM's connection is closed:
    nothing is guessed. Descriptors that belong to no guest are closed.

    Args:
        store: the store; afterwards ``store.kept`` is empty.
        make: makes a guest of this controller.
        closer: closes what VMMs have sent.
        log: the controller's.
    """
    guests = []
    for kept in find_guests(store):
        bound, foreign = log.bind(vm=kept.vm.name), ForeignFds(closer)
        try:
            if isinstance(kept.state, StateFileError):
                raise kept.state
            guests.append(_restore(store, kept, kept.state, make, foreign))
        except (StateFileError, StateError, FrontendError, OSError, ValueError) as err:
            bound.error(
                "recovery", f"the state that another balloond left {err}; closing this VMM"
            )
            # A VMM has sent most of them: their last close may wait, and is the closer's.
            owned = {number: foreign.own(fd.detach()) for number, fd in kept.fds.items()}
            discard(store, replace(kept, fds=owned))
            foreign.let_go()
    strays = ForeignFds(closer)
    for name, fd in store.kept.items():
        store.remove(name)
        strays.drop(fd.detach())
    strays.let_go()
    store.kept.clear()
    return guests


def _restore(
    store: Store, kept: KeptGuest, state: GuestState, make: MakeGuest, foreign: ForeignFds
) -> Guest:
    def take(number: int) -> OwnedFd:
        # The guest owns the duplicate; ``kept.fds`` are closed once the guest is restored.
        return kept.fds[number].duplicate()

    jailed, row = state.jailed, state.row
    connection = Connection(socket.socket(fileno=take(jailed.connection).detach()), foreign)
    saver = GuestSaver(store, kept.vm, Journal(take(jailed.journal)))
    guest = make(kept.vm, connection, saver)
    try:
        if kept.serial < saver.journal.required:
            raise StateFileError("is not the newest, for which there was no room")
        for message in jailed.messages:
            fds = [foreign.own(take(number).detach()) for number in message.fds]
            # Before the back-end sees them: it closes what it cannot use (a file cut short).
            for number, fd in zip(message.fds, fds, strict=True):
                saver.adopt(number, fd)
            guest.backend.handle(decode_message(message.content), fds)
        if row is not None:
            guest.governor.restore(
                row.vm_mem_bytes, PolicyState(row.level, row.recheck_at_s, row.release_at_s)
            )
            guest.limits.assume(row.vm_mem_bytes)
        saver.adopt(jailed.connection, connection)
        saver.adopt(jailed.journal, saver.journal.fd)
        saver.adopt_state(kept.serial)
        if jailed.stderr_pipe is not None:
            stderr_pipe = take(jailed.stderr_pipe)
            saver.adopt(jailed.stderr_pipe, stderr_pipe)
            guest.keeper.wait_out(stderr_pipe)
        guest.restore(jailed.handled, jailed.num_pages, jailed.actual)
    except BaseException:
        guest.backend.close()
        guest.keeper.close()
        connection.close()
        saver.close()
        raise
    named = jailed.fds()
    for number, fd in kept.fds.items():
        if number in named:
            fd.close()
        else:
            # Put in by a controller that died before its state named it.
            store.remove(str(FdKey(kept.vm.number, number)))
            foreign.drop(fd.detach())
    foreign.let_go()
    return guest
