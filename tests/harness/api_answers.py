"""Answers of the API, as tests of balloonctl need them."""

from typing import Any

from balloon_daemon.units import GIB, MIB
from tests.harness.api_schemas import check

DECISION = {
    "vm": "web",
    "reason": "low-memory",
    "balloon_level": 5,
    "target_bytes": 160 * MIB,
    "message": "low memory (10 MiB available, margin 400 MiB): balloon grows to level 5/16, "
    "160 MiB",
    "age_s": 2.5,
}
HOST: dict[str, Any] = {
    "available_mib": 12 * 1024,
    "margin_mib": 400,
    "within": None,
    "low": False,
    "source": "meminfo",
    "switched_off": None,
    "source_error": None,
    "age_s": 0.1,
    "last_decision": DECISION,
    "next_timer_s": 13.2,
    "listens": True,
    "dry_run": False,
    "paused_s": None,
    "reclaims": [],
    "reserves": [],
    "reserved_mib": 0,
}
PROTECTION: dict[str, Any] = {
    "objection": None,
    "signs": [],
    "left_alone_s": 0.0,
    "stats_age_s": 0.5,
    "missing_bytes": 0,
}
WEB: dict[str, Any] = {
    "name": "web",
    "key": "#7",
    "kind": "cloud_hypervisor",
    "profile": "careful",
    "priority": 0,
    "floor_bytes": None,
    "ceiling_bytes": None,
    "state": "running",
    "memory_bytes": 4 * GIB,
    "balloon_bytes": 128 * MIB,
    "target_bytes": 160 * MIB,
    "max_balloon_bytes": 3 * GIB,
    "level": 5,
    "steps": 16,
    "guest_available_bytes": 1536 * MIB,
    "guest_free_bytes": 1024 * MIB,
    "occupied_bytes": 4 * GIB - 100 * MIB,
    "returned_bytes": 100 * MIB,
    "trouble": None,
    "protection": PROTECTION,
    "last_decision": DECISION,
    "next": {"recheck_in_s": None, "release_in_s": 42.0, "needed_mib": 784},
    "vmm_pid": 4711,
    "paused_s": None,
}
OLD = {"name": "old", "address": "/run/old", "fault": "held", "why": "old: /run/old: it is held"}


def status(*vms: dict[str, Any], host: dict[str, Any] = HOST) -> dict[str, Any]:
    made = {"host": host, "vms": list(vms), "not_driven": [OLD]}
    check("Status")(made)
    return made
