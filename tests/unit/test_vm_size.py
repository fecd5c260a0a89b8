"""How much memory a VM has: the least of what is known, learnt from what the guest said before."""

from typing import NamedTuple

import pytest

from balloon_daemon.events import MemoryNotFreeable, MemoryOutOfReach, SizesDiffer
from balloon_daemon.guests.jailed.vm_size import VmSize
from balloon_daemon.units import GIB, KIB, MIB, VmId
from tests.harness.faults import fault

VM = VmId(1, "vm1")


def size_of(
    ram_bytes: int,
    *totals: tuple[int, int],
    flag_bytes: int | None = None,
    keeps_total: bool = True,
) -> VmSize:
    """What is known after a memory table and these (total, balloon) of the guest's."""
    size = VmSize(flag_bytes, keeps_total)
    size.take_table(ram_bytes, has_unnameable=False)
    for total, balloon in totals:
        size.take_total(total, balloon)
    return size


class Known(NamedTuple):
    """What is known of one VM, and the size that comes of it."""

    flag_bytes: int | None
    ram_bytes: int
    total_bytes: int | None
    size_bytes: int


@fault("`--vm-mem` is larger or smaller than the VM")
@pytest.mark.parametrize(
    "known",
    [
        Known(None, 4 * GIB, None, 4 * GIB),
        # The flag: a smaller one counts, a larger one never does.
        Known(2 * GIB, 4 * GIB, None, 2 * GIB),
        Known(4 * GIB, 4 * GIB, None, 4 * GIB),
        Known(8 * GIB, 4 * GIB, None, 4 * GIB),
        # The guest: what it does not have is no RAM, whatever the table holds.
        Known(None, 5 * GIB, GIB, GIB),
        Known(4 * GIB, 5 * GIB, GIB, GIB),
        Known(512 * MIB, 5 * GIB, GIB, 512 * MIB),
        # A kernel keeps some for itself: 970 MiB of 1 GiB are all of it.
        Known(None, GIB, 970 * MIB, GIB),
        Known(None, GIB, 880 * MIB, GIB),
        Known(None, GIB, 879 * MIB, 879 * MIB),
        # One of 512 MiB may reserve much of an eighth for a crash kernel alone.
        Known(None, 512 * MIB, 376 * MIB, 512 * MIB),
        Known(None, 512 * MIB, 375 * MIB, 375 * MIB),
        # Of a large one, never more than half of the GiB that it keeps: what is missing may be a
        # shared-memory device's, and then the guest would be asked for what it lives on.
        Known(None, 64 * GIB, 63 * GIB + 512 * MIB, 64 * GIB),
        Known(None, 64 * GIB, 63 * GIB + 511 * MIB, 63 * GIB + 511 * MIB),
        Known(None, 8 * GIB, 7 * GIB, 7 * GIB),
        Known(None, 16 * GIB, 15 * GIB, 15 * GIB),
        # A guest that says more than its VMM shares: what is not shared cannot come back.
        Known(None, GIB, 4 * GIB, GIB),
        # Nothing that could be freed: whatever else is said.
        Known(4 * GIB, 0, GIB, 0),
    ],
)
def test_size_is_the_least_of_what_is_known(known: Known) -> None:
    totals = [] if known.total_bytes is None else [(known.total_bytes, 0)]

    size = size_of(known.ram_bytes, *totals, flag_bytes=known.flag_bytes)

    assert size.size_bytes == known.size_bytes


def test_table_that_lacks_the_vga_hole_is_of_whole_mib() -> None:
    assert size_of(GIB - 128 * KIB).size_bytes == GIB
    assert size_of(GIB - 128 * KIB, flag_bytes=GIB).doubts(VM) is None


@pytest.mark.parametrize("total", [0, 1, 4 * MIB, 32 * MIB - 1, (1 << 50) + 1, 2**64 - 1])
def test_total_that_makes_no_sense_changes_nothing(total: int) -> None:
    size = size_of(4 * GIB, (total, 0))
    assert (size.guest_bytes, size.size_bytes) == (None, 4 * GIB)

    size.take_total(2 * GIB, 0)
    size.take_total(total, 0)
    assert (size.guest_bytes, size.size_bytes) == (2 * GIB, 2 * GIB)


@pytest.mark.parametrize("keeps_total", [True, False])
def test_balloon_that_grows_does_not_change_the_size(keeps_total: bool) -> None:
    # With DEFLATE_ON_OOM Linux leaves the balloon in its total, without it takes the balloon out.
    size = size_of(5 * GIB, keeps_total=keeps_total)
    for balloon in range(0, 513 * MIB, 32 * MIB):
        size.take_total(GIB if keeps_total else GIB - balloon, balloon)
        assert size.size_bytes == GIB


