"""Traces: what is written is read again, and what is read decides the same again."""

from collections.abc import Callable
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from balloon_daemon.controller.traced import TracedPolicy
from balloon_daemon.ctl.simulate.replay import replay
from balloon_daemon.ctl.simulate.world import Changes, World
from balloon_daemon.events import Event, Stepped, TraceBegun, VmFound
from balloon_daemon.records.entries import entries_of
from balloon_daemon.records.trace import (
    Decided,
    Entry,
    Header,
    Lost,
    Read,
    Trace,
    encode_entry,
    encode_header,
)
from balloon_daemon.records.trace_reader import Decoder, decode_header
from balloon_daemon.records.trace_values import TraceError
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.guard import WAITS, Lasting
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Found,
    Halted,
    Looked,
    Measured,
    Moved,
    Paused,
    Ran,
    Removed,
    Reserved,
    Resized,
    Restored,
    Resumed,
    Sampled,
    Seen,
    SettingsChanged,
    Unreserved,
    Wanted,
    Withdrawn,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, VmId

VM = VmId(1, "web")
counts = st.integers(0, 1 << 50)
maybe_counts = st.none() | counts
times = st.floats(0, 1e9)
seen = (
    st.none()
    | st.builds(NeverLow, st.text())
    | st.builds(Reading, st.integers(-9, 1 << 40), counts, st.text(), st.just(0))
)
settings = st.builds(
    VmSettings, maybe_counts, maybe_counts, st.integers(-99, 99), st.sampled_from(Profile)
)
terms = st.builds(Terms, settings, st.booleans(), st.booleans())
states = st.builds(PolicyState, st.integers(0, 16), st.none() | times, st.none() | times)
figures = st.builds(Figures, times, *[maybe_counts] * (len(Figures._fields) - 1))
vms = st.lists(st.just(VM)).map(tuple)
lasting = st.builds(
    Lasting,
    st.lists(st.tuples(st.sampled_from(WAITS), times, times), max_size=3).map(tuple),
    st.none() | times,
    st.none() | st.sampled_from(WAITS),
    st.tuples(times, times),
    counts,
)
found = st.builds(
    Found,
    st.just(VM),
    counts,
    states,
    counts,
    terms,
    counts,
    st.none() | st.sampled_from(Reason),
    st.none() | lasting,
    st.none() | times,
    st.tuples(counts, st.none() | times, counts),
)
events = st.one_of(
    st.builds(Looked, seen),
    st.builds(Woke, seen),
    st.builds(Read, seen),
    st.builds(Lost, counts),
    st.builds(Halted),
    st.builds(Added, st.just(VM), counts, counts, terms),
    st.builds(Restored, st.just(VM), counts, states, counts, terms),
    st.builds(Resized, st.just(VM), counts),
    st.builds(Moved, st.just(VM), counts),
    st.builds(Sampled, st.just(VM), figures),
    st.builds(Ran, st.just(VM), st.booleans()),
    st.builds(Measured, st.just(VM), counts),
    st.builds(Asked, st.just(VM), counts, st.none() | times),
    st.builds(SettingsChanged, st.just(VM), settings),
    st.builds(Removed, st.just(VM)),
    st.builds(Paused, vms, times),
    st.builds(Resumed, vms),
    found,
    st.builds(Wanted, counts, vms, counts, times, times),
    st.builds(Withdrawn, counts),
    st.builds(Reserved, counts, counts, times, times),
    st.builds(Unreserved),
)
entries = st.builds(
    Entry,
    times,
    events,
    st.lists(st.floats(0, 1, exclude_max=True)).map(tuple),
    st.dictionaries(st.just(VM), st.sampled_from(Reason)),
    st.lists(st.builds(Decided, st.just(VM), st.sampled_from(Reason), counts, counts)).map(tuple),
)


def error_of(decode: Callable[[bytes], object], line: bytes) -> str:
    """Why a line is refused; "" where it is not."""
    try:
        decode(line)
    except TraceError as err:
        return str(err)
    return ""


@given(entries)
def test_entry_that_is_written_is_read_again(entry: Entry) -> None:
    decoder = Decoder()
    decoder.entry(encode_entry(Entry(0.0, Added(VM, GIB))))
    read = decoder.entry(encode_entry(entry))
    assert (read, type(read.event)) == (entry, type(entry.event))


