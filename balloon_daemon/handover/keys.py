"""The names under which a store holds a VM's descriptors and states. Pure.

``vm7.3`` is the third descriptor of VM 7, ``vm7.state-5`` its fifth state. The names contain the
VM's number, which is never used again, and not the VM's name for people.
"""

import re

from balloon_daemon.named_tuple import NamedTuple

STATE = ".state-"
"""The part between the VM and the serial number in a state's name."""

LISTENER = "listener"
"""The name of the listening socket at which any VM may connect. The names of all other listening
sockets begin with it and a hyphen."""

_KEY = re.compile(r"vm([0-9]{1,18})\.(state-)?([0-9]{1,18})")


class FdKey(NamedTuple):
    """The name of a descriptor: the VM's number, and the descriptor's number within the VM."""

    vm_number: int
    fd_number: int

    def __str__(self) -> str:
        return f"{group_of(self.vm_number)}.{self.fd_number}"


class StateKey(NamedTuple):
    """The name of a state: the VM's number, and a serial number that counts the VM's states."""

    vm_number: int
    serial: int

    def __str__(self) -> str:
        return f"{group_of(self.vm_number)}{STATE}{self.serial}"


def listener_key(vm_name: str, path: str) -> str:
    """The name of a listening socket.

    Args:
        vm_name: the VM that may connect to the socket; "": any VM.
        path: the path of the socket, from which the name is made: a VM's name may have characters
            that systemd does not allow in a name. In hexadecimal the longest path gives 223
            characters; systemd allows 255.
    """
    return f"{LISTENER}-{path.encode(errors='surrogateescape').hex()}" if vm_name else LISTENER


def is_listener(name: str) -> bool:
    """Whether a name is a listening socket's."""
    return name == LISTENER or name.startswith(f"{LISTENER}-")


def group_of(vm_number: int) -> str:
    """The part before the first dot in all names of one VM."""
    return f"vm{vm_number}"


def parse_key(name: str) -> FdKey | StateKey | None:
    """Parses a name; None where it belongs to no VM."""
    match = _KEY.fullmatch(name)
    if match is None:
        return None
    vm_number, state, number = int(match[1]), match[2], int(match[3])
    key = StateKey(vm_number, number) if state else FdKey(vm_number, number)
    # Reject "vm07.1", although it is well formed: it would give the same key as "vm7.1", but the
    # store has the descriptor under only one of the two names.
    return key if str(key) == name else None
