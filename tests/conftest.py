"""How Hypothesis runs here and what signals do, whichever folder or file is run alone."""

import os
import signal
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

from balloon_daemon.guests.driven.lookups import LOOKUPS
from balloon_daemon.guests.driven.memory_files import MEMORY_FILES
from balloon_daemon.linux import figures
from balloon_daemon.linux.reading_child import APART
from tests.harness.kept_figures import close_figures
from tests.harness.needs import judge_skip
from tests.harness.waiting import wait_until

# A deadline for each example measures how busy the machine is. The folders' budgets are a second
# a test and less, and what would break them is the number of examples, which each test states.
settings.register_profile("balloond", deadline=None)
settings.load_profile("balloond")

# Whoever runs the tests by nohup or in a script's background has these ignored, and so would have
# every process that they start, some of which are to be interrupted. One that is handled is not
# inherited, and a handler that does nothing ignores it here all the same.
for _number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.fixture(autouse=True)
def _no_figures_kept() -> Iterator[None]:
    """Closes files of figures after each test: each test has other ones, and all the numbers that
    `LowNumbers` occupies would be taken by them."""
    yield
    close_figures()
    wait_until(_closes_are_over, what="the child that closes such files ends")


def _closes_are_over() -> bool:
    """Whether no child closes files of figures any more, which one does where closes have taken
    long, as on a machine with much else to do: tests look for children that are left."""
    figures._CLOSES.close_left()
    return figures._CLOSES._child is None


@pytest.fixture(autouse=True)
def _nobody_reads() -> Iterator[None]:
    """Ends the child that reads files in /proc after each test."""
    yield
    wait_until(APART.close, what="children that read files in /proc end")


@pytest.fixture(autouse=True)
def _nobody_looks_up() -> Iterator[None]:
    """Ends the children that look paths up after each test, and frees the numbers that they were
    forked with: `close_figures` says why."""
    yield
    wait_until(LOOKUPS.close, what="children that look paths up end")
    wait_until(MEMORY_FILES.close, what="the child that measures files ends")
    for forks in (LOOKUPS, MEMORY_FILES):
        if forks.low is not None:
            forks.low.close()
            forks.low = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--allow-skips",
        action="store_true",
        default=os.geteuid() != 0,
        help="let tests be skipped for any reason, as where an ordinary user runs them",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not item.config.getoption("--allow-skips"):
        judge_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield  # A module may skip itself, which no report of a test tells.
    if not collector.config.getoption("--allow-skips"):
        judge_skip(report)
    return report
