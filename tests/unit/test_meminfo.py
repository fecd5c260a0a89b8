"""What of a host's memory can be available: this kernel's figures, and files that play others."""

from pathlib import Path

import pytest

from balloon_daemon.linux.meminfo import HostMemory, host_memory
from balloon_daemon.units import GIB, KIB, MIB
from tests.harness.faults import fault

# A host of 64 GiB, as a public report had it in proportion: 60 GiB in pools.
POOLS_HOST = {
    "MemTotal": f"{64 << 20} kB",
    "MemFree": f"{2 << 20} kB",
    "MemAvailable": f"{5 << 19} kB",
    "HardwareCorrupted": "0 kB",
    "HugePages_Total": "30720",
    "HugePages_Free": "720",
    "HugePages_Rsvd": "0",
    "HugePages_Surp": "0",
    "Hugepagesize": "2048 kB",
    "Hugetlb": f"{60 << 20} kB",
}


class Files:
    """A /proc/meminfo, /sys/kernel/mm/hugepages and mountinfo of the test's own."""

    def __init__(self, path: Path) -> None:
        self.meminfo, self.hugepages = path / "meminfo", path / "hugepages"
        self.mountinfo = path / "mountinfo"
        self.mountinfo.write_text("22 27 0:21 / /proc rw - proc proc rw\n")

    def say(self, **changes: str | None) -> None:
        """The host's lines with some changed; None: left out. ``__`` stands for brackets."""
        lines = POOLS_HOST | {
            name.replace("__", "(", 1).replace("__", ")"): text for name, text in changes.items()
        }
        self.meminfo.write_text(
            "".join(f"{name + ':':<16}{text:>12}\n" for name, text in lines.items() if text)
        )

    def size(self, kib: int, pages: str, surplus: str) -> None:
        directory = self.hugepages / f"hugepages-{kib}kB"
        directory.mkdir(parents=True)
        (directory / "nr_hugepages").write_text(f"{pages}\n")
        (directory / "surplus_hugepages").write_text(f"{surplus}\n")

    def read(self) -> HostMemory:
        return host_memory(self.meminfo, self.hugepages, self.mountinfo)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    files = Files(tmp_path)
    files.say()
    return files


def test_this_hosts_memory_is_the_kernels() -> None:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())

    memory = host_memory()

    assert f"{memory.total_bytes // KIB} kB" == fields["MemTotal"].strip()
    assert 0 < memory.available_bytes <= memory.usable_bytes <= memory.total_bytes
    assert not memory.is_estimated


def test_pools_of_huge_pages_can_never_be_available(files: Files) -> None:
    memory = files.read()

    assert memory == HostMemory(64 * GIB, 2560 * MIB, pool_bytes=60 * GIB)
    assert memory.usable_bytes == 4 * GIB


@pytest.mark.parametrize(
    ("changes", "pool_bytes"),
    [
        # The kernel before 4.16 does not say Hugetlb; the default size is all that meminfo has.
        ({"Hugetlb": None}, 60 * GIB),
        # A default size of 1 GiB (default_hugepagesz=1G).
        (
            {"HugePages_Total": "60", "Hugepagesize": f"{1 << 20} kB", "Hugetlb": None},
            60 * GIB,
        ),
        # 60 GiB in pages of 1 GiB, which are not the default: only Hugetlb has them.
        ({"HugePages_Total": "0"}, 60 * GIB),
        # None at all, or a kernel that has none.
        ({"HugePages_Total": "0", "Hugetlb": "0 kB"}, 0),
        ({"HugePages_Total": None, "Hugepagesize": None, "Hugetlb": None}, 0),
        # Surplus pages were ordinary memory, and will be.
        ({"HugePages_Surp": "30720"}, 0),
        ({"HugePages_Surp": "720"}, 60 * GIB - 1440 * MIB),
        ({"HugePages_Surp": "720", "Hugetlb": None}, 60 * GIB - 1440 * MIB),
        ({"HugePages_Surp": "99999"}, 0),
        # The pool was made smaller between two lines of the file.
        ({"Hugetlb": f"{59 << 20} kB"}, 60 * GIB),
    ],
)
def test_pools_are_what_is_persistent_in_all_sizes(
    changes: dict[str, str | None], pool_bytes: int, files: Files
) -> None:
    files.say(**changes)

    assert files.read().pool_bytes == pool_bytes