@given(st.integers(1, 1024), st.lists(st.floats(0.001, 1e6), min_size=6, max_size=6), times)
def test_header_that_is_written_is_read_again(
    steps: int, times: list[float], began: float
) -> None:
    header = Header(began, PolicySettings(steps, *times))
    assert decode_header(encode_header(header)) == header


@given(st.binary() | st.text().map(str.encode) | st.builds(encode_entry, entries))
def test_any_bytes_are_an_entry_or_a_trace_error(line: bytes) -> None:
    assert error_of(Decoder().entry, line).isprintable()
    assert error_of(decode_header, line).isprintable()


@given(entries, st.data())
def test_entry_with_another_value_is_an_entry_or_a_trace_error(
    entry: Entry, data: st.DataObject
) -> None:
    decoder = Decoder()
    decoder.entry(encode_entry(Entry(0.0, Added(VM, GIB))))
    line = encode_entry(entry).decode()
    at = data.draw(st.integers(0, len(line) - 1))
    end = data.draw(st.integers(at, len(line)))
    changed = line[:at] + data.draw(st.sampled_from(["", "-", "1e999", "[]", "null"])) + line[end:]
    assert error_of(decoder.entry, changed.encode()).isprintable()


class Host:
    """A host whose policy is traced, and whose memory follows what a test draws."""

    def __init__(self, seed: int, settings: PolicySettings) -> None:
        self.published: list[Event] = []
        self.objection: Reason | None = None
        self.now_s = 1000.0 + 1 / 3
        self.policy = TracedPolicy(
            settings,
            Random(seed).random,
            lambda vm, level: self.objection,
            self.published.append,
            lambda: self.now_s,
        )
        self.wake_at_s: float | None = None

    def step(self, event: object) -> None:
        step = self.policy.step(event, self.now_s)  # type: ignore[arg-type] # an event
        self.wake_at_s = step.wake_at_s

    def pass_time(self, seconds: float, seen: Seen) -> None:
        end_s = self.now_s + seconds
        while self.wake_at_s is not None and self.wake_at_s <= end_s:
            self.now_s = max(self.now_s, self.wake_at_s)
            self.step(Woke(seen))
        self.now_s = end_s

    def begin(self, seen: Seen) -> None:
        """Begins its trace now."""
        self.published[:] = [
            TraceBegun(self.now_s, 1, seen),
            *(VmFound(self.now_s, 1, found) for found in self.policy.found()),
        ]

    def trace(self) -> Trace:
        """The trace, written and read again."""
        decoder = Decoder()
        recorded = [entry for event in self.published for entry in entries_of(event)]
        return Trace(
            "a.trace",
            Header(0.0, PolicySettings()),
            [decoder.entry(encode_entry(entry)) for entry in recorded],
        )


acts = st.lists(
    st.tuples(
        st.sampled_from(
            ["looks", "moves", "samples", "objects", "runs", "resizes", "changes", "goes"]
        ),
        st.integers(0, 3),
        st.floats(0, 40),
        st.integers(0, 800),
    ),
    max_size=60,
)


@given(acts, st.integers(0, 9), st.lists(settings, min_size=1, max_size=3))
def test_trace_of_any_host_is_decided_the_same_again(
    acts: list[tuple[str, int, float, int]], seed: int, vms: list[VmSettings]
) -> None:
    host = Host(seed, PolicySettings())
    ids = [VmId(number, f"vm{number}") for number, _ in enumerate(vms, 1)]
    for vm, each in zip(ids, vms, strict=True):
        host.step(Added(vm, 2 * GIB, terms=Terms(each)))
    for what, number, seconds, mib in acts:
        reading = Reading(mib, 400)
        host.pass_time(seconds, reading)
        vm = ids[number % len(ids)]
        if what == "looks" or not host.policy.governs(vm):
            host.step(Looked(reading))
            continue
        careful = host.policy.guard(vm) is not None
        match what:
            case "moves" if careful:
                host.step(Moved(vm, mib * PAGE_SIZE * 256))
            case "moves":
                host.policy.note_actual(vm, mib * PAGE_SIZE * 256)
            case "samples" if careful:
                host.step(Sampled(vm, Figures(host.now_s, mib * MIB, mib * MIB, 0, 0, 0, 0)))
            case "objects":
                host.objection = None if host.objection else Reason.NO_ROOM
            case "runs" if careful:
                host.step(Ran(vm, runs=mib > 200))
            case "resizes":
                host.step(Resized(vm, (mib + 1) * 4 * MIB))
            case "changes":
                host.step(SettingsChanged(vm, VmSettings(ceiling_bytes=mib * MIB)))
            case "goes":
                host.step(Removed(vm))
    replayed = replay(host.trace())
    assert replayed.first_other is None
    assert replayed.recorded == sum(
        len(event.decisions) for event in host.published if isinstance(event, Stepped)
    )
    # The model goes through the same time, and takes no more than may be taken.
    modelled = World(host.trace(), Changes(PolicySettings(recheck_s=3.0)), lambda: 0.5).run()
    assert abs(modelled.seconds - replayed.sums.seconds) < 0.001
    assert modelled.peak_bytes <= len(vms) * 4 * GIB


