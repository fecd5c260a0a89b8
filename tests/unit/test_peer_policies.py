"""Other projects' rules as policies: each against an example worked out by hand from its rule."""

import pytest

from balloon_daemon.ctl.simulate.peers.table import PEERS
from balloon_daemon.ctl.simulate.peers.vmmms import HOST, LOWEST, STALL, Blocks, Way
from balloon_daemon.errors import StateError
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Halted,
    HostStep,
    Looked,
    Moved,
    Paused,
    Ran,
    Removed,
    Resized,
    Sampled,
    Seen,
    SettingsChanged,
    Watch,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, VmId

WEB, DB = VmId(1, "web"), VmId(2, "db")
HOST_MIB = 10_000
MARGIN_MIB = 500


class Run:
    """A peer on a host of 10,000 MiB with a margin of 500 MiB; sizes are in MiB."""

    def __init__(self, peer: str) -> None:
        self.policy = PEERS[peer](PolicySettings(), lambda: 0.0, HOST_MIB)
        self.now_s = 0.0
        self.wake_at_s: float | None = None
        self.watches: tuple[Watch, ...] = ()

    def step(self, event: Event) -> dict[VmId, float]:
        """The targets of a step."""
        step: HostStep = self.policy.step(event, self.now_s)
        assert step.decisions == ()
        assert not step.listen
        self.wake_at_s = step.wake_at_s
        self.watches += step.watches
        return {vm: target_bytes / MIB for vm, target_bytes in step.targets}

    def add(self, vm: VmId, memory_mib: int, balloon_mib: int = 0, floor_mib: int = 0) -> None:
        settings = VmSettings(floor_bytes=floor_mib * MIB)
        self.step(Added(vm, memory_mib * MIB, balloon_mib * MIB, Terms(settings)))

    def sample(self, vm: VmId, free_mib: int, available_mib: int | None = None) -> None:
        available = free_mib if available_mib is None else available_mib
        self.step(Sampled(vm, Figures(self.now_s, available * MIB, free_mib * MIB)))

    def seen(self, seen: Seen) -> dict[VmId, float]:
        """The targets of the next round, for which the clock moves on."""
        assert self.wake_at_s is not None
        self.now_s = max(self.now_s, self.wake_at_s)
        return self.step(Woke(seen))

    def round(self, available_mib: int) -> dict[VmId, float]:
        return self.seen(Reading(available_mib, MARGIN_MIB))


# --- what all have in common ------------------------------------------------------------------


@pytest.mark.parametrize("peer", PEERS)
def test_nothing_is_decided_without_the_hosts_figures(peer: str) -> None:
    run = Run(peer)
    run.add(WEB, 4096)
    run.sample(WEB, 3000)
    for seen in (None, NeverLow("switched off")):
        assert run.seen(seen) == {}
    assert run.wake_at_s is not None
    assert run.wake_at_s > run.now_s


@pytest.mark.parametrize("peer", PEERS)
def test_nothing_is_decided_between_rounds_and_after_the_end(peer: str) -> None:
    run = Run(peer)
    run.add(WEB, 4096)
    run.sample(WEB, 3000)
    run.round(0)
    low = Reading(0, MARGIN_MIB)
    assert run.step(Woke(low)) == run.step(Looked(low)) == run.step(Paused((), 5.0)) == {}
    run.step(Halted())
    run.now_s += 60.0
    assert run.step(Woke(low)) == {}
    assert run.wake_at_s is None


@pytest.mark.parametrize("peer", PEERS)
def test_balloon_above_new_limits_shrinks_to_them(peer: str) -> None:
    run = Run(peer)
    # The seed's maximum is all but 1 GiB.
    assert run.step(Added(WEB, 4 * GIB, 4 * GIB)) == {WEB: 3072}
    run.step(Moved(WEB, 3 * GIB))
    assert run.step(Resized(WEB, 3 * GIB)) == {WEB: 2048}
    run.step(Moved(WEB, 2 * GIB))
    assert run.step(SettingsChanged(WEB, VmSettings(floor_bytes=2 * GIB))) == {WEB: 1024}
    run.step(Moved(WEB, GIB))
    assert run.step(SettingsChanged(WEB, VmSettings(ceiling_bytes=0))) == {WEB: 0}


@pytest.mark.parametrize("peer", PEERS)
def test_event_about_an_unknown_vm_is_refused(peer: str) -> None:
    run = Run(peer)
    run.add(WEB, 4096)
    unknown: list[Event] = [Removed(DB), Moved(DB, 0), Sampled(DB, Figures(0.0)), Ran(DB, True)]
    for event in [*unknown, Added(WEB, GIB)]:
        with pytest.raises(StateError):
            run.step(event)
    run.step(Removed(WEB))
    run.add(WEB, 4096)


