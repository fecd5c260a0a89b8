"""The fake guest's driver against the device's own queue code, both ends in one process."""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.driver import BalloonDriver
from balloon_daemon.fake_guest.pages import Population, populate
from balloon_daemon.fake_guest.ram import GuestRam, PageState
from balloon_daemon.fake_guest.settings import DriverSettings, area_bytes
from balloon_daemon.fake_guest.styles import Ring
from balloon_daemon.units import GIB, MIB, PAGE_SIZE
from balloon_daemon.virtio.balloon import (
    BalloonFeature,
    BalloonQueue,
    StatTag,
    decode_stats,
    queue_numbers,
)
from balloon_daemon.virtio.split_queue import (
    DescriptorChain,
    SplitQueue,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)

ALL = (
    BalloonFeature.VERSION_1
    | BalloonFeature.MUST_TELL_HOST
    | BalloonFeature.STATS_VQ
    | BalloonFeature.DEFLATE_ON_OOM
    | BalloonFeature.REPORTING
)
LAYOUT = [(0, 8 * MIB), (4 * GIB, 24 * MIB)]


@dataclass
class Device:
    """A machine and a device at once: config space, kicks, and queues that a test steps."""

    ram: GuestRam
    num_pages: int = 0
    config_reads: int = 0
    actuals: list[int] = field(default_factory=list)
    kicks: list[int] = field(default_factory=list)
    queues: dict[BalloonQueue, SplitQueue] = field(default_factory=dict)

    def read_config(self, offset: int, length: int) -> bytes:
        self.config_reads += 1
        return struct.pack("<II", self.num_pages, 0)[offset : offset + length]

    def write_config(self, offset: int, content: bytes) -> None:
        assert offset == 4
        self.actuals.append(int.from_bytes(content, "little"))

    def kick(self, index: int) -> None:
        self.kicks.append(index)

    def start(self, acknowledged: int, rings: list[Ring]) -> None:
        for ring, queue in zip(rings, queue_numbers(acknowledged).values(), strict=True):
            views = [
                self.ram.memory.view(ring.descriptors, descriptors_bytes(ring.size)),
                self.ram.memory.view(ring.available, available_bytes(ring.size)),
                self.ram.memory.view(ring.used, used_bytes(ring.size)),
            ]
            descriptors, available, used = (view for view in views if view is not None)
            self.queues[queue] = SplitQueue(queue.value, ring.size, descriptors, available, used)

    def pop(self, queue: BalloonQueue) -> DescriptorChain | None:
        ring = self.queues[queue]
        return ring.pop() if ring.pending() else None

    def pfns(self, chain: DescriptorChain) -> list[int]:
        content = b"".join(self.read(addr, length) for addr, length in chain.readable)
        pfns: list[int] = np.frombuffer(content, "<u4").tolist()
        return pfns

    def read(self, addr: int, length: int) -> bytes:
        view = self.ram.memory.view(addr, length)
        assert view is not None
        return bytes(view)

    def remove(self, pfns: list[int]) -> None:
        for page in self.ram.numbers.pages(np.array(pfns)).tolist():
            self.ram._map.madvise(mmap.MADV_REMOVE, page * PAGE_SIZE, PAGE_SIZE)


class Guest:
    """A driver and a device over one memory."""

    def __init__(self, settings: DriverSettings, population: Population) -> None:
        self.ram = GuestRam(LAYOUT)
        self.events: list[str] = []
        self.device = Device(self.ram)
        area = self.ram.reserve(area_bytes(settings))
        self.driver = BalloonDriver(
            self.ram,
            area,
            populate(self.ram, population),
            self.device,
            settings,
            lambda name, _figures: self.events.append(name),
        )
        self.device.start(settings.features, self.driver.find_queues(settings.features))
        self.driver.ready()

    def want(self, num_pages: int) -> None:
        self.device.num_pages = num_pages
        self.driver.config_changed()

    def serve(self, queue: BalloonQueue) -> list[int]:
        """The device takes one chain of PFNs, removes or keeps, and answers."""
        chain = self.device.pop(queue)
        assert chain is not None
        pfns = self.device.pfns(chain)
        if queue is BalloonQueue.INFLATEQ:
            self.device.remove(pfns)
        self.device.queues[queue].push(chain.head)
        self.driver.used(queue)
        return pfns


