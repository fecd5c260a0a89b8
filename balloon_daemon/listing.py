"""The order in which VMs are listed: by their names. Pure; imports only units."""

import re
from bisect import bisect_left, insort

from balloon_daemon.units import VmId

_DIGITS = re.compile("[0-9]+")


def name_order(name: str) -> str:
    """What names of VMs are sorted by, where several are listed: ``vm2`` is before ``vm10``.

    Args:
        name: the VM's name.

    Returns:
        The name, with each number's length before the number: texts are compared character by
        character, and of two numbers the shorter one is the smaller one.
    """
    return _DIGITS.sub(_with_length, name)


def _with_length(number: "re.Match[str]") -> str:
    digits = number[0].lstrip("0")
    return f"{len(digits):03}{digits}"


class Listing:
    """VMs in the order of their names, for listings (``name_order``).

    The order is kept, not made for each listing: to sort a thousand names takes 4 ms, for which
    all VMs would wait each time that somebody asks.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[str, int, str, VmId]] = []

    def add(self, vm_id: VmId) -> None:
        """Adds a VM that is not listed yet."""
        insort(self._rows, _row(vm_id))

    def remove(self, vm_id: VmId) -> None:
        """Removes a VM that is listed."""
        del self._rows[bisect_left(self._rows, _row(vm_id))]

    def ids(self) -> tuple[VmId, ...]:
        """The VMs; those of one name by their numbers, which is as they came."""
        return tuple([row[-1] for row in self._rows])


def _row(vm_id: VmId) -> tuple[str, int, str, VmId]:
    # The last member is never compared: ids of the same number are equal, whatever their names.
    return name_order(vm_id.name), vm_id.number, vm_id.name, vm_id
