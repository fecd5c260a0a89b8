"""What looks at devices from outside in campaigns: it must tell a device without a filter."""

import os

import pytest

from tests.harness import jail_watch
from tests.harness.invariants import InvariantBrokenError
from tests.harness.jail_watch import JailWatch, started
from tests.harness.makers import MakeRig


@pytest.mark.parametrize(("age", "why"), [(0, "left its jail"), (1, "is in no jail")])
def test_watch_tells_a_device_that_left_its_jail_from_one_that_got_its_pid(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, age: int, why: str
) -> None:
    monkeypatch.setattr(jail_watch, "JAILED_WITHIN_S", 0.1)
    rig = make_rig(load_filter=lambda: None)
    rig.spec = rig.spec._replace(name="balloon-vm1")
    pid = rig.start_ready().pid
    watch = JailWatch()
    # Seen in its jail: this very device, or one with its pid that was started a tick before.
    watch.seen.add((pid, started(pid) - age))

    with pytest.raises(InvariantBrokenError, match=why):
        watch.look(os.getpid())
