"""Target: buffers of PFNs, and the runs that the device makes of them.

Most are what guests send, 256 in a row, with a few bytes changed: there a shortcut that compares
whole buffers must not take an odd one for a run.
"""

from balloon_daemon.device.reclaim import coalesce, runs_of
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import require

USUAL = 256


def run(data: bytes) -> None:
    """One buffer."""
    choices = Choices(data)
    content = bytearray(_row(choices) if choices.chance(200) else choices.rest())
    for _ in range(choices.below(4)):
        if content and choices:
            at = choices.below(len(content))
            content[at] = choices.number(1)
    content = content[: len(content) // 4 * 4]
    if not content:
        return
    pfns = [int.from_bytes(content[at : at + 4], "little") for at in range(0, len(content), 4)]
    for runs in (runs_of(bytes(content)), coalesce(list(pfns))):
        seen: set[int] = set()
        end = -1
        for first, count in zip(*runs, strict=True):
            require(first > end and count > 0, "runs touch, overlap or go back", runs)
            end = first + count
            seen.update(range(first, end))
        require(seen == set(pfns), "other pages than the buffer's", runs, pfns)


def _row(choices: Choices) -> bytes:
    first, step = choices.wide(4), choices.pick((-1, 1, 0, 2))
    count = USUAL if choices.chance(200) else choices.below(USUAL)
    return b"".join(
        (first + step * place & 0xFFFF_FFFF).to_bytes(4, "little") for place in range(count)
    )
