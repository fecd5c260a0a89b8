"""The parameters of a simulated guest: its memory, its programs' load, and its kernel. Pure.

All sizes are MiB and all rates MiB per second, unless a name says otherwise.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a guest's kernel and balloon driver do, whatever its programs do.

    The free memory that a kernel keeps is fitted (``fit``); of the rates, recordings with steps of
    32 MiB/s show only the slow ones.

    Attributes:
        own_mib: the part of the VM's size that its kernel cannot give (the size less MemTotal).
        reserve_mib: free memory that does not count as available (totalreserve_pages).
        low_mib: page cache that does not count as available (the low watermark of all zones).
        keep_mib: free memory that reclaim of page cache keeps free.
        least_mib: free memory that the balloon driver cannot take: its allocations fail below.
        free_rate: how fast the driver inflates from free memory. An assumption: a 2 GiB guest on
            one emulated CPU gave 1 GiB in 2.8 s.
        cold_rate: how fast it inflates from page cache that nobody reads again. An assumption:
            half of ``free_rate``.
        set_rate: how fast it inflates from page cache that is read again and again. An assumption;
            the recordings show that it is more than 32.
        swap_rate: how fast it inflates from anonymous memory that must be swapped out first (zram:
            30).
        deflate_rate: how fast the driver gives pages back when it is told to (350 in 1 s).
        oom_rate: how fast the driver gives pages back to a guest that is out of memory.
        age_s: how old statistics are when the daemon reads them.
        late_s: how old they are while the guest is in need. In the recordings, half of the reports
            in which guest protection found need are 2 s old, the others 1 s.
    """

    own_mib: float = 52.0
    reserve_mib: float = 65.0
    low_mib: float = 58.0
    keep_mib: float = 66.0
    least_mib: float = 48.0
    free_rate: float = 360.0
    cold_rate: float = 180.0
    set_rate: float = 60.0
    swap_rate: float = 30.0
    deflate_rate: float = 350.0
    oom_rate: float = 25.0
    age_s: float = 1.0
    late_s: float = 2.0

    def times(self, factor: float) -> "Kernel":
        """The kernel of a guest that is ``factor`` times as large: the amounts of memory grow by
        the factor, the rates stay."""
        names = ("own_mib", "reserve_mib", "low_mib", "keep_mib", "least_mib")
        return replace(self, **{name: getattr(self, name) * factor for name in names})


@dataclass(frozen=True, slots=True)
class Load:
    """What a guest's programs do.

    Attributes:
        anon_mib: memory of programs and kernel at the start, which only swap can take.
        cache_mib: page cache at the start, the working set included.
        set_mib: the working set: page cache that is read again and again, evenly at random.
        touch_rate: how much of the working set would be read from the disk each second if nothing
            of it were cached.
        disk_rate: what the disk reads at most.
        faults_per_mib: major faults for each MiB of the working set that is read anew.
        stream_rate: how fast programs read files that they do not read again.
        stream_at_s: when this reading begins.
        stream_mib: how much is read so in all; infinity: it does not end.
        grow_mib: how much more memory programs allocate later.
        grow_at_s: when this allocation begins.
        grow_rate: how fast programs wish to allocate it.
        grow_s: for how long programs keep it, from ``grow_at_s`` on; infinity: for good.
        swap_mib: how much swap there is.
        swap_touches: pages a second that would be read from swap if all anonymous memory were
            swapped out; 0: programs never use that memory again.
        works: whether its programs have work that suffers where the kernel is busy.
    """

    anon_mib: float
    cache_mib: float = 0.0
    set_mib: float = 0.0
    touch_rate: float = 0.0
    disk_rate: float = 10.0
    faults_per_mib: float = 0.0
    stream_rate: float = 0.0
    stream_at_s: float = -math.inf
    stream_mib: float = math.inf
    grow_mib: float = 0.0
    grow_at_s: float = 0.0
    grow_rate: float = 50.0
    grow_s: float = math.inf
    swap_mib: float = 0.0
    swap_touches: float = 0.0
    works: bool = False

    def times(self, factor: float) -> "Load":
        """The same load in a guest that is ``factor`` times as large: sizes and rates grow by the
        factor."""
        names = (
            "anon_mib", "cache_mib", "set_mib", "touch_rate", "disk_rate", "stream_rate",
            "stream_mib", "grow_mib", "grow_rate", "swap_mib", "swap_touches",
        )  # fmt: skip
        return replace(self, **{name: getattr(self, name) * factor for name in names})

    def begins(self, at_s: float) -> "Load":
        """The same load; its stream and its growth, if they begin later than the load, begin at
        this time."""
        streams = math.isfinite(self.stream_at_s)
        return replace(
            self,
            stream_at_s=at_s if streams else self.stream_at_s,
            grow_at_s=at_s if self.grow_mib else 0.0,
        )


class Kind(NamedTuple):
    """A guest's parameters, which can be scaled to another size.

    Attributes:
        size_mib: the VM's size.
        kernel: its kernel.
        load: its programs.
    """

    size_mib: float
    kernel: Kernel
    load: Load

    def of_size(self, size_mib: float) -> "Kind":
        """The same kind of guest with another VM size: its kernel and its load grow with it."""
        factor = size_mib / self.size_mib
        return Kind(size_mib, self.kernel.times(factor), self.load.times(factor))