def test_first_round_is_at_the_drawn_share_of_a_period() -> None:
    policy = PEERS["proxmox"](PolicySettings(), lambda: 0.3, HOST_MIB)
    assert policy.step(Added(WEB, GIB), 100.0).wake_at_s == 103.0
    assert policy.step(Woke(Reading(1, 1)), 103.0).wake_at_s == 113.0


@pytest.mark.parametrize(
    ("peer", "every_s"),
    [("none", None), ("proxmox", 2), ("mom", 5), ("squeezed", None), ("pi", 5), ("vmmms", 1)],
)
def test_statistics_are_asked_for_at_the_peers_own_period(
    peer: str, every_s: float | None
) -> None:
    run = Run(peer)
    run.add(WEB, 4096)
    run.step(Added(DB, GIB, terms=Terms(sends_stats=False)))
    assert run.watches == (() if every_s is None else (Watch(WEB, every_s),))


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer != "none"])
def test_vm_whose_guest_does_not_run_is_left_alone(peer: str) -> None:
    run = Run(peer)
    run.add(WEB, 8000)
    run.step(Ran(WEB, runs=False))
    for _ in range(3):
        run.sample(WEB, 7000)
        assert run.round(100) == {}
    run.step(Ran(WEB, runs=True))
    targets: dict[VmId, float] = {}
    for _ in range(3):
        run.sample(WEB, 7000)
        targets |= run.round(100)
    assert targets[WEB] > 0


def test_none_takes_nothing_and_gives_back_what_was_taken() -> None:
    run = Run("none")
    run.add(WEB, 4096, balloon_mib=100)
    run.add(DB, 4096)
    assert run.round(0) == {WEB: 0}
    run.step(Moved(WEB, 0))
    assert run.round(0) == {}


# --- Proxmox VE -------------------------------------------------------------------------------


def test_proxmox_takes_100_mib_a_round_from_each_comfortable_vm_first() -> None:
    """Host of 10,000 MiB at 85 %: 500 MiB too much. Both VMs of 4,096 MiB may shrink to 1,024;
    web has more than 256 MiB free, db has not."""
    run = Run("proxmox")
    run.add(WEB, 4096)
    run.add(DB, 4096)
    run.sample(WEB, 257)
    run.sample(DB, 256)
    assert run.round(1500) == {WEB: 100}
    assert run.wake_at_s == 10.0


def test_proxmox_takes_from_all_where_no_vm_is_comfortable() -> None:
    run = Run("proxmox")
    run.add(WEB, 4096)
    run.add(DB, 4096)
    run.sample(WEB, 100)
    assert run.round(1500) == {WEB: 100, DB: 100}


def test_proxmox_shares_out_what_is_less_than_a_rounds_most() -> None:
    """At 81 % there are 100 MiB too much; what both have above their minimums is to be equal:
    3,072 + 3,072 - 100 MiB, so 3,022 each."""
    run = Run("proxmox")
    run.add(WEB, 4096)
    run.add(DB, 4096)
    assert run.round(1900) == {WEB: 50, DB: 50}


def test_proxmox_lets_vms_under_pressure_grow_first() -> None:
    run = Run("proxmox")
    run.add(WEB, 4096, balloon_mib=1000)
    run.add(DB, 4096, balloon_mib=1000)
    run.sample(WEB, 2000)
    run.sample(DB, 10)
    assert run.round(2060) == {DB: 940}
    run.step(Moved(DB, 940 * MIB))
    assert run.round(2500) == {DB: 840}


@pytest.mark.parametrize("available_mib", [1990, 2000, 2010])
def test_proxmox_does_nothing_within_10_mib_of_80_percent(available_mib: int) -> None:
    run = Run("proxmox")
    run.add(WEB, 4096, balloon_mib=1000)
    assert run.round(available_mib) == {}


def test_proxmox_never_leaves_a_vm_less_than_its_floor() -> None:
    run = Run("proxmox")
    run.add(WEB, 4096, floor_mib=4030)
    run.add(DB, 2048)
    assert run.round(100) == {WEB: 66, DB: 100}


# --- oVirt MoM --------------------------------------------------------------------------------


def decided_by_mom(run: Run, available_mib: int, rounds: int = 2) -> dict[VmId, float]:
    targets: dict[VmId, float] = {}
    for _ in range(rounds):
        targets |= run.round(available_mib)
    return targets