@pytest.mark.parametrize("keeps_total", [True, False])
def test_features_that_say_otherwise_than_the_driver_does_are_seen_through(
    keeps_total: bool,
) -> None:
    # No driver must keep to what Linux does: with a balloon of 64 MiB its own total tells.
    size = size_of(5 * GIB, keeps_total=not keeps_total)
    for balloon in range(0, 513 * MIB, 64 * MIB):
        size.take_total(GIB if keeps_total else GIB - balloon, balloon)

    assert size.size_bytes == GIB
    assert size.keeps_total is keeps_total


def test_statistics_a_little_older_than_actual_change_nothing() -> None:
    size = size_of(5 * GIB, (GIB, 0), keeps_total=False)
    for balloon in range(0, 512 * MIB, 32 * MIB):
        size.take_total(GIB - balloon, balloon + 32 * MIB)  # One step late.
        assert size.size_bytes == GIB


@pytest.mark.parametrize("keeps_total", [True, False])
def test_memory_plugged_in_and_out_under_a_balloon_is_followed(keeps_total: bool) -> None:
    # virtio-mem: its whole region is in the table from the beginning.
    size = size_of(16 * GIB, (4 * GIB, 0), keeps_total=keeps_total)
    balloon = 512 * MIB
    for plugged in (4 * GIB, 8 * GIB, 6 * GIB, 2 * GIB):
        size.take_total(plugged if keeps_total else plugged - balloon, balloon)
        assert size.size_bytes == plugged


def test_memory_that_goes_while_the_balloon_grows_teaches_nothing() -> None:
    # virtio-mem takes 3 of 6 GiB out; the first report after that comes with 100 MiB ballooned.
    # Neither 3 GiB nor 3.1 is what it said before: to take one of them for the truth would let
    # the size grow with the balloon from then on.
    size = size_of(8 * GIB, (6 * GIB, 0), keeps_total=True)
    for balloon in range(100 * MIB, 2 * GIB, 192 * MIB):
        size.take_total(3 * GIB, balloon)
        assert size.size_bytes == 3 * GIB


def test_other_features_make_what_was_learnt_unknown_again() -> None:
    size = size_of(5 * GIB, (GIB, 0), (GIB, 512 * MIB), keeps_total=False)
    assert size.keeps_total
    size.expect(keeps_total=False)
    size.take_total(GIB - 32 * MIB, 32 * MIB)
    assert not size.keeps_total


def test_table_that_grows_and_shrinks_counts_at_once() -> None:
    size = size_of(GIB, (GIB, 0))
    size.take_table(4 * GIB, has_unnameable=False)
    assert size.size_bytes == GIB  # The guest has not said yet that it uses that.
    size.take_total(4 * GIB, 0)
    assert size.size_bytes == 4 * GIB
    size.take_table(2 * GIB, has_unnameable=False)
    assert size.size_bytes == 2 * GIB


def test_memory_that_cannot_be_named_leaves_no_balloon_whatever_else_is_known() -> None:
    size = size_of(4 * GIB, (GIB, 0), flag_bytes=GIB)
    size.take_table(5 * GIB, has_unnameable=True)
    assert size.size_bytes == 0
    assert size.doubts(VM) == MemoryOutOfReach(VM)

    size.take_table(4 * GIB, has_unnameable=False)
    assert size.size_bytes == GIB


def test_guest_of_a_whole_pib_is_believed_up_to_what_its_vmm_shares() -> None:
    assert size_of(12 * 1024 * GIB, (1 << 50, 0)).size_bytes == 12 * 1024 * GIB


@pytest.mark.parametrize(
    ("size", "doubts"),
    [
        (size_of(GIB), None),
        (size_of(GIB, flag_bytes=GIB), None),
        (size_of(GIB, (970 * MIB, 0), flag_bytes=GIB), None),
        (size_of(0), MemoryNotFreeable(VM)),
        (size_of(GIB, flag_bytes=4 * GIB), SizesDiffer(VM, 4 * GIB, GIB, None, GIB)),
        (size_of(4 * GIB, flag_bytes=GIB), SizesDiffer(VM, GIB, 4 * GIB, None, GIB)),
        (size_of(5 * GIB, (GIB, 0)), SizesDiffer(VM, None, 5 * GIB, GIB, GIB)),
        (
            size_of(5 * GIB, (GIB, 0), flag_bytes=2 * GIB),
            SizesDiffer(VM, 2 * GIB, 5 * GIB, GIB, GIB),
        ),
    ],
)
def test_doubts_name_who_says_what_only_where_they_differ(
    size: VmSize, doubts: MemoryNotFreeable | SizesDiffer | None
) -> None:
    assert size.doubts(VM) == doubts
