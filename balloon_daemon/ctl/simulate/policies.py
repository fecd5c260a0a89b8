"""The interface of a sizing policy in a simulation: balloond's own, or another project's. Pure."""

from collections.abc import Callable
from typing import Protocol

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.host_events import Event, HostStep
from balloon_daemon.units import VmId


class Policy(Protocol):
    """Decides how big each balloon should be: what a simulation uses of ``HostPolicy``."""

    def step(self, event: Event, now_s: float) -> HostStep:
        """Handles one event, as ``HostPolicy.step`` does.

        Args:
            event: the event.
            now_s: the clock, in seconds; only its differences between calls matter.
        """
        ...

    def note_actual(self, vm: VmId, actual_bytes: int) -> None:
        """Notes the size of the balloon of a VM that is not careful; decides nothing."""
        ...


class MakePolicy(Protocol):
    """Makes a policy for one run of a simulation."""

    def __call__(
        self, settings: PolicySettings, draw: Callable[[], float], host_mib: int
    ) -> Policy:
        """Makes a policy that governs no VM yet.

        Args:
            settings: the numbers of ChromeOS's balloon policy.
            draw: gives a uniform number of [0, 1).
            host_mib: all memory of the host, in MiB; other rules than balloond's go by it.
        """
        ...
