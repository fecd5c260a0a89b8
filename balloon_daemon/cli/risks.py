"""What other users could do to VMs, or to this balloond, if they may write to the directories of
its sockets, or list the directories of its sockets and files."""

from collections.abc import Iterator
from pathlib import Path

from balloon_daemon.config.model import Config, default_socket
from balloon_daemon.linux.directories import others_may_list, others_may_write


def risks(config: Config) -> Iterator[str]:
    """The risks in the directories where balloond makes sockets and files, and the remedies."""
    default = default_socket().parent  # balloond makes this one itself, and others cannot list it.
    own = {Path(vm.address).parent: vm.address for vm in reversed(config.own_sockets)}
    places = {config.main_socket.parent: str(config.main_socket), **own}
    for directory, path in reversed(places.items()):
        why = others_may_write(directory) if directory in own else ""
        if why:
            yield (
                f"socket {path}: {why}: whoever puts a socket there gets the memory of the VMs "
                "that connect to it; use a directory of your own"
            )
        elif directory != default and (why := others_may_list(directory)):
            yield (
                f"socket {path}: {why}: whoever lists it can keep balloond waiting there, and so "
                "VMs; use a directory of mode 711"
            )
