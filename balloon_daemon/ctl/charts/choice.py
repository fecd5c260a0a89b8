"""The chart of a demonstration: a live one in a terminal, or plain lines.

Where rich is not installed, or the output is no terminal, a plain line is printed each second.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from balloon_daemon.ctl.charts.still import PlainLines
from balloon_daemon.ctl.demo.host import Sample
from balloon_daemon.ctl.demo.story import Story


class Chart(Protocol):
    """Shows samples as they come."""

    def show(self, samples: Sequence[Sample]) -> None:
        """Draws the samples so far; called ten times a second with all of them."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def make_chart(story: Story, *, plain: bool) -> Chart:
    """The live chart, or plain lines where it is not wanted or not possible."""
    if not plain:
        try:
            from balloon_daemon.ctl.charts.live import LiveChart
        except ImportError:
            return PlainLines(story)
        return LiveChart(story)
    return PlainLines(story)