@pytest.fixture
def guests() -> Iterator[list[Guest]]:
    made: list[Guest] = []
    yield made
    for guest in made:
        guest.ram.close()


def make(
    guests: list[Guest],
    settings: DriverSettings | None = None,
    population: Population | None = None,
) -> Guest:
    guests.append(Guest(settings or DriverSettings(features=ALL), population or Population()))
    return guests[-1]


INFLATEQ = BalloonQueue.INFLATEQ
DEFLATEQ = BalloonQueue.DEFLATEQ


def test_inflate_sends_256_pfns_and_waits_for_their_used_entry(guests: list[Guest]) -> None:
    guest = make(guests)

    guest.want(600)

    chain = guest.device.pop(INFLATEQ)
    assert chain is not None
    assert [length for _, length in chain.readable] == [1024]
    assert guest.device.pop(INFLATEQ) is None
    assert guest.driver.actual == 0


def test_inflate_reports_actual_and_asks_again_after_each_buffer(guests: list[Guest]) -> None:
    guest = make(guests)
    guest.want(600)

    sizes = [len(guest.serve(INFLATEQ)) for _ in range(3)]

    assert sizes == [256, 256, 88]
    assert guest.device.actuals == [256, 512, 600]
    assert guest.device.config_reads == 1 + 3
    assert guest.events == ["inflated"]


def test_target_that_changes_midway_is_followed(guests: list[Guest]) -> None:
    guest = make(guests)
    guest.want(600)
    guest.serve(INFLATEQ)

    guest.device.num_pages = 300
    guest.serve(INFLATEQ)
    guest.serve(DEFLATEQ)

    assert guest.device.actuals == [256, 512, 300]


def test_target_that_changes_while_the_last_buffer_is_on_its_way_is_followed(
    guests: list[Guest],
) -> None:
    guest = make(guests)
    guest.want(256)

    guest.want(0)
    guest.serve(INFLATEQ)
    guest.serve(DEFLATEQ)

    assert guest.device.actuals == [256, 0]


def test_pages_given_up_are_the_drivers_free_ones_and_come_back(guests: list[Guest]) -> None:
    guest = make(guests)
    guest.want(300)
    given = guest.serve(INFLATEQ) + guest.serve(INFLATEQ)
    in_balloon = guest.ram.count(PageState.BALLOON)

    guest.want(0)
    returned = guest.serve(DEFLATEQ) + guest.serve(DEFLATEQ)

    assert in_balloon == 300
    assert returned == given[::-1]
    assert guest.ram.count(PageState.BALLOON) == 0
    assert guest.driver.actual == 0


def test_page_is_given_up_before_the_device_can_see_its_buffer(guests: list[Guest]) -> None:
    guest = make(guests, population=Population(touched_bytes=2 * MIB))

    guest.want(256)
    chain = guest.device.pop(INFLATEQ)
    assert chain is not None
    guest.device.remove(guest.device.pfns(chain))

    # Removed but not answered: no loss, for these pages belong to the device already.
    assert guest.ram.check().pages_corrupt == 0


def test_page_that_the_device_was_not_given_is_missed(guests: list[Guest]) -> None:
    guest = make(guests, population=Population(touched_bytes=4 * MIB))
    guest.want(256)
    given = guest.serve(INFLATEQ)

    guest.device.remove([min(given) - 1])

    assert guest.ram.check().bad_pfns == [min(given) - 1]


def test_refill_touches_again_what_was_touched_when_it_comes_back(guests: list[Guest]) -> None:
    settings = DriverSettings(features=ALL, refill=True)
    guest = make(guests, settings, Population(touched_bytes=1 * MIB))
    guest.want(512)
    guest.serve(INFLATEQ)
    guest.serve(INFLATEQ)
    emptied = guest.ram.blocks_bytes()

    guest.want(0)
    while not guest.driver.idle:
        guest.serve(DEFLATEQ)

    result = guest.ram.check()
    assert (result.pages_checked, result.pages_corrupt) == (256, 0)
    assert guest.ram.blocks_bytes() - emptied == 1 * MIB


