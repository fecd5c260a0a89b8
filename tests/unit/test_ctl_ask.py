"""What ``balloonctl status``, ``explain`` and ``events`` make of the API's answers."""

import contextlib
from typing import Any

import pytest

from balloon_daemon.ctl.ask.explanation import event_line, explained
from balloon_daemon.ctl.ask.tables import status_table
from balloon_daemon.ctl.ask.wording import (
    age,
    brief_size,
    pauses,
    reclaimed,
    reserved,
    unreserved,
)
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.units import GIB, KIB, MIB
from tests.harness.api_answers import HOST, PROTECTION, WEB, status
from tests.harness.api_schemas import check

BARE = WEB | {
    "name": "db",
    "kind": "qmp",
    "memory_bytes": None,
    "balloon_bytes": 0,
    "target_bytes": None,
    "max_balloon_bytes": None,
    "level": None,
    "steps": None,
    "guest_available_bytes": None,
    "guest_free_bytes": None,
    "occupied_bytes": None,
    "returned_bytes": None,
    "protection": None,
    "last_decision": None,
    "next": None,
    "vmm_pid": None,
    "paused_s": None,
}


def test_table_has_a_line_for_each_vm_and_the_host_below() -> None:
    assert status_table(status(WEB, BARE), None) == [
        "VM   KIND        MEMORY  BALLOON  TARGET  MOST  GUEST HAS  RETURNED",
        "web  cloud-hyp.      4G     128M    160M    3G       1.5G      100M",
        "db   qmp              -        0       -     -          -         -",
        "",
        "db: its size is not known yet",
        "",
        "Host: 12 GiB available, margin 400 MiB (meminfo)",
        "Last decision: 2.5 s ago, web: low memory (10 MiB available, margin 400 MiB): balloon "
        "grows to level 5/16, 160 MiB",
        "Next: in 42 s, to give web a step back if 784 MiB is available",
        "",
        "Not driven:",
        "old: /run/old: it is held",
    ]


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_table_fits_the_terminal_whatever_a_vm_is_called(columns: int) -> None:
    long = WEB | {
        "name": "a" * 60,
        "memory_bytes": 1234 * GIB + 567 * MIB,
        "max_balloon_bytes": 1023 * GIB + 1023 * MIB,
        "guest_available_bytes": 1023 * MIB,
        "returned_bytes": 1023 * KIB,
        "trouble": "no answer " * 20,
    }
    lines = status_table(status(long, WEB), columns)
    assert max(map(len, lines)) <= columns
    assert lines[1].startswith("a" * 7)
    assert "…" in lines[1]
    assert ("a" * 60) in status_table(status(long), None)[1]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"state": "paused"}, "web: its guest stands still"),
        ({"trouble": "x\x1b[2J"}, "web: its balloon cannot be moved: x\\x1b[2J"),
        (
            {
                "protection": PROTECTION
                | {"objection": "in-need", "signs": ["swaps-in"], "left_alone_s": 59.7}
            },
            "web: the guest needs its memory (swaps-in): not asked for more for 60 s",
        ),
        (
            {"protection": PROTECTION | {"missing_bytes": 300 * MIB}},
            "web: the host has not got 300 MiB of its balloon",
        ),
    ],
)
def test_what_is_out_of_the_ordinary_is_said_below_the_table(
    change: dict[str, Any], note: str
) -> None:
    assert note in status_table(status(WEB | change), None)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"low": True, "available_mib": 10}, "Host: 10 MiB available, margin 400 MiB (meminfo); "
         "memory is LOW"),
        ({"within": "/sys/x/memory.max"}, "Host: 12 GiB available within /sys/x/memory.max, "
         "margin 400 MiB (meminfo)"),
        ({"available_mib": None, "source_error": "no MemAvailable"},
         "Host: what is available is not known (meminfo: no MemAvailable)"),
        ({"switched_off": "margin reads off"},
         "Host: low memory is switched off (margin reads off)"),
    ],
)  # fmt: skip
def test_host_is_said_as_it_is(change: dict[str, Any], line: str) -> None:
    assert line in status_table(status(WEB, host=HOST | change), None)


