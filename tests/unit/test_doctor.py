"""``balloonctl doctor`` on facts that this host does not have: files of other hosts, and VMs."""

import json
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.ctl.doctor.finding import Check, Finding, HostFacts
from balloon_daemon.ctl.doctor.host_checks import host_findings, margin_findings
from balloon_daemon.ctl.doctor.reader import read_host
from balloon_daemon.ctl.doctor.vm_checks import undriven_findings, vm_findings
from balloon_daemon.ctl.main import main
from balloon_daemon.units import GIB, MIB

DATA = Path(__file__).parents[1] / "data" / "doctor"
Output = pytest.CaptureFixture[str]
PROTECTION: dict[str, Any] = {"objection": None, "missing_bytes": 0}
WELL: dict[str, Any] = {
    "name": "web",
    "kind": "qmp",
    "state": "running",
    "memory_bytes": 4 * GIB,
    "balloon_bytes": GIB,
    "max_balloon_bytes": 3 * GIB,
    "returned_bytes": GIB,
    "guest_available_bytes": 2 * GIB,
    "guest_free_bytes": GIB,
    "trouble": None,
    "protection": PROTECTION,
    "vmm_pid": 4711,
}
SEED = WELL | {"protection": None}
HOST: dict[str, Any] = {
    "available_mib": 2048,
    "margin_mib": 800,
    "within": None,
    "source": "meminfo",
    "switched_off": None,
    "source_error": None,
}
FACTS = HostFacts(16 * GIB, 2 * GIB, 16 * GIB)


def missing(cause: str) -> dict[str, Any]:
    return {"event": "balloon-missing", "cause": cause}


def of_vm(vm: dict[str, Any], *events: dict[str, Any], swapped: int | None = 0) -> list[Finding]:
    return list(vm_findings(vm, events, swapped))


