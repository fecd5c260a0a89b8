"""The controller's VMs: in the order in which they came, and by their names."""

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.controller.vm import Vm
from balloon_daemon.controller.vms import Vms
from balloon_daemon.guests.seam import Report
from balloon_daemon.listing import name_order
from balloon_daemon.sizing.vm_settings import SEED
from balloon_daemon.units import VmId
from tests.fakes.plain_guest import PlainGuest

NAMES = st.sampled_from(["db", "vm1", "vm2", "vm10", "vm02", "web"])


def ignore(vm: VmId, report: Report) -> None:
    """Hears reports, of which there are none here."""


def come(vms: Vms, number: int, name: str) -> VmId:
    vm_id = VmId(number, name)
    vms[vm_id] = Vm(PlainGuest(vm_id, [], ignore), SEED, "qmp")
    return vm_id


def numbers(vms: Vms) -> list[int]:
    return [vm_id.number for vm_id in vms.by_name()]


def test_vms_are_listed_by_their_names_and_of_one_name_the_first_comes_first() -> None:
    vms = Vms()
    web, *_ = [
        come(vms, number, name)
        for number, name in enumerate(["web", "vm10", "db", "web", "vm2"], start=1)
    ]
    assert numbers(vms) == [3, 5, 2, 1, 4]
    del vms[web]
    assert numbers(vms) == [3, 5, 2, 4]
    assert [vm_id.number for vm_id in vms] == [2, 3, 4, 5]


@given(st.lists(st.tuples(NAMES, st.booleans()), max_size=30))
def test_order_is_that_of_the_names_whatever_comes_or_goes(course: list[tuple[str, bool]]) -> None:
    vms = Vms()
    for number, (name, comes) in enumerate(course, start=1):
        if comes or not vms:
            vm_id = come(vms, number, name)
            come(vms, vm_id.number, name)  # Added again, it is still listed once.
        else:
            del vms[next(iter(vms))]
        wanted = sorted(vms, key=lambda vm_id: (name_order(vm_id.name), vm_id.number))
        assert list(vms.by_name()) == wanted
