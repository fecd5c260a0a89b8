"""What is known of a QEMU guest's balloon, from figures that are not always facts."""

from balloon_daemon.guests.driven.qmp_balloon import SETTLED_S, SILENT_S, QmpBalloon
from balloon_daemon.units import MIB
from tests.harness.faults import fault

NOW = 1_795_822_655
"""In seconds of the host's clock, as guest-stats has it."""


def inflated(size_bytes: int, target_bytes: int) -> QmpBalloon:
    """A balloon on its way."""
    balloon = QmpBalloon()
    balloon.read(0, NOW)
    balloon.told(target_bytes)
    balloon.read(size_bytes, NOW)
    return balloon


def test_size_without_a_driver_is_no_fact() -> None:
    balloon = QmpBalloon()
    balloon.read(0, 0)
    assert (balloon.listens, balloon.balloon_bytes) == (False, None)


def test_first_size_with_a_driver_is_taken_as_found() -> None:
    balloon = QmpBalloon()
    balloon.read(300 * MIB, NOW)
    assert (balloon.listens, balloon.balloon_bytes) == (True, 300 * MIB)


@fault("a QEMU keeps")
def test_size_after_a_reset_is_unknown_until_the_next_driver_writes_one() -> None:
    """A driver sends its first statistics before it takes its first page."""
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1)
    seen = []
    for size_mib, last_update in ((256, 0), (256, NOW + 9), (256, NOW + 9), (1, NOW + 9)):
        balloon.read(size_mib * MIB, last_update)
        seen.append((balloon.listens, balloon.balloon_bytes))
    assert seen == [(False, None), (True, None), (True, None), (True, 1 * MIB)]


@fault("a QEMU keeps")
def test_size_of_before_a_reset_is_no_fact_beside_a_change_that_is_told_meanwhile() -> None:
    """QEMU tells of a size that is written after it has answered with the one from before."""
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1)
    balloon.read(256 * MIB, 0)
    balloon.written(2)
    balloon.read(256 * MIB, NOW + 9)
    answered_before = balloon.balloon_bytes
    balloon.read(256 * MIB, NOW + 9)
    assert (answered_before, balloon.balloon_bytes) == (None, 256 * MIB)


def test_driver_whose_target_is_an_empty_balloon_writes_no_size() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.told(0)
    balloon.reset(1)
    balloon.read(100 * MIB, 0)
    balloon.read(100 * MIB, NOW + 9)
    assert (balloon.listens, balloon.balloon_bytes) == (True, 0)


def test_size_of_before_a_reset_counts_again_once_a_driver_leaves_it_for_long() -> None:
    """A driver that writes only the size of its target writes what QEMU has already."""
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1)
    balloon.read(256 * MIB, 0)
    seen = []
    for after_s, runs in ((0, True), (SETTLED_S - 1, True), (999, False), (1000, True)):
        balloon.passes(1000.0 + after_s, runs=runs)
        balloon.read(256 * MIB, NOW + 9)
        seen.append(balloon.balloon_bytes)
    assert seen == [None, None, None, 256 * MIB]


def test_time_of_statistics_that_outlives_a_reset_tells_of_no_driver() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1)
    balloon.read(256 * MIB, NOW)
    assert (balloon.listens, balloon.balloon_bytes) == (False, None)


def test_size_written_after_a_reset_tells_of_a_driver_without_statistics() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1_000_000)
    balloon.written(1_000_001)
    balloon.read(1 * MIB, 0)
    assert (balloon.listens, balloon.balloon_bytes) == (True, 1 * MIB)


def test_size_written_before_a_reset_and_told_after_it_tells_of_none() -> None:
    balloon = inflated(200 * MIB, 256 * MIB)
    balloon.reset(1_000_000)
    balloon.written(999_999)
    balloon.read(200 * MIB, 0)
    assert (balloon.listens, balloon.balloon_bytes) == (False, None)


@fault("a QEMU keeps")
def test_several_resets_before_a_driver_listens_are_one() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    first, again = balloon.reset(1), balloon.reset(2)
    balloon.read(256 * MIB, 0)
    third = balloon.reset(3)
    balloon.read(0, NOW + 9)
    assert (first, again, third, balloon.reset(4)) == (True, False, False, True)


