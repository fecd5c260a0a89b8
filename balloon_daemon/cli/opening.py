"""What balloond opens before it serves: the vhost-user socket, and the store of its VMs."""

import contextlib
import os
from pathlib import Path

from balloon_daemon.config.model import Config, fallback_directory
from balloon_daemon.errors import ConfigError, KeeperError
from balloon_daemon.guests.jailed.listening import Listener, kept_listener, listen
from balloon_daemon.handover.store import (
    Store,
    check_keepers_place,
    reach_keeper,
    start_keeper,
)
from balloon_daemon.handover.systemd import connect_systemd, take_from_systemd
from balloon_daemon.linux.directories import make_private, others_may_write


def open_all(
    config: Config, undo: contextlib.ExitStack, *, keep_fds: bool
) -> tuple[Listener, Store | None, str]:
    """The vhost-user socket, where VMs are kept for another balloond, and why they are not.

    They are in systemd's store, else in a keeper if one is wanted. With a keeper that does not
    answer balloond runs all the same: its VMs of before are lost, those to come need not be.

    Args:
        config: the settings.
        undo: gets what is to be done should the start fail: neither the socket's file is left
            then, nor a keeper that would keep nothing.
        keep_fds: a keeper is wanted.

    Raises:
        ConfigError: one of them cannot be had.
    """
    store, lost = connect_systemd(take_from_systemd()), ""
    wants_keeper = store is None and keep_fds
    if wants_keeper:
        check_keepers_place(config.socket)
        try:
            # First an earlier balloond's: it has the socket too, and that must not be bound again.
            store = reach_keeper(config.socket)
        except KeeperError as err:
            lost = str(err)
    if store is not None:
        undo.callback(store.abandon)
    listener = kept_listener(store, config.socket)
    if listener is None:
        listener = listen(config.socket, looked_for_keeper=wants_keeper or store is not None)
        undo.callback(listener.close)
    if wants_keeper and store is None and not lost:
        # Last: whatever is wrong with the socket's path has been said by then.
        store = start_keeper(config.socket)
        undo.callback(store.abandon)
    return listener, store, lost


def make_directory(socket: Path) -> None:
    """Makes the directory of the default socket, which is below /run and so gone at each boot.

    A user's in /tmp is looked at, too: anybody may have made it.

    Raises:
        ConfigError: it cannot be made, or is somebody else's.
    """
    try:
        if socket.parent == fallback_directory():
            make_private(socket.parent)
        elif os.geteuid() == 0:
            socket.parent.mkdir(mode=0o755, exist_ok=True)
    except OSError as err:
        raise ConfigError(
            f"socket {socket}: {socket.parent} cannot be made a directory: {err.strerror}; name "
            "another path (--socket)"
        ) from err


def why_not_private(socket: Path) -> str:
    """What others could do to VMs at this path, and the remedy; "" where they cannot."""
    why = others_may_write(socket.parent)
    return why and (
        f"socket {socket}: {why}: whoever puts a socket there gets the memory of the VMs that "
        "connect to it; use a directory of your own"
    )


def look(socket: Path, *, keep_fds: bool) -> None:
    """Looks whether balloond could listen there, and leaves nothing behind.

    Raises:
        ConfigError: it could not.
    """
    if keep_fds:
        check_keepers_place(socket)
    listen(socket).close()
