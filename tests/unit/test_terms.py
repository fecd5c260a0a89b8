"""The limits that a VM's settings and abilities set to its balloon."""

import pytest

from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import GIB, MIB


@pytest.mark.parametrize(
    ("vm_mem_bytes", "floor_bytes", "ceiling_bytes", "max_bytes"),
    [
        # Without settings: the seed's, all but 1 GiB.
        (4 * GIB, None, None, 3 * GIB),
        (4 * GIB, 512 * MIB, None, 3 * GIB),
        (4 * GIB, 2 * GIB, None, 2 * GIB),
        (4 * GIB, None, 700 * MIB, 700 * MIB),
        (4 * GIB, 3 * GIB + 512 * MIB, 700 * MIB, 512 * MIB),
        (4 * GIB, 4 * GIB, None, 0),
        (GIB, 4 * GIB, None, 0),
        (4 * GIB, None, 4097, 4096),
        (0, 0, 0, 0),
    ],
)
@pytest.mark.parametrize("profile", Profile)
def test_floor_and_ceiling_lower_the_maximum_and_never_raise_it(
    vm_mem_bytes: int,
    floor_bytes: int | None,
    ceiling_bytes: int | None,
    max_bytes: int,
    profile: Profile,
) -> None:
    settings = VmSettings(floor_bytes, ceiling_bytes, profile=profile)
    assert Terms(settings).max_bytes(vm_mem_bytes) == max_bytes


@pytest.mark.parametrize(
    ("vm_mem_bytes", "max_bytes"),
    [(64 * GIB, 48 * GIB), (4 * GIB, 3 * GIB), (GIB, 512 * MIB), (500 * MIB, 244 * MIB)],
)
@pytest.mark.parametrize(("sends_stats", "deflates"), [(False, True), (True, False)])
def test_careful_vm_that_nobody_sees_in_need_keeps_a_quarter_and_256_mib(
    vm_mem_bytes: int, max_bytes: int, sends_stats: bool, deflates: bool
) -> None:
    terms = Terms(VmSettings(), sends_stats, deflates)
    assert terms.max_bytes(vm_mem_bytes) == max_bytes
    lower = Terms(VmSettings(floor_bytes=MIB), sends_stats, deflates)
    assert lower.max_bytes(vm_mem_bytes) == max_bytes


def test_seed_vm_without_statistics_keeps_what_the_seed_leaves() -> None:
    assert Terms(SEED, sends_stats=False, deflates_on_oom=False).max_bytes(64 * GIB) == 63 * GIB