@pytest.mark.parametrize(
    ("vm", "lines"),
    [
        ({}, ["Next: in 42 s, to give web a step back if 784 MiB is available"]),
        ({"next": WEB["next"] | {"needed_mib": None}}, ["Next: in 42 s, to give web a step back"]),
        ({"next": WEB["next"] | {"recheck_in_s": 1.0}},
         ["Next: in 1.0 s, to see whether memory is still low"]),
        ({"next": WEB["next"] | {"release_in_s": None}}, []),
        ({"next": None}, []),
    ],
)  # fmt: skip
def test_next_step_says_what_it_is_for_whatever_timer_is_first(
    vm: dict[str, Any], lines: list[str]
) -> None:
    table = status_table(status(WEB | vm, host=HOST | {"next_timer_s": 0.1}), None)
    assert [line for line in table if line.startswith("Next:")] == lines


def test_host_without_a_vm_says_so() -> None:
    quiet = HOST | {"last_decision": None, "next_timer_s": None}
    assert status_table(status(host=quiet), None)[:3] == [
        "no VM is driven",
        "",
        "Host: 12 GiB available, margin 400 MiB (meminfo)",
    ]


def explanation(**changes: object) -> list[str]:
    event = {"event": "decided", "time": "2026-01-01T12:00:00.000+00:00", "level": "warning"}
    told = {"host": HOST, "vm": WEB | changes, "events": [event | {"message": "low", "vm": "web"}]}
    check("Explanation")(told)
    return explained(told, None)


def test_explanation_says_the_size_why_what_comes_next_and_what_led_there() -> None:
    lines = explanation()
    assert lines[:5] == [
        "web: VM of 4 GiB, balloon 128 MiB of at most 3 GiB, level 5 of 16; 160 MiB are wanted; "
        "the host has 100 MiB of it; the guest has 1.5 GiB available",
        "host: 12 GiB available, margin 400 MiB (meminfo)",
        "last decision, 2.5 s ago: low memory (10 MiB available, margin 400 MiB): balloon grows "
        "to level 5/16, 160 MiB",
        "grows: at once, if less than 400 MiB is available",
        "shrinks: by a step in 42 s, if 784 MiB is available",
    ]
    assert lines[5:7] == ["", "what led there:"]
    assert lines[7].endswith(":00 warning: low")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"level": 16}, "grows: no more, it is at its maximum"),
        ({"max_balloon_bytes": 0}, "grows: never, as this VM can have no balloon"),
        (
            {"next": WEB["next"] | {"recheck_in_s": 0.42}},
            "grows: in 0.4 s at the earliest, if less than 400 MiB is available",
        ),
        (
            {"protection": PROTECTION | {"objection": "stalled", "left_alone_s": 90.0}},
            "grows: not now, as the guest gives no more: not asked for more for 90 s",
        ),
        ({"target_bytes": 0}, "shrinks: no more, it is empty or was told to be"),
        (
            {"next": WEB["next"] | {"release_in_s": None}},
            "shrinks: no more, it is empty or was told to be",
        ),
        (
            {"next": WEB["next"] | {"needed_mib": None}},
            "shrinks: by a step in 42 s",
        ),
        (
            {"next": WEB["next"] | {"aim_mib": 600}},
            "grows: within a second, if less than 600 MiB is available, by what is missing",
        ),
        (
            {"next": WEB["next"] | {"aim_mib": 600}},
            "shrinks: once more than 784 MiB was available for a while, by what is more",
        ),
    ],
)
def test_explanation_says_what_stands_against_a_change(changes: dict[str, Any], line: str) -> None:
    assert line in explanation(**changes)


