"""handover/keys.py: what a store's names say, whichever version has written them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.handover.keys import (
    FdKey,
    StateKey,
    group_of,
    is_listener,
    listener_key,
    parse_key,
)

numbers = st.integers(0, 10**18 - 1)


@given(numbers, numbers)
def test_name_written_and_read_is_the_same_key(vm_number: int, number: int) -> None:
    for key in (FdKey(vm_number, number), StateKey(vm_number, number)):
        assert parse_key(str(key)) == key
        assert str(key).partition(".")[0] == group_of(vm_number)


def test_names_are_those_of_every_version_before() -> None:
    assert parse_key("vm7.3") == FdKey(7, 3)
    assert parse_key("vm7.state-5") == StateKey(7, 5)


@pytest.mark.parametrize(
    "name", ["listener", "vm7", "vm7.", "vm7.x", "vm07.3", "vm7.state-", "vm7.state-05", "7.3"]
)
def test_name_that_is_no_vms_is_none(name: str) -> None:
    assert parse_key(name) is None


def test_listening_socket_of_no_name_is_called_as_by_every_version_before() -> None:
    assert listener_key("", "/run/balloond/balloond.sock") == "listener"


@given(st.text("abc/ .:é\n\udcff", min_size=1, max_size=20))
def test_listening_socket_of_a_vm_has_a_name_that_systemd_takes(path: str) -> None:
    name = listener_key("web", path)
    # sd_notify(3), FDNAME: ASCII without control characters and colons, 255 characters at most.
    assert name.isascii()
    assert name.isprintable()
    assert ":" not in name
    assert is_listener(name)
    assert parse_key(name) is None
    # A name with a dot would be counted as a VM's.
    assert "." not in name


def test_listening_socket_of_the_longest_path_has_a_name_that_systemd_takes() -> None:
    assert len(listener_key("web", "/" + "s" * 106)) <= 255


@pytest.mark.parametrize("name", ["vm7.3", "listeners", "trial", ""])
def test_other_names_are_no_listening_sockets(name: str) -> None:
    assert not is_listener(name)
