"""What cgroups still allow: trees recorded from three kernels, and trees made for odd cases."""

import os
import shutil
from pathlib import Path

import pytest

from balloon_daemon.linux.cgroup import CgroupLimit, MemoryCgroups
from balloon_daemon.units import GIB, MIB
from tests.harness.faults import fault

RECORDED = Path(__file__).parents[1] / "data/cgroups"
HOST_BYTES = 64 * GIB
NO_LIMIT_V1 = "9223372036854771712\n"


class Host:
    """A /proc/self and cgroup file systems of the test's own.

    Args:
        path: an empty directory.
        cgroup: what /proc/self/cgroup says.
        mounts: lines of mountinfo after the mount's root and point, below our directory.
    """

    def __init__(self, path: Path, cgroup: str, *mounts: tuple[str, str, str]) -> None:
        self.path, self.proc = path, path / "proc"
        self.proc.mkdir()
        self.say(cgroup)
        (self.proc / "mountinfo").write_text(
            "1 1 0:2 / / rw - rootfs rootfs rw\n"
            + "".join(
                f"30 1 0:26 {root} {path / point} rw,relatime shared:9 - {kind}\n"
                for root, point, kind in mounts
            )
        )

    def say(self, cgroup: str) -> None:
        (self.proc / "cgroup").write_text(cgroup)

    def group(self, path: str, **files: str | int) -> Path:
        """Makes a cgroup's files; underscores in their names stand for dots."""
        directory = self.path / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name.replace("_", ".", 1)).write_text(f"{content}\n")
        return directory

    def v2(
        self, path: str, limit: str | int, used: int, stat: str = "", high: str = "max"
    ) -> Path:
        return self.group(
            path, memory_max=limit, memory_high=high, memory_current=used, memory_stat=stat
        )

    def cgroups(self, *, has_unit: bool = False) -> MemoryCgroups:
        return MemoryCgroups(self.proc, has_unit=has_unit)

    def limits(self) -> list[CgroupLimit]:
        return self.cgroups().limits(HOST_BYTES)


V2 = "cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot"
V1 = "cgroup cgroup rw,memory"


@pytest.fixture
def v2_host(tmp_path: Path) -> Host:
    host = Host(tmp_path, "0::/a/b\n", ("/", "cg", V2))
    host.group("cg", memory_stat="inactive_file 5")  # the root has no limit
    return host


def recorded(name: str, tmp_path: Path) -> tuple[MemoryCgroups, Path]:
    """A recorded tree, mounted where we have copied it to."""
    root = tmp_path / "host"
    shutil.copytree(RECORDED / name, root)
    mountinfo = root / "proc/mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace(" /sys/", f" {root}/sys/"))
    return MemoryCgroups(root / "proc", has_unit=False), root / "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("name", "inner_bytes", "outer_bytes"),
    [
        # limit - memory.current + active_file + inactive_file + slab_reclaimable
        (
            "linux-6.1",
            419430400 - 95981568 + 20971520 + 32505856 + 223976,
            167772160 - 95989760 + 20971520 + 32505856 + 223976,
        ),
        (
            "linux-7.2",
            419430400 - 109490176 + 67108864 + 133400,
            167772160 - 109752320 + 67108864 + 133400,
        ),
    ],
)
def test_recorded_tree_of_v2_gives_both_limits_the_inner_first(
    name: str, inner_bytes: int, outer_bytes: int, tmp_path: Path
) -> None:
    cgroups, mounted = recorded(name, tmp_path)

    assert cgroups.limits(HOST_BYTES) == [
        CgroupLimit(f"{mounted}/vms.slice/balloond.service/memory.max", 400 * MIB, inner_bytes),
        # Tasks above it stand still long before memory.max.
        CgroupLimit(f"{mounted}/vms.slice/memory.high", 160 * MIB, outer_bytes),
    ]
    assert cgroups.problem == ""


def test_recorded_tree_of_v1_counts_what_descendants_have_in_their_cache(tmp_path: Path) -> None:
    cgroups, mounted = recorded("linux-6.18-v1", tmp_path)

    assert cgroups.limits(HOST_BYTES) == [
        CgroupLimit(
            f"{mounted}/memory/vms.slice/balloond.service/memory.limit_in_bytes",
            400 * MIB,
            419430400 - 102436864 + 37896192 + 21770240,
        ),
        CgroupLimit(
            f"{mounted}/memory/vms.slice/memory.limit_in_bytes",
            192 * MIB,
            201326592 - 102539264 + 37900288 + 21770240,
        ),
    ]


