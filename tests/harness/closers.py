"""A controller's children that close descriptors for it."""

import psutil

from balloon_daemon.linux.closing_child import NAME
from tests.harness.daemon import Daemon


def closers(daemon: Daemon) -> list[psutil.Process]:
    """Those that there are now, at work or idle."""
    try:
        return [p for p in psutil.Process(daemon.pid).children() if p.name() == NAME]
    except psutil.NoSuchProcess:
        return closers(daemon)  # One has just ended.
