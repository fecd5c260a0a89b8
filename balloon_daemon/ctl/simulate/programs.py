"""The programs of a simulated guest: which memory they use, and how long they wait. Pure."""

from collections.abc import Callable

from balloon_daemon.ctl.simulate.load import Load
from balloon_daemon.ctl.simulate.memory import Memory
from balloon_daemon.units import MIB, PAGE_SIZE

WAITING = 0.15
"""The share of its time that a guest waits whose refaults just saturate its disk. It is less than
1 because requests of several tasks overlap. Chosen by hand to fit the in_psi_some_ms of some
recordings."""

SWAP_INS = 20_000.0
"""Pages a second that a guest can read from zram; 600 of them cost it 3 % in the recordings."""

LEAST_SHARE = 0.1
"""The least share of the disk's rate that refaults get, even while a stream uses all of it."""

PAGES = MIB // PAGE_SIZE


class Programs:
    """One guest's programs. Each method simulates one of their activities for some time, and
    returns the share of that time that they lost by waiting for memory.

    Args:
        load: what the programs do.
        memory: the guest's memory.
    """

    def __init__(self, load: Load, memory: Memory) -> None:
        self._load, self._memory = load, memory
        self.read_mib = self.major_faults = self.swapped_in = 0.0
        """Counters: MiB read from the disk, major page faults, pages read from swap."""
        self.oom_kills = 0
        self._grown_mib = self._streamed_mib = self._stream_rate = 0.0

    @property
    def can_lose(self) -> bool:
        """Whether any program works, and so loses time while the guest's kernel is busy with the
        balloon."""
        return self._load.works or self._grown_mib > 0

    def grow(self, now_s: float, seconds: float, out_of_memory: Callable[[float], float]) -> float:
        """Simulates allocations.

        Args:
            now_s: the time at the end.
            seconds: how much time passes.
            out_of_memory: called with how many MiB the guest lacks; takes memory out of the
                balloon, and returns how many MiB.
        """
        load, memory, since_s = self._load, self._memory, now_s - self._load.grow_at_s
        if not load.grow_mib or since_s <= 0 or self.oom_kills:
            return 0.0
        if since_s >= load.grow_s:
            self._shrink()
            return 0.0
        want = min(load.grow_mib, load.grow_rate * since_s) - self._grown_mib
        want = min(want, load.grow_rate * seconds)
        if want <= 0:
            return 0.0
        got = memory.obtain(want, seconds)
        if got < want:
            back = out_of_memory(want - got)
            memory.untouched_mib -= back  # Programs use what the balloon gave back at once.
            got += back
            if not back and not memory.can_reclaim:
                self.oom_kills += 1
                self._shrink()
                return 1.0
        memory.anon_mib += got
        self._grown_mib += got
        return 1 - got / want

    def stream(self, now_s: float, seconds: float) -> float:
        """Simulates reading files once: they fill free memory as page cache; without free memory
        they replace page cache of the same kind."""
        load = self._load
        self._stream_rate = 0.0
        if not load.stream_rate or now_s < load.stream_at_s:
            return 0.0
        read = min(load.stream_rate * seconds, load.stream_mib - self._streamed_mib)
        self._streamed_mib += read
        self.read_mib += read
        self._stream_rate = read / seconds
        self._memory.cold_mib += self._memory.fill(read)
        return 0.0

    def refault(self, seconds: float) -> float:
        """Simulates reading again those parts of the working set that the kernel has dropped."""
        load, memory = self._load, self._memory
        missing = load.set_mib - memory.set_mib
        if missing <= 0 or not load.touch_rate:
            return 0.0
        wish = load.touch_rate * missing / load.set_mib
        most = max(load.disk_rate * LEAST_SHARE, load.disk_rate - self._stream_rate)
        read = min(wish, most) * seconds
        self.read_mib += read
        self.major_faults += read * load.faults_per_mib
        # Without free memory, what is read takes the place of cold page cache, or else of another
        # part of the working set.
        fresh = memory.fill(min(read, missing))
        memory.set_mib += fresh + memory.drop_cold(min(read, missing) - fresh)
        busy = wish / most
        return WAITING * busy if busy <= 1 else 1 - (1 - WAITING) / busy

    def swap_in(self, seconds: float) -> float:
        """Simulates reading used anonymous memory back from swap."""
        load, memory = self._load, self._memory
        if not memory.swapped_mib or not load.swap_touches:
            return 0.0
        share = memory.swapped_mib / (memory.anon_mib + memory.swapped_mib)
        rate = min(load.swap_touches * share, SWAP_INS)
        self.swapped_in += rate * seconds
        self.major_faults += rate * seconds
        # Without free memory, as much is swapped out as is swapped in.
        fresh = memory.fill(min(rate * seconds / PAGES, memory.swapped_mib))
        memory.anon_mib += fresh
        memory.swapped_mib -= fresh
        return rate / SWAP_INS

    def _shrink(self) -> None:
        memory = self._memory
        memory.anon_mib -= min(self._grown_mib, memory.anon_mib)
        self._grown_mib = 0.0
