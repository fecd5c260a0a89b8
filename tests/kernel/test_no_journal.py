"""A host without a descriptor for a guest's journal, where there is a store."""

import resource
import socket

from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.harness.faults import fault
from tests.harness.makers import StartDaemon
from tests.harness.short_host import at_rest, limit_for_room, limited
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import events, facts


@fault("no descriptor for a guest's journal (with a store)")
def test_descriptor_for_a_connection_and_none_for_its_journal_the_vmm_waits(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("--keep-fds")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.settimeout(HANG_S)
        with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), 1)):
            vmm.connect(str(daemon.config.socket))
            vmm.send(encode_request(FrontendRequest.GET_FEATURES))
            daemon.wait(lambda: bool(events(daemon, "not-accepted")), what="it says so")

        assert len(vmm.recv(64)) == 20
    assert {record["error"] for record in facts(daemon, "not-accepted")} == {"Too many open files"}
