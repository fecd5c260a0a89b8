"""Forks devices from the test's own process, for tests that have changed the device's code.

balloond itself never forks like this: its template is a program of its own, which a test cannot
change.
"""

import os
import signal
from collections.abc import Callable

from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.device.start import become_device
from balloon_daemon.linux import cpython, jail


class ForkedHere:
    """A ``Fork`` from this process, with all that it has in memory.

    Args:
        load_filter: loads a device's seccomp filter, or runs a test's code in its place.
    """

    def __init__(self, load_filter: Callable[[], None]) -> None:
        self.load_filter = load_filter

    def __call__(self, spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int) -> int:
        # Block all signals: until the child has reset its handlers, pytest's would run there.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                jail.reset_signals()
                cpython.run_without_new_arenas(
                    lambda: become_device(spec, tube_fd, stderr_fd, parent, self.load_filter)
                )
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
