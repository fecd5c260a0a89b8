"""Opens the vhost-user sockets, and the store that keeps VMs' descriptors for the next balloond,
before balloond serves."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import VmConfig
from balloon_daemon.errors import ConfigError, KeeperError
from balloon_daemon.events import SocketNotOpened
from balloon_daemon.guests.jailed.acceptor import OwnSocket
from balloon_daemon.guests.jailed.listening import handed_listener, kept_listener, listen
from balloon_daemon.handover.keeper_start import check_keepers_place, reach_keeper, start_keeper
from balloon_daemon.handover.store import Store
from balloon_daemon.handover.systemd_store import systemd_store
from balloon_daemon.named_tuple import NamedTuple


class Opened(NamedTuple):
    """What was opened.

    Attributes:
        sockets: the vhost-user sockets.
        store: keeps VMs' descriptors for the next balloond: systemd's, or a keeper process.
        lost: why the VMs in an earlier balloond's keeper cannot be served; "": there are none.
        failed: the named VMs whose sockets cannot be opened.
    """

    sockets: tuple[OwnSocket, ...]
    store: Store
    lost: str
    failed: tuple[SocketNotOpened, ...]


TakeHanded = Callable[[str], socket.socket | None]
"""Gives the listening socket that systemd hands over for a path; None: there is none."""


def open_all(
    config: Config, undo: contextlib.ExitStack, handed: TakeHanded, *, keep_fds: bool
) -> Opened:
    """Opens the vhost-user sockets and the store that keeps VMs for another balloond.

    The store is systemd's file descriptor store, else, with ``--keep-fds``, a keeper (a process
    that holds descriptors). If an earlier keeper does not answer, balloond runs all the same: the
    VMs in that keeper are lost, but new VMs can be served. If a named VM's socket cannot be
    opened, balloond also runs: only that VM has no balloon.

    Args:
        config: the settings.
        undo: gets the steps that undo the opening if the start fails later: they remove the
            sockets' files, and end a keeper that holds no VM.
        handed: gives sockets that systemd hands over.
        keep_fds: True: use a keeper where systemd has no store (``--keep-fds``).

    Raises:
        ConfigError: the store or the socket for VMs without a name cannot be opened.
    """
    store, lost = systemd_store(), ""
    wants_keeper = keep_fds and not store.keeps
    place = config.main_socket
    if wants_keeper:
        check_keepers_place(place)
        try:
            # Look first for the keeper process of an earlier balloond. It may hold the vhost-user
            # sockets, bound already, which must not be bound a second time.
            store = reach_keeper(place) or store
        except KeeperError as err:
            lost = str(err)
    undo.callback(store.abandon)
    looked = wants_keeper or store.keeps
    sockets, failed = [], []
    for vm in config.own_sockets:
        try:
            if (sock := handed(vm.address)) is not None:
                sockets.append(OwnSocket(vm, handed_listener(sock, Path(vm.address))))
                continue
            sockets.append(_open(vm, store, undo, looked_for_keeper=looked))
        except ConfigError as err:
            if not vm.name:
                raise
            failed.append(SocketNotOpened(vm.name, str(err)))
    if wants_keeper and not store.keeps and not lost:
        # Start a keeper process last, after every step that can fail for a socket's path: a
        # balloond that fails there leaves no keeper behind.
        store = start_keeper(place)
        undo.callback(store.abandon)
    return Opened(tuple(sockets), store, lost, tuple(failed))


def _open(
    vm: VmConfig, store: Store, undo: contextlib.ExitStack, *, looked_for_keeper: bool
) -> OwnSocket:
    path = Path(vm.address)
    listener = kept_listener(store, path)
    if listener is None:
        listener = listen(path, looked_for_keeper=looked_for_keeper)
        undo.callback(listener.close)
    return OwnSocket(vm, listener)


def look(config: Config, *, keep_fds: bool) -> list[SocketNotOpened]:
    """Checks that balloond could listen at all vhost-user sockets, and leaves nothing behind.

    Returns:
        The named VMs whose sockets could not be opened.

    Raises:
        ConfigError: the store or the socket for VMs without a name could not be opened.
    """
    if keep_fds:
        check_keepers_place(config.main_socket)
    failed = []
    for vm in config.own_sockets:
        try:
            listen(Path(vm.address)).close()
        except ConfigError as err:
            if not vm.name:
                raise
            failed.append(SocketNotOpened(vm.name, str(err)))
    return failed
