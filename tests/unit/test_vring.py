"""One vring: what a driver or its VMM may say wrongly, and that it only makes it not served."""

from collections.abc import Callable

import pytest

from balloon_daemon.units import FrontendAddr
from balloon_daemon.vhost_user.messages import VringAddr
from balloon_daemon.vhost_user.vring import Vring
from tests.fakes.counted_fd import CountedFd

ADDR = VringAddr(0, 0, FrontendAddr(0x1000), FrontendAddr(0x3000), FrontendAddr(0x2000))


def ready_vring() -> Vring:
    vring = Vring(enabled=True)
    vring.set_size(128)
    vring.set_addr(ADDR)
    vring.set_base(0)
    vring.set_kick(CountedFd())
    vring.set_call(CountedFd())
    return vring


def test_vring_with_all_that_it_takes_is_ready() -> None:
    assert ready_vring().ready


@pytest.mark.parametrize("size", [1, 2, 128, 32768])
def test_size_that_a_split_ring_may_have_is_served(size: int) -> None:
    vring = ready_vring()
    assert vring.set_size(size) == ""
    assert vring.ready


@pytest.mark.parametrize("size", [0, 3, 127, 32769, 65536, 2**32 - 1])
def test_size_that_no_split_ring_has_is_not_served_until_another_comes(size: int) -> None:
    vring = ready_vring()
    assert vring.set_size(size) == f"size {size}, allowed are powers of two up to 32768"
    assert not vring.ready
    vring.set_size(128)
    assert vring.ready


@pytest.mark.parametrize(
    "addr",
    [
        VringAddr(0, 0, FrontendAddr(8), FrontendAddr(0), FrontendAddr(0)),
        VringAddr(0, 0, FrontendAddr(0), FrontendAddr(2), FrontendAddr(0)),
        VringAddr(0, 0, FrontendAddr(0), FrontendAddr(0), FrontendAddr(1)),
    ],
    ids=["descriptors", "used", "available"],
)
def test_misaligned_ring_is_not_served_until_another_comes(addr: VringAddr) -> None:
    vring = ready_vring()
    assert "not aligned" in vring.set_addr(addr)
    assert not vring.ready
    vring.set_addr(ADDR)
    assert vring.ready


def test_base_beyond_16_bits_is_of_no_split_ring_and_not_served_until_another_comes() -> None:
    # A packed ring's has its wrap counters in there.
    vring = ready_vring()
    assert "base 2147516416" in vring.set_base(0x8000_8000)
    assert not vring.ready
    assert vring.base == 0x8000
    vring.set_base(7)
    assert (vring.ready, vring.base) == (True, 7)


def test_call_that_cannot_be_told_anything_is_not_served_until_another_comes() -> None:
    # Without calls the driver would wait for ever for what it gave.
    vring = ready_vring()
    vring.set_call(None, usable=False)
    assert not vring.ready
    vring.set_call(None)  # It polls.
    assert [vring.ready] == [True]
    vring.set_call(None, usable=False)
    vring.set_call(CountedFd())
    assert [vring.ready] == [True]


def test_base_of_a_vring_whose_call_is_lost_does_not_make_it_served() -> None:
    vring = ready_vring()
    vring.set_call(None, usable=False)
    vring.set_base(7)
    assert not vring.ready


def test_call_of_a_vring_whose_base_is_impossible_does_not_make_it_served() -> None:
    vring = ready_vring()
    vring.set_base(1 << 16)
    vring.set_call(CountedFd())
    assert not vring.ready


def test_vring_without_a_kick_is_not_even_looked_at() -> None:
    vring = ready_vring()
    vring.set_kick(None)
    assert not vring.described
    assert not vring.ready


def test_disabled_vring_can_be_looked_at() -> None:
    vring = ready_vring()
    vring.enabled = False
    assert (vring.described, vring.ready) == (True, False)


def test_each_descriptor_is_closed_by_the_next_one_and_at_the_end() -> None:
    vring, fds = Vring(), [[CountedFd(), CountedFd()] for _ in range(3)]
    setters: list[Callable[[CountedFd], None]] = [vring.set_kick, vring.set_call, vring.set_err]
    for of_a_kind, tell in zip(fds, setters, strict=True):
        for fd in of_a_kind:
            tell(fd)
    assert [[fd.closings for fd in pair] for pair in fds] == [[1, 0]] * 3
    vring.close()
    vring.close()
    assert [[fd.closings for fd in pair] for pair in fds] == [[1, 1]] * 3
