"""The names under which a store holds a VM's descriptors and states. Pure.

``vm7.3`` is the third descriptor of VM 7, ``vm7.state-5`` its fifth state. A VM's number makes its
names, as it is never used again; what people call the VM does not appear in them.
"""

import re
from typing import NamedTuple

STATE = ".state-"
"""What stands between a VM and the serial number in the name of a state."""

LISTENER = "listener"
"""The name of the listening socket."""

_KEY = re.compile(r"vm([0-9]{1,18})\.(state-)?([0-9]{1,18})")


class FdKey(NamedTuple):
    """The name of a descriptor: which VM's, and its number among that VM's."""

    vm_number: int
    fd_number: int

    def __str__(self) -> str:
        return f"{group_of(self.vm_number)}.{self.fd_number}"


class StateKey(NamedTuple):
    """The name of a state: which VM's, and its serial number, counted up with each state."""

    vm_number: int
    serial: int

    def __str__(self) -> str:
        return f"{group_of(self.vm_number)}{STATE}{self.serial}"


def group_of(vm_number: int) -> str:
    """What all names of one VM have before their first dot."""
    return f"vm{vm_number}"


def parse_key(name: str) -> FdKey | StateKey | None:
    """Reads a name; None where it is no VM's."""
    match = _KEY.fullmatch(name)
    if match is None:
        return None
    vm_number, state, number = int(match[1]), match[2], int(match[3])
    key = StateKey(vm_number, number) if state else FdKey(vm_number, number)
    # "vm07.1" and "vm7.1" would be one key, and the store knows only one of both names.
    return key if str(key) == name else None
