"""The balloon device: what each virtqueue means (virtio 1.3, 5.5.6). Runs in the jail."""

from collections.abc import Callable
from functools import partial
from time import monotonic

from balloon_daemon.device.pace import MAX_TURN_S, Turn
from balloon_daemon.device.reclaim import Reclaimer, runs_of
from balloon_daemon.errors import GuestError, RingError, Rule
from balloon_daemon.linux.events import signal_event
from balloon_daemon.tube.messages import Progress
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.virtio.balloon import MAX_STATS, STAT_ENTRY, BalloonQueue, decode_stats
from balloon_daemon.virtio.guest_memory import GuestMemory
from balloon_daemon.virtio.split_queue import DescriptorChain, SplitQueue

MAX_PFN_BYTES = 64 * 1024
"""The most bytes of PFNs in one chain: Linux sends 1 KiB, other drivers 4 KiB."""

MAX_STATS_BYTES = MAX_STATS * STAT_ENTRY.size

MAX_PARTS = 256
"""The most descriptors of one chain: Linux uses 1 for PFNs and 32 for free page reports."""

MAX_REPORT_BYTES = 1 << 30
"""The most bytes reported in one chain (Linux: 32 blocks of 4 MiB). Without a limit the pages of
one chain could keep the device busy for long, as the device finishes each chain that it begins."""

MAX_CHAINS_A_TURN = 256
"""The most chains taken from one queue before the other queues and the controller's orders get
their turn."""

# Look the member up only once: each "BalloonQueue.REPORTING_VQ" makes Python 3.11 run Python code
# of the enum module, which would cost time in every turn.
_REPORTING_VQ = BalloonQueue.REPORTING_VQ

# Makes a Turn without calling its class: "Turn(...)" runs Python code that the collections module
# makes for a NamedTuple, and takes twice as long.
_turn: Callable[[tuple[int, int, int, bool, bool, RingError | None]], Turn]
_turn = partial(tuple.__new__, Turn)

Handled = tuple[int | None, int]
"""The head to answer (None: no chain is to be answered yet), and how many pages have moved."""


class RunningQueue:
    """A virtqueue that is served.

    Attributes:
        index: its vring's index.
        ring: where its chains come from.
        kick_fd: the driver's eventfd for new chains.
        call_fd: our eventfd that tells the driver of used chains, if the VMM gave one.
        owes_call: True: call the driver after the first look at the ring, because the device
            before may have died between writing a used entry and its call. Linux's driver waits
            for that call without end, holding its lock; a needless call costs the driver one look
            (virtio 1.3, 2.7.7.1).
    """

    def __init__(
        self,
        index: int,
        queue: BalloonQueue,
        ring: SplitQueue,
        kick_fd: int,
        call_fd: int | None,
        *,
        owes_call: bool = False,
    ) -> None:
        self.index = index
        self.queue = queue
        self.ring = ring
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self.owes_call = owes_call


class _Counts:
    """Counters since the start, sent as ``Progress``."""

    __slots__ = (
        "chains",
        "deflated_pages",
        "faults",
        "foreign_pages",
        "inflated_pages",
        "reported_bytes",
    )

    def __init__(self) -> None:
        self.inflated_pages = self.deflated_pages = self.foreign_pages = 0
        self.reported_bytes = self.chains = self.faults = 0


