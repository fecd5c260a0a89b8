"""Goes on with the guests that another controller left in the store."""

import socket
from dataclasses import replace

from balloon_daemon.errors import FrontendError, StateError, StateFileError
from balloon_daemon.guests.jailed.saver import GuestSaver, KeptGuest, discard, find_guests
from balloon_daemon.guests.jailed.session import Guest, MakeGuest
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.state import GuestState
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.records.log import EventLog
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import Closes, ForeignFds
from balloon_daemon.vhost_user.messages import decode_message


def recover(store: Store, make: MakeGuest, closer: Closes, log: EventLog) -> list[Guest]:
    """Makes a guest of everything that the store has kept of one.

    What cannot be gone on with is said in one line, and its VMM's connection closed: nothing is
    guessed. What belongs to no guest is dropped.

    Args:
        store: the store; afterwards ``store.kept`` is empty.
        make: makes a guest of this controller.
        closer: closes what VMMs have sent.
        log: the controller's.
    """
    guests = []
    for kept in find_guests(store):
        bound, foreign = log.bind(vm=kept.name), ForeignFds(closer)
        try:
            if isinstance(kept.state, StateFileError):
                raise kept.state
            guests.append(_restore(store, kept, kept.state, make, foreign))
        except (StateFileError, StateError, FrontendError, OSError, ValueError) as err:
            bound.error(
                "recovery", f"the state that another balloond left {err}; closing this VMM"
            )
            theirs = {number: foreign.own(fd.detach()) for number, fd in kept.fds.items()}
            discard(store, replace(kept, fds=theirs))
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
        # A duplicate for whoever owns it from here on; ``kept.fds`` are closed at the end.
        return kept.fds[number].duplicate()

    connection = Connection(socket.socket(fileno=take(state.connection).detach()), foreign)
    saver = GuestSaver(store, kept.name, Journal(take(state.journal)))
    guest = make(kept.name, connection, saver)
    try:
        if kept.serial < saver.journal.required:
            raise StateFileError("is not the newest, for which there was no room")
        for message in state.messages:
            fds = [foreign.own(take(number).detach()) for number in message.fds]
            # First: what the back-end cannot use any more (a file cut short) it closes.
            for number, fd in zip(message.fds, fds, strict=True):
                saver.adopt(number, fd)
            guest.backend.handle(decode_message(message.content), fds)
        if state.policy is not None:
            guest.governor.restore(state.vm_mem_bytes, state.policy)
            guest.limits.assume(state.vm_mem_bytes)
        saver.adopt(state.connection, connection)
        saver.adopt(state.journal, saver.journal.fd)
        saver.adopt_state(kept.serial)
        if state.life is not None:
            life = take(state.life)
            saver.adopt(state.life, life)
            guest.keeper.wait_out(life)
        guest.restore(state.handled, state.num_pages, state.actual)
    except BaseException:
        guest.backend.close()
        guest.keeper.close()
        connection.close()
        saver.close()
        raise
    for number, fd in kept.fds.items():
        if number in state.fds():
            fd.close()
        else:
            # Put in by a controller that died before its state named it.
            store.remove(f"{kept.name}.{number}")
            foreign.drop(fd.detach())
    foreign.let_go()
    return guest
