"""The metrics' text: what it says of which status, in which format, and its bounds."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon import __version__
from balloon_daemon.api.metrics import Metrics, families, wants_openmetrics
from balloon_daemon.api.own_figures import own_figures
from balloon_daemon.events import Connected, DeviceNotForked, TemplateLost
from balloon_daemon.guests.seam import GuestState, Stats, Stuck
from balloon_daemon.records.counters import Counters
from balloon_daemon.sizing.decision import (
    Decision,
    NeverLow,
    PolicyStatistics,
    Reading,
    Reason,
)
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.status import (
    HostStatus,
    LastDecision,
    PolicyStatus,
    ProtectionStatus,
    SourceStatus,
    Undriven,
    VmStatus,
)
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.metric_texts import Found, read_metrics
from tests.harness.metrics_table import table, written

WEB, DB = VmId(1, "web"), VmId(2, "db")
UP = LastDecision(WEB, Decision(Reason.LOW_MEMORY, 0, 1, 16, 32 * MIB, Reading(10, 400)), 1.0)
FULL = VmStatus(
    WEB,
    frozenset(),
    PolicyStatus(GIB, 512 * MIB, 3, 16, 32 * MIB, PolicyStatistics(1, 4, 1)),
    16 * MIB,
    Stats(1.0, free_bytes=500 * MIB, available_bytes=600 * MIB),
    Stuck("no answer"),
    VmSettings(priority=-1),
    GuestState.PAUSED,
    GIB - 8 * MIB,
    ProtectionStatus(Reason.IN_NEED, frozenset(), 60.0, 2.0, 9 * MIB),
    "qmp",
    UP,
    paused_s=3.0,
)
BARE = VmStatus(DB, frozenset(), None, 0, None, None, kind="vhost_user")
LOW = SourceStatus("meminfo", "", 7, 2, 3, Reading(10, 400))


class StatusDesk:
    """Knows a host and some VMs, and answers nothing else."""

    def __init__(self, *vms: VmStatus, host: HostStatus | None = None) -> None:
        self.vms = {vm.vm: vm for vm in vms}
        self.host = host or HostStatus(LOW, dry_run=True, paused_s=1.0, reserved_mib=5)

    def host_status(self) -> HostStatus:
        return self.host

    def vm_ids(self) -> tuple[VmId, ...]:
        return (VmId(99, "gone"), *self.vms)

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        return self.vms.get(vm_id)


def text_of(
    desk: StatusDesk,
    counters: Counters | None = None,
    *undriven: Undriven,
    openmetrics: bool = False,
) -> str:
    metrics = Metrics(desk, lambda: undriven, counters or Counters(), own_figures)
    return b"".join(metrics.parts(openmetrics=openmetrics)).decode()


def found(
    desk: StatusDesk,
    counters: Counters | None = None,
    *undriven: Undriven,
    openmetrics: bool = False,
) -> Found:
    text = text_of(desk, counters, *undriven, openmetrics=openmetrics)
    return read_metrics(text, openmetrics=openmetrics)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_all_families_are_there_with_their_types_whatever_the_format(*, openmetrics: bool) -> None:
    kinds = found(StatusDesk(FULL), openmetrics=openmetrics).kinds
    expected = {}
    for name, kind, _, _ in families():
        if kind == "counter":  # Its family's name is without the suffix, to the library's parsers.
            expected[name.removesuffix("_total")] = kind
        elif kind == "info" and openmetrics:
            expected[name.removesuffix("_info")] = kind
        else:
            expected[name] = "gauge"
    assert kinds == expected


def test_each_figure_of_a_vm_is_that_of_its_status() -> None:
    metrics = found(StatusDesk(FULL))
    values = {
        "size_bytes": GIB,
        "balloon_bytes": 16 * MIB,
        "target_bytes": 32 * MIB,
        "balloon_max_bytes": 512 * MIB,
        "host_freed_bytes": 8 * MIB,
        "occupied_bytes": GIB - 8 * MIB,
        "guest_available_bytes": 600 * MIB,
        "guest_free_bytes": 500 * MIB,
        "missing_bytes": 9 * MIB,
        "level": 3,
        "in_need": 1,
        "trouble": 1,
        "paused": 1,
    }
    assert {name: metrics.value(f"balloond_vm_{name}", vm="web") for name in values} == values
    info = {"kind": "qmp", "profile": "careful", "priority": "-1"}
    assert metrics.value("balloond_vm_info", vm="web", **info) == 1
    assert metrics.value("balloond_vm_state", vm="web", state="paused") == 1
    assert metrics.value("balloond_vm_objection", vm="web", objection="in-need") == 1
    assert metrics.value("balloond_vm_last_decision", vm="web", reason="low-memory") == 1
    assert metrics.value("balloond_vm_steps_total", vm="web", direction="up") == 4
    assert metrics.value("balloond_vm_steps_total", vm="web", direction="down") == 1


def test_each_figure_of_the_host_is_that_of_its_status() -> None:
    metrics = found(StatusDesk())
    values = {
        "host_available_bytes": 10 * MIB,
        "host_margin_bytes": 400 * MIB,
        "host_low": 1,
        "host_known": 1,
        "host_reserved_bytes": 5 * MIB,
        "host_paused": 1,
        "host_readings_total": 7,
        "host_unknown_readings_total": 2,
        "host_wakeups_total": 3,
        "dry_run": 1,
    }
    assert {name: metrics.value(f"balloond_{name}") for name in values} == values
    assert metrics.value("balloond_host_source_info", source="meminfo") == 1
    assert metrics.value("balloond_build_info", version=__version__) == 1


def test_what_is_not_known_has_no_sample_and_no_zero() -> None:
    unknown = found(StatusDesk(BARE, host=HostStatus(LOW._replace(seen=None))))
    assert unknown.value("balloond_vm_balloon_bytes", vm="db") == 0
    for name in ("size", "target", "balloon_max", "occupied", "guest_available", "missing"):
        assert unknown.value(f"balloond_vm_{name}_bytes", vm="db") is None
    assert unknown.value("balloond_vm_in_need", vm="db") is None
    assert unknown.labels("balloond_vm_objection") == []
    for name in ("available_bytes", "margin_bytes", "low"):
        assert unknown.value(f"balloond_host_{name}") is None
    assert unknown.value("balloond_host_known") == 0


def test_source_that_is_switched_off_is_never_low_and_has_no_figures() -> None:
    off = found(StatusDesk(host=HostStatus(LOW._replace(seen=NeverLow("margin is off")))))
    assert (off.value("balloond_host_low"), off.value("balloond_host_known")) == (0, 1)
    assert off.value("balloond_host_available_bytes") is None


def test_large_numbers_have_all_of_their_digits() -> None:
    odd = (1 << 53) + 1
    text = text_of(StatusDesk(FULL._replace(balloon_bytes=odd)))
    assert f'balloond_vm_balloon_bytes{{vm="web"}} {odd}\n' in text


@pytest.mark.parametrize("openmetrics", [False, True])
def test_vms_of_one_name_have_series_of_their_own(*, openmetrics: bool) -> None:
    ids = [VmId(3, "web"), VmId(4, "web#3"), VmId(5, "web"), VmId(6, "web#5")]
    vms = [FULL._replace(vm=vm) for vm in (WEB, *ids)]
    names = {
        one["vm"]
        for one in found(StatusDesk(*vms), openmetrics=openmetrics).labels(
            "balloond_vm_size_bytes"
        )
    }
    assert names == {"web", "web#3", "web#3#4", "web#5", "web#5#6"}


@pytest.mark.parametrize("openmetrics", [False, True])
@settings(max_examples=40)
@given(name=st.text(min_size=1, max_size=12) | st.sampled_from(['"', "\\", "\\n", '\n"} 1\n']))
def test_name_of_any_characters_is_read_as_it_is(name: str, *, openmetrics: bool) -> None:
    vm = FULL._replace(vm=VmId(1, name))
    undriven = Undriven(name, "/run/x", "not-there", "nobody listens")
    metrics = found(StatusDesk(vm), None, undriven, openmetrics=openmetrics)
    assert metrics.value("balloond_vm_balloon_bytes", vm=name) == 16 * MIB
    assert metrics.value("balloond_vm_not_driven", vm=name, fault="not-there") == 1


def test_names_that_cannot_be_encoded_are_replaced_and_stay_two() -> None:
    vms = [FULL._replace(vm=VmId(n, name)) for n, name in enumerate(("a\udc80", "a\udc81"))]
    names = [one["vm"] for one in found(StatusDesk(*vms)).labels("balloond_vm_balloon_bytes")]
    assert sorted(names) == ["a?", "a?#1"]


def test_faults_and_decisions_are_there_before_the_first_one() -> None:
    """Prometheus' increase() sees no step from nothing to 1."""
    metrics = found(StatusDesk())
    assert metrics.value("balloond_faults_total", event="device-died") == 0
    for reason in Reason:
        assert metrics.value("balloond_decisions_total", reason=reason.value) == 0


