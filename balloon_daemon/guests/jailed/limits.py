"""Limits one VM's balloon: by the VM's size, and by reasons against asking for more.

Runs in the controller. It uses the kernel's figures of the VM's memory files (files of shared
memory, for which no file system's server is asked), the counters of the guest's device, and the
guest's own figures. The device's and the guest's numbers are untrusted: only those in range are
used.
"""

from collections.abc import Callable, Iterator

from balloon_daemon.events import (
    BalloonNotFreed,
    Fruitless,
    GivesHugePages,
    LossCause,
    MemoryEvent,
    MemoryKnown,
    MemoryNeverFreed,
    NoBackendChannel,
    NothingFreeable,
    PageKind,
    PagesLost,
    Publish,
    TmpfsLimited,
)
from balloon_daemon.guests.jailed.gain import Gain, Loss
from balloon_daemon.guests.jailed.memory_files import MemoryFiles
from balloon_daemon.guests.jailed.vm_size import VmSize
from balloon_daemon.guests.seam import Stats
from balloon_daemon.linux.memory import memory_file_use
from balloon_daemon.linux.page_kind import pages_of
from balloon_daemon.rate_limit import OnceEach, RateLimit
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.tube.messages import Progress
from balloon_daemon.units import MIB, PAGE_SIZE, VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import Fd, Region
from balloon_daemon.virtio.balloon import BalloonFeature

SLACK_BYTES = 16 * MIB
SLACK_SHARE = 64
"""How much more than the VM's size minus its balloon the VM's files may hold without a warning, 16
MiB or a 64th of the size: ``actual`` and the files are not read at the same moment."""

_Once = BalloonNotFreed | Fruitless | NoBackendChannel
"""Events that are published once, the first two again after a change of the memory table."""

JUDGED_A_SECOND = 4
"""How many times a second a reached target is compared with the memory that was freed; a guest may
write ``actual`` at any rate."""

REGIONS_SAID = 8
"""How many regions of one table that are never freed are published, of 256 that a VMM may send,
over and over. QEMU has some four of them."""

NEWS = 32
"""How many different memory tables, and how many different contradictions between sizes, are
published for one VM, each of them once: a guest may report another total each time."""


