"""What VMMs answer in JSON: numbers in range, and nothing else."""

import json
import math

import pytest

from balloon_daemon.guests.driven.answers import (
    MAX_NESTED,
    Renewal,
    elements,
    flag,
    named_stats,
    parse,
    whole_number,
)
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.seam import Stats
from tests.harness.faults import fault


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        # JSON's text is UTF-8 (RFC 8259, 8.1); Python would load a module for these.
        "{}".encode("utf-16-be"),
        "{}".encode("utf-32-le"),
    ],
)
def test_what_is_no_json_is_nonsense(text: bytes) -> None:
    with pytest.raises(ControlError) as caught:
        parse(text)
    assert caught.value.fault is Fault.NONSENSE
    assert len(caught.value.detail) < 1000


@fault("the VMM of a driven VM hangs")
@pytest.mark.parametrize("value", [b"[]", b"{}", b"[" * 99 + b"]" * 99])
def test_answer_of_very_many_values_is_not_parsed(value: bytes) -> None:
    text = b"[" + b",".join([value] * MAX_NESTED) + b"]"
    with pytest.raises(ControlError) as caught:
        parse(text)
    assert caught.value.fault is Fault.NONSENSE


def test_answer_of_many_arrays_is_parsed() -> None:
    count = MAX_NESTED - 1  # An opening bracket for each, and one for the whole.
    assert parse(b"[" + b",".join([b"[]"] * count) + b"]") == [[]] * count


def test_answer_about_the_processors_of_a_large_vm_is_parsed() -> None:
    on_each = [{"vcpu": vcpu, "host_cpus": list(range(256))} for vcpu in range(256)]
    text = json.dumps({"affinity": on_each}, separators=(",", ":")).encode()
    assert parse(text) == {"affinity": on_each}


@fault("the VMM of a driven VM says a size")
@pytest.mark.parametrize(
    "value", [None, -1, 2**63, 101, 1.0, math.nan, math.inf, "7", True, [7], {"a": 7}]
)
def test_size_that_is_no_number_in_range_is_nonsense(value: object) -> None:
    with pytest.raises(ControlError) as caught:
        whole_number({"size": value}, "size", 100)
    assert caught.value.fault is Fault.NONSENSE


@pytest.mark.parametrize("value", [0, 7, 100])
def test_size_in_range_is_taken(value: int) -> None:
    assert whole_number({"size": value}, "size", 100) == value


@pytest.mark.parametrize("answer", [None, 7, "x", [1]])
def test_answer_that_is_no_object_is_nonsense(answer: object) -> None:
    for read in (flag, elements, whole_number):
        with pytest.raises(ControlError):
            read(answer, "name")
    with pytest.raises(ControlError):
        named_stats(answer, 0.0)


@pytest.mark.parametrize(("value", "words"), [([], "an array"), ({}, "an object")])
def test_answer_of_any_depth_has_words(value: object, words: str) -> None:
    for _ in range(100_000):
        value = [value] if isinstance(value, list) else {"x": value}
    with pytest.raises(ControlError, match=f"^nonsense: state: {words}$"):
        whole_number({"state": value}, "state")


def test_flags_and_arrays_may_be_missing_but_not_something_else() -> None:
    assert (flag({}, "a"), flag({"a": None}, "a"), flag({"a": True}, "a")) == (False, False, True)
    assert (elements({}, "a"), elements({"a": None}, "a"), elements({"a": [1]}, "a")) == (
        [],
        [],
        [1],
    )
    with pytest.raises(ControlError):
        flag({"a": 1}, "a")
    with pytest.raises(ControlError):
        elements({"a": {}}, "a")


def test_statistics_get_the_seams_names_and_those_without_sense_are_unknown() -> None:
    answer = {
        "free_memory": 5,
        "oom_kill": 1,
        "alloc_stalls": 2,
        "swap_in": 2**64 - 1,
        "swap_out": 2**64,
        "major_faults": -1,
        "minor_faults": "7",
        "total_memory": math.nan,
        "disk_caches": True,
        "unevictable_memory": 9,
    }
    assert named_stats(answer, 3.0) == Stats(3.0, free_bytes=5, oom_kills=1, alloc_stalls=2)


def test_no_statistics_are_none() -> None:
    assert named_stats({"target_pages": 0, "free_memory": None}, 3.0) is None


def test_first_statistics_and_repeated_ones_are_not_new() -> None:
    renewal = Renewal()
    assert [renewal.seen(mark) for mark in (1, 1, 2, 2, 3)] == [False, False, True, False, True]
