"""Finds the load and the kernel that a recording shows. Pure.

Sizes, rates and times are taken directly from the recording. How large the working set is, and how
fast it is touched, can be seen only from their joint effect on disk reads. So the model is run
with all combinations of some values, and the one with the least error (``_missed``) is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from balloon_daemon.ctl.simulate.load import Kernel, Kind, Load
from balloon_daemon.ctl.simulate.recording import PAGES_MIB, Recording
from balloon_daemon.ctl.simulate.rerun import rerun

SETS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Working sets that are tried, as shares of the page cache."""

TOUCHES = tuple(round(4 * 1.3**power, 1) for power in range(18))
"""The rates of touching a working set that are tried, in MiB a second: 4 to 346."""

READS = 0.5
"""A guest that reads fewer MiB a second than this counts as reading nothing."""

REFAULTED_MIB = 4.0
"""A guest whose refaults (page cache that was dropped and is read again) add up to less than this
has lost nothing of its working set."""

DISKS = (0.5, 0.6, 0.75, 1.0)
"""The disk's greatest rates that are tried, as shares of its rate when it was busiest: pages that
are read one by one come slower than files."""

LOST_MIB = 200.0
"""The weight of lost time in the error of a fit: a second that the model's guest loses and the
recorded one does not counts like an error of this many MiB."""

GREW = 1 / 16
"""Programs whose memory grew by less than this share of the VM have not grown."""


def fit(recording: Recording) -> Kind:
    """The kind of guest that was recorded."""
    size, kernel = _kernel(recording)
    load = _streams(recording, _programs(recording))
    if not load.stream_rate or load.stream_at_s > 0:
        # What was read while the guest settled is cached when the squeeze begins.
        before = sum(time < 0 for time in recording.times)
        load = replace(load, cache_mib=recording["caches_mib"][max(0, before - 1)])
    kind = Kind(size, kernel, _grows(recording, load, size))
    if _total(recording.rates("in_refault_file"), recording) / PAGES_MIB > REFAULTED_MIB:
        kind = _with_set(recording, kind)
    if recording.has("swap_out") and _last(recording["swap_out"]) > 0:
        kind = _with_swap(recording, kind)
    return kind


# --- what is taken directly from a recording ----------------------------------------------------


def _kernel(recording: Recording) -> tuple[float, Kernel]:
    total = max(recording["total_mib"])
    grain = 128 if total < 1024 else 512
    size = math.ceil((total + 8) / grain) * grain
    share = size / 1024
    default = Kernel().times(share)
    free, cache = recording["free_mib"], recording["caches_mib"]
    rows = list(zip(free, cache, recording["available_mib"], strict=True))
    small = [f + c / 2 - a for f, c, a in rows if a > 0 and c < 20 * share]
    large = [f + c - a for f, c, a in rows if a > 0 and c > 200 * share]
    reserve = median(small) if small else default.reserve_mib
    low = default.low_mib
    if large and small:
        low = median(large) - reserve
    elif large:
        reserve = median(large) * default.reserve_mib / (default.reserve_mib + default.low_mib)
        low = median(large) - reserve
    little = [(f, c) for f, c, _ in rows if f < 0.1 * size]
    keeps = [f for f, c in little if c > 100 * share]
    least = [f for f, c in little if c < 50 * share]
    kernel = replace(
        default,
        own_mib=size - total,
        reserve_mib=round(reserve, 1),
        low_mib=round(low, 1),
        keep_mib=median(keeps) if len(keeps) > 5 else default.keep_mib,
        least_mib=median(least) if len(least) > 5 else default.least_mib,
    )
    return size, kernel


def _programs(recording: Recording) -> Load:
    worked = recording.has("in_work") and _last(recording["in_work"]) > 0
    return Load(
        median(_anon(recording)[:4]),
        cache_mib=recording["caches_mib"][0],
        works=worked,
    )


def _streams(recording: Recording, load: Load) -> Load:
    """Adds to the load what programs read once: all disk reads that were no refaults."""
    refaults = recording.rates("in_refault_file")
    reads = [
        max(0.0, kib / 1024 - pages / PAGES_MIB)
        for kib, pages in zip(recording.rates("disk_read_kib"), refaults, strict=True)
    ]
    rates = _smooth(reads)
    rows = [row for row, rate in enumerate(rates) if rate > READS]
    if len(rows) < 5 or sum(refaults) / PAGES_MIB > sum(reads):
        return load
    ended = rows[-1] < len(rates) - 4
    begins = recording.times[rows[0]] if rows[0] > 4 else -math.inf
    return replace(
        load,
        stream_rate=round(median(reads[row] for row in rows), 1),
        stream_at_s=begins,
        stream_mib=round(_total(reads, recording)) if ended else math.inf,
    )