def test_faults_of_a_vm_are_its_own() -> None:
    counters = Counters()
    counters(Connected(WEB, 0), 0.0)
    for event in (DeviceNotForked(WEB, "EAGAIN", suppressed=4), TemplateLost("died")):
        counters(event, 0.0)
    metrics = found(StatusDesk(FULL, BARE), counters)
    assert metrics.value("balloond_vm_faults_total", vm="web", event="device-not-forked") == 5
    assert metrics.labels("balloond_vm_faults_total") == [
        {"vm": "web", "event": "device-not-forked"}
    ]
    assert metrics.value("balloond_faults_total", event="device-not-forked") == 5
    assert metrics.value("balloond_faults_total", event="template-lost") == 1


def test_own_figures_are_this_process_s() -> None:
    metrics = found(StatusDesk())
    started = metrics.value("process_start_time_seconds")
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    assert started is not None
    assert time.time() - 86_400 < started < time.time()
    assert metrics.value("process_resident_memory_bytes") == pytest.approx(resident, rel=0.2)
    assert metrics.value("process_max_fds") == os.sysconf("SC_OPEN_MAX")
    assert own_figures().started_s == own_figures().started_s


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.5", False),
        ("application/openmetrics-text;q=x", False),
        ("*/*," * 15 + "application/openmetrics-text", True),
        ("*/*," * 16 + "application/openmetrics-text", False),
        (  # Prometheus 2.42's own.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;"
            "version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
    ],
)
def test_openmetrics_is_for_those_who_ask_for_it(accept: str, *, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics


def test_names_end_as_prometheus_wants_it() -> None:
    for name, kind, text, labels in families():
        assert name.endswith("_total") == (kind == "counter"), name
        assert name.endswith("_info") == (kind == "info"), name
        assert name.startswith(("balloond_", "process_")), name
        assert text.endswith("."), name
        assert labels[:1] == ("vm",) or not name.startswith("balloond_vm_"), name


def test_page_has_the_table_of_all_metrics() -> None:
    assert written() == table()
