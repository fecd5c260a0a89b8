"""The errors of the model: compares recorded guests with their models. Pure."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from balloon_daemon.ctl.simulate.live_guest import IN_NEED
from balloon_daemon.ctl.simulate.load import Kind
from balloon_daemon.ctl.simulate.recording import Recording
from balloon_daemon.ctl.simulate.rerun import rerun
from balloon_daemon.sizing.need import Figures, NeedRule
from balloon_daemon.units import MIB, PAGE_SIZE


class Error(NamedTuple):
    """The errors of one figure over a recording, in MiB: their median, and the 90th percentile."""

    median: float
    most: float


class Off(NamedTuple):
    """The errors of the model of one recording.

    Attributes:
        name: the recording's name.
        balloon: the errors of the balloon's size.
        available: the errors of available memory.
        free: the errors of free memory.
        read: the errors of how much was read from disks.
        lost: the seconds lost by waiting for memory: in the recorded guest by
            /proc/pressure/memory, and in the model by its ``stall``.
        need_at_s: when the guest first lost more than a tenth of its time, in the recording and in
            the model; None: never.
        seen_at_s: when balloond's rule first finds need, from the recording's statistics and from
            the model's; None: never.
    """

    name: str
    balloon: Error
    available: Error
    free: Error
    read: Error
    lost: tuple[float, float]
    need_at_s: tuple[float | None, float | None]
    seen_at_s: tuple[float | None, float | None]


def off(recording: Recording, kind: Kind) -> Off:
    """Compares a recording with a kind of guest that gets the same targets."""
    rows = rerun(recording, kind)
    read = recording["disk_read_kib"]
    seconds = [ms / 1000 for ms in recording.rates("in_psi_some_ms")]
    stalls = [row.stall for row in rows]
    squeezed = [target > 0 for target in recording["target_mib"]]
    size = int(kind.size_mib) * MIB
    return Off(
        recording.name,
        _error([row.balloon_mib for row in rows], recording["balloon_mib"]),
        _error([row.available_mib for row in rows], recording["available_mib"]),
        _error([row.free_mib for row in rows], recording["free_mib"]),
        _error([row.read_mib for row in rows], [(kib - read[0]) / 1024 for kib in read]),
        (sum(seconds), sum(stalls)),
        (_onset(recording.times, seconds), _onset(recording.times, stalls)),
        (
            _seen(recording.times, figures_of(recording), squeezed, size),
            _seen(recording.times, [row.figures for row in rows], squeezed, size),
        ),
    )


def crossed(recordings: Sequence[Recording], kinds: Mapping[str, Kind]) -> list[Off]:
    """The errors of models that were fitted to a recording of the same load under another kernel;
    for each recording whose load (the name after its first dash) another recording has, too."""
    by_load: dict[str, list[Recording]] = {}
    for each in recordings:
        if each.name in kinds:
            by_load.setdefault(each.name.partition("-")[2], []).append(each)
    return [
        off(each, kinds[other.name])
        for twins in by_load.values()
        for each in twins
        for other in twins
        if other is not each
    ]


def figures_of(recording: Recording) -> list[Figures | None]:
    """The statistics that balloond had at each time of the recording."""

    def whole(name: str, unit: int, row: int) -> int | None:
        value = recording[name][row]
        return None if value != value else int(value * unit)  # NaN equals nothing.

    return [
        Figures(
            time - (recording["age_s"][row] if recording.has("age_s") else 1.0),
            whole("available_mib", MIB, row),
            whole("free_mib", MIB, row),
            whole("swap_in", PAGE_SIZE, row),
            whole("major_faults", 1, row),
            whole("oom_kills", 1, row),
            whole("disk_read_kib", 1024, row),
        )
        for row, time in enumerate(recording.times)
    ]


def lines(all_off: Sequence[Off]) -> list[str]:
    """A table: a recording in each line."""
    head = [
        "MiB, median/90 %",
        "balloon",
        "avail.",
        "free",
        "read",
        "lost s",
        "need at",
        "seen at",
    ]
    rows = [head, *(_cells(each) for each in all_off)]
    if len(all_off) > 1:
        rows.append(["all"] + [""] * (len(head) - 1))
        for column, name in enumerate(("balloon", "available", "free", "read"), 1):
            errors = [getattr(each, name) for each in all_off]
            both = (fmean(e.median for e in errors), fmean(e.most for e in errors))
            rows[-1][column] = _pair(*both)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [first.ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        ).rstrip()
        for first, *cells in rows
    ]


def _cells(each: Off) -> list[str]:
    errors = [each.balloon, each.available, each.free, each.read]
    return [
        each.name,
        *(_pair(*error) for error in errors),
        _pair(*each.lost),
        *("/".join("-" if t is None else f"{t:.0f}" for t in two)
          for two in (each.need_at_s, each.seen_at_s)),
    ]  # fmt: skip


def _pair(one: float, other: float) -> str:
    return f"{one:.0f}/{other:.0f}"


def _error(model: Sequence[float], real: Sequence[float]) -> Error:
    known = sorted(abs(a - b) for a, b in zip(model, real, strict=True) if b == b)
    if not known:
        return Error(0.0, 0.0)
    return Error(known[len(known) // 2], known[(len(known) - 1) * 9 // 10])


def _onset(times: Sequence[float], lost: Sequence[float]) -> float | None:
    """When the mean of three values of ``lost`` first exceeds ``IN_NEED``."""
    for row, time in enumerate(times):
        three = lost[max(0, row - 1) : row + 2]
        if time >= 0 and sum(three) / len(three) > IN_NEED:
            return time
    return None


def _seen(
    times: Sequence[float],
    figures: Sequence[Figures | None],
    squeezed: Sequence[bool],
    size_bytes: int,
) -> float | None:
    rule = NeedRule()
    for time, each, is_squeezed in zip(times, figures, squeezed, strict=True):
        if each is not None:
            rule.take(each, squeezed=is_squeezed)
        if time >= 0 and rule.signs(time, size_bytes, stuck=False):
            return time
    return None
