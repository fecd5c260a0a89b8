"""listing.py: the order of names; tests/unit/test_vms.py has the listing itself."""

import pytest

from balloon_daemon.listing import name_order


@pytest.mark.parametrize(
    "names",
    [
        ["db", "vm1", "vm2", "vm10", "web"],
        ["7", "10", "a"],
        ["vm-b", "vm2", "vm2-1", "vm2-10", "vm2b", "vm03", "vma"],
        ["", "1", "vm"],
        ["9" * 200, "1" + "0" * 200, "a"],
    ],
)
def test_names_are_listed_with_their_numbers_by_value(names: list[str]) -> None:
    assert sorted(reversed(names), key=name_order) == names
