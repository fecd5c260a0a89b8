"""The controller's end: whose memory was not given back."""

import asyncio

import pytest

from balloon_daemon.controller.ending import give_back
from balloon_daemon.controller.vm import Vm
from balloon_daemon.events import Event, MemoryNotGivenBack, NotGivenBack
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import MIB, VmId
from tests.fakes.plain_guest import PlainGuest
from tests.fakes.quick_loop import run_quickly
from tests.harness.faults import fault

VM = VmId(1, "vm1")
KEPT = frozenset({Ability.KEPT_BY_VMM})
LATE: list[Event] = [NotGivenBack(VM, MIB), MemoryNotGivenBack(1)]


class Waiting(PlainGuest):
    """A guest that never says that it has its memory back."""

    async def give_back(self) -> None:
        await asyncio.Event().wait()


@fault("balloond ends while a driven guest stands still")
@pytest.mark.parametrize(
    ("guest_type", "can", "state", "published"),
    [
        (PlainGuest, KEPT, GuestState.RUNNING, LATE),
        (PlainGuest, KEPT, GuestState.PAUSED, []),
        (PlainGuest, KEPT, GuestState.NO_DRIVER, []),
        (PlainGuest, frozenset(), GuestState.PAUSED, LATE),
        (Waiting, KEPT, GuestState.RUNNING, LATE),
        (Waiting, KEPT, GuestState.PAUSED, LATE),
    ],
)
def test_guest_is_late_unless_it_was_told_and_cannot_move(
    guest_type: type[PlainGuest],
    can: frozenset[Ability],
    state: GuestState,
    published: list[Event],
) -> None:
    events: list[Event] = []

    async def run() -> None:
        guest = guest_type(VM, [], lambda vm, report: None)
        vm = Vm(guest, can=can, balloon_bytes=MIB, state=state)
        await give_back([vm], asyncio.get_running_loop().create_future(), events.append)

    run_quickly(run())
    assert events == published
