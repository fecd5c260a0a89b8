"""What libvirt's client says: decoded where it has the right types and ranges, else refused."""

import json

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.libvirt import wire
from balloon_daemon.guests.libvirt.wire import Answer, Died, Domain, Event, Figures, Happened
from balloon_daemon.guests.seam import GuestState, Stats
from balloon_daemon.units import GIB, KIB, MIB

FIGURES: dict[str, object] = {
    "size_kib": GIB // KIB,
    "state": 1,
    "stats": {"actual": 768 * MIB // KIB, "last_update": 1795823016, "usable": 1024},
    "age_ms": 250,
    "read_bytes": None,
    "apart_kib": 0,
    "balloon": True,
    "deflate_on_oom": False,
    "disks": True,
    "period_s": 0,
    "hugetlb": False,
    "pinned": False,
    "reason": 1,
}


def decoded(**changes: object) -> Figures:
    return wire.decode_figures(FIGURES | changes)


def fault_of(**changes: object) -> Fault:
    with pytest.raises(ControlError) as caught:
        decoded(**changes)
    return caught.value.fault


def test_memory_apart_from_the_balloon_is_passed_on() -> None:
    assert decoded(apart_kib=1024).apart_bytes == MIB
    assert fault_of(apart_kib=-1) is Fault.NONSENSE


def test_figures_are_decoded() -> None:
    found = decoded()
    assert (found.vm_mem_bytes, found.actual_bytes) == (GIB, 768 * MIB)
    assert (found.state, found.age_s, found.against) == (GuestState.RUNNING, 0.25, None)
    assert found.stats == Stats(0.0, available_bytes=MIB)
    assert not found.counts_disk_reads


@pytest.mark.parametrize(
    ("state", "reason", "restored"),
    [
        (1, 1, False),
        (1, 3, True),
        (1, 4, True),
        # Paused: the same numbers are other reasons.
        (3, 3, False),
    ],
)
def test_domain_that_was_restored_is_told(state: int, reason: int, restored: bool) -> None:
    assert decoded(state=state, reason=reason).restored is restored


def test_statistics_are_in_bytes_where_libvirt_has_kib() -> None:
    stats = {
        "last_update": 1,
        **{name: 3 for name in ("available", "unused", "usable", "disk_caches")},
        **{name: 3 for name in ("swap_in", "swap_out", "major_fault", "minor_fault")},
        **{name: 3 for name in ("hugetlb_pgalloc", "hugetlb_pgfail")},
    }
    kib = 3 * KIB
    assert decoded(stats=stats, read_bytes=7).stats == Stats(
        0.0,
        total_bytes=kib,
        free_bytes=kib,
        available_bytes=kib,
        caches_bytes=kib,
        swap_in_bytes=kib,
        swap_out_bytes=kib,
        major_faults=3,
        minor_faults=3,
        hugetlb_allocations=3,
        hugetlb_failures=3,
        disk_read_bytes=7,
    )


def test_domain_that_ends_meanwhile_has_a_balloon_of_unknown_size() -> None:
    # libvirt says {'rss': 0} then, and no error.
    found = decoded(stats={})
    assert (found.actual_bytes, found.stats) == (None, None)


def test_statistics_without_a_time_are_none() -> None:
    # No driver listens: there is a size, and nothing else is true.
    assert decoded(stats={"actual": 1, "last_update": 0}).stats is None
    assert decoded(stats={"actual": 1}).updated_s == 0


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (1, GuestState.RUNNING),
        (2, GuestState.RUNNING),  # blocked
        (3, GuestState.PAUSED),
        (4, GuestState.RUNNING),  # being shut down
        (6, GuestState.PAUSED),  # crashed, and preserved
        (7, GuestState.PAUSED),  # suspended by the guest
    ],
)
def test_states_of_libvirt_are_told_apart(state: int, found: GuestState) -> None:
    assert decoded(state=state).state is found


@pytest.mark.parametrize("state", [0, 5])
def test_domain_that_does_not_run_is_gone(state: int) -> None:
    assert fault_of(state=state) is Fault.GONE