def in_pages(size_mib: float) -> float:
    return size_mib * MIB // PAGE_SIZE * PAGE_SIZE / MIB


def test_mom_shrinks_by_5_percent_each_10_s_below_20_percent_free() -> None:
    run = Run("mom")
    run.add(WEB, 4000)
    run.sample(WEB, 3000)
    assert run.round(1900) == {}  # a sample alone
    assert run.wake_at_s == 5.0
    assert run.round(1900) == {WEB: 200}


def test_mom_leaves_a_guest_its_used_memory_and_the_hosts_free_share() -> None:
    """The host has 10 % free: web keeps 3,500 MiB that it uses, and 10 % of its 4,000 MiB."""
    run = Run("mom")
    run.add(WEB, 4000)
    run.sample(WEB, 500)
    assert decided_by_mom(run, 1000) == {WEB: 100}


def test_mom_makes_guests_swap_at_5_percent_free() -> None:
    """At 4 % free a guest keeps what it uses less 1 % of its size."""
    run = Run("mom")
    run.add(WEB, 4000)
    run.sample(WEB, 0)
    assert decided_by_mom(run, 400) == {WEB: 40}


def test_mom_ignores_changes_of_a_quarter_of_a_percent() -> None:
    run = Run("mom")
    run.add(WEB, 4000)
    run.sample(WEB, 410)
    assert decided_by_mom(run, 1000) == {}  # 3,590 + 400 MiB: 10 MiB less than now


def test_mom_decides_by_means_of_ten_samples() -> None:
    """Nine samples of 2,500 MiB and one of 100: 2,260 MiB are more than 20 %."""
    run = Run("mom")
    run.add(WEB, 4000)
    run.sample(WEB, 3000)
    for _ in range(9):
        assert run.round(2500) == {}
    assert run.round(100) == {}


def test_mom_grows_by_5_percent_or_at_once_to_what_a_guest_wants() -> None:
    run = Run("mom")
    run.add(WEB, 4000, balloon_mib=2000)
    run.add(DB, 4000, balloon_mib=2000)
    run.sample(WEB, 1000)  # uses 1,000 MiB and wants 400 more: less than 2,100
    run.sample(DB, 0)  # uses 2,000 MiB and wants 400 more
    assert decided_by_mom(run, 2500) == {WEB: in_pages(1900), DB: in_pages(1600)}


def test_mom_leaves_guests_without_statistics_alone() -> None:
    run = Run("mom")
    run.add(WEB, 4000)
    assert decided_by_mom(run, 100, rounds=6) == {}


# --- squeezed ---------------------------------------------------------------------------------


def test_squeezed_brings_all_vms_to_one_share_of_their_ranges() -> None:
    """Ranges of 3,072 and 1,024 MiB; 512 MiB are missing, which is an eighth."""
    run = Run("squeezed")
    run.add(WEB, 4096)
    run.add(DB, 2048)
    assert run.round(MARGIN_MIB) == {}
    assert run.wake_at_s == 10.0
    run.now_s = 10.0
    run.policy.step(Moved(WEB, 0), run.now_s)
    low = Reading(88, 600)
    assert run.seen(low) == {WEB: 384, DB: 128}
    assert run.wake_at_s == 11.0  # each second until all are there


def test_squeezed_has_vms_shrink_before_others_grow() -> None:
    """Balloons of 1,000 and 0 MiB and nothing missing: both are to have 500 MiB."""
    run = Run("squeezed")
    run.add(WEB, 4096, balloon_mib=1000)
    run.add(DB, 4096)
    assert run.round(MARGIN_MIB) == {DB: 500}
    run.step(Moved(DB, 500 * MIB))
    assert run.round(MARGIN_MIB + 500) == {WEB: 500}
    run.step(Moved(WEB, 500 * MIB))
    assert run.round(MARGIN_MIB) == {}
    assert run.wake_at_s == run.now_s + 10.0


def test_squeezed_counts_without_a_vm_that_makes_no_progress_for_5_s() -> None:
    run = Run("squeezed")
    run.add(WEB, 4096)
    run.add(DB, 4096)
    available_mib = MARGIN_MIB - 1000
    assert run.seen(Reading(0, 1000)) == {WEB: 500, DB: 500}
    run.step(Moved(WEB, 500 * MIB))
    told: dict[VmId, float] = {}
    while run.now_s < 5.0:
        told = run.seen(Reading(500, 1000))
        assert told in ({DB: 500}, {WEB: 500, DB: 500})
    assert available_mib < 0
    # Now db is inactive: web alone makes up for the 500 MiB that are missing.
    assert run.seen(Reading(500, 1000)) == {WEB: 1000}


