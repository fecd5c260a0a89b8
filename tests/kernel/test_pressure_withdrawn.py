"""A PSI trigger that the kernel takes back: the alarm must neither spin nor be gone for ever."""

import asyncio
from io import FileIO

import pytest

from balloon_daemon.events import Event, SourceTrouble
from balloon_daemon.host import memory_alarm
from balloon_daemon.host.low_memory import PRESSURE_FILE, MeminfoLowMemory
from balloon_daemon.host.watch import MemoryWatch
from tests.harness.faults import fault
from tests.harness.needs import needs_pressure


class WithoutTrigger(FileIO):
    """A pressure file that was given no trigger reports EPOLLERR for ever."""

    def write(self, content: object) -> int:
        return 0


def wakeups(source: MeminfoLowMemory, published: list[Event]) -> int:
    """How often a loop is woken that watches a source for a hundred turns."""

    async def watch_it() -> None:
        watch = MemoryWatch(source, 3600.0, published.append, asyncio.get_running_loop())
        watch.read()
        watch.listen(lambda _: None)
        for _ in range(100):  # each one a turn of the loop, with a select of its own
            await asyncio.sleep(0)
        watch.rest()

    before = source.statistics().wakeups
    asyncio.run(watch_it())
    return source.statistics().wakeups - before


@fault("kernel takes its PSI trigger back")
@needs_pressure
def test_pressure_trigger_that_is_withdrawn_wakes_once_and_is_asked_for_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    published: list[Event] = []
    monkeypatch.setattr(memory_alarm, "monotonic", lambda: now)

    with monkeypatch.context() as withdrawn:
        withdrawn.setattr(memory_alarm, "FileIO", WithoutTrigger)
        source = MeminfoLowMemory()
        assert wakeups(source, published) == 1
        assert source.wait_fd() is None
        # No sooner than a minute later, however often the figures are read.
        now += memory_alarm.TRIGGER_AGAIN_S - 1
        assert wakeups(source, published) == 0
        now += 1
        assert wakeups(source, published) == 1
        assert source.wait_fd() is None
    now += memory_alarm.TRIGGER_AGAIN_S
    source.read()

    gone = f"{PRESSURE_FILE}: the kernel withdrew the trigger"
    back = f"{PRESSURE_FILE}: it is back, waiting for it again"
    assert source.wait_fd() is not None
    assert source.take_notice() == SourceTrouble(back)
    assert published == [SourceTrouble(what) for what in (gone, back, gone)]
    source.close()
