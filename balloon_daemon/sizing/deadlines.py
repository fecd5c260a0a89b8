"""The deadlines of all VMs of a host, the earliest first. Pure."""

import heapq
import math

from balloon_daemon.sizing.row import Row
from balloon_daemon.units import VmId


class Deadlines:
    """A heap of deadlines, one valid entry for each VM that has a deadline.

    Args:
        rows: the VMs; a VM that is removed there has no deadline any more.
    """

    def __init__(self, rows: dict[VmId, Row]) -> None:
        self._rows = rows
        # (time, VM's number, VM). A VM's valid entry is the one whose time is its ``queued_at_s``.
        # Its older entries stay in the heap, and are dropped when they come to the top.
        self._heap: list[tuple[float, int, VmId]] = []

    def queue(self, vm: VmId, row: Row) -> None:
        """Queues a VM's earliest deadline.

        An entry whose deadline has moved later stays until its time comes: a release moves with
        each low-memory event, and removing it from the middle of the heap each time would cost
        more.
        """
        at_s = row.deadline_s
        if at_s < row.queued_at_s:
            row.queued_at_s = at_s
            heapq.heappush(self._heap, (at_s, vm.number, vm))

    def earliest_s(self) -> float:
        """The earliest deadline; infinity where there is none."""
        while self._heap:
            at_s, _, vm = self._heap[0]
            row = self._rows.get(vm)
            if row is not None and row.queued_at_s == at_s == row.deadline_s:
                return at_s
            heapq.heappop(self._heap)
            if row is not None and row.queued_at_s == at_s:
                row.queued_at_s = math.inf
                self.queue(vm, row)
        return math.inf

    def latest_s(self) -> float:
        """Until when the deadlines may be served: the earliest ``Row.latest_s``; infinity where
        there is no deadline."""
        latest_s, places = math.inf, [0]
        # In a heap no entry is due after its two children. A row's ``latest_s`` is not before its
        # deadline, so an entry that is due at the result so far, or later, cannot change the
        # result: neither this entry nor those below it are looked at.
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] < latest_s:
                at_s, _, vm = self._heap[place]
                row = self._rows.get(vm)
                if row is not None and row.queued_at_s == at_s:
                    latest_s = min(latest_s, row.latest_s)
                places += (2 * place + 1, 2 * place + 2)
        return latest_s

    def first(self) -> VmId:
        """The VM whose deadline is ``earliest_s``, which is not infinite."""
        return self._heap[0][2]

    def drop_first(self) -> None:
        """Forgets the deadline of ``first`` until that VM's is queued again."""
        _, _, vm = heapq.heappop(self._heap)
        self._rows[vm].queued_at_s = math.inf

    def clear(self) -> None:
        """Forgets all deadlines."""
        self._heap.clear()
