"""The sizing policies that ``judge`` compares: each profile of balloond, and other projects'
rules. Pure."""

from collections.abc import Callable
from typing import NamedTuple

from balloon_daemon.ctl.simulate.policies import MakePolicy
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.vm_settings import Profile


class Contender(NamedTuple):
    """A policy that is judged.

    Attributes:
        name: its name.
        make: makes the policy for one run.
        profile: the profile of all VMs that the policy governs.
        margins: the margin in the readings that the policy gets, in multiples of the host's. With
            a larger margin the policy takes memory earlier. How long memory was low is scored by
            the host's own margin.
    """

    name: str
    make: MakePolicy
    profile: Profile
    margins: float = 1.0


def host_policy(settings: PolicySettings, draw: Callable[[], float], host_mib: int) -> HostPolicy:
    """balloond's own sizing policy, which uses only the margin: ``host_mib`` is ignored."""
    del host_mib
    return HostPolicy(settings, draw, lambda vm, level: None)


def contenders() -> list[Contender]:
    """All policies, balloond's profiles first. For other projects' rules (peers) the VMs have the
    profile careful, because the simulation gives guests' statistics only to such VMs' policies."""
    # Imported here: balloonctl loads this module at each start, and peers are for comparisons.
    from balloon_daemon.ctl.simulate.peers.table import PEERS

    ours = [Contender(profile.value, host_policy, profile) for profile in Profile]
    return ours + [Contender(name, make, Profile.CAREFUL) for name, make in PEERS.items()]


def trade_off() -> list[Contender]:
    """balloond's profiles, each with larger and larger margins in the readings that it gets."""
    return [
        Contender(f"{profile.value}, margin x {margins:g}", host_policy, profile, margins)
        for profile in Profile
        for margins in (1.0, 1.5, 2.0)
    ]
