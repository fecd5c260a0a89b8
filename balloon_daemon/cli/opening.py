"""Opens the vhost-user socket and the store of VMs, before balloond serves."""

import contextlib
import os
from pathlib import Path

from balloon_daemon.config.model import Config, fallback_directory
from balloon_daemon.errors import ConfigError, KeeperError
from balloon_daemon.guests.jailed.listening import Listener, kept_listener, listen
from balloon_daemon.handover.keeper_start import check_keepers_place, reach_keeper, start_keeper
from balloon_daemon.handover.store import Store
from balloon_daemon.handover.systemd_store import systemd_store
from balloon_daemon.linux.directories import make_private, others_may_write


def open_all(
    config: Config, undo: contextlib.ExitStack, *, keep_fds: bool
) -> tuple[Listener, Store, str]:
    """Opens the vhost-user socket and the store that keeps VMs for another balloond.

    The store is systemd's, else a keeper's if one is wanted. With a keeper that does not answer
    balloond runs all the same: the VMs in it are lost, but new VMs can be served.

    Args:
        config: the settings.
        undo: gets the steps that undo the opening, should the start fail: they remove the socket's
            file, and end a keeper that holds no VM.
        keep_fds: a keeper is wanted.

    Returns:
        The listener, the store, and why an earlier keeper's VMs are lost; "" where none are.

    Raises:
        ConfigError: the socket or the store cannot be opened.
    """
    store, lost = systemd_store(), ""
    wants_keeper = keep_fds and not store.keeps
    if wants_keeper:
        check_keepers_place(config.socket)
        try:
            # Look first for the keeper process of an earlier balloond. It may hold the vhost-user
            # socket, bound already, which must not be bound a second time.
            store = reach_keeper(config.socket) or store
        except KeeperError as err:
            lost = str(err)
    undo.callback(store.abandon)
    listener = kept_listener(store, config.socket)
    if listener is None:
        listener = listen(config.socket, looked_for_keeper=wants_keeper or store.keeps)
        undo.callback(listener.close)
    if wants_keeper and not store.keeps and not lost:
        # Start a keeper process last, after every step that can fail for the socket's path: a
        # balloond that fails there leaves no keeper behind.
        store = start_keeper(config.socket)
        undo.callback(store.abandon)
    return listener, store, lost


def make_directory(socket: Path) -> bool:
    """Makes the default socket's directory, which is below /run and so is gone at each boot.

    A user's directory in /tmp is also checked, because any user may have made it.

    Returns:
        Whether there was none before.

    Raises:
        ConfigError: the directory cannot be made, or belongs to another user.
    """
    was_there = os.path.lexists(socket.parent)
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
    return not was_there and socket.parent.is_dir()


def remove_directory(directory: Path) -> None:
    """Removes a directory that ``make_directory`` made, unless another process uses it."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def why_not_private(socket: Path) -> str:
    """How other users could harm VMs at this path, and the remedy; "" where they cannot."""
    why = others_may_write(socket.parent)
    return why and (
        f"socket {socket}: {why}: whoever puts a socket there gets the memory of the VMs that "
        "connect to it; use a directory of your own"
    )


def look(socket: Path, *, keep_fds: bool) -> None:
    """Checks that balloond could listen there, and leaves nothing behind.

    Raises:
        ConfigError: it could not.
    """
    if keep_fds:
        check_keepers_place(socket)
    listen(socket).close()
