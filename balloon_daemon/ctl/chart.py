"""What a person sees while the demonstration runs: a live chart, or plain lines.

The chart is drawn by plotext and kept in place by rich, without a thread of its own. Where either
is not installed, or nobody looks at a terminal, there is a line a second.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from balloon_daemon.ctl.demo_host import Sample
from balloon_daemon.ctl.demo_story import MARGIN_BYTES, Phase, Story
from balloon_daemon.units import MIB, format_size

MAX_POINTS = 400
"""More would not be seen in any terminal, and cost time."""


class Chart(Protocol):
    """Shows samples as they come."""

    def show(self, samples: Sequence[Sample]) -> None:
        """Brings what is seen up to date; called ten times a second with all samples."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def make_chart(story: Story, *, plain: bool) -> "PlainLines | LiveChart":
    """The live chart, or plain lines where it is not wanted or not possible."""
    if not plain:
        try:
            return LiveChart(story)
        except ImportError:
            pass
    return PlainLines(story)


def introduction(story: Story) -> str:
    """What is about to be seen, in a person's words."""
    return (
        f"A host of {format_size(story.budget_bytes)} runs a VM of "
        f"{format_size(story.vm_bytes)} and other programs. When less than "
        f"{format_size(MARGIN_BYTES)} are available, balloond takes memory back from the VM, "
        f"{format_size(story.step_bytes)} a step. Its timers run {story.speed:g} times faster "
        f"than ChromeOS's."
    )


def in_words(sample: Sample) -> str:
    """One moment as a line."""
    state = "LOW" if sample.is_low else "ok "
    return (
        f"{sample.at_s:5.1f} s  available {sample.available_bytes // MIB:5} MiB {state}  "
        f"margin {MARGIN_BYTES // MIB} MiB  balloon {sample.balloon_bytes // MIB:5} MiB  "
        f"guest holds {sample.guest_bytes // MIB:4} MiB  {sample.phase.value}"
    )


class PlainLines:
    """A line a second, and one when the load changes its mind."""

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
        """Prints the latest sample if a second has passed."""
        sample = samples[-1]
        if sample.at_s >= self._next_s or sample.phase is not self._phase:
            print(in_words(sample), flush=True)
            self._phase = sample.phase
            self._next_s = int(sample.at_s) + 1.0


class LiveChart:
    """A chart that stays in its place and grows to the right.

    Raises:
        ImportError: rich or plotext is not installed.
    """

    def __init__(self, story: Story) -> None:
        import plotext
        from rich.live import Live

        self._story = story
        self._plotext = plotext
        # Nothing is drawn but when we say so: rich would start a thread to do it by itself.
        self._live = Live(auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, samples: Sequence[Sample]) -> None:
        """Draws everything so far."""
        from rich.console import Group
        from rich.text import Text

        size = self._live.console.size
        last = samples[-1]
        colour = "bold red" if last.is_low else "green"
        picture = self._draw(samples, size.width, max(12, min(30, size.height - 7)))
        self._live.update(
            Group(
                Text(introduction(self._story), style="dim"),
                Text.from_ansi(picture),
                Text(in_words(last), style=colour),
            ),
            refresh=True,
        )

    def _draw(self, samples: Sequence[Sample], width: int, height: int) -> str:
        every = max(1, len(samples) // MAX_POINTS)
        chosen = [*samples[::every], samples[-1]]
        times = [sample.at_s for sample in chosen]
        p = self._plotext
        p.clear_figure()
        p.theme("clear")
        p.plotsize(width, height)
        lines = (
            ("available on the host", "cyan+", [s.available_bytes / MIB for s in chosen]),
            ("margin: below it, low memory", "red+", [MARGIN_BYTES / MIB for _ in chosen]),
            ("balloon", "orange+", [s.balloon_bytes / MIB for s in chosen]),
            ("memory that the guest holds", "green+", [s.guest_bytes / MIB for s in chosen]),
        )
        for label, colour, values in lines:
            p.plot(times, values, label=label, color=colour, marker="braille")
        p.xlim(0, max(20.0, times[-1]))
        p.ylim(0, self._story.budget_bytes * 0.8 / MIB)
        p.xlabel("seconds")
        p.title(f"MiB · {chosen[-1].phase.value}")
        drawn: str = p.build()
        return drawn
