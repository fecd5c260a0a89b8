"""Which statistics show that a guest is in need, and which do not."""

from collections.abc import Iterable

import pytest

from balloon_daemon.sizing.decision import Sign
from balloon_daemon.sizing.need import Figures, NeedRule
from balloon_daemon.units import GIB, MIB
from tests.harness.recordings import Second, first_refaults_s, recording

CALM = Figures(0.0, 500 * MIB, 300 * MIB, 0, 0, 0, 0)
SQUEEZED = CALM._replace(free_bytes=100 * MIB)


def alarms(seconds: Iterable[Second], mem: int = GIB) -> list[tuple[float, frozenset[Sign]]]:
    """When the rule says need, and why, from the squeeze on."""
    rule, found = NeedRule(), []
    for second in seconds:
        rule.take(second.figures, squeezed=second.target_bytes > 0)
        signs = rule.signs(second.t_s, mem, stuck=False)
        if signs and second.t_s >= 0:
            found.append((second.t_s, signs))
    return found


def signs(figures: Figures, *, stuck: bool = False, mem: int = GIB) -> frozenset[Sign]:
    """By a single sample of this moment."""
    rule = NeedRule()
    rule.take(figures, squeezed=True)
    return rule.signs(figures.at_s, mem, stuck=stuck)


def grown(samples: list[Figures], *, calm: list[Figures] | None = None) -> frozenset[Sign]:
    """By samples under a squeeze, after others before it."""
    rule = NeedRule()
    for figures in calm or []:
        rule.take(figures, squeezed=False)
    for figures in samples:
        rule.take(figures, squeezed=True)
    return rule.signs(samples[-1].at_s, GIB, stuck=False)


@pytest.mark.parametrize("kernel", ["k61", "k72"])
@pytest.mark.parametrize("load", ["idle", "stream", "churn", "coldstart"])
def test_recorded_guest_that_suffers_nothing_is_not_in_need(kernel: str, load: str) -> None:
    assert alarms(recording(f"{kernel}-{load}")) == []


def test_recorded_guest_with_cold_page_cache_is_not_in_need() -> None:
    assert alarms(recording("k72-coldcache")) == []


@pytest.mark.parametrize("name", ["k61-mmapr", "k72-mmapr", "k61-mmapr-all", "k72-read"])
def test_recorded_guest_whose_files_do_not_fit_is_in_need_within_a_second(name: str) -> None:
    seconds = recording(name)
    at_s, found = alarms(seconds)[0]
    assert at_s <= first_refaults_s(seconds) + 1
    assert found <= {Sign.READS_DISK, Sign.FAULTS}


@pytest.mark.parametrize("name", ["own-k61-512m-mixed", "own-k61-512m-burst-after"])
def test_recorded_small_guest_that_gives_only_what_it_can_spare_is_not_in_need(name: str) -> None:
    assert alarms(recording(name), 512 * MIB) == []


def test_recorded_small_guest_is_in_need_in_the_second_in_which_its_set_no_longer_fits() -> None:
    seconds = recording("own-k72-512m-tight")
    at_s, found = alarms(seconds, 512 * MIB)[0]
    assert at_s == first_refaults_s(seconds)
    assert found == {Sign.READS_DISK}


def test_recorded_large_guest_whose_balloon_shrank_for_a_burst_is_in_need_until_it_ends() -> None:
    times = [at_s for at_s, _ in alarms(recording("own-k72-2g-burst-held"), 2 * GIB)]
    assert (times[0], times[-1]) == (27.0, 40.0)


@pytest.mark.parametrize("name", ["k61-anon", "k72-anon", "k61-zram", "k72-zram"])
def test_recorded_guest_whose_programs_do_not_fit_is_in_need_before_it_suffers(name: str) -> None:
    at_s, found = alarms(recording(name))[0]
    # 700 MiB of 1 GiB are in use: the squeeze leaves too little after three steps at the latest.
    assert at_s <= 3.0
    assert found == {Sign.LITTLE_AVAILABLE}


