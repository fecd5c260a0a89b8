"""How often a QEMU's balloon device asks its guest for statistics. Pure.

The interval is a property of the device. In a new device it is 0 (never), also at a migration's
destination, and no event tells of that. While no driver is known to listen the device asks every
``PROBE_S``: only statistics show that a driver listens, and a driver that came with a migration
sends none unasked. When nobody watches a VM, its device gets back the interval that was found,
which another client of the VMM may have set.
"""

PROBE_S = 5
"""The interval while no driver is known to listen, if it was found to be 0."""

MISSED = 3
"""After so many intervals without statistics the interval is set again, as it may have become 0
unnoticed. Setting the interval that the device has already changes nothing."""


class StatsInterval:
    """The interval of one device, in whole seconds; 0: never."""

    def __init__(self) -> None:
        self._found_s = self._set_s = 0
        self._wanted_s = 0
        self._fresh_s = 0.0

    def found(self, interval_s: int) -> None:
        """Notes a device's interval before it is changed."""
        self._found_s = self._set_s = interval_s

    def want(self, every_s: float | None) -> None:
        """Sets how often the VM is watched; None: not at all."""
        self._wanted_s = 0 if every_s is None else max(1, round(every_s))

    def due_s(self, now_s: float, *, runs: bool, listens: bool) -> int | None:
        """The interval to set now; None: nothing is to be set.

        The interval that the device has is set again when statistics are late (``MISSED``).

        Args:
            now_s: the time.
            runs: whether the VM's virtual CPUs run.
            listens: whether the guest is known to have a balloon driver that uses the device, or
                is taken to have one (``QmpBalloon.listens``).
        """
        interval_s = self._wanted_s or self._found_s or (0 if listens else PROBE_S)
        late = interval_s and runs and listens and now_s - self._fresh_s > MISSED * interval_s
        return interval_s if late or interval_s != self._set_s else None

    def was_set(self, interval_s: int, now_s: float) -> None:
        """Notes that the device has this interval."""
        self._set_s, self._fresh_s = interval_s, now_s

    def came(self, now_s: float) -> None:
        """Notes that new statistics have come."""
        self._fresh_s = now_s
