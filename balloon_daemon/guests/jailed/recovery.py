"""Restores the guests that another controller left in the store."""

import socket
from functools import partial

from balloon_daemon.errors import FrontendError, StateError, StateFileError
from balloon_daemon.events import Publish, StateRefused
from balloon_daemon.guests.jailed.saver import GuestSaver
from balloon_daemon.guests.jailed.session import MakeSession, Session
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.kept_guests import KeptGuest, discard, find_guests
from balloon_daemon.handover.keys import FdKey
from balloon_daemon.handover.state import GuestState
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory_file_kind import FileSystems
from balloon_daemon.vhost_user.connection import Connection, inspect_memory
from balloon_daemon.vhost_user.foreign_fds import Closes, ForeignFds
from balloon_daemon.vhost_user.memory_table import Inspect
from balloon_daemon.vhost_user.messages import decode_message


def recover(store: Store, make: MakeSession, closer: Closes, publish: Publish) -> list[Session]:
    """Makes a session for every guest in the store.

    A guest that cannot be restored causes one event, and its VMM's connection is closed: nothing
    is guessed. Descriptors that belong to no guest are closed.

    Args:
        store: the store; afterwards ``store.kept`` is empty.
        make: makes a session of this controller.
        closer: closes descriptors that VMMs have sent.
        publish: takes events.
    """
    sessions = []
    # Read the mounts once for all guests, before which no VM is served: a guest may have 256 files
    # of which they tell the kind. All files in the store are open already.
    inspect = partial(inspect_memory, file_systems=FileSystems())
    for kept in find_guests(store):
        foreign = ForeignFds(closer)
        try:
            if isinstance(kept.state, StateFileError):
                raise kept.state
            sessions.append(_restore(store, kept, kept.state, make, foreign, inspect))
        except (StateFileError, StateError, FrontendError, OSError, ValueError) as err:
            publish(StateRefused(kept.vm, str(err)))
            # Most of the stored descriptors come from the guest's VMM, so their last close may
            # block: let the closer's child processes close all of them.
            owned = {number: foreign.own(fd.detach()) for number, fd in kept.fds.items()}
            discard(store, kept._replace(fds=owned))
            foreign.close_dropped()
    strays = ForeignFds(closer)
    for name, fd in store.kept.items():
        store.remove(name)
        strays.drop(fd.detach())
    strays.close_dropped()
    store.kept.clear()
    return sessions


def _restore(
    store: Store,
    kept: KeptGuest,
    state: GuestState,
    make: MakeSession,
    foreign: ForeignFds,
    inspect: Inspect,
) -> Session:
    def take(number: int) -> OwnedFd:
        # Give the session a duplicate of its own, because the descriptors in ``kept.fds`` are
        # closed in any case: here once the guest is restored, or by the caller if that fails.
        return kept.fds[number].duplicate()

    jailed = state.jailed
    connection = Connection(socket.socket(fileno=take(jailed.connection).detach()), foreign)
    saver = GuestSaver(store, kept.vm, Journal(take(jailed.journal)))
    session = make(kept.vm, connection, saver)
    try:
        if kept.serial < saver.journal.required:
            raise StateFileError("is not the newest, for which there was no room")
        memory = session.backend.memory
        later_inspect, memory.inspect = memory.inspect, inspect
        for message in jailed.messages:
            fds = [foreign.own(take(number).detach()) for number in message.fds]
            # Tell the saver first under which number the store has each descriptor. Afterwards may
            # be too late: the back-end closes a descriptor that it cannot use (a truncated memory
            # file).
            for number, fd in zip(message.fds, fds, strict=True):
                saver.adopt(number, fd)
            session.backend.handle(decode_message(message.content), fds)
        memory.inspect = later_inspect
        saver.adopt(jailed.connection, connection)
        saver.adopt(jailed.journal, saver.journal.fd)
        saver.adopt_state(kept.serial)
        if jailed.stderr_pipe is not None:
            stderr_pipe = take(jailed.stderr_pipe)
            saver.adopt(jailed.stderr_pipe, stderr_pipe)
            session.device.wait_out(stderr_pipe)
        session.restore(jailed.handled, jailed.num_pages, jailed.actual, state.row)
    except BaseException:
        session.give_up()
        raise
    named = jailed.fds()
    for number, fd in kept.fds.items():
        if number in named:
            with foreign.closed_here():
                foreign.drop(fd.detach())
        else:
            # The state does not name this descriptor: a controller put it into the store and died
            # before it stored a state that names it.
            store.remove(str(FdKey(kept.vm.number, number)))
            foreign.drop(fd.detach())
    foreign.close_dropped()
    return session
