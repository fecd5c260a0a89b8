"""A margin beyond all the memory of the host: always low, which is worth a warning."""

import pytest

from balloon_daemon.host.margin import beyond_host
from balloon_daemon.linux.meminfo import HostMemory
from balloon_daemon.units import GIB, MIB


def host() -> HostMemory:
    """16 GiB, of which 4 GiB are in a pool of huge pages."""
    return HostMemory(16 * GIB, 8 * GIB, pool_bytes=4 * GIB)


@pytest.mark.parametrize("margin_bytes", [None, 100 * MIB, 12 * GIB - 1])
def test_margin_that_the_host_can_have_is_no_trouble(margin_bytes: int | None) -> None:
    assert beyond_host(margin_bytes, host) == ""


def test_margin_of_all_that_the_host_can_have_is_told_with_both_figures() -> None:
    assert beyond_host(12 * GIB, host) == (
        "a margin of 12 GiB is as much as this host can have, or more (12,288 MiB): "
        "memory is always low, and every VM will be taken to its maximum"
    )


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("no MemTotal")])
def test_host_without_figures_is_no_reason_for_a_warning(error: Exception) -> None:
    def unknown() -> HostMemory:
        raise error

    assert beyond_host(9999 * GIB, unknown) == ""
