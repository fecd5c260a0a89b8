"""A configuration that was read anew: what is other, what takes a restart, how it is carried."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.config.carried import config_of, parts_of
from balloon_daemon.config.changes import LIVE, changes, keep_default_socket, takes_restart
from balloon_daemon.config.entries import Key, Origin, Where
from balloon_daemon.config.metrics_place import MetricsPlace
from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Discover, Kind, VmConfig
from balloon_daemon.linux.asked_child import MAX_PACKET_BYTES
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB

WEB = VmConfig("web", Kind.QMP, "/run/web.qmp", VmSettings())
OWN = VmConfig("own", Kind.VHOST_USER, "/run/own.sock", VmSettings(), GIB)
PRESENT = Config(socket=None, vms=(WEB, OWN), profile=Profile.CAREFUL)

sizes = st.none() | st.integers(0, 1 << 60)
texts = st.text(min_size=1)
vms = st.builds(
    VmConfig,
    texts,
    st.sampled_from(Kind),
    texts,
    st.builds(VmSettings, sizes, sizes, st.integers(-1000, 1000), st.sampled_from(Profile)),
    sizes,
    matched=st.just(""),  # Only a VM that was found has another; no configuration names it.
)
places = st.lists(texts).map(tuple)


@given(sizes, st.builds(Discover, places, places), st.lists(vms), st.sampled_from(Profile))
def test_what_is_carried_arrives_as_it_was(
    margin: int | None, discover: Discover, vms: list[VmConfig], profile: Profile
) -> None:
    wanted = replace(
        PRESENT,
        margin_bytes=margin,
        discover=discover,
        vms=tuple(vms),
        profile=profile,
        found_profile=profile,
    )
    assert config_of(PRESENT, json.loads(json.dumps([*parts_of(wanted)]))) == wanted


@pytest.mark.parametrize(
    "part", [None, ["vm"], ["host", "1G", "seed"], ["qmp", 1], ["host", 1, "x"]]
)
def test_part_of_another_kind_is_refused(part: object) -> None:
    with pytest.raises(ValueError, match=r"is no part|is not a valid"):
        config_of(PRESENT, [part])


def test_vm_with_the_longest_texts_fits_a_packet() -> None:
    vm = VmConfig("\U0010ffff" * 64, Kind.QMP, "\U0010ffff" * 107, VmSettings(1, 2, 3), 4)
    for part in parts_of(replace(PRESENT, vms=(vm,))):
        assert len(json.dumps([part])) < MAX_PACKET_BYTES


def test_what_is_other_is_one_line_each() -> None:
    floor = VmSettings(floor_bytes=GIB, ceiling_bytes=0, priority=-1, profile=Profile.SEED)
    wanted = replace(
        PRESENT,
        margin_bytes=512 * MIB,
        profile=Profile.SEED,
        found_profile=Profile.ADAPTIVE,
        discover=Discover(("qemu:///system",), ("/b",)),
        vms=(WEB._replace(kind=Kind.FIRECRACKER, settings=floor), WEB._replace(name="a b")),
    )
    present = replace(PRESENT, discover=Discover((), ("/a",)))
    assert list(changes(present, wanted)) == [
        "[host] margin: default -> 512 MiB",
        "profile of VMs of no name: careful -> seed",
        "profile of VMs that are discovered: careful -> adaptive",
        "[discover] libvirt: +qemu:///system",
        "[discover] qmp: -/a",
        "[discover] qmp: +/b",
        "[vm.web]: qmp /run/web.qmp -> firecracker /run/web.qmp",
        "[vm.web] floor: default -> 1 GiB",
        "[vm.web] ceiling: default -> 0 B",
        "[vm.web] priority: 0 -> -1",
        "[vm.web] profile: careful -> seed",
        "-[vm.own]",
        '+[vm."a b"]',
    ]
    assert list(changes(present, present)) == []


OTHER = {
    "socket": Path("/s"),
    "vm_mem_bytes": GIB,
    "policy_file": Path("/p"),
    "low_mem_dir": Path("/l"),
    "policy": PolicySettings().faster(2),
    "poll_s": 0.5,
    "page_reporting": False,
    "is_default_socket": True,
    "api": Path("/a"),
    "dry_run": True,
    "history": Path("/h"),
    "record": Path("/r"),
    "metrics": MetricsPlace(None, "::1", 9710),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Config)])
def test_every_setting_may_change_or_takes_a_restart(name: str) -> None:
    """Whoever adds a setting decides which: unless it is in ``LIVE``, it takes a restart."""
    if name in LIVE:
        return
    wanted = replace(PRESENT, **{name: OTHER[name]})  # type: ignore[arg-type] # of its field
    places: dict[Key, tuple[Origin, ...]] = {
        ("host", name): (Origin(Where(0, 3, 0, "b.toml"), "x"),)
    }
    remedy = "restart balloond, or put it back as it was"
    assert list(takes_restart(PRESENT, wanted, places, "b.toml")) == [
        f'b.toml:3: [host] {name} = "x": this takes a restart; {remedy}'
    ]
    assert list(takes_restart(wanted, PRESENT, {}, "b.toml")) == [
        f"b.toml: [host] {name}: that it is not set any more takes a restart; {remedy}"
    ]


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ((), "vhost_user"),
        ((OWN._replace(address="/run/x.sock"),), "vhost_user"),
        ((OWN._replace(kind=Kind.QMP, vm_mem_bytes=None),), "vhost_user"),
        ((OWN, OWN._replace(name="more", address="/m")), "vhost_user"),
        ((OWN._replace(vm_mem_bytes=None),), "memory"),
    ],
)
def test_vm_on_the_own_device_takes_a_restart(own: tuple[VmConfig, ...], key: str) -> None:
    (line,) = takes_restart(PRESENT, replace(PRESENT, vms=(WEB, *own)), {}, "b.toml")
    assert f"] {key}: " in line


def test_limits_of_a_vm_on_the_own_device_and_all_of_others_may_change() -> None:
    vms = (OWN._replace(settings=VmSettings(priority=2)), WEB._replace(address="/x"))
    assert list(takes_restart(PRESENT, replace(PRESENT, vms=vms), {}, "b.toml")) == []


@pytest.mark.parametrize(
    ("present", "wanted", "kept"),
    [
        ((None, False), (Path("/d"), True), (None, False)),
        ((Path("/d"), True), (None, False), (Path("/d"), True)),
        ((Path("/d"), True), (Path("/d"), True), (Path("/d"), True)),
        ((Path("/n"), False), (None, False), (None, False)),
        ((Path("/n"), False), (Path("/d"), True), (Path("/d"), True)),
        ((None, False), (Path("/n"), False), (Path("/n"), False)),
        ((Path("/d"), True), (Path("/n"), False), (Path("/n"), False)),
    ],
)
def test_socket_that_nobody_names_stays_as_it_is_and_another_is_taken_as_it_is_named(
    present: tuple[Path | None, bool],
    wanted: tuple[Path | None, bool],
    kept: tuple[Path | None, bool],
) -> None:
    before = Config(socket=present[0], is_default_socket=present[1])
    found = keep_default_socket(before, Config(socket=wanted[0], is_default_socket=wanted[1]))
    assert (found.socket, found.is_default_socket) == kept