@given(acts, st.integers(0, 9), st.integers(1, 3), st.integers(0, 59))
@example([("looks", 0, 0.0, 0), ("looks", 0, 2.0, 400), ("looks", 0, 0.0, 0)], 0, 2, 2)
def test_trace_that_begins_at_any_moment_is_decided_the_same_again(
    acts: list[tuple[str, int, float, int]], seed: int, vms: int, begins: int
) -> None:
    host = Host(seed, PolicySettings())
    for number in range(1, vms + 1):
        host.step(Added(VmId(number, f"vm{number}"), 2 * GIB))
    for at, (what, number, seconds, mib) in enumerate(acts):
        reading = Reading(mib, 400)
        if at == begins:
            host.begin(reading)
        host.pass_time(seconds, reading)
        vm = VmId(number % vms + 1, f"vm{number % vms + 1}")
        if what == "objects":
            host.objection = None if host.objection else Reason.NO_ROOM
        elif what == "resizes":
            host.step(Resized(vm, (mib + 1) * 4 * MIB))
        else:
            host.policy.note_actual(vm, mib * PAGE_SIZE * 256)
            host.step(Looked(reading))
    replayed = replay(host.trace())
    assert replayed.first_other is None
    assert replayed.midway is (begins < len(acts))


def test_guest_that_is_left_alone_is_so_where_a_trace_begins() -> None:
    host = Host(0, PolicySettings())
    host.step(Added(VM, 2 * GIB, terms=Terms(VmSettings(profile=Profile.CAREFUL))))
    low, little = Reading(1, 400), 50 * MIB
    host.step(Looked(low))
    host.step(Sampled(VM, Figures(host.now_s, little, little, 0, 0, 0, 0)))
    host.pass_time(20.0, Reading(9999, 400))
    host.step(Sampled(VM, Figures(host.now_s, GIB, GIB, 0, 0, 0, 0)))
    host.pass_time(3.0, Reading(9999, 400))

    host.begin(low)
    for _ in range(60):
        host.step(Sampled(VM, Figures(host.now_s, GIB, GIB, 0, 0, 0, 0)))
        host.step(Looked(low))
        host.pass_time(1.0, low)
    trace = host.trace()
    reasons = {decided.reason for entry in trace.entries for decided in entry.decided}
    # Both what forbids a squeeze, and the squeeze after it.
    assert {Reason.IN_NEED, Reason.LOW_MEMORY} <= reasons
    assert replay(trace).first_other is None
    found = trace.entries[1].event
    assert isinstance(found, Found)
    assert found.lasting is not None
    trace.entries[1] = trace.entries[1]._replace(
        event=found._replace(lasting=found.lasting._replace(waits=(), need_seen_s=None))
    )
    assert replay(trace).first_other is not None


def test_other_decision_is_found_with_its_line() -> None:
    host = Host(0, PolicySettings())
    host.step(Added(VM, 2 * GIB))
    host.step(Looked(Reading(1, 400)))
    trace = host.trace()
    wrong = trace.entries[1].decided[0]._replace(target_bytes=1)
    trace.entries[1] = trace.entries[1]._replace(decided=(wrong,))
    assert replay(trace).first_other == 3


def test_traced_policy_decides_as_every_other() -> None:
    def steps(policy: HostPolicy) -> list[object]:
        policy.step(Added(VM, 2 * GIB), 0.0)
        return [policy.step(Woke(Reading(1, 400)), float(now)) for now in range(20)]

    numbers, draws = PolicySettings(), [Random(1).random for _ in range(2)]
    plain = HostPolicy(numbers, draws[0], lambda vm, level: None)
    traced = TracedPolicy(numbers, draws[1], lambda vm, level: None, lambda event: None, float)
    assert steps(plain) == steps(traced)