@pytest.mark.parametrize(
    ("flag", "fault"),
    [("balloon", Fault.NO_BALLOON), ("hugetlb", Fault.HUGETLB), ("pinned", Fault.PINNED)],
)
def test_domain_with_a_useless_balloon_is_told(flag: str, fault: Fault) -> None:
    assert decoded(**{flag: flag != "balloon"}).against is fault


@pytest.mark.parametrize(
    "changes",
    [
        {"size_kib": 0},
        {"size_kib": -1},
        {"size_kib": 2**63},
        {"size_kib": 1.5},
        {"size_kib": "1048576"},
        {"size_kib": True},
        {"size_kib": None},
        {"state": 999},
        {"state": [1]},
        {"stats": None},
        {"stats": [1]},
        {"stats": {"actual": -1}},
        {"stats": {"actual": 2**63}},
        {"stats": {"actual": float("nan")}},
        {"stats": {"last_update": 1, "usable": "much"}},
        {"stats": {"last_update": 1, "usable": -1}},
        {"stats": {"last_update": float("inf")}},
        {"age_ms": None},
        {"age_ms": 2**80},
        {"read_bytes": -1},
        {"balloon": 1},
        {"pinned": None},
        {"period_s": -1},
        {"reason": True},
    ],
)
def test_figure_of_a_wrong_type_or_out_of_range_is_nonsense(changes: dict[str, object]) -> None:
    assert fault_of(**changes) is Fault.NONSENSE


@pytest.mark.parametrize("content", [None, [], "x", 3])
def test_content_that_is_no_object_is_nonsense(content: object) -> None:
    with pytest.raises(ControlError, match="nonsense"):
        wire.decode_figures(content)
    with pytest.raises(ControlError, match="nonsense"):
        wire.decode_uuid(content)


def test_call_is_one_line() -> None:
    line = wire.encode_call(3, "open", {"name": "a\nb ü\udcff"})
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"id": 3, "do": "open", "name": "a\nb ü\udcff"}


def test_lines_are_told_apart() -> None:
    assert wire.decode_line(b'{"id": 1, "ok": {"a": 2}}\n') == Answer(1, {"a": 2})
    happened = b'{"event": "reset", "name": "web", "uuid": "u"}'
    assert wire.decode_line(happened) == Happened(Event.RESET, Domain("web", "u"))
    died = b'{"error": "nonsense", "detail": "KeyError: 1"}'
    assert wire.decode_line(died) == Died("KeyError: 1")


def test_fault_comes_with_words_that_are_safe_to_show() -> None:
    said = {"id": 1, "error": "refused", "detail": "no\x1b[2J\n" + "x" * 9000}
    answer = wire.decode_line(json.dumps(said).encode())
    assert isinstance(answer, Answer)
    error = answer.content
    assert isinstance(error, ControlError)
    assert error.fault is Fault.REFUSED
    assert error.detail.startswith("no\\x1b[2J\\x0a")
    assert len(error.detail) < 400


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\n",
        '{"id": 1, "ok": 1}'.encode("utf-16-be"),
        b"[" * 100_000,
        b"3",
        b"null",
        b"{}",
        b'{"id": "1", "ok": 1}',
        b'{"id": 1, "error": "unheard-of", "detail": ""}',
        b'{"id": 1, "error": "refused"}',
        b'{"event": "unheard-of", "name": "web", "uuid": "u"}',
        b'{"event": "reset", "name": 1, "uuid": "u"}',
    ],
)
def test_other_lines_are_nonsense(line: bytes) -> None:
    with pytest.raises(ControlError, match="nonsense"):
        wire.decode_line(line)


def test_domains_are_decoded_but_those_with_names_too_long_to_show() -> None:
    content = [["web", "u1"], ["", "u2"], ["x" * 257, "u3"]]
    assert wire.decode_domains(content) == [Domain("web", "u1")]


@pytest.mark.parametrize("content", [None, {}, [["web"]], [["web", 1]], ["web"], [[]]])
def test_other_lists_of_domains_are_nonsense(content: object) -> None:
    with pytest.raises(ControlError, match="nonsense"):
        wire.decode_domains(content)
