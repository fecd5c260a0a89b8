"""Two guests on one host: each gives its share, neither touches the other's memory."""

import pytest

from tests.vm.images import GUEST_SUITES
from tests.vm.running import Running

pytestmark = pytest.mark.vm


def test_two_guests_give_and_take_without_disturbing_each_other(vms: Running) -> None:
    both = [vms.shared(suite) for suite in GUEST_SUITES]
    for vm in both:
        vm.guest.run("rm -rf /tmp/*")
        vm.deflate()
    before = [vm.write_file(64) for vm in both]

    # At the same time: both are low before either has answered.
    for vm in both:
        vm.host.set_low()
    for vm in both:
        vm.wait_balloon(vm.max_bytes)
    inflated = [vm.checksum() for vm in both]
    # One gives and the other takes.
    both[0].host.set_plenty()
    both[0].wait_balloon(0)
    one_inflated_bytes = [vm.guest.balloon_bytes() for vm in both]
    mixed = [vm.checksum() for vm in both]
    both[1].deflate()
    deflated = [vm.checksum() for vm in both]

    assert one_inflated_bytes == [0, both[1].max_bytes]
    assert inflated == mixed == deflated == before