# --- crosvm's balance -------------------------------------------------------------------------


def test_crosvm_moves_half_of_the_difference_of_what_is_above_the_critical_margins() -> None:
    """The guest has 2,000 - 400 MiB, the host 1,000 - 500: half of 1,100."""
    run = Run("crosvm-2020")
    run.add(WEB, 4096)
    run.sample(WEB, 100, available_mib=2000)
    assert run.round(1000) == {WEB: 550}
    # Without new statistics nothing changes.
    assert run.round(0) == {}


def test_crosvm_gives_back_where_the_guest_has_less() -> None:
    run = Run("crosvm-2020")
    run.add(WEB, 4096, balloon_mib=1000)
    run.sample(WEB, 100, available_mib=500)
    assert run.round(1000) == {WEB: 800}


def test_crosvm_goes_no_further_than_10_mib_below_a_margin() -> None:
    run = Run("crosvm-2020")
    run.add(WEB, 4096, balloon_mib=2000)
    run.sample(WEB, 100, available_mib=405)
    assert run.round(0) == {WEB: 2015}  # half of 5 + 500 MiB would be 252
    run.now_s += 1.0
    run.sample(WEB, 100, available_mib=0)
    run.step(Moved(WEB, 2000 * MIB))
    assert run.round(505) == {WEB: 1985}


@pytest.mark.parametrize(("available_mib", "targets"), [(2040, {}), (2038, {WEB: 31})])
def test_crosvm_ignores_less_than_2_percent(
    available_mib: int, targets: dict[VmId, float]
) -> None:
    """The guest has 1,600 MiB above its margin, the host 1,540 or 1,538: 30 or 31 MiB to move."""
    run = Run("crosvm-2020")
    run.add(WEB, 4096)
    run.sample(WEB, 100, available_mib=2000)
    assert run.round(available_mib) == targets


def test_crosvm_lowers_the_guests_margin_to_what_it_had_twice_in_a_row() -> None:
    run = Run("crosvm-2020")
    run.add(WEB, 1024)
    run.sample(WEB, 100, available_mib=300)
    assert run.round(MARGIN_MIB) == {}  # 100 MiB below 400: gives back, but there is no balloon
    run.now_s += 1.0
    run.sample(WEB, 100, available_mib=350)
    # Its margin is 300 MiB now, 50 less than it has; the host has 30 more than its own.
    assert run.round(MARGIN_MIB + 30) == {WEB: 10}


def test_crosvm_keeps_the_guests_margin_where_its_balloon_is_full() -> None:
    """3,000 MiB are more than 95 % of three quarters of the VM: what it has then is no measure."""
    run = Run("crosvm-2020")
    run.add(WEB, 4096, balloon_mib=3000)
    run.sample(WEB, 100, available_mib=300)
    run.round(MARGIN_MIB)
    run.now_s += 1.0
    run.sample(WEB, 100, available_mib=350)
    # Its margin is still 400 MiB, 50 more than it has; the host has 30 more than its own.
    assert run.round(MARGIN_MIB + 30) == {WEB: 2960}


# --- the PI controller ------------------------------------------------------------------------


def test_pi_shrinks_by_error_and_sum() -> None:
    """12 % free: an error of 0.08, a sum of 0.4; 0.04 + 0.02 of 4,000 MiB."""
    run = Run("pi")
    run.add(WEB, 4000)
    run.sample(WEB, 3000)
    assert run.round(1200) == {WEB: in_pages(240)}
    assert run.wake_at_s == 5.0


def test_pi_changes_no_target_by_less_than_128_mib() -> None:
    """18 % free: 0.01 + 0.005 of 4,000 MiB are 60; the sum brings more each 5 s."""
    run = Run("pi")
    run.add(WEB, 4000)
    run.sample(WEB, 3000)
    assert run.round(1800) == run.round(1800) == run.round(1800) == {}  # 60, 80, 100 MiB
    assert run.round(1800) == {}  # 120
    assert run.round(1800) == {WEB: in_pages(140)}


def test_pi_keeps_what_a_guest_uses_while_10_percent_are_free() -> None:
    """It uses 3,900 MiB, and keeps a third of 4,000 where the host has less than 10 %."""
    run = Run("pi")
    run.add(WEB, 4000)
    run.sample(WEB, 0, available_mib=100)
    assert run.round(1100) == {WEB: 100}
    run.step(Moved(WEB, 100 * MIB))
    run.sample(WEB, 0, available_mib=0)
    targets: list[float] = []
    for _ in range(12):
        targets += run.round(0).values()
        run.step(Moved(WEB, int(targets[-1] * MIB)))
    assert targets[-1] == 2680  # all but 33 %