def test_pools_of_other_sizes_are_asked_for_where_meminfo_leaves_them_out(files: Files) -> None:
    files.say(HugePages_Total="1024", Hugetlb=None)
    files.size(2048, "1024", "0")
    files.size(1 << 20, "8", "3")
    files.size(64, "garbage", "0")
    (files.hugepages / "hugepages-oddkB").mkdir()

    assert files.read().pool_bytes == 2 * GIB + 5 * GIB


def test_surplus_pages_of_other_sizes_are_no_pool(files: Files) -> None:
    files.say(HugePages_Total="1024", Hugetlb=f"{10 << 20} kB")
    files.size(2048, "1024", "0")
    files.size(1 << 20, "8", "3")

    assert files.read().pool_bytes == 2 * GIB + 5 * GIB


def test_pool_that_changes_is_another_at_the_next_reading(files: Files) -> None:
    first = files.read()
    files.say(HugePages_Total="15360", Hugetlb=f"{30 << 20} kB")

    assert (first.usable_bytes, files.read().usable_bytes) == (4 * GIB, 34 * GIB)


@pytest.mark.parametrize("total_gib", [4, 62])
def test_pool_that_is_not_in_the_total_is_anothers(total_gib: int, files: Files) -> None:
    # A container whose meminfo has its limit as MemTotal, and the host's other lines.
    files.say(MemTotal=f"{total_gib << 20} kB")

    assert files.read().usable_bytes == total_gib * GIB


def test_pool_in_a_meminfo_of_fuse_is_the_hosts_not_the_containers(files: Files) -> None:
    files.mountinfo.write_text(
        "22 27 0:21 / /proc rw - proc proc rw\n"
        f"90 22 0:50 /proc/meminfo {files.meminfo} rw,nosuid - fuse.lxcfs lxcfs rw,user_id=0\n"
    )

    assert files.read().usable_bytes == 64 * GIB


def test_file_that_is_mounted_over_meminfo_is_believed(files: Files) -> None:
    files.mountinfo.write_text(f"90 22 0:50 /m {files.meminfo} rw - ext4 /dev/vda rw\n")

    assert files.read().usable_bytes == 4 * GIB


def test_memory_with_hardware_errors_can_never_be_available(files: Files) -> None:
    files.say(HardwareCorrupted=f"{1 << 20} kB")

    memory = files.read()

    assert (memory.poisoned_bytes, memory.usable_bytes) == (GIB, 3 * GIB)


def test_hardware_errors_beyond_all_reason_are_none(files: Files) -> None:
    files.say(HardwareCorrupted=f"{63 << 20} kB", HugePages_Total=None, Hugetlb=None)

    assert files.read().usable_bytes == 64 * GIB


@fault("`/proc/meminfo` without MemAvailable (a container's)")
@pytest.mark.parametrize("available", [None, "0 kB", "lots"])
def test_missing_available_memory_is_estimated(available: str | None, files: Files) -> None:
    files.say(
        MemAvailable=available,
        Active__file__="1024 kB",
        Inactive__file__="2048 kB",
        SReclaimable="4096 kB",
        Active="99999 kB",
    )

    memory = files.read()

    assert memory.is_estimated
    assert memory.available_bytes == 2 * GIB + 7 * MIB


def test_available_memory_is_no_more_than_all(files: Files) -> None:
    files.say(MemAvailable=f"{65 << 20} kB")

    assert files.read() == HostMemory(64 * GIB, 64 * GIB)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"MemTotal": None}, "has no MemTotal"),
        ({"MemTotal": "0 kB"}, "has no MemTotal"),
        ({"MemTotal": "-5 kB"}, "has no MemTotal"),
        ({"MemTotal": f"{10**16} kB"}, "has no MemTotal"),
        ({"MemAvailable": None, "MemFree": None}, "has neither MemAvailable nor MemFree"),
    ],
)
def test_file_without_the_figures_raises_and_is_named(
    changes: dict[str, str | None], complaint: str, files: Files
) -> None:
    files.say(**changes)

    with pytest.raises(ValueError, match=f"{files.meminfo} {complaint}"):
        files.read()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff\xfe", b"MemTotal", b"MemTotal:"])
def test_garbage_raises(content: bytes, files: Files) -> None:
    files.meminfo.write_bytes(content)

    with pytest.raises(ValueError, match="has no MemTotal"):
        files.read()


def test_missing_file_raises_with_its_name(files: Files) -> None:
    files.meminfo.unlink()

    with pytest.raises(FileNotFoundError) as caught:
        files.read()
    assert caught.value.filename == str(files.meminfo)