@fault("the service's own `MemoryMax=`")
@pytest.mark.parametrize("name", ["linux-6.1", "linux-7.2", "linux-6.18-v1"])
def test_limit_of_the_unit_itself_is_left_out_and_its_slices_counts(
    name: str, tmp_path: Path
) -> None:
    _, mounted = recorded(name, tmp_path)
    cgroups = MemoryCgroups(tmp_path / "host/proc", has_unit=True)

    paths = [limit.path for limit in cgroups.limits(HOST_BYTES)]

    assert len(paths) == 1
    assert Path(paths[0]).parent.name == "vms.slice"
    assert paths[0].startswith(str(mounted))


@fault("the service's own `MemoryMax=`")
@pytest.mark.parametrize(
    ("path", "counting"),
    [
        ("/system.slice/balloond.service", ["system.slice"]),
        # DelegateSubgroup=
        ("/system.slice/balloond.service/main", ["system.slice"]),
        # Only the innermost service is ours; the user's manager is one, too.
        (
            "/user.slice/user@7.service/balloond.service",
            ["user.slice/user@7.service", "user.slice"],
        ),
        # v1 without a cgroup for each unit: the slice is all there is.
        ("/system.slice", ["system.slice"]),
        # A script that a service runs in a scope, or a container.
        ("/vms.slice/run.scope", ["vms.slice/run.scope", "vms.slice"]),
    ],
)
def test_cgroups_that_count_for_a_process_of_a_unit(
    path: str, counting: list[str], tmp_path: Path
) -> None:
    host = Host(tmp_path, f"0::{path}\n", ("/", "cg", V2))
    while path != "/":
        host.v2(f"cg{path}", 4 * GIB, GIB)
        path = os.path.dirname(path)

    limits = host.cgroups(has_unit=True).limits(HOST_BYTES)

    assert [limit.path for limit in limits] == [f"{tmp_path}/cg/{c}/memory.max" for c in counting]


