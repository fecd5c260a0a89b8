"""Both sources on files of the test's own: figures, garbage, and how they recover."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.errors import ConfigError, SourceError
from balloon_daemon.events import (
    SourceEvent,
    SourceKnown,
    SourceOff,
    SourceOn,
    SourceTrouble,
    SourceUnknown,
)
from balloon_daemon.host import low_memory
from balloon_daemon.host.low_memory import (
    ChromeosLowMemory,
    LowMemorySource,
    LowMemoryStatistics,
    MeminfoLowMemory,
    choose_source,
)
from balloon_daemon.linux.cgroup import CgroupLimit, MemoryCgroups
from balloon_daemon.linux.meminfo import HostMemory, host_memory
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading
from balloon_daemon.units import GIB, MIB
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A low-memory directory with 1,000 MiB available and a margin of 400 MiB."""
    directory = tmp_path / "chromeos-low_mem"
    directory.mkdir()
    (directory / "available").write_text("1000\n")
    (directory / "margin").write_text("400\n")
    return directory


def notices(source: LowMemorySource) -> list[SourceEvent]:
    return list(iter(source.take_notice, None))


def test_reading_of_directory_is_its_figures(directory: Path) -> None:
    source = ChromeosLowMemory(directory)

    assert source.read() == Reading(available_mib=1000, margin_mib=400)
    assert source.last_error == ""
    assert notices(source) == []
    assert source.statistics() == LowMemoryStatistics(reads=1)


@pytest.mark.parametrize(("available", "low"), [("399", True), ("400", False)])
def test_reading_is_low_below_the_margin_and_not_at_it(
    directory: Path, available: str, low: bool
) -> None:
    (directory / "available").write_text(available)

    reading = ChromeosLowMemory(directory).read()

    assert isinstance(reading, Reading)
    assert reading.is_low is low


def test_margin_of_several_numbers_is_the_first(directory: Path) -> None:
    (directory / "margin").write_text("400 3200\n")

    assert ChromeosLowMemory(directory).read() == Reading(1000, 400)


def test_margin_given_replaces_the_file(directory: Path) -> None:
    (directory / "margin").unlink()

    source = ChromeosLowMemory(directory, margin_bytes=1200 * MIB + 1)

    assert source.read() == Reading(1000, 1200)


