"""dashboards/: each metric, label and value that an expression names is one that balloond has, and
each key of the dashboard is one that Grafana's schema has at that place.

tests/vm/test_prometheus.py asks a real Prometheus all of the dashboard's queries.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.cog.runtime import panelcfg_config
from grafana_foundation_sdk.models.dashboard import Dashboard

from balloon_daemon.api.metrics import families
from balloon_daemon.events import Fault
from balloon_daemon.guests.seam import GuestState
from balloon_daemon.sizing.decision import Reason

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "dashboards/balloond.json"
ALERTS = ROOT / "dashboards/alerts.yml"
ALERT_TESTS = ROOT / "tests/data/alerts_test.yml"

LABELS = {family.name: {*family.labels, "instance", "job"} for family in families()}
"""The labels of each metric, with those that Prometheus adds."""
LABELS["up"] = {"instance", "job"}

VALUES = {
    "fault": {fault.value for fault in Fault},
    "state": {state.value for state in GuestState},
    "reason": {reason.value for reason in Reason},
}
"""All values of labels of which there is a closed set."""

_METRIC = re.compile(r"\b(up|(?:balloond|process)_\w+)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


def mistakes(expression: str, legend: str = "") -> Iterator[str]:
    """What an expression, or the legend of its series, names and balloond has not."""
    known = set[str]()
    for name, matchers in _METRIC.findall(expression):
        labels = LABELS.get(name)
        if labels is None:
            yield f"there is no metric {name}"
            continue
        known |= labels
        for label, value in _MATCHER.findall(matchers):
            if label not in labels:
                yield f"{name} has no label {label}"
            for one in value.split("|"):
                if label in VALUES and one not in VALUES[label]:
                    yield f"{label} is never {one}"
    if not known:
        yield f"there is no metric in {expression}"
    for named in re.findall(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)", expression):
        for label in filter(None, re.split(r"[ ,]+", named)):
            if label not in known:
                yield f"no metric of {expression} has a label {label}"
    for label in re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend):
        if label not in known:
            yield f"the legend names {label}, which no metric of {expression} has"


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(ALERTS.read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    ("expression", "legend"),
    [
        ("balloond_vm_size", ""),
        ('balloond_vm_size_bytes{name="web"}', ""),
        ('balloond_vm_not_driven{fault!~"not-there|gone-home"}', ""),
        ("sum by (event) (balloond_decisions_total)", ""),
        ("balloond_decisions_total", "{{vm}}"),
        ("1 + 1", ""),
    ],
)
def test_mistake_in_an_expression_is_found(expression: str, legend: str) -> None:
    assert list(mistakes(expression, legend)) != []


def test_dashboard_names_what_balloond_has() -> None:
    panels = dashboard()["panels"]
    targets = [target for panel in panels for target in panel.get("targets", [])]
    assert len(targets) > 20
    for target in targets:
        assert list(mistakes(target["expr"], target["legendFormat"])) == []
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert found is not None
            metric, label = found.groups()
            assert list(mistakes(metric, f"{{{{{label}}}}}")) == []


def unknown(shown: object, read: object, place: str = "") -> Iterator[str]:
    """The places of a dashboard that its reader has dropped."""
    if isinstance(shown, dict) and isinstance(read, dict):
        for key, value in shown.items():
            if key in read:
                yield from unknown(value, read[key], f"{place}/{key}")
            else:
                yield f"{place}/{key}"
    elif isinstance(shown, list) and isinstance(read, list):
        assert len(shown) == len(read), place
        for number, (before, after) in enumerate(zip(shown, read, strict=True)):
            yield from unknown(before, after, f"{place}/{number}")
    else:
        assert shown == read, place


def read_by_schema(shown: dict[str, Any]) -> Any:
    """The dashboard as the classes read it that are made of the schema of Grafana 11.6: without
    what that schema does not have."""
    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(shown))))


def test_dashboard_has_only_keys_that_grafana_has_at_their_places() -> None:
    shown = dashboard()
    # The schema leaves `definition` out, which Grafana itself writes for each variable of a query.
    places = [f"/templating/list/{number}/definition" for number in (1, 2, 3)]
    assert list(unknown(shown, read_by_schema(shown))) == places
    for panel in shown["panels"]:
        assert panel["type"] == "row" or panelcfg_config(panel["type"]) is not None


@pytest.mark.parametrize(
    ("misplace", "place"),
    [
        (lambda panel: panel["options"].update(legends={}), "/options/legends"),
        (lambda panel: panel["targets"][0].update(legend="x"), "/targets/0/legend"),
        (
            lambda panel: panel["fieldConfig"]["defaults"]["custom"].update(linewidth=1),
            "/fieldConfig/defaults/custom/linewidth",
        ),
    ],
)
def test_key_that_grafana_has_not_is_found(
    misplace: Callable[[dict[str, Any]], None], place: str
) -> None:
    shown = dashboard()
    misplace(shown["panels"][1])
    assert f"/panels/1{place}" in list(unknown(shown, read_by_schema(shown)))


def test_dashboard_has_a_row_for_the_host_and_one_for_each_vm() -> None:
    panels = dashboard()["panels"]
    rows = [(panel["title"], panel.get("repeat")) for panel in panels if panel["type"] == "row"]
    assert rows == [("Host $instance", None), ("VM $vm", "vm"), ("balloond itself", None)]
    ids = [panel["id"] for panel in panels]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(panels)))
    assert used == variables


def test_row_of_a_vm_shows_target_balloon_what_the_host_has_and_the_reason() -> None:
    panels = dashboard()["panels"]
    (begin,) = [number for number, panel in enumerate(panels) if panel.get("repeat") == "vm"]
    shown = " ".join(
        target["expr"] for panel in panels[begin + 1 : begin + 5] for target in panel["targets"]
    )
    for name in ("target_bytes", "balloon_bytes", "host_freed_bytes", "last_decision"):
        assert f"balloond_vm_{name}{{" in shown


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken = dict[tuple[int, int], str]()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_alerts_name_what_balloond_has() -> None:
    for rule in rules():
        said = " ".join(rule["annotations"].values())
        assert list(mistakes(rule["expr"], said)) == [], rule["alert"]
        assert rule["for"], rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = [
        one
        for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in rules()}
    assert {one["alertname"] for one in tests if one["exp_alerts"]} == names
    assert {one["alertname"] for one in tests if not one["exp_alerts"]} == names