@pytest.mark.parametrize(
    ("name", "check", "figures"),
    [
        ("zfs", "zfs-arc", {"arc_bytes": 6 * GIB, "arc_min_bytes": GIB // 2}),
        ("ttm", "graphics-pool", {"graphics_pool_bytes": 1040 * MIB}),
        ("ttm-nodes", "graphics-pool", {"graphics_pool_bytes": 1040 * MIB}),
        ("gpu-reclaim", "graphics-pool", {"graphics_pool_bytes": 1040 * MIB}),
        ("zram", "zram", {"stored_bytes": 4 * GIB, "used_bytes": GIB}),
        ("hooks", "rival", {"rival": "/etc/libvirt/hooks/qemu"}),
    ],
)
def test_host_whose_files_say_that_figures_mislead(
    name: str, check: str, figures: dict[str, int], capsys: Output
) -> None:
    assert main(["doctor", "--root", str(DATA / name), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["check"], found["vm"], found["figures"]) == (check, None, figures)
    assert found["what"]
    assert found["remedy"]


def test_host_whose_files_say_nothing_of_the_kind(capfd: pytest.CaptureFixture[str]) -> None:
    # ZFS's cache is 64 MiB above its least size there: hardly anything.
    assert main(["doctor", "--root", str(DATA / "well")]) == 0
    assert capfd.readouterr().out.startswith("nothing found; looked at the host alone")


def test_finding_is_a_line_and_its_remedy_another(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--root", str(DATA / "hooks")]) == 1
    first, second, last = capfd.readouterr().out.splitlines()
    assert first == "host: /etc/libvirt/hooks/qemu is on this host, and sets balloons too"
    assert second.startswith("  remedy: let one of the two set a VM's balloon: take setmem out ")
    assert last.startswith("1 thing found; looked at the host alone")


@pytest.mark.parametrize(
    ("total_bytes", "pool_bytes", "is_found"),
    [
        (2 * GIB, 64 * MIB, True),  # a 64th of that is 32 MiB, which is too little to matter
        (2 * GIB, 64 * MIB - 1, False),
        (16 * GIB, 256 * MIB, True),
        (16 * GIB, 256 * MIB - 1, False),
    ],
)
def test_little_is_no_finding(total_bytes: int, pool_bytes: int, is_found: bool) -> None:
    facts = HostFacts(total_bytes, GIB, total_bytes, pool_bytes, pool_bytes)
    checks = [found.check for found in host_findings(facts)]
    assert checks == [Check.HUGE_PAGE_POOL, Check.GRAPHICS_POOL] * is_found


def test_files_that_cannot_be_read_or_make_no_sense_say_nothing(tmp_path: Path) -> None:
    meminfo = (DATA / "well/proc/meminfo").read_text()
    for name, text in {
        "proc/meminfo": meminfo,
        "proc/swaps": "Filename\n\n/dev/zram0 partition\n/dev/zram../../../x\n",
        "sys/block/zram0/mm_stat": "1 x 3\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "many\n",
        "sys/kernel/debug/ttm/page_pool": "total\t: lots of them\n",
        "proc/12/comm": "qemu\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "proc/spl/kstat/zfs/arcstats").mkdir(parents=True)
    facts = read_host(tmp_path)
    assert list(host_findings(facts)) == []
    assert facts.graphics_pool_bytes is None


@pytest.mark.parametrize(
    ("swapped", "free", "is_found"),
    [
        (64 * MIB, 64 * MIB, True),
        (64 * MIB - 1, GIB, False),
        (GIB, 64 * MIB - 1, False),
        (None, GIB, False),
        (GIB, None, False),
    ],
)
def test_swap_matters_where_the_guest_has_as_much_free(
    swapped: int | None, free: int | None, is_found: bool
) -> None:
    found = of_vm(WELL | {"guest_free_bytes": free}, swapped=swapped)
    assert [each.check for each in found] == [Check.SWAPPED] * is_found


@pytest.mark.parametrize(
    ("vm", "events", "remedy"),
    [
        (WELL | {"protection": PROTECTION | {"missing_bytes": GIB}}, [], "share its memory"),
        (
            WELL | {"protection": PROTECTION | {"missing_bytes": GIB}},
            [missing("never-freed"), missing("refilled")],
            "balloonctl release VM",
        ),
        (SEED | {"returned_bytes": 0}, [], "share its memory"),
        (WELL | {"memory_bytes": None}, [{"event": "memory-not-shared"}], "share=on"),
    ],
)
def test_balloon_that_gave_nothing_back_has_the_remedy_of_its_cause(
    vm: dict[str, Any], events: list[dict[str, Any]], remedy: str
) -> None:
    (found,) = of_vm(vm, *events)
    assert (found.check, found.vm) == (Check.NOTHING_RETURNED, "web")
    assert remedy in found.remedy


@pytest.mark.parametrize(
    "vm",
    [
        WELL,
        SEED,
        # A small balloon may be less than what its VMM occupies for itself.
        SEED | {"returned_bytes": 0, "balloon_bytes": 320 * MIB},
        SEED | {"returned_bytes": None},
    ],
)
def test_balloon_that_came_back_is_no_finding(vm: dict[str, Any]) -> None:
    assert of_vm(vm) == []


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"guest_available_bytes": None}, "update the guest's balloon driver"),
        (
            {"guest_available_bytes": None, "kind": "firecracker"},
            "set stats_polling_interval_s before the VM boots",
        ),
        ({"protection": PROTECTION | {"objection": "no-fresh-stats"}}, "or set a floor"),
    ],
)
def test_statistics_that_do_not_come(changes: dict[str, Any], remedy: str) -> None:
    (found,) = of_vm(WELL | changes | {"guest_free_bytes": None})
    assert found.check is Check.NO_STATISTICS
    assert remedy in found.remedy


def test_balloon_that_cannot_be_moved() -> None:
    (found,) = of_vm(WELL | {"trouble": "ref\x1bused"})
    assert found.check is Check.NOT_MOVED
    assert "ref\\x1bused" in found.what
    # A command that is copied from there runs nothing of the name.
    (found,) = of_vm(WELL | {"trouble": "refused", "name": "$(id)"})
    assert found.remedy.startswith("balloonctl explain '$(id)' has")


def test_vm_that_does_not_run_is_no_finding() -> None:
    faults = ["not-there", "no-vm", "gone", "own-device", "held", "hangs"]
    undriven = [{"name": "web", "fault": fault, "why": f"web: {fault}"} for fault in faults]
    found = list(undriven_findings(undriven))
    assert [each.figures["fault"] for each in found] == ["held", "hangs"]
    assert "monitor of its own" in found[0].remedy


@pytest.mark.parametrize(
    ("changes", "vms", "number"),
    [
        ({}, [WELL], 0),
        ({"margin_mib": 8192, "available_mib": 9000}, [WELL], 1),
        ({"margin_mib": 8191, "available_mib": 9000}, [WELL], 0),
        ({"margin_mib": 163}, [WELL], 1),
        ({"margin_mib": 164}, [WELL], 0),
        ({"margin_mib": 163, "source": "chromeos"}, [WELL], 0),
        ({"margin_mib": 163, "within": "/sys/fs/cgroup/vms"}, [WELL], 0),
        # Its balloon can take 2 GiB more.
        ({"margin_mib": 2048, "available_mib": 0}, [WELL], 0),
        ({"margin_mib": 2049, "available_mib": 0}, [WELL], 1),
        ({"margin_mib": 2049, "available_mib": 0}, [], 0),
        ({"switched_off": "margin says off", "available_mib": None}, [WELL], 1),
        ({"source_error": "no figures", "available_mib": None}, [WELL], 1),
        ({"available_mib": None}, [WELL], 0),
    ],
)
def test_margin_and_figures_of_a_balloond(
    changes: dict[str, Any], vms: list[dict[str, Any]], number: int
) -> None:
    assert len(list(margin_findings(HOST | changes, vms, FACTS))) == number