def test_root_of_a_units_own_namespace_is_the_units(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/\n", ("/", "cg", V2))
    host.v2("cg", 4 * GIB, GIB)

    assert host.cgroups(has_unit=True).limits(HOST_BYTES) == []
    assert len(host.limits()) == 1


def test_no_limit_is_none(v2_host: Host) -> None:
    v2_host.v2("cg/a/b", "max", GIB)
    v2_host.v2("cg/a", HOST_BYTES, GIB)

    assert v2_host.limits() == []


def test_limit_of_an_ancestor_counts_where_the_inner_ones_lack_the_controller(
    v2_host: Host,
) -> None:
    v2_host.group("cg/a/b")
    a = v2_host.v2("cg/a", 2 * GIB, GIB, "active_file 4096\nworkingset_refault_file 7")

    assert v2_host.limits() == [CgroupLimit(f"{a}/memory.max", 2 * GIB, GIB + 4096)]


@pytest.mark.parametrize(
    ("used", "stat", "left"),
    [
        (3 * GIB, "", 0),  # the limit was lowered below what is used
        (GIB, f"inactive_file {5 * GIB}", 2 * GIB),  # memory.stat lags behind
        (GIB, "", GIB),
        (GIB, f"file_dirty 9\nslab_reclaimable {MIB}\nslab_unreclaimable 9", GIB + MIB),
        # Shared memory is no file that could be dropped, nor is what is locked.
        (GIB, f"file {GIB}\nshmem {GIB}\ninactive_anon {GIB}\nunevictable {GIB}", GIB),
    ],
)
def test_what_is_left_is_from_zero_to_the_limit(
    used: int, stat: str, left: int, v2_host: Host
) -> None:
    v2_host.v2("cg/a", 2 * GIB, used, stat)

    assert [limit.available_bytes for limit in v2_host.limits()] == [left]


def test_lower_of_max_and_high_counts(v2_host: Host) -> None:
    v2_host.v2("cg/a/b", 2 * GIB, GIB, high=f"{3 * GIB}")
    v2_host.v2("cg/a", 3 * GIB, GIB, high=f"{2 * GIB}")

    assert [Path(limit.path).name for limit in v2_host.limits()] == ["memory.max", "memory.high"]


def test_limits_are_read_anew_each_time(v2_host: Host) -> None:
    cgroups = v2_host.cgroups()
    v2_host.v2("cg/a/b", "max", GIB)
    before = cgroups.limits(HOST_BYTES)

    b = v2_host.v2("cg/a/b", 2 * GIB, GIB)

    assert before == []
    assert cgroups.limits(HOST_BYTES) == [CgroupLimit(f"{b}/memory.max", 2 * GIB, GIB)]


def test_process_that_is_moved_is_followed(v2_host: Host) -> None:
    cgroups = v2_host.cgroups()
    v2_host.v2("cg/a/b", 2 * GIB, GIB)
    cgroups.limits(HOST_BYTES)

    c = v2_host.v2("cg/c", 3 * GIB, GIB)
    v2_host.say("0::/c\n")

    assert cgroups.limits(HOST_BYTES) == [CgroupLimit(f"{c}/memory.max", 3 * GIB, 2 * GIB)]


def test_files_that_vanish_are_looked_for_again(v2_host: Host) -> None:
    cgroups = v2_host.cgroups()
    v2_host.v2("cg/a", 2 * GIB, GIB)
    cgroups.limits(HOST_BYTES)

    (v2_host.path / "cg").rename(v2_host.path / "elsewhere")
    mountinfo = v2_host.proc / "mountinfo"
    mountinfo.write_text(mountinfo.read_text().replace("/cg ", "/elsewhere "))

    assert [limit.path for limit in cgroups.limits(HOST_BYTES)] == [
        f"{v2_host.path}/elsewhere/a/memory.max"
    ]


@fault("a limit cannot be read, or holds garbage")
@pytest.mark.parametrize("content", ["", "much", "-1", "9" * 21, "1 2"])
@pytest.mark.parametrize("name", ["memory.max", "memory.high", "memory.current"])
def test_garbage_in_a_limit_is_told_and_the_other_limits_count(
    name: str, content: str, v2_host: Host
) -> None:
    b = v2_host.v2("cg/a/b", GIB, 0)
    v2_host.v2("cg/a", 2 * GIB, GIB)
    (b / name).write_text(content)
    cgroups = v2_host.cgroups()

    assert [limit.limit_bytes for limit in cgroups.limits(HOST_BYTES)] == [2 * GIB]
    assert cgroups.problem.startswith(f"{b}/{name} holds ")


def test_limit_that_may_not_be_read_is_told(v2_host: Host) -> None:
    a = v2_host.v2("cg/a", 2 * GIB, GIB)
    (a / "memory.current").unlink()
    (a / "memory.current").mkdir()
    cgroups = v2_host.cgroups()

    assert cgroups.limits(HOST_BYTES) == []
    assert cgroups.problem == f"{a}/memory.current: Is a directory"


@pytest.mark.parametrize(
    ("cgroup", "root", "directory"),
    [
        # A namespace of the container's own, its file system mounted inside.
        ("/", "/", "cg"),
        # No namespace: the host's path, of which only our own part is mounted.
        ("/docker/f00", "/docker/f00", "cg"),
        ("/docker/f00/vms", "/docker/f00", "cg/vms"),
        # Mounted before the namespace was made: our own names are hidden.
        ("/", "/../..", "cg/docker/f00"),
        ("/vms", "/../..", "cg/docker/f00/vms"),
        # Moved out of the namespace that the mount was made in.
        ("/../other", "/../..", "cg/docker/other"),
        ("/../other", "/..", "cg/other"),
        # A path with a colon, a blank and a glob's star.
        ("/a:b c/*", "/", "cg/a:b c/*"),
        # Our cgroup was removed under us; its ancestors are there still.
        ("/a (deleted)", "/", "cg/a"),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_own_cgroup_is_found_however_the_namespace_shows_it(
    version: str, cgroup: str, root: str, directory: str, tmp_path: Path
) -> None:
    if version == "v2":
        host = Host(tmp_path, f"0::{cgroup}\n", (root, "cg", V2))
    else:
        host = Host(tmp_path, f"3:memory:{cgroup}\n1:name=systemd:/x\n", (root, "cg", V1))
    # Others', of which ours must be told.
    for other in ("cg/docker/0", "cg/docker/f00", "cg/docker", "cg/0", "cg/0/0/vms"):
        host.group(other, cgroup_procs="1\n2")
    group = host.group(directory, cgroup_procs=f"1\n{os.getpid()}\n3")
    name = {"v1": "memory.limit_in_bytes", "v2": "memory.max"}[version]
    usage = {"v1": "memory.usage_in_bytes", "v2": "memory.current"}[version]
    for file, content in ((name, GIB), (usage, 0), ("memory.high", "max"), ("memory.stat", "")):
        (group / file).write_text(f"{content}\n")

    assert [limit.path for limit in host.limits()] == [f"{group}/{name}"]


@pytest.mark.parametrize(
    ("cgroup", "root"),
    [
        ("/../other", "/"),  # outside of what is mounted
        ("/b", "/a"),
        ("/", "/../a"),  # a sibling's
        ("/", "/../.."),  # hidden, and nowhere to be found
    ],
)
def test_cgroup_that_is_not_mounted_here_has_no_limits(
    cgroup: str, root: str, tmp_path: Path
) -> None:
    host = Host(tmp_path, f"0::{cgroup}\n", (root, "cg", V2))
    host.v2("cg/x", GIB, 0)

    assert host.limits() == []


def test_limit_of_the_mounts_root_counts_where_our_own_is_hidden(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/\n", ("/..", "cg", V2))
    pod = host.v2("cg", GIB, 0)

    assert [limit.path for limit in host.limits()] == [f"{pod}/memory.max"]


def test_hybrid_host_has_its_memory_controller_in_v1(tmp_path: Path) -> None:
    host = Host(
        tmp_path,
        "5:cpu,cpuacct:/x\n4:hugetlb,memory:/vms\n1:name=systemd:/vms\n0::/vms\n",
        ("/", "unified", V2),
        ("/", "cpu", "cgroup cgroup rw,cpu,cpuacct"),
        ("/", "memory", "cgroup cgroup rw,hugetlb,memory"),
    )
    vms = host.group("memory/vms", memory_stat="total_inactive_file 7\ninactive_file 1")
    (vms / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (vms / "memory.usage_in_bytes").write_text(f"{MIB}\n")
    host.group("unified/vms")
    host.group("memory").joinpath("memory.limit_in_bytes").write_text(NO_LIMIT_V1)

    assert host.limits() == [CgroupLimit(f"{vms}/memory.limit_in_bytes", GIB, GIB - MIB + 7)]


def test_parent_that_does_not_count_its_descendants_ends_the_chain(tmp_path: Path) -> None:
    host = Host(tmp_path, "4:memory:/a/b\n", ("/", "cg", V1))
    for path in ("cg/a/b", "cg/a"):
        group = host.group(path, memory_stat="")
        (group / "memory.limit_in_bytes").write_text(f"{GIB}\n")
        (group / "memory.usage_in_bytes").write_text("0\n")
        (group / "memory.use_hierarchy").write_text("0\n")

    assert [limit.path for limit in host.limits()] == [f"{tmp_path}/cg/a/b/memory.limit_in_bytes"]


@pytest.mark.parametrize("content", ["", "\n", "0::\n", "nonsense\n", "::::\n", "0::/a\n"])
def test_kernel_without_cgroups_or_mounts_has_no_limits(content: str, tmp_path: Path) -> None:
    host = Host(tmp_path, content)

    assert host.limits() == []


def test_process_without_proc_has_no_limits(tmp_path: Path) -> None:
    assert MemoryCgroups(tmp_path / "absent", has_unit=False).limits(HOST_BYTES) == []


def test_mount_point_with_odd_characters_is_found(tmp_path: Path) -> None:
    host = Host(tmp_path, "0::/a\n", ("/", r"c\040g\134x", V2))
    a = host.v2("c g\\x/a", GIB, 0)

    assert [limit.path for limit in host.limits()] == [f"{a}/memory.max"]


def test_this_process_has_cgroups_that_can_be_read() -> None:
    cgroups = MemoryCgroups()

    cgroups.limits(HOST_BYTES)

    assert cgroups.problem == ""
