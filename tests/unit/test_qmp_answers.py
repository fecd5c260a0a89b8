"""QEMU's answers as checked values; whatever else is no answer."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_answers as answers
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.qmp_answers import Refusal
from balloon_daemon.guests.seam import Stats
from balloon_daemon.units import GIB, MIB, MOST_MEMORY_BYTES
from tests.harness.faults import fault

UNKNOWN = (1 << 64) - 1
ALL_STATS = {name: 4096 for name in answers._FIELDS}
SINCE_LINUX_6_12 = (
    "oom-kills", "alloc-stalls", "async-scans", "direct-scans", "async-reclaims", "direct-reclaims"
)  # fmt: skip


def fault_of(read: Callable[..., object], *arguments: object) -> Fault:
    """The fault of what is no answer."""
    with pytest.raises(ControlError) as caught:
        read(*arguments)
    return caught.value.fault


def test_size_is_ram_and_dimms_and_neither_virtio_mem_nor_nvdimms() -> None:
    devices = [
        {"type": kind, "data": {"size": size}}
        for kind, size in (("dimm", 128 * MIB), ("virtio-mem", GIB), ("nvdimm", GIB))
    ]
    base = answers.base_bytes({"base-memory": GIB, "plugged-memory": 2 * GIB + 128 * MIB})
    assert base + answers.plugged(devices).dimm_bytes == GIB + 128 * MIB


def test_machine_without_memory_devices_has_no_dimms() -> None:
    assert answers.plugged(Refusal("GenericError", "not supported")) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "can"),
    [
        ({"size": GIB}, False),
        ({"size": GIB, "slots": 0, "max-size": 8 * GIB}, False),
        ({"size": GIB, "slots": 4, "max-size": 8 * GIB}, True),
        (Refusal("GenericError", "Property 'pc-q35-6.2-machine.memory' not found"), True),
    ],
)
def test_machine_that_may_be_given_dimms_is_told_by_its_slots(answer: object, can: bool) -> None:
    assert answers.can_plug_dimms(answer) is can


@pytest.mark.parametrize(
    "actual",
    [
        1 << 63,
        -1,
        MOST_MEMORY_BYTES + 1,
        1.0,
        float("inf"),
        "1073741824",
        None,
        True,
        [],
        {},
        10**400,
    ],
)
def test_size_that_cannot_be_is_nonsense(actual: Any) -> None:
    assert fault_of(answers.vm_bytes, {"actual": actual}) is Fault.NONSENSE


@pytest.mark.parametrize("answer", [None, 1, "actual", [], {}, {"other": 1}])
def test_answer_of_another_form_is_nonsense(answer: Any) -> None:
    for read in (answers.base_bytes, answers.is_running, answers.guest_stats):
        assert fault_of(read, answer) is Fault.NONSENSE


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("DeviceNotActive", Fault.NO_BALLOON),
        ("DeviceNotFound", Fault.NO_BALLOON),
        ("GenericError", Fault.REFUSED),
        ("CommandNotFound", Fault.REFUSED),
    ],
)
def test_refusal_tells_a_missing_balloon_from_all_else(kind: str, fault: Fault) -> None:
    refusal = Refusal(kind, "QEMU's words")
    assert fault_of(answers.vm_bytes, refusal) is fault
    assert fault_of(answers.accepted, refusal) is fault


def test_statistics_have_the_seams_names() -> None:
    sent = answers.guest_stats({"stats": ALL_STATS, "last-update": 7})
    stats = sent.at(1.5, 99)
    assert sent.last_update == 7
    assert stats.at_s == 1.5
    assert stats.disk_read_bytes == 99
    named = {name: getattr(stats, name) for name in Stats.__slots__}
    assert [name for name, value in named.items() if value != 4096] == ["at_s", "disk_read_bytes"]


def test_statistic_that_the_guest_does_not_send_is_none() -> None:
    missing = dict.fromkeys((f"stat-{name}" for name in SINCE_LINUX_6_12), UNKNOWN)
    stats = answers.guest_stats({"stats": ALL_STATS | missing, "last-update": 7}).at(0, None)
    assert (stats.free_bytes, stats.oom_kills, stats.direct_reclaims) == (4096, None, None)


def test_statistics_of_a_qemu_that_has_not_all_names_are_taken() -> None:
    older = {k: v for k, v in ALL_STATS.items() if k[5:] not in SINCE_LINUX_6_12}
    stats = answers.guest_stats({"stats": older, "last-update": 7}).at(0, None)
    assert (stats.available_bytes, stats.oom_kills) == (4096, None)


@pytest.mark.parametrize("figure", ["4096", float("nan"), -1, 1 << 64, None, 0.5])
def test_statistic_that_is_no_number_of_64_bits_is_nonsense(figure: Any) -> None:
    answer = {"stats": ALL_STATS | {"stat-free-memory": figure}, "last-update": 7}
    assert fault_of(answers.guest_stats, answer) is Fault.NONSENSE


@fault("says figures that cannot be")
def test_disk_reads_of_all_disks_together_have_64_bits() -> None:
    row = {"qdev": "disk", "stats": {"rd_bytes": (1 << 64) - 1}}
    assert answers.disk_read_bytes([row, row]) == (1 << 64) - 1


def test_disk_reads_are_those_of_the_guests_own_devices() -> None:
    rows = [
        {"device": "", "qdev": "/machine/a", "stats": {"rd_bytes": 5}},
        {"device": "", "qdev": "/machine/b", "stats": {"rd_bytes": 7}},
        {"device": "backup", "stats": {"rd_bytes": 1000}},
    ]
    assert answers.disk_read_bytes(rows) == 12
    assert answers.disk_read_bytes(rows[2:]) is None


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_memory_that_was_saved_is_told_from_the_time_before(status: str) -> None:
    first = answers.last_saved({"status": status, "ram": {"transferred": 107330587}})
    second = answers.last_saved({"status": status, "ram": {"transferred": 107330317}})
    assert first is not None
    assert first != second


@pytest.mark.parametrize("answer", [{}, {"status": "setup"}, {"status": "active", "ram": {}}])
def test_memory_that_was_not_saved_yet_is_none(answer: object) -> None:
    assert answers.last_saved(answer) is None


MANY = 50_000
LARGE: list[tuple[Callable[[object], object], object]] = [
    (answers.accepted, {"x": [[]] * MANY}),
    (answers.base_bytes, {"base-memory": GIB, "x": [[]] * MANY}),
    (answers.can_plug_dimms, {"slots": [[]] * MANY}),
    (answers.devices, [{"name": "a", "type": answers.BALLOON}] * MANY),
    (answers.disk_read_bytes, [{"qdev": "a", "stats": {"rd_bytes": 1}}] * MANY),
    (answers.guest_stats, {"stats": {"stat-x": [[]] * MANY} | ALL_STATS, "last-update": 1}),
    (answers.is_done, [[]] * MANY),
    (answers.is_running, {"running": True, "x": [[]] * MANY}),
    (answers.is_true, [[]] * MANY),
    (answers.last_saved, {"status": "completed", "x": [[]] * MANY}),
    (answers.memory_backends, [{"id": "a"}] * MANY),
    (answers.plugged, [{"type": "dimm", "data": {"size": 1}}] * MANY),
    (answers.text, "a" * MANY),
    (answers.thread_id, [{"thread-id": 1}] * MANY),
    (answers.uuid, {"UUID": "a" * MANY}),
    (answers.vm_bytes, {"actual": GIB, "x": [[]] * MANY}),
]


@pytest.mark.parametrize(("read", "answer"), LARGE)
def test_what_is_read_of_an_answer_is_small(
    read: Callable[[object], object], answer: object
) -> None:
    assert len(pickle.dumps(read(answer))) < 2000


def test_migration_that_is_nested_too_deeply_is_nonsense() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ControlError) as caught:
        answers.last_saved({"status": "completed", "x": nested})
    assert caught.value.fault is Fault.NONSENSE