@pytest.mark.parametrize(("name", "within_s"), [("k61-burst", 2), ("k72-burst", 1)])
def test_recorded_guest_that_allocates_at_once_is_in_need_as_soon_as_it_says_so(
    name: str, within_s: int
) -> None:
    # The statistics of the 6.1 guest are 2 s old all the time.
    at_s, found = alarms(recording(name))[0]
    assert 24.0 < at_s <= 24.5 + within_s
    assert Sign.LITTLE_AVAILABLE in found


@pytest.mark.parametrize(
    ("vm_mem_bytes", "least_bytes"), [(GIB, 128 * MIB), (4 * GIB, int(0.08 * 4 * GIB) + 1)]
)
def test_little_available_memory_is_need(vm_mem_bytes: int, least_bytes: int) -> None:
    enough = CALM._replace(available_bytes=least_bytes, free_bytes=vm_mem_bytes)
    assert signs(enough, mem=vm_mem_bytes) == frozenset()
    little = enough._replace(available_bytes=least_bytes - 1)
    assert signs(little, mem=vm_mem_bytes) == {Sign.LITTLE_AVAILABLE}


@pytest.mark.parametrize(("pages", "found"), [(47, set[Sign]()), (48, {Sign.SWAPS_IN})])
def test_reading_from_swap_is_need_from_16_pages_a_second_on(pages: int, found: set[Sign]) -> None:
    later = CALM._replace(at_s=3.0, swap_in_bytes=pages * 4096)
    assert grown([CALM, later]) == found


def test_killed_process_is_need_in_the_sample_that_shows_it() -> None:
    rule = NeedRule()
    for at_s, kills, found in [
        (0.0, 7, frozenset[Sign]()),
        (1.0, 8, frozenset({Sign.KILLED})),
        (2.0, 8, frozenset[Sign]()),
    ]:
        rule.take(CALM._replace(at_s=at_s, oom_kills=kills), squeezed=True)
        assert rule.signs(at_s, GIB, stuck=False) == found


@pytest.mark.parametrize(("free_bytes", "needs"), [(0.12 * GIB + 1, False), (0.12 * GIB, True)])
def test_disk_reads_and_faults_are_need_only_without_free_memory(
    free_bytes: float, needs: bool
) -> None:
    before = CALM._replace(free_bytes=int(free_bytes))
    reads = before._replace(at_s=3.0, disk_read_bytes=6 * MIB)
    faults = before._replace(at_s=3.0, major_faults=12)
    assert grown([before, reads]) == ({Sign.READS_DISK} if needs else frozenset())
    assert grown([before, faults]) == ({Sign.FAULTS} if needs else frozenset())


def test_guest_that_read_before_the_squeeze_is_in_need_only_above_its_own_rate() -> None:
    calm = [
        CALM._replace(at_s=at_s, disk_read_bytes=int(at_s) * 10 * MIB, major_faults=int(at_s) * 10)
        for at_s in (0.0, 30.0, 60.0)
    ]
    before = SQUEEZED._replace(at_s=61.0, disk_read_bytes=610 * MIB, major_faults=610)
    usual = before._replace(at_s=64.0, disk_read_bytes=(610 + 50) * MIB, major_faults=610 + 86)
    assert grown([before, usual], calm=calm) == frozenset()
    reads = usual._replace(disk_read_bytes=(610 + 52) * MIB)
    assert grown([before, reads], calm=calm) == {Sign.READS_DISK}
    faults = usual._replace(major_faults=610 + 88)
    assert grown([before, faults], calm=calm) == {Sign.FAULTS}