class BalloonLimits:
    """The limits of one VM's balloon.

    Args:
        vm: the VM.
        backend: has the memory table, the features and ``actual``.
        flag_bytes: the size given by ``--vm-mem``; None: not given.
        publish: takes events.
        charge: charges the seconds that measuring the VM takes to its user; returns whether it may
            be measured now.
    """

    def __init__(
        self,
        vm: VmId,
        backend: Backend,
        flag_bytes: int | None,
        publish: Publish,
        charge: Callable[[float], bool],
    ) -> None:
        self._vm = vm
        self._backend = backend
        self._publish = publish
        self._size = VmSize(flag_bytes)
        self._gain = Gain()
        self._features = -1
        self._files = MemoryFiles(backend.memory, charge)
        self._tables, self._sizes = OnceEach(NEWS), OnceEach(NEWS)
        self._holding = False
        self._judged = RateLimit(JUDGED_A_SECOND)
        # The classes of events that were published. Each class is published once only: a device
        # that its guest has taken over could otherwise cause the same event again and again.
        self._published = set[type[_Once]]()

    @property
    def size_bytes(self) -> int:
        """The VM's size from which its balloon's maximum follows; 0: it can have no balloon."""
        return self._size.size_bytes

    @property
    def knows_no_total(self) -> bool:
        """Whether the guest has not reported yet how much memory it has."""
        return self._size.guest_bytes is None

    # --- size ---------------------------------------------------------------------------------

    def look_at_memory(self) -> None:
        """Reads the present memory table, and publishes its kinds of pages and its problems."""
        memory = self._backend.memory
        if self._backend.acknowledged != self._features:
            self._features = self._backend.acknowledged
            keeps = bool(self._features & BalloonFeature.DEFLATE_ON_OOM)
            self._size.expect(keeps_total=keeps)
        if not self._files.is_another_table():
            return
        self._gain.start_anew()
        self._holding = False
        self._published -= {BalloonNotFreed, Fruitless}
        self._size.take_table(memory.ram_bytes, has_unnameable=memory.has_unnameable)
        if self._backend.channel is None:
            self._publish_once(NoBackendChannel(self._vm))
        if self._tables.admit(self._files.table):
            for event in _news(self._vm, memory.regions):
                self._publish(event)
        self._say_size()

    def take_stats(self, stats: Stats) -> None:
        """Takes the guest's statistics."""
        if stats.total_bytes is not None:
            self._size.take_total(stats.total_bytes, self._backend.config.actual * PAGE_SIZE)
            self._say_size()

    def assume(self, size_bytes: int) -> None:
        """Uses the VM's size that another controller knew, perhaps from the guest's statistics.

        Only for a guest that sends statistics, and until its next statistics come: without them a
        wrong size would never be corrected.
        """
        if size_bytes and self._backend.acknowledged & BalloonFeature.STATS_VQ:
            self._size.guest_bytes = size_bytes

    def _say_size(self) -> None:
        doubts = self._size.doubts(self._vm)
        if doubts is not None and self._sizes.admit(str(doubts)):
            self._publish(doubts)

    # --- gain ---------------------------------------------------------------------------------

    def take_progress(self, done: Progress) -> None:
        """Takes the counters of the guest's devices so far, added up."""
        for loss in self._gain.take(done):
            self._publish(self._lost(loss))
        if self._gain.fruitless:
            self._publish_once(Fruitless(self._vm))

    def _lost(self, loss: Loss) -> PagesLost:
        memory, lost_bytes = self._backend.memory, loss.pages * PAGE_SIZE
        if loss.cause is not LossCause.NEVER_FREED:
            return PagesLost(self._vm, loss.cause, lost_bytes)
        reasons = sorted({r.never_freed for r in memory.regions if r.never_freed})
        return PagesLost(self._vm, loss.cause, lost_bytes, tuple(reasons), memory.has_unnameable)

    def not_freed_bytes(self) -> int:
        """The bytes that the VM's files hold although the balloon holds them too; 0 if that is
        less than ``SLACK_SHARE`` says.

        A guest can use at most its size less its balloon, so memory that its files hold beyond
        that was taken from the guest but not freed for the host.
        """
        files = self._files.uses()
        size = sum(file.size_bytes for file in files)
        allowed = size - self._backend.config.actual * PAGE_SIZE
        over = sum(file.held_bytes for file in files) - allowed
        return over if over > max(SLACK_BYTES, size // SLACK_SHARE) else 0

    def held_bytes(self) -> int:
        """How much of the host's memory the VM's memory occupies: the VM's size less the holes in
        its files. The files' allocated bytes alone would be too many, because some files are no
        RAM (NVDIMMs, shared-memory devices)."""
        free = sum(file.size_bytes - file.held_bytes for file in self._files.uses())
        return max(0, self.size_bytes - free)

    def judge(self, now_s: float) -> int | None:
        """Compares the balloon with the memory freed for the host, when a target is reached.

        Returns:
            Bytes of the balloon that the host has not got, published once; None: not compared,
            because the guest reaches targets all the time.
        """
        if self._judged.admit(now_s) is None:
            return None
        over = self.not_freed_bytes()
        self._holding = over > 0
        if over:
            self._publish_once(BalloonNotFreed(self._vm, over))
        return over

    # --- reasons against a larger balloon -----------------------------------------------------

    def against_more(self, level: int) -> Reason | None:
        """Why the guest should not be asked for more just now; None: it may be.

        Args:
            level: how many steps the policy has let its balloon grow; at 0 the balloon is empty,
                and earlier findings against the guest are dropped.
        """
        if level == 0:
            self._gain.start_anew()
            self._holding = False
        # ``_holding``: the memory files were found to hold what the balloon has taken from the
        # guest. Measure again: the cause, such as a snapshot that reads freed pages back in, may
        # be over.
        self._holding = self._holding and self.not_freed_bytes() > 0
        if self._holding or self._gain.fruitless:
            return Reason.FRUITLESS
        files = self._files.uses()
        for device in {file.identity[0] for file in files if file.limit_bytes is not None}:
            there = [file for file in files if file.identity[0] == device]
            missing = sum(file.size_bytes - file.held_bytes for file in there)
            if missing > there[0].free_bytes:
                return Reason.NO_ROOM
        return None

    def _publish_once(self, event: _Once) -> None:
        if type(event) not in self._published:
            self._published.add(type(event))
            self._publish(event)


def _news(vm: VmId, regions: list[Region]) -> Iterator[MemoryEvent]:
    """The kinds of a VM's memory, and the troubles to expect with it."""
    freed = [region for region in regions if not region.never_freed]
    files = [region.fd for region in freed if region.fd is not None]
    size = -(-sum(region.description.size_bytes for region in freed) // MIB) * MIB
    # Publish the kind of pages too, because it decides what can be freed: a huge page is freed
    # only as a whole, or after the kernel has split it.
    kinds = frozenset(PageKind(*kind) for kind in pages_of(file.fileno() for file in files))
    if kinds:
        yield MemoryKnown(vm, size, kinds)
    kept = [region for region in regions if region.never_freed]
    for number, region in enumerate(kept[:REGIONS_SAID], 1):
        place, why = region.description, region.never_freed
        others = max(0, len(kept) - REGIONS_SAID) if number == REGIONS_SAID else 0
        yield MemoryNeverFreed(vm, place.size_bytes, place.guest_addr, why, others)
    if not freed:
        yield NothingFreeable(vm)
    elif any(region.page_bytes > PAGE_SIZE for region in freed):
        yield GivesHugePages(vm)
    else:
        yield from _limits_of_files(vm, files)


def _limits_of_files(vm: VmId, files: list[Fd]) -> Iterator[TmpfsLimited]:
    """Warns of a tmpfs with a size limit: other files may take the room that a guest frees."""
    seen = set[int]()
    for file in files:
        use = memory_file_use(file.fileno())
        device = use.identity[0]
        if use.limit_bytes is not None and device not in seen:
            seen.add(device)
            yield TmpfsLimited(vm, use.limit_bytes, use.free_bytes)
