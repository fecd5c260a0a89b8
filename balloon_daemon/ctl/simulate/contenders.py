"""The policies that are judged: each profile of balloond, and other projects' rules. Pure."""

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
        make: makes it.
        profile: the profile of all VMs that it governs.
        margins: the margin that the policy is told, in multiples of the host's. Low memory is
            scored by the host's own margin: a policy that is told a larger one takes memory
            earlier.
    """

    name: str
    make: MakePolicy
    profile: Profile
    margins: float = 1.0


def host_policy(settings: PolicySettings, draw: Callable[[], float], host_mib: int) -> HostPolicy:
    """The daemon's own policy; it goes by the margin alone, not by the host's size."""
    del host_mib
    return HostPolicy(settings, draw, lambda vm, level: None)


def contenders() -> list[Contender]:
    """All policies, balloond's profiles first. Other projects' rules (peers) run with the profile
    careful, so that they are told what guests report."""
    # Imported here: balloonctl loads this module at each start, and peers are for comparisons.
    from balloon_daemon.ctl.simulate.peers.table import PEERS

    ours = [Contender(profile.value, host_policy, profile) for profile in Profile]
    return ours + [Contender(name, make, Profile.CAREFUL) for name, make in PEERS.items()]


def trade_off() -> list[Contender]:
    """Our profiles, each told larger and larger margins."""
    return [
        Contender(f"{profile.value}, margin x {margins:g}", host_policy, profile, margins)
        for profile in Profile
        for margins in (1.0, 1.5, 2.0)
    ]