class BalloonDevice:
    """Serves the queues of one guest.

    Args:
        memory: the guest's regions.
        reclaimer: removes the guest's pages.
        queues: the queues that can be served.
        fault: called with each fault: (queue, error).
        clock: seconds, for the length of a turn.
        frees_reported: False: reports are answered, and the reported pages keep their content.
    """

    def __init__(
        self,
        memory: GuestMemory,
        reclaimer: Reclaimer,
        queues: list[RunningQueue],
        fault: Callable[[RunningQueue, GuestError], None],
        clock: Callable[[], float] = monotonic,
        *,
        frees_reported: bool = True,
    ) -> None:
        self._memory = memory
        self._reclaimer = reclaimer
        self.queues = queues
        self._fault = fault
        self._clock = clock
        self._held_stats_head: int | None = None
        self._latest_stats: tuple[tuple[int, int], ...] | None = None
        handlers: dict[BalloonQueue, Callable[[DescriptorChain], Handled]] = {
            BalloonQueue.INFLATEQ: self._inflate,
            BalloonQueue.DEFLATEQ: self._deflate,
            BalloonQueue.STATSQ: self._take_stats,
            BalloonQueue.REPORTING_VQ: self._discard_reported if frees_reported else _answer,
        }
        # The keys are the vrings' indices, not BalloonQueue members: a look-up by an Enum's member
        # runs Python code of the enum module.
        self._handlers = {running.index: handlers[running.queue] for running in queues}
        self._counts = _Counts()

    def statistics(self) -> Progress:
        """The counters since the start."""
        counts = self._counts
        return Progress(
            counts.inflated_pages,
            counts.deflated_pages,
            counts.reported_bytes,
            self._reclaimer.removed_bytes,
            self._reclaimer.removals,
            counts.chains,
            counts.faults,
            (self._reclaimer.removed_bytes - self._reclaimer.reported_removed_bytes) // PAGE_SIZE,
            self._reclaimer.kept_pages,
            self._reclaimer.refused_pages,
            counts.foreign_pages,
        )

    @property
    def memory_pages(self) -> int:
        """The guest's memory, in 4 KiB pages."""
        return self._memory.size_bytes // PAGE_SIZE

    def process(self, running: RunningQueue) -> Turn:
        """Serves the chains that wait in one queue, at most a turn's worth, and calls the driver.

        Returns:
            The chains served, the pages moved and the faults. After a chain that proves the ring
            broken, no further chain is taken from the ring; the chains before it are answered.
        """
        ring, handle, until = running.ring, self._handlers[running.index], 0.0
        answered, running.owes_call = running.owes_call, False
        chains = pages = faults = 0
        over, broken = False, None
        try:
            while not over and chains < MAX_CHAINS_A_TURN and (pending := ring.pending()):
                # Read the clock only once the queue has a chain: each kick makes the device look
                # at every queue, and most queues are empty.
                until = until or self._clock() + MAX_TURN_S
                for _ in range(min(pending, MAX_CHAINS_A_TURN - chains)):
                    head: int | None
                    try:
                        head, moved = handle(ring.pop())
                        pages += moved
                    except RingError:
                        raise
                    except GuestError as err:
                        faults += 1
                        head = err.head
                        self._dropped(running, err)
                    chains += 1
                    if head is not None:
                        ring.push(head)
                        answered = True
                    if over := self._clock() >= until:
                        break
        except RingError as err:
            # Drop the traceback: it refers to this frame and the frame to the error, a cycle that
            # only the garbage collector would free.
            broken = err.with_traceback(None)
            if running.queue is BalloonQueue.STATSQ:
                # Forget the statistics buffer that the device holds back: the next request for
                # statistics would answer it into the broken ring.
                self._held_stats_head = None
        finally:
            if answered:
                _call(running)
        counts = self._counts
        counts.chains += chains
        counts.faults += faults
        over = over or chains >= MAX_CHAINS_A_TURN
        return _turn((chains, pages, faults, running.queue is _REPORTING_VQ, over, broken))

    def _dropped(self, running: RunningQueue, err: GuestError) -> None:
        """Reports a chain that broke a virtio rule and none of whose pages was removed.

        ``process`` answers the chain afterwards. The statistics buffer that is held back came
        earlier, so it is answered here.
        """
        self._fault(running, err)
        if running.queue is BalloonQueue.STATSQ:
            self._answer_held(running.ring)
        elif running.queue is BalloonQueue.DEFLATEQ:
            self._reclaimer.forget()

    def take_stats(self) -> tuple[tuple[int, int], ...] | None:
        """Returns the guest's latest statistics once; None where none came since the last call.

        Only the latest are kept: a guest that sends statistics unasked causes no more reports than
        the caller asks for.
        """
        latest, self._latest_stats = self._latest_stats, None
        return latest

    def request_stats(self) -> None:
        """Gives the held statistics buffer back, which asks the driver to fill it anew."""
        for running in self.queues:
            if running.queue is BalloonQueue.STATSQ and self._answer_held(running.ring):
                _call(running)

    def _answer_held(self, ring: SplitQueue) -> bool:
        """Answers the held statistics buffer, if there is one; True where there was.

        The held buffer is answered before any later buffer, because the next device takes
        ``used.idx`` for the number of chains answered in the order in which they came.
        """
        if self._held_stats_head is None:
            return False
        ring.push(self._held_stats_head)
        self._held_stats_head = None
        return True

    def _inflate(self, chain: DescriptorChain) -> Handled:
        content = self._pfns("inflateq", chain)
        pages = len(content) // 4
        if pages:
            try:
                self._reclaimer.inflate("inflateq", chain.head, runs_of(content))
            except GuestError:
                self._counts.foreign_pages += pages
                raise
            self._counts.inflated_pages += pages
        return chain.head, pages

    def _deflate(self, chain: DescriptorChain) -> Handled:
        content = self._pfns("deflateq", chain)
        pages = len(content) // 4
        if pages:
            self._reclaimer.deflate("deflateq", chain.head, runs_of(content))
            self._counts.deflated_pages += pages
        return chain.head, pages

    def _take_stats(self, chain: DescriptorChain) -> Handled:
        """Holds this buffer back: returning it asks the driver for new statistics (5.5.6.3).

        Returns:
            The head of the buffer held before, to be answered now, or None; the device holds one
            at most.
        """
        content = self._readable("statsq", chain, MAX_STATS_BYTES)
        self._latest_stats = tuple(decode_stats(content))
        before, self._held_stats_head = self._held_stats_head, chain.head
        return before, 0

    def _discard_reported(self, chain: DescriptorChain) -> Handled:
        if chain.readable:
            raise GuestError("reporting_vq", chain.head, Rule.DIRECTION, len(chain.readable))
        if len(chain.writable) > MAX_PARTS:
            raise GuestError("reporting_vq", chain.head, Rule.PARTS, len(chain.writable))
        total = sum(length for _, length in chain.writable)
        if total > MAX_REPORT_BYTES:
            raise GuestError("reporting_vq", chain.head, Rule.LIMIT, total)
        before = self._counts.reported_bytes
        reported = before + self._reclaimer.discard("reporting_vq", chain.head, chain.writable)
        self._counts.reported_bytes = reported
        # Round up the sum of all reports so far, not each report: otherwise many reports of one
        # byte would count as many whole pages.
        return chain.head, -(-reported // PAGE_SIZE) - -(-before // PAGE_SIZE)

    def _readable(self, queue: str, chain: DescriptorChain, limit: int) -> bytes:
        """Copies a chain's readable bytes out of guest memory, once."""
        head, readable, writable = chain
        if writable:
            raise GuestError(queue, head, Rule.DIRECTION, len(writable))
        if len(readable) > MAX_PARTS:
            raise GuestError(queue, head, Rule.PARTS, len(readable))
        total = 0
        for _, length in readable:
            total += length
        if total > limit:
            raise GuestError(queue, head, Rule.LIMIT, total)
        parts = []
        for addr, length in readable:
            view = self._memory.view(addr, length)
            if view is None:
                raise GuestError(queue, head, Rule.ADDRESS, addr)
            parts.append(bytes(view))
        # Linux sends its PFNs in one descriptor, which needs no join.
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pfns(self, queue: str, chain: DescriptorChain) -> bytes:
        """The chain's little-endian u32 page frame numbers, copied."""
        content = self._readable(queue, chain, MAX_PFN_BYTES)
        if len(content) % 4:
            raise GuestError(queue, chain.head, Rule.LENGTH, len(content))
        return content


def _answer(chain: DescriptorChain) -> Handled:
    """Answers a report without touching its pages."""
    return chain.head, 0


def _call(running: RunningQueue) -> None:
    """Signals the call eventfd, unless the driver has switched these calls off in the ring."""
    if running.call_fd is not None and running.ring.wants_call():
        signal_event(running.call_fd)