def test_pi_does_not_wind_up_at_a_limit() -> None:
    """After minutes with nothing to take, it gives back as soon as the host has a little room."""
    run = Run("pi")
    run.add(WEB, 4000)
    run.sample(WEB, 0, available_mib=100)
    for _ in range(60):
        run.step(Moved(WEB, int(run.round(1100).get(WEB, 100)) * MIB))
    assert run.round(2500) == {WEB: 0}


def test_pi_leaves_guests_without_statistics_alone() -> None:
    run = Run("pi")
    run.add(WEB, 4000)
    assert [run.round(0) for _ in range(5)] == [{}] * 5


# --- ChromeOS's VMMMS -------------------------------------------------------------------------


def test_vmmms_inflates_by_128_mib_a_second_evenly_while_memory_is_low() -> None:
    run = Run("vmmms")
    run.add(WEB, 4096)
    run.add(DB, 4096)
    assert run.round(MARGIN_MIB) == {}
    assert run.round(MARGIN_MIB - 1) == {WEB: 64, DB: 64}
    # The second inflation starts from the target, however far the balloon is.
    assert run.round(MARGIN_MIB - 1) == {WEB: 128, DB: 128}
    assert run.round(MARGIN_MIB) == {}


def test_vmmms_deflates_by_128_mib_where_a_guest_is_in_need() -> None:
    run = Run("vmmms")
    run.add(WEB, 4096, balloon_mib=1000)
    run.round(1000)
    run.now_s += 1.0
    run.sample(WEB, 10)  # available: less than 8 % of the VM
    assert run.round(1000) == {WEB: 872}
    run.step(Moved(WEB, 872 * MIB))
    run.now_s += 0.5
    run.sample(WEB, 400)
    assert run.round(1000) == {}


def test_vmmms_host_rises_above_a_guest_by_one_priority_at_a_time() -> None:
    """Both ask each second. The guest's deflation starts from the balloon's size, so it undoes the
    host's inflation. Blocks rise from the lowest priority (11) to the guest's own (3); then the
    host's requests (2) alone are allowed."""
    run = Run("vmmms")
    run.add(WEB, 8192, balloon_mib=4000)
    courses = []
    balloon_mib = 4000.0
    for _ in range(8):
        run.sample(WEB, 10)
        told = run.round(0)
        courses.append(told.get(WEB, balloon_mib) - balloon_mib)
        balloon_mib = told.get(WEB, balloon_mib)
        run.step(Moved(WEB, int(balloon_mib * MIB)))
    assert courses == [-128, -128, -128, -128, 128, 128, 128, 128]


def test_vmmms_request_blocks_opposite_ones_for_100_s_or_10_s_by_its_priority() -> None:
    blocks = Blocks()
    assert blocks.ask(Way.INFLATE, HOST, 0.0)  # at first it blocks at the lowest priority alone
    assert blocks.lowest_allowed(Way.DEFLATE, 100.0) == LOWEST - 1
    assert blocks.lowest_allowed(Way.DEFLATE, 100.1) == LOWEST
    assert blocks.ask(Way.DEFLATE, STALL, 200.0)
    assert not blocks.ask(Way.INFLATE, HOST, 210.0)
    assert blocks.lowest_allowed(Way.INFLATE, 210.1) == LOWEST


def test_vmmms_stalled_balloon_deflates_and_is_not_inflated_for_10_s() -> None:
    run = Run("vmmms")
    run.add(WEB, 4096)
    assert run.round(0) == {WEB: 128}
    run.step(Moved(WEB, 50 * MIB))
    for _ in range(4):
        run.round(MARGIN_MIB)
    # 5 s after the inflation: 50 MiB are 10 MiB a second.
    assert run.round(MARGIN_MIB) == {WEB: 0}
    run.step(Moved(WEB, 0))
    assert [run.round(0) for _ in range(10)] == [{}] * 10
    assert run.round(0) == {WEB: 128}


def test_vmmms_balloon_of_15_mib_a_second_is_not_stalled() -> None:
    run = Run("vmmms")
    run.add(WEB, 4096)
    assert run.round(0) == {WEB: 128}
    run.step(Moved(WEB, 75 * MIB))
    assert [run.round(MARGIN_MIB) for _ in range(9)] == [{}] * 9
    # 5 s later it has gained nothing more.
    assert run.round(MARGIN_MIB) == {WEB: 0}