@pytest.mark.parametrize(
    "calm",
    [
        # Squeezed from its first second, after one mean, and after a burst among a few means.
        [],
        [CALM, CALM._replace(at_s=2.0, disk_read_bytes=300 * MIB)],
        [CALM, CALM._replace(at_s=30.0, disk_read_bytes=3000 * MIB)],
        [
            CALM._replace(at_s=30.0 * number, disk_read_bytes=read * MIB)
            for number, read in enumerate((0, 0, 3000, 3000, 3000, 3000))
        ],
    ],
)
def test_burst_just_before_the_squeeze_is_not_the_usual_rate(calm: list[Figures]) -> None:
    read = calm[-1].disk_read_bytes if calm else 0
    assert read is not None
    before = SQUEEZED._replace(at_s=200.0, disk_read_bytes=read)
    reads = before._replace(at_s=203.0, disk_read_bytes=read + 6 * MIB)
    assert grown([before, reads], calm=calm) == {Sign.READS_DISK}


def test_base_is_not_measured_while_a_guest_reads_back_what_it_lost() -> None:
    rule = NeedRule()
    read = 0
    for second in range(50):
        # 10 MiB/s under the squeeze and for 20 s after it; then 1 MiB/s.
        read += 10 * MIB if second < 25 else MIB
        figures = CALM._replace(at_s=float(second), disk_read_bytes=read)
        rule.take(figures, squeezed=second < 5)
    for second in range(50, 54):
        read += 4 * MIB
        figures = SQUEEZED._replace(at_s=float(second), disk_read_bytes=read)
        rule.take(figures, squeezed=True)
    assert rule.signs(53.0, GIB, stuck=False) == {Sign.READS_DISK}


def test_base_follows_a_guest_that_begins_to_read_long_after_it_was_let_go() -> None:
    rule = NeedRule()
    for second in range(0, 600, 30):
        read = max(0, second - 300) * 10 * MIB
        rule.take(CALM._replace(at_s=float(second), disk_read_bytes=read), squeezed=False)
    for second in range(571, 575):
        figures = SQUEEZED._replace(at_s=float(second), disk_read_bytes=(second - 300) * 10 * MIB)
        rule.take(figures, squeezed=True)
    assert rule.signs(574.0, GIB, stuck=False) == frozenset()


def test_stuck_guest_is_in_need_only_without_free_memory() -> None:
    assert signs(CALM, stuck=True) == frozenset()
    assert signs(SQUEEZED, stuck=True) == {Sign.STUCK}


def test_statistics_older_than_4_s_show_nothing() -> None:
    rule = NeedRule()
    assert rule.signs(10.0, GIB, stuck=True) == frozenset()
    rule.take(CALM._replace(at_s=10.0, available_bytes=0), squeezed=True)
    assert rule.signs(14.0, GIB, stuck=False) == {Sign.LITTLE_AVAILABLE}
    assert rule.signs(14.1, GIB, stuck=False) == frozenset()
    assert rule.last_at_s == 10.0


def test_figures_that_are_unknown_show_nothing() -> None:
    assert grown([Figures(0.0), Figures(3.0)]) == frozenset()
    # A figure that comes and goes has no rate.
    assert grown([SQUEEZED._replace(disk_read_bytes=None), SQUEEZED._replace(at_s=3.0)]) == set()


def test_counters_of_a_guest_that_was_started_again_begin_anew() -> None:
    before = SQUEEZED._replace(disk_read_bytes=100 * MIB, major_faults=9000)
    again = SQUEEZED._replace(at_s=1.0, disk_read_bytes=101 * MIB, major_faults=3)
    assert grown([before, again]) == frozenset()
    assert grown([before, again, again._replace(at_s=4.0, major_faults=15)]) == {Sign.FAULTS}


def test_same_statistics_again_are_no_new_ones() -> None:
    rule = NeedRule()
    rule.take(CALM._replace(oom_kills=1), squeezed=True)
    killed = CALM._replace(at_s=1.0, oom_kills=2)
    for figures in (killed, killed, killed._replace(at_s=0.5, oom_kills=9)):
        rule.take(figures, squeezed=True)
        assert rule.signs(1.0, GIB, stuck=False) == {Sign.KILLED}
    rule.forget()
    assert rule.last_at_s is None