def test_several_buffers_in_flight_are_never_more_than_allowed(guests: list[Guest]) -> None:
    guest = make(guests, DriverSettings(features=ALL, in_flight=3))

    guest.want(2000)

    assert guest.device.queues[INFLATEQ].pending() == 3
    for _ in range(8):
        guest.serve(INFLATEQ)
    assert guest.driver.actual == 2000
    assert guest.driver.idle


def test_buffers_used_together_are_each_finished(guests: list[Guest]) -> None:
    guest = make(guests, DriverSettings(features=ALL, in_flight=3))
    guest.want(6 * 256)
    queue = guest.device.queues[INFLATEQ]

    for _ in range(2):
        for chain in [queue.pop() for _ in range(3)]:
            queue.push(chain.head)
        guest.driver.used(INFLATEQ)

    assert guest.driver.actual == 6 * 256
    assert guest.driver.idle


def test_direction_changes_only_when_nothing_is_on_its_way(guests: list[Guest]) -> None:
    guest = make(guests, DriverSettings(features=ALL, in_flight=3))
    guest.want(768)

    guest.want(0)
    for _ in range(2):
        guest.serve(INFLATEQ)
        assert guest.device.pop(DEFLATEQ) is None
    guest.serve(INFLATEQ)

    assert guest.device.queues[DEFLATEQ].pending() == 3


@pytest.mark.parametrize("parts", [2, 3, 128])
def test_buffer_in_several_descriptors_carries_the_same_pfns(
    guests: list[Guest], parts: int
) -> None:
    guest = make(guests, DriverSettings(features=ALL, parts=parts))
    guest.want(256)

    chain = guest.device.pop(INFLATEQ)

    assert chain is not None
    assert len(chain.readable) == parts
    given = np.flatnonzero(guest.ram.state == PageState.BALLOON)
    assert guest.device.pfns(chain) == guest.ram.numbers.pfns(given[::-1]).tolist()


def test_target_beyond_what_the_guest_has_is_retried(guests: list[Guest]) -> None:
    guest = make(guests)
    free = len(guest.driver.pages.free)
    guest.want(free + 100)
    while guest.device.queues[INFLATEQ].pending():
        guest.serve(INFLATEQ)

    assert guest.driver.wants_retry
    assert guest.driver.actual == free
    assert guest.events == ["out_of_puff"]
    guest.device.num_pages = free
    guest.driver.retry()
    assert not guest.driver.wants_retry


@pytest.mark.parametrize(
    ("features", "statsq", "reporting"),
    [
        (BalloonFeature.VERSION_1, None, None),
        (BalloonFeature.VERSION_1 | BalloonFeature.REPORTING, None, 2),
        (ALL, 2, 3),
    ],
)
def test_queues_are_numbered_by_the_features_acknowledged(
    guests: list[Guest], features: BalloonFeature, statsq: int | None, reporting: int | None
) -> None:
    driver = make(guests, DriverSettings(features=features)).driver

    numbers = {queue: ring.ring.index for queue, ring in driver.rings.queues.items()}

    assert numbers.get(BalloonQueue.STATSQ) == statsq
    assert numbers.get(BalloonQueue.REPORTING_VQ) == reporting


@pytest.mark.parametrize("tags", [10, 16])
@pytest.mark.parametrize(
    ("features", "taken_out"), [(ALL, 0), (ALL & ~BalloonFeature.DEFLATE_ON_OOM, 256)]
)
def test_statistics_are_primed_and_refilled_on_return(
    guests: list[Guest], tags: int, features: int, taken_out: int
) -> None:
    # Linux takes the balloon out of its total, unless it would deflate it rather than kill.
    guest = make(guests, DriverSettings(features=features, stat_tags=tags))
    statsq = guest.device.queues[BalloonQueue.STATSQ]
    chain = statsq.pop()
    guest.want(256)
    guest.serve(INFLATEQ)

    statsq.push(chain.head)
    guest.driver.used(BalloonQueue.STATSQ)

    again = statsq.pop()
    addr, length = again.readable[0]
    stats = dict(decode_stats(guest.device.read(addr, length)))
    assert length == tags * 10
    assert len(stats) == tags
    assert stats[StatTag.MEMTOT] == guest.ram.size_bytes - taken_out * PAGE_SIZE


