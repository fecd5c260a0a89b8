"""What libvirt's client reads out of a domain's description."""

import pytest

from balloon_daemon.guests.libvirt.process import MAX_XML_CHARACTERS, CallError, describe


def domain(devices: str = "<memballoon model='virtio'/>", more: str = "") -> str:
    return f"<domain type='kvm'>{more}<devices>{devices}</devices></domain>"


def memory(model: str, size: str = "<size unit='KiB'>1024</size>") -> str:
    return f"<memory model='{model}'><target>{size}<node>0</node></target></memory>"


def test_plain_domain_has_nothing_special() -> None:
    assert describe(domain()) == {
        "apart_kib": 0,
        "balloon": True,
        "deflate_on_oom": False,
        "disks": False,
        "period_s": 0,
        "hugetlb": False,
        "pinned": False,
    }


@pytest.mark.parametrize(
    ("balloon", "has"),
    [
        ("<memballoon model='none'/>", False),
        ("", False),
        ("<memballoon model='virtio-non-transitional'/>", True),
    ],
)
def test_domain_without_a_balloon_is_told(balloon: str, has: bool) -> None:
    assert describe(domain(balloon))["balloon"] is has


def test_balloons_own_settings_are_found() -> None:
    found = describe(
        domain("<memballoon model='virtio' autodeflate='on'><stats period='5'/></memballoon>")
    )
    assert (found["deflate_on_oom"], found["period_s"]) == (True, 5)


def test_memory_that_the_balloon_does_not_count_is_added_up() -> None:
    # QEMU counts DIMMs in the size that "balloon" takes, and nothing else that was plugged.
    devices = [memory("dimm"), memory("virtio-mem"), memory("nvdimm"), memory("virtio-pmem")]
    assert describe(domain("".join(devices)))["apart_kib"] == 3 * 1024


@pytest.mark.parametrize(
    ("size", "kib"),
    [
        ("<size>512</size>", 512),
        ("<size unit='GiB'>2</size>", 2 << 20),
        ("<size unit='bytes'>4096</size>", 4),
    ],
)
def test_sizes_have_units(size: str, kib: int) -> None:
    assert describe(domain(memory("virtio-mem", size)))["apart_kib"] == kib


def test_huge_pages_are_found() -> None:
    huge = "<memoryBacking><hugepages/></memoryBacking>"
    assert describe(domain(more=huge))["hugetlb"] is True


@pytest.mark.parametrize(
    "device",
    [
        "<hostdev mode='subsystem' type='pci'/>",
        "<hostdev mode='subsystem' type='mdev'/>",
        "<interface type='hostdev'/>",
        "<interface type='vdpa'/>",
        "<disk type='nvme'/>",
    ],
)
def test_device_that_pins_the_memory_is_found(device: str) -> None:
    assert describe(domain(device))["pinned"] is True


def test_other_devices_of_the_host_pin_nothing() -> None:
    others = "<hostdev type='usb'/><hostdev type='scsi'/><interface type='network'/>"
    assert describe(domain(others))["pinned"] is False


@pytest.mark.parametrize(
    ("disk", "counts"),
    [("<disk type='file'/>", True), ("<disk type='vhostuser'/>", False), ("", False)],
)
def test_disks_that_qemu_reads_itself_are_found(disk: str, counts: bool) -> None:
    assert describe(domain(disk))["disks"] is counts


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "no xml",
        domain(memory("virtio-mem", "")),
        domain(memory("virtio-mem", "<size unit='KiB'/>")),
        domain(memory("virtio-mem", "<size unit='furlong'>1</size>")),
        domain("<memballoon model='virtio'><stats period='often'/></memballoon>"),
        "<domain>" + "x" * MAX_XML_CHARACTERS + "</domain>",
    ],
)
def test_other_descriptions_are_nonsense(xml: str) -> None:
    with pytest.raises(CallError) as caught:
        describe(xml)
    assert caught.value.fault == "nonsense"
