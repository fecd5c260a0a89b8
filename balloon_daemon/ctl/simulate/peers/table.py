"""All peers, by their names. Pure."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from balloon_daemon.ctl.simulate.peers.crosvm import BalanceAvailable
from balloon_daemon.ctl.simulate.peers.mom import Mom
from balloon_daemon.ctl.simulate.peers.peer import Host, Peer, PeerVm, Rule
from balloon_daemon.ctl.simulate.peers.pi import ProportionalIntegral
from balloon_daemon.ctl.simulate.peers.proxmox import Proxmox
from balloon_daemon.ctl.simulate.peers.squeezed import Squeezed
from balloon_daemon.ctl.simulate.peers.vmmms import Vmmms
from balloon_daemon.ctl.simulate.policies import MakePolicy, Policy
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.units import VmId


class NoBalloon:
    """No balloon at all: each balloon that a VM has is emptied, and none grows."""

    watch_s: ClassVar[float | None] = None
    period_s: ClassVar[float] = 1.0

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Empties each balloon."""
        return dict.fromkeys(vms, 0)


def _peer(rule: Callable[[], Rule]) -> MakePolicy:
    def make(settings: PolicySettings, draw: Callable[[], float], host_mib: int) -> Policy:
        return Peer(rule(), draw, host_mib)

    return make


PEERS: Mapping[str, MakePolicy] = {
    "none": _peer(NoBalloon),
    "proxmox": _peer(Proxmox),
    "mom": _peer(Mom),
    "squeezed": _peer(Squeezed),
    "crosvm-2020": _peer(BalanceAvailable),
    "pi": _peer(ProportionalIntegral),
    "vmmms": _peer(Vmmms),
}
"""For each peer's name, the function that makes its policy for one run."""
