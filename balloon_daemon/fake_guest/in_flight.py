"""PFN buffers that a fake guest's driver has sent and the device has not answered."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.virtio.balloon import BalloonQueue


class Direction(Enum):
    """The direction in which the balloon moves; the values are the names of the events."""

    INFLATE = "inflated"
    DEFLATE = "deflated"

    @property
    def queue(self) -> BalloonQueue:
        """The queue whose buffers move the balloon in this direction."""
        inflates = self is Direction.INFLATE
        return BalloonQueue.INFLATEQ if inflates else BalloonQueue.DEFLATEQ


@dataclass(frozen=True, slots=True)
class SentBuffer:
    """A buffer on its way: its pages, and the number of the buffer in guest memory."""

    direction: Direction
    pages: Pages
    number: int


class InFlight:
    """Buffers on their way to the device and back.

    Args:
        limit: how many buffers a driver sends before it waits; Linux sends one.
    """

    def __init__(self, limit: int) -> None:
        self._free = list(range(limit))
        self._sent: dict[tuple[BalloonQueue, int], SentBuffer] = {}

    @property
    def full(self) -> bool:
        """Whether the driver has to wait for an answer before it sends another buffer."""
        return not self._free

    @property
    def buffers(self) -> list[SentBuffer]:
        """All buffers on their way."""
        return list(self._sent.values())

    @property
    def inflating_pages(self) -> int:
        """Pages on their way into the balloon."""
        sent = self._sent.values()
        return sum(len(b.pages) for b in sent if b.direction is Direction.INFLATE)

    def take_number(self) -> int:
        """Takes the number of a free buffer."""
        return self._free.pop()

    def add(self, head: int, buffer: SentBuffer) -> None:
        """Notes that a buffer was sent as the chain with this head."""
        self._sent[buffer.direction.queue, head] = buffer

    def answered(self, queue: BalloonQueue, heads: Iterable[int]) -> list[SentBuffer]:
        """The buffers, of those noted here, that belong to these used chains.

        Other chains were put into the ring by a test itself, and are ignored.
        """
        known = [(queue, head) for head in heads if (queue, head) in self._sent]
        answered = [self._sent.pop(key) for key in known]
        self._free += [buffer.number for buffer in answered]
        return answered