def _grows(recording: Recording, load: Load, size_mib: float) -> Load:
    """Adds to the load what programs have allocated since the squeeze began (time 0, at which the
    balloon begins to grow)."""
    wanted = _smooth(_anon(recording), 3)
    if recording.has("swap_out") and _last(recording["swap_out"]) > 0:
        return load  # zram's own memory would be taken for memory of programs.
    most = sorted(wanted)[-5]  # The four largest values may be noise.
    more = most - load.anon_mib
    if more < GREW * size_mib:
        return load
    after = [row for row, mib in enumerate(wanted) if mib > most - 0.1 * more]
    before = [row for row in range(after[0]) if wanted[row] < load.anon_mib + 0.1 * more]
    begins = recording.times[before[-1] if before else 0]
    kept = after[-1] > len(wanted) - 4
    pairs = zip(wanted, wanted[2:], recording.times, recording.times[2:], strict=False)
    rate = max((then - mib) / (to_s - from_s) for mib, then, from_s, to_s in pairs)
    return replace(
        load,
        grow_mib=round(more),
        grow_at_s=begins,
        grow_rate=round(rate, 1),
        grow_s=math.inf if kept else recording.times[after[-1]] - begins,
    )


# --- what is found by running the model ---------------------------------------------------------


def _with_set(recording: Recording, kind: Kind) -> Kind:
    """Adds to the load the working set with which the model is nearest to the recording."""
    refaulted = _total(recording.rates("in_refault_file"), recording) / PAGES_MIB
    faults = _last(recording["major_faults"]) - recording["major_faults"][0]
    reads = _means([kib / 1024 for kib in recording.rates("disk_read_kib")])
    busy = sorted(rate for rate in reads if rate > READS) or [1.0]
    disk = busy[len(busy) * 9 // 10]
    base = replace(
        kind.load,
        faults_per_mib=round(max(0.0, faults) / refaulted, 2),
        works=True,
    )
    cache = max(kind.load.cache_mib, 1.0)
    tries = [
        kind._replace(
            load=replace(
                base,
                set_mib=round(cache * share, 1),
                touch_rate=touch,
                disk_rate=round(disk * of_disk, 1),
            )
        )
        for share in SETS
        for touch in TOUCHES
        for of_disk in DISKS
    ]
    return min(tries, key=lambda each: _missed(recording, each))


def _missed(recording: Recording, kind: Kind) -> float:
    """The error of a fit: the sum, over all lines of the recording, of the model's errors in what
    was read (MiB), in the page cache (MiB) and in the share of time lost (by ``LOST_MIB``)."""
    rows = rerun(recording, kind)
    reads, cache = recording["disk_read_kib"], recording["caches_mib"]
    lost = _means([ms / 1000 for ms in recording.rates("in_psi_some_ms")])
    return sum(
        abs(row.read_mib - (kib - reads[0]) / 1024)
        + abs(row.cache_mib - mib)
        + LOST_MIB * abs(row.stall - share)
        for row, kib, mib, share in zip(rows, reads, cache, lost, strict=True)
    )


def _with_swap(recording: Recording, kind: Kind) -> Kind:
    """Adds swap, a quarter more than was swapped out, touched so often that the model reads as
    much from it as the recorded guest did."""
    anon = _anon(recording)
    out = max(0.0, kind.load.anon_mib - min(anon))
    pages = _last(recording["swap_in"])
    used = pages > 16 * len(recording.times) / 4
    load = replace(kind.load, swap_mib=round(1.25 * out, 1), swap_touches=1000.0 if used else 0.0)
    kind = kind._replace(load=load)
    if not used:
        return kind
    got = rerun(recording, kind)[-1].swapped_in
    touches = round(1000 * pages / got) if got > 1 else 1000
    return kind._replace(load=replace(load, swap_touches=float(touches)))


# --- arithmetic ---------------------------------------------------------------------------------


def _anon(recording: Recording) -> list[float]:
    """The guest's memory that is neither free nor page cache nor in the balloon, in MiB, line by
    line."""
    total = max(recording["total_mib"])
    columns = (recording[name] for name in ("free_mib", "caches_mib", "balloon_mib"))
    return [total - sum(each) for each in zip(*columns, strict=True)]


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if not math.isnan(value)), 0.0)


def _total(rates: Sequence[float], recording: Recording) -> float:
    spans = zip(recording.times, recording.times[1:], rates[1:], strict=False)
    return sum((to_s - from_s) * rate for from_s, to_s, rate in spans)


def _means(values: Sequence[float]) -> list[float]:
    """The moving mean: of each value and its two neighbours."""
    threes = (values[max(0, at - 1) : at + 2] for at in range(len(values)))
    return [sum(three) / len(three) for three in threes]


def _smooth(values: Sequence[float], width: int = 3) -> list[float]:
    """The moving median of ``width`` values."""
    half = width // 2
    return [median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]
