"""What guests report, as the policy is told it."""

from balloon_daemon.controller.reported import told_policy
from balloon_daemon.guests.seam import Stats
from balloon_daemon.records.trace import Entry, encode_entry
from balloon_daemon.records.trace_reader import Decoder
from balloon_daemon.sizing.host_events import Added
from balloon_daemon.units import GIB, VmId
from tests.harness.faults import fault

VM = VmId(1, "web")


@fault("says figures that cannot be")
def test_statistics_older_than_the_host_are_recorded_so_that_they_can_be_read() -> None:
    told = told_policy(VM, Stats(-1.8e9, available_bytes=(1 << 64) - 2))
    decoder = Decoder()
    decoder.entry(encode_entry(Entry(1.0, Added(VM, GIB))))
    assert decoder.entry(encode_entry(Entry(2.0, told))).event == told