def test_report_names_free_blocks_and_isolates_them_until_used(guests: list[Guest]) -> None:
    guest = make(guests, population=Population(order="random", touched_bytes=24 * MIB))
    free_before = len(guest.driver.pages.free)

    blocks = guest.driver.reporting.start(512)
    free_while = len(guest.driver.pages.free)
    chain = guest.device.pop(BalloonQueue.REPORTING_VQ)
    assert chain is not None
    guest.device.queues[BalloonQueue.REPORTING_VQ].push(chain.head)
    guest.driver.used(BalloonQueue.REPORTING_VQ)

    # 32 MiB are 16 blocks of 2 MiB; the driver's own memory spoils the last.
    assert blocks == 15
    assert [length for _, length in chain.writable] == [2 * MIB] * 15
    assert chain.readable == []
    assert free_before - free_while == 15 * 512
    assert len(guest.driver.pages.free) == free_before
    assert guest.events == ["reported"]


def test_report_of_many_small_blocks_goes_in_chains_of_32(guests: list[Guest]) -> None:
    guest = make(guests, population=Population(touched_bytes=4 * MIB))
    queue = guest.device.queues[BalloonQueue.REPORTING_VQ]

    blocks = guest.driver.reporting.start(16)
    sizes = []
    while queue.pending():
        chain = queue.pop()
        sizes.append(len(chain.writable))
        queue.push(chain.head)
        guest.driver.used(BalloonQueue.REPORTING_VQ)

    assert sum(sizes) == blocks
    assert set(sizes[:-1]) == {32}
    assert guest.driver.reporting.start(16) == 0


def test_report_without_the_feature_is_refused(guests: list[Guest]) -> None:
    guest = make(guests, DriverSettings(features=BalloonFeature.VERSION_1))

    with pytest.raises(ConfigError, match="not negotiated"):
        guest.driver.reporting.start()


def test_kick_is_left_out_where_the_device_wants_none(guests: list[Guest]) -> None:
    guest = make(guests)
    guest.device.queues[INFLATEQ]._used16[0] = 1

    guest.want(256)

    assert 0 not in guest.device.kicks
    assert guest.driver.counters.kicks_suppressed == 1


def test_leaving_empties_the_balloon_whatever_is_wanted(guests: list[Guest]) -> None:
    guest = make(guests)
    guest.want(512)
    guest.serve(INFLATEQ)

    guest.driver.leave()
    guest.serve(INFLATEQ)
    while not guest.driver.idle:
        guest.serve(DEFLATEQ)

    assert guest.device.num_pages == 512
    assert guest.driver.idle


def test_reset_in_mid_inflate_forgets_the_balloon_and_keeps_every_page(
    guests: list[Guest],
) -> None:
    guest = make(guests, population=Population(touched_bytes=4 * MIB))
    free = sorted(guest.driver.pages.free.next().tolist())
    guest.want(512)
    guest.serve(INFLATEQ)

    guest.driver.reset()

    assert guest.driver.actual == 0
    assert sorted(guest.driver.pages.free.next().tolist()) == free
    assert guest.ram.check().pages_corrupt == 0


def test_polling_driver_suppresses_calls_and_finds_its_answers(guests: list[Guest]) -> None:
    guest = make(guests, DriverSettings(features=ALL, interrupts=False))
    guest.want(256)
    chain = guest.device.pop(INFLATEQ)
    assert chain is not None
    guest.device.queues[INFLATEQ].push(chain.head)

    guest.driver.poll_used()

    assert not guest.device.queues[INFLATEQ].wants_call()
    assert guest.driver.actual == 256


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_size": 3},
        {"queue_size": 65536},
        {"queue_size": 0},
        {"in_flight": 0},
        {"in_flight": 9, "queue_size": 8},
        {"parts": 0},
        {"stat_tags": 11},
    ],
)
def test_settings_that_no_driver_has_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        DriverSettings(**wrong)  # type: ignore[arg-type]  # all the integer ones