@pytest.mark.parametrize("vm", [WEB, BARE], ids=["sized", "bare"])
@pytest.mark.parametrize("key", WEB)
def test_whatever_a_server_says_of_a_vm_a_terminal_obeys_nothing_of_it(
    vm: dict[str, Any], key: str
) -> None:
    changed = vm | {key: "\x1b[2J"}
    told = {"vm": changed, "host": HOST, "events": []}
    # What raises any of these is no answer of balloond's (Client.understood).
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
        assert "\x1b" not in "".join(explained(told, None))
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):
        assert "\x1b" not in "".join(status_table(status(changed), 200))


def test_event_of_a_vm_names_it_and_one_of_the_host_none() -> None:
    event = {"time": "2026-01-01T12:34:56.789+00:00", "level": "info", "message": "a\nb"}
    assert event_line(event).endswith(":56 a\\x0ab")
    assert event_line(event | {"vm": "web"}).endswith(":56 web: a\\x0ab")


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (1023, "1023"),
        (KIB, "1K"),
        (160 * MIB, "160M"),
        (1536 * MIB, "1.5G"),
        (10 * GIB + 100 * MIB, "10.1G"),
        (1023 * GIB + 1023 * MIB, "1024G"),
    ],
)
def test_size_for_a_table_is_brief(size: int | None, shown: str) -> None:
    assert brief_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.42, "0.4 s"), (59.7, "60 s"), (200, "3 min"), (7201, "2 h")]
)
def test_time_is_as_exact_as_it_needs_be(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def test_dry_run_is_said_below_the_table() -> None:
    status: dict[str, Any] = {"host": HOST, "vms": [], "not_driven": []}
    dry = status_table(status | {"host": HOST | {"dry_run": True}}, None)
    line = "Dry run: no VM's balloon is changed"
    assert line in dry
    assert line not in status_table(status, None)


def test_end_of_a_pause_is_told_as_what_holds_now() -> None:
    # The answer does not tell whether there was a pause.
    assert pauses({"paused_s": None, "vms": []}) == ["no VM is paused now"]
    resumed = {"paused_s": None, "vms": [{"vm": "web", "paused_s": None}]}
    assert pauses(resumed) == ["web: not paused now"]


def test_pauses_stand_in_the_table_and_in_explanations() -> None:
    host = HOST | {"paused_s": 600.0}
    web = WEB | {"paused_s": 30.0}
    lines = status_table(status(web, host=host), None)
    assert "web: paused by an operator for 30 s more: nothing more is taken" in lines
    assert "All VMs: paused by an operator for 10 min more: nothing more is taken" in lines
    grows = "grows: not now, as an operator has paused it, for {} more"
    explained_web = explained({"vm": web, "host": HOST, "events": []}, None)
    assert grows.format("30 s") in explained_web
    explained_host = explained({"vm": WEB, "host": host, "events": []}, None)
    assert grows.format("10 min") in explained_host


def test_balloond_of_before_that_tells_of_no_pauses_is_shown_all_the_same() -> None:
    old_host = {key: value for key, value in HOST.items() if key != "paused_s"}
    old_vm = {key: value for key, value in WEB.items() if key != "paused_s"}
    old = {"host": old_host, "vms": [old_vm], "not_driven": []}
    assert status_table(old, None) == status_table(old | {"host": HOST, "vms": [WEB]}, None)
    told = {"vm": old_vm, "host": old_host, "events": []}
    assert explained(told, None) == explained(told | {"vm": WEB, "host": HOST}, None)


RECLAIMED: dict[str, Any] = {
    "why": "complete",
    "wanted_bytes": 96 * MIB,
    "came_bytes": 96 * MIB,
    "took_s": 2.1,
    "dry_run": False,
    "vms": [
        {
            "vm": "web",
            "asked_bytes": 96 * MIB,
            "came_bytes": 96 * MIB,
            "objection": None,
            "gone": False,
        },
        {
            "vm": "db",
            "asked_bytes": 0,
            "came_bytes": 0,
            "objection": "lower-priority-first",
            "gone": False,
        },
    ],
}


def test_reclaim_that_came_names_those_that_gave() -> None:
    check("Reclaimed")(RECLAIMED)
    assert reclaimed(RECLAIMED) == ["96 MiB came in 2.1 s", "  web: 96 MiB"]


def test_reclaim_that_came_short_says_why_of_each_vm() -> None:
    web, db = RECLAIMED["vms"]
    short = RECLAIMED | {
        "why": "nobody",
        "came_bytes": 32 * MIB,
        "vms": [
            web | {"came_bytes": 32 * MIB, "objection": "stalled"},
            db | {"objection": "in-need"},
            db | {"vm": "old", "objection": None, "gone": True, "asked_bytes": MIB},
        ],
    }
    check("Reclaimed")(short)
    assert reclaimed(short) == [
        "32 MiB of 96 MiB came in 2.1 s: no VM can give more",
        "  web: 32 MiB of 96 MiB: the guest gives no more",
        "  db: the guest needs its memory",
        "  old: 0 B of 1 MiB: it has gone",
    ]


def test_reclaim_that_goes_on_stands_below_the_table() -> None:
    going_on = {"wanted_bytes": 96 * MIB, "came_bytes": 32 * MIB, "left_s": 12.0}
    lines = status_table(status(WEB, host=HOST | {"reclaims": [going_on]}), None)
    assert "An operator wants 96 MiB from guests: 32 MiB came, 12 s are left" in lines


def test_objections_of_the_policy_have_words() -> None:
    reasons = (
        Reason.AT_MAXIMUM,
        Reason.NO_BALLOON,
        Reason.FRUITLESS,
        Reason.NO_ROOM,
        Reason.LOWER_FIRST,
        Reason.IN_NEED,
        Reason.STALLED,
        Reason.CONTESTED,
        Reason.NO_FRESH_STATS,
        Reason.NOT_RUNNING,
        Reason.PAUSED,
    )
    for reason in reasons:
        share = RECLAIMED["vms"][0] | {"asked_bytes": 0, "objection": reason.value}
        told = RECLAIMED | {"why": "nobody", "came_bytes": 0, "vms": [share]}
        assert reclaimed(told)[1] != f"  web: {reason.value}"


RESERVED: dict[str, Any] = {
    "why": "complete",
    "size_bytes": 2 * GIB,
    "took_s": 4.0,
    "left_s": 596.0,
    "available_mib": 2500,
    "needed_mib": 2448,
    "dry_run": False,
    "vms": [],
}


def test_reserve_that_is_there_and_one_that_is_not() -> None:
    check("Reserved")(RESERVED)
    figures = "(2.44 GiB available, 2.39 GiB with the margin and all reserves)"
    assert reserved(RESERVED) == [f"2 GiB reserved for 10 min {figures}"]
    db = RECLAIMED["vms"][1] | {"objection": "in-need"}
    short = RESERVED | {"why": "nobody", "available_mib": 1200, "vms": [db]}
    check("Reserved")(short)
    assert reserved(short) == [
        "2 GiB not there yet (1.17 GiB available, 2.39 GiB with the margin and all reserves): no "
        "VM can give more; reserved for 10 min more",
        "  db: the guest needs its memory",
    ]
    assert unreserved({"ended_mib": 0}) == "nothing was reserved"
    assert unreserved({"ended_mib": 2048}) == "2 GiB are not reserved any more"


def test_reserves_stand_below_the_table_and_count_in_an_explanation() -> None:
    host = HOST | {
        "reserves": [{"size_bytes": 2 * GIB, "left_s": 90.0}],
        "reserved_mib": 2048,
    }
    assert "Reserved above the margin: 2 GiB, for 90 s more" in status_table(
        status(WEB, host=host), None
    )
    told = {"vm": WEB, "host": host, "events": []}
    assert "grows: at once, if less than 2.39 GiB is available" in explained(told, None)