def test_balloon_on_its_way_to_the_target_is_believed() -> None:
    balloon = inflated(100 * MIB, 256 * MIB)
    balloon.read(200 * MIB, NOW)
    assert (balloon.balloon_bytes, balloon.doubted) == (200 * MIB, False)


@fault("a QEMU reports half-written")
def test_half_written_size_is_no_fact() -> None:
    """A VM of 512 MiB at 256 MiB was reported at 1 MiB: a balloon of 511 MiB."""
    balloon = inflated(255 * MIB, 256 * MIB)
    balloon.read(511 * MIB, NOW)
    torn = (balloon.balloon_bytes, balloon.doubted)
    balloon.read(256 * MIB, NOW)
    assert torn == (255 * MIB, True)
    assert (balloon.balloon_bytes, balloon.doubted) == (256 * MIB, False)


def test_half_written_sizes_on_either_side_are_no_facts() -> None:
    balloon = inflated(255 * MIB, 256 * MIB)
    for torn in (511 * MIB, 1 * MIB, 511 * MIB):
        balloon.read(torn, NOW)
    assert balloon.balloon_bytes == 255 * MIB


@fault("a QEMU reports half-written")
def test_guest_that_takes_memory_back_by_itself_is_believed_at_the_second_reading() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    seen = []
    for size_mib in (200, 180, 150):
        balloon.read(size_mib * MIB, NOW)
        seen.append(balloon.balloon_bytes)
    assert seen == [256 * MIB, 180 * MIB, 180 * MIB]


def test_half_written_first_size_of_a_new_guest_is_no_fact() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1)
    balloon.read(256 * MIB, 0)
    balloon.read(511 * MIB, NOW + 9)
    torn = balloon.balloon_bytes
    balloon.read(30 * MIB, NOW + 9)
    assert (torn, balloon.balloon_bytes) == (None, 30 * MIB)


def silent_for(seconds: float, balloon: QmpBalloon, balloon_bytes: int = 0) -> QmpBalloon:
    """Reads a guest that sends nothing, twice."""
    for now_s in (1000.0, 1000.0 + seconds):
        balloon.passes(now_s, runs=True)
        balloon.read(balloon_bytes, 0)
    return balloon


@fault("the guest of a driven VM is reset, or has no driver")
def test_guest_that_is_silent_for_long_is_taken_to_have_a_driver_without_statistics() -> None:
    booting = silent_for(SILENT_S - 1, QmpBalloon())
    assert (booting.listens, booting.balloon_bytes) == (False, None)
    silent = silent_for(SILENT_S, QmpBalloon())
    assert (silent.listens, silent.balloon_bytes) == (True, 0)
    silent.told(64 * MIB)
    silent.read(8 * MIB, 0)
    assert (silent.listens, silent.balloon_bytes) == (True, 8 * MIB)


@fault("the guest of a driven VM is reset, or has no driver")
def test_silent_guest_with_a_size_of_before_its_reset_is_never_taken_to_have_a_driver() -> None:
    balloon = inflated(256 * MIB, 256 * MIB)
    balloon.reset(1)
    silent_for(10 * SILENT_S, balloon, 256 * MIB)
    assert (balloon.listens, balloon.balloon_bytes) == (False, None)
    # Its time begins when QEMU has forgotten that size.
    silent_for(SILENT_S - 1, balloon)
    assert not balloon.listens
    silent_for(SILENT_S, balloon)
    assert balloon.listens


def test_time_in_which_a_guest_stands_still_is_no_silence() -> None:
    balloon = QmpBalloon()
    heard = []
    for now_s, runs in ((0, True), (200, True), (2000, False), (2099, True), (2101, True)):
        balloon.passes(1000.0 + now_s, runs=runs)
        balloon.read(0, 0)
        heard.append(balloon.listens)
    assert heard == [False, False, False, False, True]
    balloon.passes(9999.0, runs=False)
    assert balloon.listens  # It was taken to have a driver before.


def test_reset_of_a_silent_guest_begins_its_time_anew() -> None:
    balloon = silent_for(SILENT_S, QmpBalloon())
    balloon.reset(1)
    assert not balloon.listens