GARBAGE = {
    "empty": b"",
    "blank": b" \n\n",
    "word": b"lots\n",
    "off and a number": b"off 400\n",
    "OFF": b"OFF\n",
    "offset": b"offset\n",
    "on": b"on\n",
    "negative": b"-5\n",
    "fraction": b"12.5\n",
    "hexadecimal": b"0x10\n",
    "underscored": b"1_000\n",
    "huge": b"9" * 13 + b"\n",
    "endless": b"7" * 100_000,
    "not utf-8": b"\xff\xfe1\n",
    "arabic digits": "٤٠٠\n".encode(),
    "zeros": bytes(64),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
@pytest.mark.parametrize("name", ["available", "margin"])
def test_garbage_in_file_is_unknown_and_recovers(
    directory: Path, name: str, garbage: bytes
) -> None:
    source = ChromeosLowMemory(directory)
    good = (directory / name).read_bytes()

    (directory / name).write_bytes(garbage)
    unknown = source.read()
    error = source.last_error
    (directory / name).write_bytes(good)
    recovered = source.read()

    assert unknown is None
    assert str(directory / name) in error
    assert recovered == Reading(1000, 400)
    assert source.last_error == ""
    assert source.statistics() == LowMemoryStatistics(reads=2, unknown=1)


def test_available_of_several_numbers_is_unknown(directory: Path) -> None:
    (directory / "available").write_text("1000 2000\n")

    assert ChromeosLowMemory(directory).read() is None


@pytest.mark.parametrize("content", [b"off\n", b"off", b" off \n\n"])
def test_margin_that_says_off_is_never_low_whatever_is_available(
    directory: Path, content: bytes
) -> None:
    source = ChromeosLowMemory(directory)
    (directory / "margin").write_bytes(content)

    readings = []
    for available in (b"0\n", b"50000\n", b"much\n"):
        (directory / "available").write_bytes(available)
        readings.append(source.read())
    (directory / "available").unlink()
    readings.append(source.read())

    assert readings == [NeverLow(f"{directory}/margin says off")] * 4
    assert source.last_error == ""
    assert source.statistics() == LowMemoryStatistics(reads=4)


def test_margin_switched_off_and_on_is_said_once_each(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    source.read()

    (directory / "margin").write_text("off\n")
    for _ in range(3):
        source.read()
    off = notices(source)
    (directory / "margin").write_text("400 3200 \n")
    for _ in range(3):
        source.read()

    assert off == [SourceOff(f"{directory}/margin says off")]
    assert notices(source) == [SourceOn(400)]


def test_margin_that_says_off_does_not_matter_beside_one_that_was_given(directory: Path) -> None:
    (directory / "margin").write_text("off\n")

    source = ChromeosLowMemory(directory, margin_bytes=1200 * MIB)

    assert source.read() == Reading(1000, 1200)
    assert notices(source) == []


def test_margin_that_says_off_is_described(directory: Path) -> None:
    (directory / "margin").write_text("off\n")

    assert ChromeosLowMemory(directory).describe() == (
        f"{directory}/available against {directory}/margin; polled; "
        f"now switched off, so that nothing is low ({directory}/margin says off)"
    )


def vanish(path: Path) -> None:
    path.unlink()


def turn_into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def turn_into_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def turn_into_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    "spoil", [vanish, turn_into_directory, turn_into_fifo, turn_into_link_to_itself]
)
@pytest.mark.parametrize("name", ["available", "margin"])
def test_file_that_is_no_file_any_more_is_unknown_at_once(
    directory: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    source = ChromeosLowMemory(directory)
    source.read()

    spoil(directory / name)

    assert source.read() is None
    assert str(directory / name) in source.last_error


def test_directory_that_vanishes_is_unknown_and_recovers(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    elsewhere = directory.rename(directory.with_name("elsewhere"))

    assert source.read() is None
    elsewhere.rename(directory)
    assert source.read() == Reading(1000, 400)


def test_file_renamed_over_is_the_new_one(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    source.read()
    (directory / "new").write_text("300\n")

    (directory / "new").rename(directory / "available")

    assert source.read() == Reading(300, 400)


def test_error_that_lasts_is_noted_when_it_begins_and_when_it_ends(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    available = directory / "available"

    available.write_text("")
    for _ in range(3):
        source.read()
    begun = notices(source)
    available.write_text("x")
    for _ in range(3):
        source.read()
    between = notices(source)
    available.write_text("1000")
    for _ in range(3):
        source.read()
    ended = notices(source)

    assert begun == [SourceUnknown("available memory", f"{available} is empty")]
    no_number = f"{available} holds b'x', not a whole number of MiB"
    assert between == [SourceUnknown("available memory", no_number)]
    assert ended == [SourceKnown("available memory", 6)]


def test_margin_counts_as_the_file_says_now_and_again_after_garbage(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    margin = directory / "margin"
    read: list[Reading | NeverLow | None] = []
    for text in ("300", "300", "300 1000", "", "300 1000", "much", "much", "off", "off", "300"):
        margin.write_text(text)
        read.append(source.read())
    off = NeverLow(f"{margin} says off")
    known = Reading(1000, 300)
    assert read == [known, known, known, None, known, None, None, off, off, known]


@fault("a second cause while the figures are unknown")
def test_margin_that_cannot_be_read_is_not_blamed_on_available(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    margin = directory / "margin"

    margin.write_text("much")
    source.read()
    margin.unlink()
    source.read()
    margin.write_text("300")
    source.read()

    assert notices(source) == [
        SourceUnknown("the margin", f"{margin} holds b'much', not a whole number of MiB"),
        SourceUnknown("the margin", f"{margin}: No such file or directory"),
        SourceKnown("the margin", 2),
    ]


def test_available_is_named_where_both_files_are_gone(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    (directory / "margin").unlink()
    (directory / "available").unlink()

    source.read()

    assert source.last_error == f"{directory}/available: No such file or directory"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("available", "", "available memory is unknown: {}/available is empty; let it hold"),
        ("available", "off\n", "available memory is unknown: {}/available holds b'off'"),
        ("available", None, "available memory is unknown: {}/available: No such file"),
        ("margin", "much\n", "the margin is unknown: {}/margin holds b'much'"),
        ("margin", None, "the margin is unknown: {}/margin: No such file or directory; let it"),
    ],
)
def test_check_of_figures_that_are_unknown_raises_with_the_remedy(
    name: str, content: str | None, complaint: str, directory: Path
) -> None:
    source = ChromeosLowMemory(directory)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_text(content)

    with pytest.raises(SourceError) as caught:
        source.check()

    assert str(caught.value).startswith(
        f"low memory cannot be seen, as {complaint.format(directory)}"
    )
    assert source.statistics() == LowMemoryStatistics()


def test_check_of_figures_that_are_known_or_switched_off_passes(directory: Path) -> None:
    ChromeosLowMemory(directory).check()
    (directory / "margin").write_text("off\n")
    ChromeosLowMemory(directory).check()
    (directory / "margin").write_text("much\n")
    ChromeosLowMemory(directory, margin_bytes=MIB).check()


def test_notices_nobody_takes_are_bounded(directory: Path) -> None:
    source = ChromeosLowMemory(directory)
    for text in ["", "1000"] * 50:
        (directory / "available").write_text(text)
        source.read()

    assert len(notices(source)) <= 8


def test_source_keeps_its_files_open_until_it_is_closed(directory: Path) -> None:
    before = open_fds()
    source = ChromeosLowMemory(directory)

    source.read()
    kept = open_fds() - before
    (directory / "available").write_text("")
    source.read()
    assert open_fds() - before == kept
    assert len(kept) == 2
    turn_into_directory(directory / "available")
    source.read()
    assert len(open_fds() - before) == 1
    source.close()
    assert open_fds() == before


def test_source_without_device_has_to_be_polled(directory: Path) -> None:
    source = ChromeosLowMemory(directory)

    assert source.needs_poll
    assert source.wait_fd() is None
    source.acknowledge()  # of nothing
    source.close()
    assert source.statistics().wakeups == 0


def test_description_names_paths_margin_and_reading(directory: Path) -> None:
    assert ChromeosLowMemory(directory).describe() == (
        f"{directory}/available against {directory}/margin; polled; "
        "now 1,000 MiB available, margin 400 MiB, not low"
    )
    assert ChromeosLowMemory(directory, margin_bytes=2 * GIB).describe() == (
        f"{directory}/available against a margin of 2,048 MiB; polled; "
        "now 1,000 MiB available, margin 2,048 MiB, low"
    )


def test_description_of_unknown_says_why_and_counts_nothing(directory: Path) -> None:
    (directory / "available").unlink()
    source = ChromeosLowMemory(directory)

    assert source.describe().endswith(
        f"now unknown: {directory}/available: No such file or directory"
    )
    assert source.statistics() == LowMemoryStatistics()


@pytest.mark.parametrize("margin_bytes", [0, -1, MIB - 1])
def test_margin_of_less_than_a_mib_raises(directory: Path, margin_bytes: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 MiB"):
        ChromeosLowMemory(directory, margin_bytes=margin_bytes)
    with pytest.raises(ConfigError, match="at least 1 MiB"):
        MeminfoLowMemory(margin_bytes=margin_bytes, pressure=None)


def test_meminfo_margin_is_5_2_per_cent_of_the_ram_unless_given() -> None:
    # 16,000 MiB × 0.052 = 832 MiB exactly.
    memory = HostMemory(16_000 * MIB, 1000 * MIB - 1)

    default = MeminfoLowMemory(pressure=None, memory=lambda: memory)
    given = MeminfoLowMemory(
        pressure=None,
        memory=lambda: memory,
        margin_bytes=2 * GIB,
        per_cpu_free=lambda _: 0,
    )

    assert default.read() == Reading(available_mib=999, margin_mib=832)
    assert given.read() == Reading(available_mib=999, margin_mib=2048)


@fault("what was taken stays in the kernel's per-CPU lists")
@pytest.mark.parametrize(
    ("available_mib", "per_cpu_mib", "counted_mib"),
    [
        (700, 0, 700),
        (700, 100, 800),
        (700, 132, 832),
        (700, 5000, 832),
        (832, 99, 832),
        (900, 99, 900),
    ],
)
def test_meminfo_counts_free_pages_of_per_cpu_lists_up_to_the_margin(
    available_mib: int, per_cpu_mib: int, counted_mib: int
) -> None:
    source = MeminfoLowMemory(
        pressure=None,
        memory=lambda: HostMemory(16_000 * MIB, available_mib * MIB),
        per_cpu_free=lambda total_bytes: per_cpu_mib * MIB * total_bytes // (16_000 * MIB),
    )

    assert source.read() == Reading(counted_mib, 832)


def test_meminfo_asks_this_kernel_for_its_per_cpu_lists() -> None:
    total_bytes = host_memory().total_bytes
    margin_bytes = total_bytes // 2 // MIB * MIB

    # One byte short, and no running host has empty lists.
    source = MeminfoLowMemory(
        pressure=None,
        margin_bytes=margin_bytes,
        memory=lambda: HostMemory(total_bytes, margin_bytes - 1),
    )

    assert source.read() == Reading(margin_bytes // MIB, margin_bytes // MIB)


def test_meminfo_margin_as_large_as_the_ram_raises() -> None:
    with pytest.raises(ConfigError, match="a margin of 4 GiB on a host of 4 GiB"):
        MeminfoLowMemory(
            margin_bytes=4 * GIB, pressure=None, memory=lambda: HostMemory(4 * GIB, 2 * GIB)
        )


POOLS_HOST = HostMemory(64 * GIB, 2560 * MIB, pool_bytes=60 * GIB)


def test_meminfo_margin_is_reckoned_without_pools_of_huge_pages() -> None:
    # 4 GiB × 0.052 = 212.99 MiB, not the 3.3 GiB that 64 GiB would make.
    source = MeminfoLowMemory(pressure=None, memory=lambda: POOLS_HOST)

    assert source.read() == Reading(2560, 212)
    assert source.describe() == (
        "available memory against 5.2 % of the RAM without the 60 GiB in pools of huge pages; "
        "polled; now 2,560 MiB available, margin 212 MiB, not low"
    )


def test_meminfo_margin_follows_a_pool_that_changes() -> None:
    pools = [60 * GIB, 0, 30 * GIB]
    source = MeminfoLowMemory(
        pressure=None,
        memory=lambda: HostMemory(
            64 * GIB, 20 * GIB, pools.pop(0) if len(pools) > 1 else pools[0]
        ),
    )

    margins = [reading.margin_mib for reading in (source.read(), source.read()) if reading]

    assert margins == [64 * 1024 * 52 // 1000, 34 * 1024 * 52 // 1000]


def test_meminfo_asks_for_the_per_cpu_lists_of_all_the_ram() -> None:
    asked: list[int] = []

    def per_cpu_free(total_bytes: int) -> int:
        asked.append(total_bytes)
        return 0

    MeminfoLowMemory(
        pressure=None,
        memory=lambda: HostMemory(64 * GIB, MIB, pool_bytes=60 * GIB),
        per_cpu_free=per_cpu_free,
    ).read()

    assert asked == [64 * GIB]


@pytest.mark.parametrize(
    ("memory", "complaint"),
    [
        (
            POOLS_HOST,
            "a margin of 4 GiB on a host of 64 GiB, of which 60 GiB can never be available, "
            "would always be low memory; give a smaller one",
        ),
        (
            HostMemory(5 * GIB, GIB, poisoned_bytes=GIB),
            "a margin of 4 GiB on a host of 5 GiB, of which 1 GiB can never be available, "
            "would always be low memory; give a smaller one",
        ),
    ],
)
def test_meminfo_margin_of_all_that_can_be_available_raises(
    memory: HostMemory, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        MeminfoLowMemory(margin_bytes=4 * GIB, pressure=None, memory=lambda: memory)
    MeminfoLowMemory(margin_bytes=4 * GIB - MIB, pressure=None, memory=lambda: memory)


def test_meminfo_margin_that_a_pool_grows_beyond_is_said_once() -> None:
    pools = [0, 0, 60 * GIB, 61 * GIB, 0, 0]
    source = MeminfoLowMemory(
        margin_bytes=5 * GIB,
        pressure=None,
        memory=lambda: HostMemory(64 * GIB, 2 * GIB, pools.pop(0)),
        per_cpu_free=lambda _: 0,
    )

    said = []
    while pools:
        assert source.read() == Reading(2048, 5120)
        said.append(notices(source))

    assert said == [
        [],
        [
            SourceTrouble(
                "a margin of 5 GiB on a host of 64 GiB, of which 60 GiB can never be available, "
                "would always be low memory"
            )
        ],
        [
            SourceTrouble(
                "a margin of 5 GiB on a host of 64 GiB, of which 61 GiB can never be available, "
                "would always be low memory"
            )
        ],
        [],
        [],
    ]


def test_meminfo_that_estimates_says_so() -> None:
    source = MeminfoLowMemory(
        pressure=None, memory=lambda: HostMemory(16_000 * MIB, 1000 * MIB, is_estimated=True)
    )

    source.read()
    source.read()

    assert notices(source) == [
        SourceTrouble("this host's memory figures: no MemAvailable, it is estimated")
    ]
    assert source.describe().startswith(
        "available memory (estimated, as there is no MemAvailable) against 5.2 % of the RAM; "
    )


class Limits(MemoryCgroups):
    """Cgroups with limits that a test sets."""

    def __init__(self, *limits: CgroupLimit) -> None:
        super().__init__(has_unit=False)
        self.now = list(limits)

    def limits(self, total_bytes: int) -> list[CgroupLimit]:
        return self.now


def limited(
    memory: HostMemory, *limits: CgroupLimit, margin_bytes: int | None = None
) -> MeminfoLowMemory:
    return MeminfoLowMemory(
        margin_bytes=margin_bytes,
        pressure=None,
        memory=lambda: memory,
        per_cpu_free=lambda _: 0,
        cgroups=Limits(*limits),
    )


PLENTY = HostMemory(16_000 * MIB, 9000 * MIB)


def test_cgroup_with_less_left_than_the_host_counts_with_a_margin_of_its_limit() -> None:
    # 1,000 MiB × 0.052 = 52 MiB.
    source = limited(PLENTY, CgroupLimit("/cg/memory.max", 1000 * MIB, 300 * MIB))

    reading = source.read()

    assert reading == Reading(300, 52, "/cg/memory.max")
    assert notices(source) == [
        SourceTrouble("/cg/memory.max is a limit: what is left below it counts too")
    ]
    assert source.describe() == (
        "available memory against 5.2 % of the RAM and of each cgroup's limit; polled; "
        "now 300 MiB available within /cg/memory.max, margin 52 MiB, not low; "
        "the host: 9,000 MiB available, margin 832 MiB, not low"
    )


def test_host_with_less_left_than_its_cgroups_counts() -> None:
    source = limited(
        HostMemory(16_000 * MIB, 100 * MIB), CgroupLimit("/cg/memory.max", 1000 * MIB, 900 * MIB)
    )

    assert source.read() == Reading(100, 832)
    assert source.describe().endswith(
        "now 100 MiB available, margin 832 MiB, low; "
        "900 MiB available within /cg/memory.max, margin 52 MiB, not low"
    )


def test_host_that_is_low_counts_though_a_cgroup_has_less_left_and_is_not() -> None:
    source = limited(
        HostMemory(16_000 * MIB, 800 * MIB), CgroupLimit("/cg/memory.max", 1000 * MIB, 300 * MIB)
    )

    reading = source.read()

    assert reading == Reading(800, 832)
    assert reading.is_low


def test_least_of_several_limits_counts_under_a_margin_that_was_given() -> None:
    source = limited(
        PLENTY,
        CgroupLimit("/cg/a/memory.max", 1000 * MIB, 700 * MIB),
        CgroupLimit("/cg/memory.high", 2000 * MIB, 600 * MIB),
        margin_bytes=650 * MIB,
    )

    reading = source.read()

    assert reading == Reading(600, 650, "/cg/memory.high")
    assert reading.is_low


def test_margin_of_all_that_a_cgroup_allows_raises() -> None:
    with pytest.raises(ConfigError) as caught:
        limited(PLENTY, CgroupLimit("/cg/memory.max", GIB, 700 * MIB), margin_bytes=2 * GIB)

    assert str(caught.value) == (
        "a margin of 2 GiB below the limit of 1 GiB in /cg/memory.max would always be low "
        "memory; give a smaller one"
    )


@fault("a limit cannot be read, or holds garbage")
def test_limit_that_cannot_be_read_is_said_once() -> None:
    cgroups = Limits()
    source = MeminfoLowMemory(pressure=None, memory=lambda: PLENTY, cgroups=cgroups)

    cgroups.problem = "/cg/memory.max: Permission denied"
    for _ in range(3):
        assert source.read() == Reading(9000, 832)

    assert notices(source) == [
        SourceTrouble("/cg/memory.max: Permission denied; a limit there does not count")
    ]


def test_check_of_meminfo_that_fails_raises_with_the_remedy() -> None:
    def memory() -> HostMemory:
        raise FileNotFoundError(2, "No such file or directory", "/proc/meminfo")

    source = MeminfoLowMemory(pressure=None, memory=memory)

    with pytest.raises(SourceError) as caught:
        source.check()

    assert str(caught.value) == (
        "low memory cannot be seen, as available memory is unknown: this host's memory figures: "
        "/proc/meminfo: No such file or directory; mount /proc whole (a service: ProcSubset=all), "
        "or name a directory with the files available and margin (--low-mem-dir)"
    )
    MeminfoLowMemory(pressure=None, memory=lambda: PLENTY).check()


@fault("low-memory file or its directory vanishes")
@pytest.mark.parametrize("error", [OSError(2, "No such file"), KeyError("MemTotal"), ValueError()])
def test_meminfo_that_fails_is_unknown_and_recovers(error: Exception) -> None:
    answers: list[Exception | HostMemory] = [error, error, HostMemory(1000 * MIB, 500 * MIB)]

    def memory() -> HostMemory:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    source = MeminfoLowMemory(pressure=None, memory=memory)

    assert source.read() is None
    assert source.last_error.startswith("this host's memory figures")
    assert source.read() == Reading(500, 52)
    assert len(notices(source)) == 2


@fault("PSI missing, or it refuses a trigger")
def test_meminfo_without_pressure_file_is_polled_and_says_so(tmp_path: Path) -> None:
    source = MeminfoLowMemory(
        pressure=tmp_path / "memory", memory=lambda: HostMemory(16_000 * MIB, 1000 * MIB)
    )

    assert source.needs_poll
    assert source.wait_fd() is None
    assert source.describe() == (
        "available memory against 5.2 % of the RAM; polled, as nothing wakes us "
        f"({tmp_path}/memory: No such file or directory); "
        "now 1,000 MiB available, margin 832 MiB, not low"
    )
    source.close()


def test_choice_with_directory_is_that_directory_without_the_hosts_device(
    directory: Path,
) -> None:
    source = choose_source(low_mem_dir=directory, margin_bytes=None)

    assert isinstance(source, ChromeosLowMemory)
    assert source.directory == directory
    assert source.wait_fd() is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "No such file or directory"), ("file", "Not a directory")],
)
def test_choice_of_directory_that_is_none_raises_with_the_remedy(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=f"{tmp_path}/{name}: {reason}; it must be a directory"):
        choose_source(low_mem_dir=tmp_path / name, margin_bytes=None)


def test_choice_without_chromeos_is_meminfo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_memory, "CHROMEOS_DIR", tmp_path / "absent")

    source = choose_source(low_mem_dir=None, margin_bytes=100 * MIB)

    assert isinstance(source, MeminfoLowMemory)
    reading = source.read()
    assert isinstance(reading, Reading)
    assert reading.margin_mib == 100
    source.close()


def test_margin_that_is_set_replaces_the_sources_own_until_none_is(directory: Path) -> None:
    memory = HostMemory(8 * GIB, GIB)
    sources: list[LowMemorySource] = [
        ChromeosLowMemory(directory),
        MeminfoLowMemory(pressure=None, memory=lambda: memory),
    ]
    for source in sources:
        own = source.read()
        source.set_margin(1200 * MIB)
        other = source.read()
        assert isinstance(other, Reading)
        assert (other.margin_mib, other.is_low) == (1200, True)
        source.set_margin(None)
        assert source.read() == own


def test_how_fast_memory_can_be_filled_counts_only_where_a_trigger_would_tell_of_more(
    tmp_path: Path,
) -> None:
    without = MeminfoLowMemory(pressure=None)
    refused = MeminfoLowMemory(pressure=tmp_path / "missing")
    assert [without.fill_mib_s, refused.fill_mib_s] == [math.inf] * 2
    woken = MeminfoLowMemory()
    if woken.wait_fd() is not None:
        assert woken.fill_mib_s == low_memory.FILL_MIB_S
    for source in (without, refused, woken):
        source.close()
