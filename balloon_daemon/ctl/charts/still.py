"""The demonstration as plain lines of text."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from balloon_daemon.ctl.demo.host import Sample
from balloon_daemon.ctl.demo.story import MARGIN_BYTES, Phase, Story, introduction
from balloon_daemon.units import MIB


def in_words(sample: Sample) -> str:
    """One moment as a line."""
    state = "LOW" if sample.is_low else "ok "
    return (
        f"{sample.at_s:5.1f} s  available {sample.available_bytes // MIB:5} MiB {state}  "
        f"margin {MARGIN_BYTES // MIB} MiB  balloon {sample.balloon_bytes // MIB:5} MiB  "
        f"guest holds {sample.guest_bytes // MIB:4} MiB  {sample.phase.value}"
    )


class PlainLines:
    """Prints a line each second, and one at each change of the load's phase."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._next_s = 0.0
        self._phase: Phase | None = None

    def __enter__(self) -> Self:
        print(introduction(self._story), flush=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return

    def show(self, samples: Sequence[Sample]) -> None:
        """Prints the latest sample if a second has passed, or the load's phase has changed."""
        sample = samples[-1]
        if sample.at_s >= self._next_s or sample.phase is not self._phase:
            print(in_words(sample), flush=True)
            self._phase = sample.phase
            self._next_s = int(sample.at_s) + 1.0
